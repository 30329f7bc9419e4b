"""``torchcell-cache bench``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torchcell_cache.cli.bench.report import as_dict, as_text
from torchcell_cache.cli.bench.store import BenchReport, bench_store
from torchcell_cache.cli.figures import new_figure, write_figure
from torchcell_cache.cli.settings import Settings
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import EXIT_OK

_PASSED = (
    "batch_size",
    "num_batches",
    "workers",
    "step_ms",
    "cold",
    "device",
    "exclude_keys",
    "seconds",
    "seed",
)


def run(settings: Settings) -> int:
    """Measure the store, print tables and advice."""
    path = None if settings["plot"] is None else local_path(settings["plot"], "plot")
    if path is not None:
        new_figure(path, (1, 1))  # before any work: matplotlib may be missing
    progress = _Line(settings["progress"])
    try:
        report = bench_store(settings["root"], **{key: settings[key] for key in _PASSED}, note=progress)
    finally:
        progress.close()
    if path is not None:
        save_plot(report, path)
    print(json.dumps(as_dict(report), indent=1) if settings["json"] else as_text(report))
    if path is not None and not settings["json"]:
        print(f"\nplot written to {settings['plot']}")
    return EXIT_OK


class _Line:
    """What is being measured: one line that changes on a terminal, the lines one after the other elsewhere."""

    def __init__(self, enabled: bool) -> None:
        self.enabled, self.same = enabled, sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        if self.enabled:
            print(
                f"\r\x1b[Kbench: {text}" if self.same else f"bench: {text}",
                file=sys.stderr,
                end=self._end,
                flush=True,
            )

    @property
    def _end(self) -> str:
        return "" if self.same else "\n"

    def close(self) -> None:
        if self.enabled and self.same:
            print("\r\x1b[K", file=sys.stderr, end="", flush=True)


def save_plot(report: BenchReport, path: Path) -> None:
    """Draw the stages and the loader's waits into an image file."""
    figure = new_figure(path, (10.0, 3.8))
    figure.suptitle(f"{report.facts['root']}, batches of {report.batch_size}, {report.facts['device']}")
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
    axes.invert_yaxis()
    axes.set_xlabel("ms per batch, median")
    axes.legend()
    if report.step_ms is not None:
        axes.axvline(report.step_ms, linestyle="--", color="gray")


def _draw_workers(axes: Any, report: BenchReport) -> None:
    labels = [str(row.num_workers) for row in report.sweep]
    for q, style in ((50, "-o"), (90, "--o"), (99, ":o")):
        axes.plot(labels, [row.wait.percentile(q) for row in report.sweep], style, label=f"p{q}, no step")
    if report.step_ms is not None:
        waits = [row.step_wait.percentile(50) for row in report.sweep if row.step_wait is not None]
        axes.plot(labels, waits, "-s", label=f"p50 beside a {report.step_ms:g} ms step")
    axes.set_yscale("log")
    axes.set_xlabel("workers")
    axes.set_ylabel("wait for a batch, ms")
    axes.legend()
