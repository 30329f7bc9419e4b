"""A list of plain graphs as a store: room on disk, and an epoch beside PyG's ``DataLoader``, all measured in one run.

    python experiments/benchmarks/bench_generic.py [--small] [--storage delta]

Cells as GEARS keeps them (dense expression, condition as text), graphs with one-hot nodes, and bags of words. Times are those
of this process's CPU, the best of three epochs that take turns.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

import torchcell_cache as tc


def cells(count: int, rng: np.random.Generator) -> list[Data]:
    """Log-normalised counts of 2,000 genes, and the condition."""

    def expression(*shape: int) -> torch.Tensor:
        counts = rng.negative_binomial(0.3, 0.5, shape)
        return torch.from_numpy(np.log1p(counts / max(counts.sum(), 1) * 1e4).astype(np.float32))

    return [
        Data(
            x=expression(2000, 1),
            y=expression(1, 2000),
            pert=f"G{k % 50}+ctrl",
            pert_idx=[k % 50],
            de_idx=list(range(20)),
        )
        for k in range(count)
    ]


def one_hot(count: int, rng: np.random.Generator) -> list[Data]:
    """Small graphs with one of seven kinds per node and four per edge."""

    def graph() -> Data:
        nodes, edges = int(rng.integers(10, 60)), int(rng.integers(20, 150))
        return Data(
            x=torch.eye(7)[torch.from_numpy(rng.integers(0, 7, nodes))],
            edge_index=torch.from_numpy(rng.integers(0, nodes, (2, edges))),
            edge_attr=torch.eye(4)[torch.from_numpy(rng.integers(0, 4, edges))],
            y=torch.tensor([int(rng.integers(0, 2))]),
        )

    return [graph() for _ in range(count)]


def bags(count: int, rng: np.random.Generator) -> list[Data]:
    """Twenty documents each, of 1,433 words."""
    return [
        Data(x=torch.from_numpy((rng.random((20, 1433)) < 0.012).astype(np.float32)), y=k % 7)
        for k in range(count)
    ]


def seconds(loader: Any) -> float:
    """CPU time of an epoch."""
    begun = time.process_time()
    for _ in loader:
        pass
    return time.process_time() - begun


def measured(
    name: str, make: Callable[[int, np.random.Generator], list[Data]], count: int, storage: str = "auto"
) -> str:
    """One line of the table."""
    graphs = make(count, np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as place:
        begun = time.process_time()
        ds = tc.build(Path(place) / "s", source=graphs, storage=storage, progress=False)
        build = time.process_time() - begun
        shards = sum(shard.file.size for shard in ds.generation.manifest.shards)
        records = sum(map(len, ds.generation.read(range(count))))
        loaders = {
            "list": DataLoader(graphs, 32),
            "PyG": DataLoader(ds, 32),
            "ours": tc.CacheLoader(ds, 32, expand=True),
        }
        times: dict[str, list[float]] = {key: [] for key in loaders}
        for _ in range(3):
            for key, loader in loaders.items():
                times[key].append(seconds(loader))
        each = [min(found) / count * 1e6 for found in times.values()]
        pickled = len(pickle.dumps(graphs, protocol=5))
        return (
            f"{name:<8} {ds.storage:<6} {shards / pickled:>11.3f} {shards / records:>12.3f} {build / count * 1e6:>10.0f} "
            + " ".join(f"{value:>10.1f}" for value in each)
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="few graphs, for a test")
    parser.add_argument("--storage", choices=("auto", "delta", "full"), default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("graphs   stored disk/pickle disk/records build us/s  list us/s   PyG us/s  ours us/s")
    for name, make, count in (("cells", cells, 2000), ("one-hot", one_hot, 4000), ("bags", bags, 500)):
        print(measured(name, make, 64 if options.small else count, options.storage), flush=True)


if __name__ == "__main__":
    main()
