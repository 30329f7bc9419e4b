"""The benchmark of the cache: ``python -m experiments.benchmarks.cache_bench --help``.

All ways run in one interpreter, on the same data, in turns. Ratios are what counts: absolute times of one
machine differ by up to 40 % between two runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.benchmarks.harness import Budget, Machine, single_thread

SECTIONS = (
    "index",
    "build",
    "read",
    "batch",
    "loader",
    "readers",
    "streaming",
    "cold",
    "memory",
    "train",
    "remote",
    "cells",
)
# Steps per epoch and size of the graph of the training section: it runs three times on two ranks.
TRAIN_STEPS, TRAIN_SCALE, QUICK_TRAIN_STEPS = 10, 0.02, 2
# Cells and genes of the single-cell section.
CELLS, QUICK_CELLS = (200_000, 2_000), (20_000, 2_000)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.cache_bench", description=__doc__)
    parser.add_argument("--samples", type=int, default=300_000, help="samples of the build on all cores")
    parser.add_argument("--peer-samples", type=int, default=30_000, help="records that general peers store")
    parser.add_argument(
        "--scheme-samples", type=int, default=300, help="samples torchcell's scheme processes"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="size of the base graph; 1 is 2.55 M edges")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the parts that build stores")
    parser.add_argument("--seconds", type=float, default=2.0, help="time per way in the parts that read")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the samples, one round, no large index"
    )
    parser.add_argument(
        "--workdir", type=Path, help="where stores go (about 4 GB); a temporary directory if left out"
    )
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--plots", type=Path, help="draw figures into this directory (needs matplotlib)")
    parser.add_argument("--markdown", type=Path, help="put the tables between the markers of this file")
    options = parser.parse_args(argv)
    if options.quick:
        options.samples = min(options.samples, 30_000)
        options.peer_samples = min(options.peer_samples, 5_000)
        options.scheme_samples = min(options.scheme_samples, 100)
        options.rounds, options.seconds = 1, min(options.seconds, 0.5)
    options.peer_samples = min(options.peer_samples, options.samples)
    options.scheme_samples = min(options.scheme_samples, options.peer_samples)
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    single_thread()
    warnings.filterwarnings("ignore", category=UserWarning)
    root = options.workdir or Path(tempfile.mkdtemp(prefix="cache-bench-"))
    try:
        text = run(options, root)
    finally:
        if options.workdir is None:
            shutil.rmtree(root, ignore_errors=True)
    print(text)


def run(options: argparse.Namespace, root: Path) -> str:
    """Runs the chosen sections and returns the tables."""
    import torch

    torch.set_num_threads(1)
    from experiments.benchmarks import bench_index
    from experiments.benchmarks.report import Report, replace_between
    from experiments.benchmarks.workload import make_workload

    settings = {"samples": options.samples, "peer samples": options.peer_samples, "seed": options.seed}
    if options.scale != 1:
        settings["scale"] = options.scale
    report = Report("cache", Machine.here(), settings)
    print(f"{report.machine.describe()}", flush=True)
    workload = make_workload(options.seed, options.scale, options.samples)
    budget = Budget(seconds=options.seconds)
    if "index" in options.sections:
        print("index", flush=True)
        bench_index.run(report, workload.base_graph, options.seed, options.scale, budget, not options.quick)
    if "cells" in options.sections:
        print("cells", flush=True)
        from experiments.benchmarks import bench_cells

        cells = QUICK_CELLS if options.quick else CELLS
        bench_cells.run(report, root, *cells, options.workers, budget)
    if set(options.sections) - {"index", "cells"}:
        ctx = _context(options, root, report, workload, budget)
        for name, reason in report.skipped.items():
            print(f"left out: {name}: {reason}", flush=True)
        _run_sections(options, ctx)
    text = report.markdown()
    if options.json:
        report.write_json(options.json)
    if options.plots:
        from experiments.benchmarks.plots import draw_all

        draw_all([asdict(row) for row in report.rows], options.plots)
    if options.markdown and not replace_between(options.markdown, "benchmark:cache", text):
        print(f"{options.markdown} has no markers <!-- benchmark:cache:start --> ... :end -->; left as it is")
    return text


def _run_sections(options: argparse.Namespace, ctx: Any) -> None:
    """The sections that need stores; building them comes first, whatever was chosen."""
    from experiments.benchmarks import (
        bench_batch,
        bench_build,
        bench_cold,
        bench_loader,
        bench_memory,
        bench_read,
        bench_readers,
        bench_remote,
        bench_streaming,
        bench_training,
    )

    steps = QUICK_TRAIN_STEPS if options.quick else TRAIN_STEPS
    sections = {
        "build": bench_build.run,
        "read": bench_read.run,
        "batch": bench_batch.run,
        "loader": bench_loader.run,
        "readers": bench_readers.run,
        "streaming": lambda ctx: bench_streaming.run(ctx, options.scale),
        "cold": bench_cold.run,
        "remote": bench_remote.run,
        "memory": lambda ctx: bench_memory.run(ctx, options.scale),
        "train": lambda ctx: bench_training.run(ctx, steps, min(TRAIN_SCALE, options.scale)),
    }
    for name, section in sections.items():
        if name == "build" or name in options.sections:
            start = time.perf_counter()
            print(name, end=" ", flush=True)
            section(ctx)
            print(f"{time.perf_counter() - start:.0f} s", flush=True)


def _context(options: argparse.Namespace, root: Path, report: Any, workload: Any, budget: Budget) -> Any:
    """Sizes, the peers' records and the peers that are installed."""
    from experiments.benchmarks.context import Context, Sizes
    from experiments.benchmarks.peers import TorchcellScheme, choose_peers
    from experiments.benchmarks.records import make_records

    sizes = Sizes(
        samples=options.samples,
        one_core={"perturbation": options.samples, "delta": min(options.samples, 100_000), "full": 300},
        peers=options.peer_samples,
        scheme=options.scheme_samples,
    )
    peers, report.skipped = choose_peers(root)
    return Context(
        report=report,
        workload=workload,
        sizes=sizes,
        budget=budget,
        rounds=options.rounds,
        workers=options.workers,
        root=root,
        records=make_records(workload.base_graph, workload.samples.head(sizes.peers)),
        peers={peer.name: peer for peer in peers},
        scheme=TorchcellScheme(workload.base_graph, root / "scheme"),
        quick=options.quick,
    )


if __name__ == "__main__":
    main()
