"""Single cells: building a store from an H5AD file, reading batches of it, and the memory of both.

    python -m experiments.benchmarks.bench_cells --cells 200000 --markdown docs/single_cell.md

The cells are made from the 700 real ones in scanpy's wheel: real cells drawn with repeats, their genes drawn with repeats up to
``--genes``, their counts thinned, so that no two are equal.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from importlib.util import find_spec
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.harness import Budget, Machine, alternate, single_thread
from experiments.benchmarks.processes import in_processes
from experiments.benchmarks.report import OURS, PEER, Report, replace_between, show

BATCH = 256
TARGET_PER_SECOND, TARGET_READ_US, TARGET_GROWTH_MB = 5_000, 30, 50
PART = 20_000
KEPT = 0.08
"""Share of the real cells' counts that stays: about a tenth of all values is then not zero, as among variable genes."""


def run(report: Report, root: Path, cells: int, genes: int, workers: int, budget: Budget) -> None:
    """Adds the rows; a reason in ``report.skipped`` where anndata or scanpy are not installed."""
    if not all(find_spec(name) for name in ("anndata", "scanpy")):
        report.skipped["cells"] = "pip install '.[singlecell]'"
        return
    place = root / "cells"
    place.mkdir(parents=True, exist_ok=True)
    files = {count: place / f"{count}.h5ad" for count in (cells // 10, cells)}
    for count, path in files.items():
        if not path.exists():
            in_processes(1, _make, str(path), count, genes)
    built = {
        count: in_processes(1, _build, str(path), genes, str(place / f"s{count}"), 0)[0]
        for count, path in files.items()
    }
    rate, peak = built[cells]
    size = f"{cells:,} cells x {genes:,} genes"
    row = report.row(
        "cells_build", f"build from H5AD, {size}, normalised, logarithms", "/s", TARGET_PER_SECOND
    )
    row.add("torchcell_cache `delta`, one process", OURS, rate)
    parallel, _ = in_processes(1, _build, str(files[cells]), genes, str(place / "parallel"), workers)[0]
    row.add(f"torchcell_cache `delta`, {workers} workers", OURS, parallel)
    row = report.row("cells_memory", "peak RSS of a build, libraries included", "MB")
    row.add(f"torchcell_cache, {cells // 10:,} cells", OURS, built[cells // 10][1])
    row.add(f"torchcell_cache, {cells:,} cells", OURS, peak)
    row = report.row("cells_growth", "what ten times the cells add to it", "MB", TARGET_GROWTH_MB)
    row.add("torchcell_cache", OURS, max(peak - built[cells // 10][1], 0.0))
    _bytes(report, files[cells], place / f"s{cells}", cells)
    _reads(report, files[cells], place / f"s{cells}", genes, budget)


def _bytes(report: Report, file: Path, store: Path, cells: int) -> None:
    import h5py

    with h5py.File(file, "r") as opened:
        expressed = len(opened["X/data"]) / cells
    row = report.row(
        "cells_bytes", f"bytes per cell on disk, {expressed:,.0f} genes expressed in the mean", "B"
    )
    row.add(
        "torchcell_cache `delta`",
        OURS,
        sum(p.stat().st_size for p in store.rglob("*") if p.is_file()) / cells,
    )
    row.add("H5AD, CSR, not compressed", PEER, file.stat().st_size / cells)


def _reads(report: Report, file: Path, store: Path, genes: int, budget: Budget) -> None:
    import anndata
    import torch

    import torchcell_cache as tc

    ds = tc.PreprocessedDataset(store)
    backed = anndata.read_h5ad(file, backed="r")
    random = np.random.default_rng(0)

    def packed(_: int) -> Any:
        return ds.read_batch(random.integers(0, len(ds), BATCH)).pack()

    def ours(_: int) -> Any:
        return ds.read_batch(random.integers(0, len(ds), BATCH)).features("gene")

    def theirs(_: int) -> Any:
        rows = np.sort(random.choice(len(ds), BATCH, replace=False))
        return torch.from_numpy(backed.X[rows].toarray())

    timings = alternate({"packed": packed, "ours": ours, "theirs": theirs}, budget)
    row = report.row(
        "cells_read",
        f"random batch of {BATCH}, [{BATCH}, {genes}, 1] on the CPU, per cell",
        "us",
        TARGET_READ_US,
    )
    row.add("torchcell_cache, dense feature", OURS, timings["ours"].per(BATCH))
    row.add("torchcell_cache, packed buffer", OURS, timings["packed"].per(BATCH), "what goes to a device")
    row.add(
        "anndata, backed", PEER, timings["theirs"].per(BATCH), "sorted rows, counts as they are in the file"
    )
    backed.file.close()


def _genes(count: int) -> list[str]:
    return [f"G{k}" for k in range(count)]


def _build(_: Barrier, path: str, genes: int, store: str, workers: int) -> tuple[float, float]:
    """Cells per second of a build, and the high-water mark of its process in MB."""
    import torch
    from torch_geometric.data import HeteroData

    import torchcell_cache as tc

    random = torch.Generator().manual_seed(0)
    graph = HeteroData()
    graph["gene"].node_ids = _genes(genes)
    for name in ("physical", "regulatory"):
        graph["gene", name, "gene"].edge_index = torch.randint(genes, (2, 10 * genes), generator=random)
    shutil.rmtree(store, ignore_errors=True)
    begun = time.perf_counter()
    source = tc.AnnDataSource(
        path,
        graph,
        phenotypes=["n_counts"],
        categories=["bulk_labels"],
        y="bulk_labels",
        target_sum=1e4,
        log1p=True,
    )
    ds = tc.build(store, source=source, processor=None, storage="delta", num_workers=workers, progress=False)
    rate = len(ds) / (time.perf_counter() - begun)
    status = Path("/proc/self/status").read_text().splitlines()
    return rate, next(float(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def _make(_: Barrier, path: str, cells: int, genes: int) -> None:
    """Write an H5AD file of many cells, part by part."""
    import warnings

    warnings.simplefilter("ignore")
    import anndata
    import pandas as pd
    from anndata.experimental import concat_on_disk

    spec = find_spec("scanpy")
    assert spec is not None
    assert spec.origin is not None
    real = anndata.read_h5ad(Path(spec.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad")
    random = np.random.default_rng(cells)
    counts = real.raw.X.tocsr()
    counts.data = np.maximum(np.rint(np.expm1(counts.data)), 1).astype(np.float32)
    counts = counts[:, random.integers(0, counts.shape[1], genes)].tocsr()
    counts.sort_indices()
    parts = []
    for first in range(0, cells, PART):
        rows = random.integers(0, real.n_obs, min(PART, cells - first))
        matrix = counts[rows]
        matrix.data = random.binomial(matrix.data.astype(np.int64), KEPT).astype(np.float32)
        matrix.eliminate_zeros()
        obs = pd.DataFrame(
            {
                "bulk_labels": real.obs.bulk_labels.to_numpy()[rows],
                "n_counts": np.asarray(matrix.sum(axis=1)).ravel(),
            },
            index=[f"cell{first + k}" for k in range(len(rows))],
        )
        part = Path(f"{path}.{len(parts)}.h5ad")
        anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=_genes(genes))).write_h5ad(part)
        parts.append(part)
    concat_on_disk(parts, path)
    for part in parts:
        part.unlink()


def table(report: Report) -> str:
    """One line per way."""
    lines = [report.machine.describe(), "", "| work | way | median |", "|---|---|---|"]
    lines += [
        f"| {row.work} | {entry.way}{f' ({entry.note})' if entry.note else ''} | {show(entry.value, row.unit)} |"
        for row in report.rows
        for entry in row.entries
    ]
    return "\n".join([*lines, *(f"Left out: {why}." for why in report.skipped.values())])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.bench_cells", description=__doc__)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2.0, help="time per way in the parts that read")
    parser.add_argument(
        "--workdir", type=Path, help="where files and stores go (about 2 GB); temporary if left out"
    )
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--markdown", type=Path, help="put the table between the markers of this file")
    options = parser.parse_args(argv)
    single_thread()
    root = options.workdir or Path(tempfile.mkdtemp(prefix="cells-bench-"))
    report = Report("cells", Machine.here(), {"cells": options.cells, "genes": options.genes})
    try:
        run(report, root, options.cells, options.genes, options.workers, Budget(seconds=options.seconds))
    finally:
        if options.workdir is None:
            shutil.rmtree(root, ignore_errors=True)
    text = table(report)
    print(text)
    if options.json:
        report.write_json(options.json)
    if options.markdown and not replace_between(options.markdown, "benchmark:cells", text):
        print(f"{options.markdown} has no markers <!-- benchmark:cells:start --> ... :end -->; left as it is")


if __name__ == "__main__":
    main()
