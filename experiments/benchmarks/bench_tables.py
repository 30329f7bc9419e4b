"""Reading a large table of knock-outs: time and peak memory, beside pyarrow's and pandas' own on the same file.

    python -m experiments.benchmarks.bench_tables --rows 1000000 --rounds 3 --markdown docs/benchmarks.md

Each measurement is a process of its own, in turns. Memory is what the peak is above the process with its imports and
its base graph. pyarrow and pandas only read the cells; ours also checks them and looks up every name.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

from experiments.benchmarks.bench_cells import table
from experiments.benchmarks.harness import Machine, memory_mb, single_thread
from experiments.benchmarks.processes import in_processes
from experiments.benchmarks.report import OURS, PEER, Report, replace_between

GENES = 6_607
TARGET_SECONDS, TARGET_MB = 1.5, 300
KINDS = {"plain.csv": "csv", "quoted.csv": "every cell quoted", "t.parquet": "parquet"}
WAYS = {
    "torchcell_cache": OURS,
    "torchcell_cache without pyarrow": OURS,
    "pyarrow": PEER,
    "pandas": PEER,
}


def run(report: Report, root: Path, rows: int, rounds: int) -> None:
    """Adds the rows."""
    in_processes(1, _write, str(root), rows)
    for name, kind in KINDS.items():
        found: dict[str, list[tuple[float, float]]] = {}
        for _ in range(rounds):
            for way in WAYS:
                if not (kind == "parquet" and way.endswith("without pyarrow")):
                    found.setdefault(way, []).append(in_processes(1, _read, str(root / name), way)[0])
        work = f"a table of {rows:,} double knock-outs and two labels, {kind}"
        seconds = report.row(f"tables_seconds_{kind}", f"reading {work}", "s", TARGET_SECONDS)
        memory = report.row(f"tables_memory_{kind}", f"peak memory of that, {kind}", "MB", TARGET_MB)
        for way, pairs in found.items():
            seconds.add(way, WAYS[way], float(np.median([pair[0] for pair in pairs])))
            memory.add(way, WAYS[way], float(np.median([pair[1] for pair in pairs])))


def _write(barrier: Barrier, root: str, rows: int) -> None:
    import pandas as pd

    random = np.random.default_rng(rows)
    first = random.integers(0, GENES, rows)
    second = (first + random.integers(1, GENES, rows)) % GENES
    names = _names()
    frame = pd.DataFrame(
        {
            "genes": [f"{names[a]}|{names[b]}" for a, b in zip(first.tolist(), second.tolist(), strict=True)],
            "fitness": random.random(rows).round(5),
            "fitness_se": random.random(rows).round(4),
        }
    )
    frame.to_csv(Path(root) / "plain.csv", index=False)
    frame.astype(str).to_csv(Path(root) / "quoted.csv", index=False, quoting=1)
    frame.to_parquet(Path(root) / "t.parquet", index=False)


def _names() -> list[str]:
    return [f"Y{'ABCDEFGHIJKLMNOP'[k % 16]}L{k // 16:03d}{'WC'[k % 2]}" for k in range(GENES)]


def _read(barrier: Barrier, path: str, way: str) -> tuple[float, float]:
    """Seconds, and MB above what was there before."""
    import sys

    import pandas as pd
    import pyarrow.compute
    import pyarrow.csv
    import pyarrow.parquet

    import torchcell_cache as tc

    graph = tc.testing.tiny_graph(num_genes=GENES)
    graph["gene"].node_ids = _names()
    if way.endswith("without pyarrow"):
        sys.modules["pyarrow"] = None  # type: ignore[assignment]
    is_csv = path.endswith(".csv")
    readers = {
        "pyarrow": pyarrow.csv.read_csv if is_csv else pyarrow.parquet.read_table,
        "pandas": pd.read_csv if is_csv else pd.read_parquet,
    }
    peak_before, before = _peak(), memory_mb("Rss")
    begun = time.perf_counter()
    kept = readers[way](path) if way in readers else tc.PerturbationTable.from_csv(path, graph)
    seconds = time.perf_counter() - begun
    assert len(kept) or kept.num_rows
    return seconds, max(_peak(), peak_before) - before


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.bench_tables", description=__doc__
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="put the table between the markers of this file")
    options = parser.parse_args(argv)
    single_thread()
    root = Path(tempfile.mkdtemp(prefix="tables-bench-"))
    report = Report("tables", Machine.here(), {"rows": options.rows, "rounds": options.rounds})
    try:
        run(report, root, options.rows, options.rounds)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    text = table(report)
    print(text)
    if options.json:
        report.write_json(options.json)
    if options.markdown and not replace_between(options.markdown, "benchmark:tables", text):
        print(
            f"{options.markdown} has no markers <!-- benchmark:tables:start --> ... :end -->; left as it is"
        )


if __name__ == "__main__":
    main()
