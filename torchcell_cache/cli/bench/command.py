"""``torchcell-cache bench``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torchcell_cache.cli.bench.report import advice, as_text, investment
from torchcell_cache.cli.bench.store import BenchReport, bench_store
from torchcell_cache.cli.commands import Said
from torchcell_cache.core.urls import local_path
from torchcell_cache.data.looks import new_figure, write_figure


def bench(*, root: str, plot: str | None = None, progress: bool = True, **settings: Any) -> Said:
    """Where the time of a batch goes, how many workers to use, whether the cache helps.

    Cold and warm, stage by stage.

    Args:
        plot: Image file of the timings (needs matplotlib).
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
    text = as_text(report)
    if path is not None:
        _draw(report, path)
        text += f"\n\nplot written to {plot}"
    facts = asdict(report)
    return text, {**facts.pop("facts"), **facts, "investment": investment(report), "advice": advice(report)}


@contextlib.contextmanager
def _line(enabled: bool) -> Iterator[Callable[[str], None]]:
    """What is being measured: one line that changes on a terminal, the lines one after the other elsewhere."""
    begin, end = ("\r\x1b[K", "") if sys.stderr.isatty() else ("", "\n")

    def say(text: str) -> None:
        if enabled:
            print(f"{begin}{text}", file=sys.stderr, end=end, flush=True)

    try:
        yield lambda text: say(f"bench: {text}")
    finally:
        if begin:
            say("")


def _draw(report: BenchReport, path: Path) -> None:
    """Draw the stages and the loader's waits into an image file."""
    figure = new_figure(path, (10.0, 3.8))
    name, step, size = Path(report.facts["root"]).name, report.facts["step_ms"], report.facts["batch_size"]
    figure.suptitle(f"{name}, batches of {size}, {report.facts['device']}")
    stages, workers = figure.subplots(1, 2)

    names = list(report.stages)
    middle, high = (
        [times[f"p{q}_ms"] * size / times["samples"] for times in report.stages.values()] for q in (50, 99)
    )
    stages.barh(names, middle)
    stages.scatter(high, names, marker="|", color="black", label="p99")
    stages.set_xscale("log")
    stages.xaxis.set_major_formatter("{x:g}")
    stages.invert_yaxis()
    stages.set_xlabel("ms per batch, median")

    labels = [str(row["num_workers"]) for row in report.workers]
    for q, style in ((50, "-o"), (90, "--o"), (99, ":o")):
        workers.plot(
            labels, [row["wait"][f"p{q}_ms"] for row in report.workers], style, label=f"p{q}, no step"
        )
    if step is not None:
        waits = [row["step_wait"]["p50_ms"] for row in report.workers]
        workers.plot(labels, waits, "-s", label="p50 beside your step")
        yours: dict[str, Any] = {"linestyle": "--", "color": "gray", "label": f"your step, {step:g} ms"}
        stages.axvline(step, **yours)
        workers.axhline(step, **yours)
    workers.set_yscale("log")
    workers.yaxis.set_major_formatter("{x:g}")
    workers.set_xlabel("workers")
    workers.set_ylabel("wait for a batch, ms")
    for axes in (stages, workers):  # the legend above the picture, where no bar is
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize="small", frameon=False)
    write_figure(figure, path)
