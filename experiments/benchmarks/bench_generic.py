"""A list of plain graphs as a store: room on disk, and an epoch beside PyG's ``DataLoader``, all measured in one run.

    python experiments/benchmarks/bench_generic.py [--small] [--storage delta] [--groups]

Cells as GEARS keeps them (dense expression, condition as text), graphs with one-hot nodes, and bags of words. Times are those
of this process's CPU, the best of three epochs that take turns. ``--groups`` has the records of these lie one by one, and in
groups as stores have them, in turns: disk, build, and records read at random and in order.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

import torchcell_cache as tc
from torchcell_cache.builder import plan


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


def in_groups_or_not(
    name: str, make: Callable[[int, np.random.Generator], list[Data]], count: int
) -> list[str]:
    """Two lines of the other table: the same records one by one, and in groups."""
    graphs, rng = make(count, np.random.default_rng(0)), np.random.default_rng(1)
    orders = {"random": rng.permutation(count), "in order": np.arange(count)}
    ways = {"one by one": lambda generic, storage: {plan.COMPACT: 2}, "in groups": plan.written_form}
    times: dict[tuple[str, str], list[float]] = {}

    def timed(way: str, what: str, act: Callable[[], Any]) -> Any:
        begun = time.process_time()
        done = act()
        times.setdefault((way, what), []).append((time.process_time() - begun) / count * 1e6)
        return done

    def read(ds: Any, order: Any) -> None:
        for start in range(0, count, 32):
            ds.generation.read(order[start : start + 32])

    def build(place: str, form: Any) -> Any:
        with mock.patch.object(plan, "written_form", form):
            return tc.build(place, source=graphs, storage="delta", progress=False)

    with tempfile.TemporaryDirectory() as place:
        for turn in range(3):
            stores = {
                way: timed(way, "build", lambda: build(f"{place}/{way} {turn}", form))  # noqa: B023
                for way, form in ways.items()
            }
        for _ in range(20):
            for what, order in orders.items():
                for way, ds in stores.items():
                    timed(way, what, lambda: read(ds, order))  # noqa: B023
        disk = {
            way: sum(shard.file.size for shard in ds.generation.manifest.shards) for way, ds in stores.items()
        }
        records = sum(map(len, ds.generation.read(range(count))))
    return [
        f"{name:<8} {way:<10} {disk[way] / records:>12.3f} {records / count:>13.0f} "
        + " ".join(f"{min(times[way, what]):>13.2f}" for what in ("build", *orders))
        for way in ways
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="few graphs, for a test")
    parser.add_argument("--storage", choices=("auto", "delta", "full"), default="auto")
    parser.add_argument("--groups", action="store_true", help="records one by one against records in groups")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.groups:
        print("graphs   records    disk/records bytes/record  build us/s   random us/s in order us/s")
    else:
        print("graphs   stored disk/pickle disk/records build us/s  list us/s   PyG us/s  ours us/s")
    for name, make, count in (("cells", cells, 2000), ("one-hot", one_hot, 4000), ("bags", bags, 500)):
        count = 64 if options.small else count
        if options.groups:
            print(*in_groups_or_not(name, make, count), sep="\n", flush=True)
        else:
            print(measured(name, make, count, options.storage), flush=True)


if __name__ == "__main__":
    main()
