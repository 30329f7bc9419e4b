"""``torchcell-cache bench``."""

from __future__ import annotations

import contextlib
import json as json_
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torchcell_cache.cli.bench.report import as_dict, as_text
from torchcell_cache.cli.bench.store import BenchReport, bench_store
from torchcell_cache.core.urls import local_path
from torchcell_cache.data.looks import new_figure, write_figure


def bench(
    *, root: str, plot: str | None = None, json: bool = False, progress: bool = True, **settings: Any
) -> None:
    """Where the time of a batch goes, how many workers to use, whether the cache helps.

    Cold and warm, stage by stage.

    Args:
        plot: Image file of the timings (needs matplotlib).
        json: Print everything as JSON.
        progress: Print progress.

    Example:
        torchcell-cache bench root=demo/ecoli
        torchcell-cache bench root=demo/ecoli step_ms=85 plot=bench.png
    """
    path = None if plot is None else local_path(plot, "plot")
    if path is not None:
        new_figure(path, (1, 1))  # before any work: matplotlib may be missing
    with _line(progress) as on_progress:
        report = bench_store(root, **settings, on_progress=on_progress)
    if path is not None:
        save_plot(report, path)
    print(json_.dumps(as_dict(report), indent=1) if json else as_text(report))
    if path is not None and not json:
        print(f"\nplot written to {plot}")


@contextlib.contextmanager
def _line(enabled: bool) -> Iterator[Callable[[str], None]]:
    """What is being measured: one line that changes on a terminal, the lines one after the other elsewhere."""
    begin, end = ("\r\x1b[K", "") if sys.stderr.isatty() else ("", "\n")

    def say(text: str) -> None:
        if enabled:
            print(text, file=sys.stderr, end=end, flush=True)

    try:
        yield lambda text: say(f"{begin}bench: {text}")
    finally:
        if begin:
            say(begin)


def save_plot(report: BenchReport, path: Path) -> None:
    """Draw the stages and the loader's waits into an image file."""
    figure = new_figure(path, (10.0, 3.8))
    figure.suptitle(
        f"{Path(report.facts['root']).name}, batches of {report.batch_size}, {report.facts['device']}"
    )
    left, right = figure.subplots(1, 2)
    _draw_stages(left, report)
    _draw_workers(right, report)
    write_figure(figure, path)


def _draw_stages(axes: Any, report: BenchReport) -> None:
    names = list(report.stages)
    scale = [report.batch_size / report.stages[name].samples for name in names]
    middle, high = (
        [report.stages[name].percentile(q) * k for name, k in zip(names, scale, strict=True)]
        for q in (50, 99)
    )
    axes.barh(names, middle)
    axes.scatter(high, names, marker="|", color="black", label="p99")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.invert_yaxis()
    axes.set_xlabel("ms per batch, median")
    if report.step_ms is not None:
        axes.axvline(report.step_ms, linestyle="--", color="gray", label=f"your step, {report.step_ms:g} ms")
    _legend(axes)


def _draw_workers(axes: Any, report: BenchReport) -> None:
    labels = [str(row.num_workers) for row in report.sweep]
    for q, style in ((50, "-o"), (90, "--o"), (99, ":o")):
        axes.plot(labels, [row.wait.percentile(q) for row in report.sweep], style, label=f"p{q}, no step")
    if report.step_ms is not None:
        waits = [row.step_wait.percentile(50) for row in report.sweep if row.step_wait is not None]
        axes.plot(labels, waits, "-s", label="p50 beside your step")
        axes.axhline(report.step_ms, linestyle="--", color="gray", label=f"your step, {report.step_ms:g} ms")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("workers")
    axes.set_ylabel("wait for a batch, ms")
    _legend(axes)


def _legend(axes: Any) -> None:
    """Above the picture, where no bar is."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize="small", frameon=False)
