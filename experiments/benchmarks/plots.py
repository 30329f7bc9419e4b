"""Figures of a run: ``python -m experiments.benchmarks.plots results.json docs/img``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from experiments.benchmarks.bench_loader import STRETCH, WORKERS
from experiments.benchmarks.bench_readers import READERS
from experiments.benchmarks.report import FLOOR, OURS, SCHEME

COLOURS = {OURS: "#1b7837", SCHEME: "#b2182b", FLOOR: "#999999"}
PEER_COLOURS = ("#2166ac", "#e08214", "#542788", "#35978f")
Rows = dict[str, dict[str, Any]]


def draw_all(rows: list[dict[str, Any]], directory: Path) -> list[Path]:
    """Draws every figure for which the run has rows, and returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    by_key = {row["key"]: row for row in rows}
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, draw in (
        ("batch", _batch),
        ("loader", _loader),
        ("readers", _readers),
        ("training", _training),
    ):
        figure = draw(by_key)
        if figure is not None:
            path = directory / f"{name}.png"
            figure.savefig(path, dpi=130, bbox_inches="tight")
            drawn.append(path)
    return drawn


def _batch(rows: Rows) -> Any:
    """Time of a shuffled batch of 28 by way, logarithmic."""
    parts = [rows.get("batch_28_delta"), rows.get("batch_28_perturbation")]
    found = {e["way"]: e for row in parts if row for e in row["entries"]}
    if not found:
        return None
    entries = sorted(found.values(), key=lambda e: -e["value"])
    figure, axis = _axes(7, 0.4 * len(entries) + 1)
    axis.barh(
        [_plain(e["way"]) for e in entries],
        [e["value"] for e in entries],
        color=[_colour(e) for e in entries],
    )
    for place, entry in enumerate(entries):
        axis.text(entry["value"] * 1.1, place, _time(entry["value"]), va="center", fontsize=8)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: _time(value))
    axis.set_xlim(right=max(e["value"] for e in entries) * 8)
    axis.set_xlabel("a shuffled batch of 28 knock-outs, ready for the device (logarithmic)")
    return figure


def _loader(rows: Rows) -> Any:
    """Time of a batch against the number of workers."""
    sizes = [size for size in STRETCH if f"loader_{size}_0" in rows]
    if not sizes:
        return None
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(sizes), figsize=(5 * len(sizes), 3.6), squeeze=False)
    for axis, size in zip(axes[0], sizes, strict=True):
        _lines(axis, rows, [(count, f"loader_{size}_{count}") for count in WORKERS])
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda value, _: _time(value))
        axis.set_xlabel("loader workers")
        axis.set_ylabel("time of a batch")
        axis.set_title(f"batch of {size}")
    # The small batch is done in more ways.
    handles = axes[0][0].get_legend_handles_labels()[0]
    axes[0][-1].legend(handles=handles, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _readers(rows: Rows) -> Any:
    """Samples per second of all readers together."""
    if f"readers_{READERS[0]}" not in rows:
        return None
    from matplotlib.ticker import EngFormatter

    figure, axis = _axes(5, 3.6)
    _lines(axis, rows, [(count, f"readers_{count}") for count in READERS])
    axis.set_xlabel("processes that read at once")
    axis.set_ylabel("samples per second, all together")
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(EngFormatter(sep=" "))
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _training(rows: Rows) -> Any:
    """Share of waiting for data by mode."""
    row = rows.get("train_wait")
    if row is None:
        return None
    entries = row["entries"][::-1]
    figure, axis = _axes(6, 2)
    axis.barh(
        [_plain(e["way"]) for e in entries],
        [e["value"] for e in entries],
        color=[_colour(e) for e in entries],
    )
    for place, entry in enumerate(entries):
        axis.text(entry["value"] + 0.1, place, f"{entry['value']:.2g} %", va="center", fontsize=8)
    axis.set_xlim(0, 1.3 * max(e["value"] for e in entries) + 1)
    axis.set_xlabel("share of training spent waiting for data, %")
    return figure


def _lines(axis: Any, rows: Rows, points: list[tuple[int, str]]) -> None:
    series: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for count, key in points:
        for entry in rows[key]["entries"] if key in rows else ():
            series.setdefault(entry["way"], []).append((count, entry))
    number = 0
    for way, values in series.items():
        first = values[0][1]
        colour, number = _colour(first, number), number + (first["role"] not in COLOURS)
        style = "--" if "perturbation" in way else "-"
        axis.plot(
            [c for c, _ in values],
            [e["value"] for _, e in values],
            style,
            marker="o",
            color=colour,
            label=_plain(way),
        )
    axis.set_xticks([count for count, _ in points])


def _axes(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height))


def _colour(entry: dict[str, Any], number: int = 0) -> str:
    return COLOURS.get(entry["role"], PEER_COLOURS[number % len(PEER_COLOURS)])


def _plain(way: str) -> str:
    return way.replace("`", "")


def _time(microseconds: float) -> str:
    if microseconds >= 1e6:
        return f"{microseconds / 1e6:.3g} s"
    return f"{microseconds / 1e3:.3g} ms" if microseconds >= 1e3 else f"{microseconds:.0f} µs"


if __name__ == "__main__":
    for file in draw_all(json.loads(Path(sys.argv[1]).read_text())["rows"], Path(sys.argv[2])):
        print(file)
