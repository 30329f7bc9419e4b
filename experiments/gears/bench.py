"""What pairs of cells and controls cost: GEARS's pickled list, a sparse matrix in memory, and stores.

    python -m experiments.gears.bench                      # 5,000 cells x 2,000 genes, then 5,045 genes; about three minutes
    python -m experiments.gears.bench --small              # seconds, for a test
    python -m experiments.gears.bench --markdown docs/gears.md
    python -m experiments.gears.bench --ranks 91205        # memory of four ranks at the size of a real screen; two minutes

Each way runs in a process of its own, one thread; epochs are taken in turns, so that a busy machine slows all alike. Memory is
the process's share (PSS) above what it had after its imports, pages of the store included.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

BATCH = 32
WAYS = {
    "list": "GEARS's pickle: a list of graphs in memory, PyG's `DataLoader`",
    "matrix": "sparse matrix in memory, vectorised pair loader",
    "generic_pyg": "store of GEARS's list, PyG's `DataLoader`",
    "generic": "store of GEARS's list, `CacheLoader(expand=True)`",
    "pairs_pyg": "`PairedCells`, PyG's `DataLoader`",
    "pairs_expand": "`PairedCells`, `CacheLoader(expand=True)`",
    "pairs": "`PairedCells`, `CacheLoader`: `x` and `y`",
}
FILES = {"list": "list.pkl", "matrix": "matrix.npz"}
DATASETS = {"Norman": 91_205, "Replogle": 162_751}


def per_category() -> dict[str, Callable[[str], Any]]:
    """What GEARS keeps with every cell; a made-up number per gene."""
    return {"pert_idx": _pert_idx, "de_idx": _de_idx, "pert": str}


def _pert_idx(condition: str) -> list[int]:
    return [int(name[1:]) for name in condition.split("+") if name != "ctrl"] or [-1]


def _de_idx(condition: str) -> Any:
    return [-1] * 20 if condition == "ctrl" else np.arange(len(condition), len(condition) + 20)


def make(folder: Path, cells: int, genes: int, pairs_only: bool = False) -> dict[str, dict[str, float]]:
    """Build what every way reads; seconds and bytes on disk of each."""
    import torch
    from scipy import sparse
    from torch_geometric.data import Data

    import torchcell_cache as tc
    from experiments.gears.made_up import screen

    data = screen(cells, genes)
    condition, matrix = data.obs["condition"].to_numpy(), data.X
    own = {name: {c: f(c) for c in np.unique(condition)} for name, f in per_category().items()}
    controls = np.flatnonzero(condition == "ctrl")
    draw = np.random.default_rng(1)
    out: dict[str, dict[str, float]] = {"density": {"share": matrix.nnz / cells / genes}}

    def timed(way: str, act: Callable[[], Any]) -> None:
        start = time.perf_counter()
        act()
        out[way] = {"build": time.perf_counter() - start, "disk": on_disk(folder / FILES.get(way, way))}

    def as_list() -> None:
        graphs = []
        for cell, name in enumerate(condition):
            control = cell if name == "ctrl" else draw.choice(controls)
            x, y = (torch.from_numpy(matrix[row].toarray()) for row in (control, cell))
            graphs.append(Data(x=x.T, y=y, **{key: values[name] for key, values in own.items()}))
        (folder / "list.pkl").write_bytes(pickle.dumps(graphs))

    def as_matrix() -> None:
        sparse.save_npz(folder / "matrix.npz", matrix, compressed=False)
        np.save(folder / "controls.npy", condition == "ctrl")

    def as_generic() -> None:
        graphs = pickle.loads((folder / "list.pkl").read_bytes())
        tc.build(folder / "generic", source=graphs, processor=None, progress=False)

    def as_pairs() -> None:
        graph = Data(node_ids=list(data.var_names), num_nodes=genes)
        source = tc.AnnDataSource(data, graph, categories="condition")
        tc.build(folder / "pairs", source=source, processor=None, storage="delta", progress=False)

    for way, act in (
        ("list", as_list), ("matrix", as_matrix), ("generic", as_generic), ("pairs", as_pairs),
    ):  # fmt: skip
        if way == "pairs" or not pairs_only:
            timed(way, act)
    for way in (
        () if pairs_only else ("generic_pyg", "pairs_pyg", "pairs_expand")
    ):  # a copy each: shared pages would count in parts
        shutil.copytree(folder / way.partition("_")[0], folder / way)
    return out


def on_disk(path: Path) -> float:
    """Bytes that a file or folder takes."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return float(sum(p.stat().st_blocks * 512 for p in files))


# One way in one process: commands come by lines, answers go back by lines (all in this one if they are small)


def opened(way: str, folder: Path, rank: int, world_size: int) -> Callable[[], Iterator[Any]]:
    """What gives the batches of an epoch."""
    import torch
    from torch_geometric.loader import DataLoader

    import torchcell_cache as tc

    if way == "matrix":
        return _matrix_batches(folder)
    if way == "list":
        graphs = pickle.loads((folder / "list.pkl").read_bytes())
        return DataLoader(graphs, batch_size=BATCH, shuffle=True).__iter__
    ranks = {"shuffle": True, "rank": rank, "world_size": world_size}
    ds: Any = tc.PreprocessedDataset(folder / way)
    if way.startswith("pairs"):
        ds = tc.PairedCells(ds, "condition == 'ctrl'", per_category=per_category())
    if way.endswith("_pyg"):
        return DataLoader(ds, batch_size=BATCH, shuffle=True).__iter__
    loader = tc.CacheLoader(ds, BATCH, expand=way != "pairs", **ranks)

    def batches() -> Iterator[Any]:
        for batch in loader:
            assert isinstance(batch.x, torch.Tensor)
            assert isinstance(batch.y, torch.Tensor)
            yield batch

    return batches


def _matrix_batches(folder: Path) -> Callable[[], Iterator[Any]]:
    import torch
    from scipy import sparse

    matrix, is_control = sparse.load_npz(folder / "matrix.npz"), np.load(folder / "controls.npy")
    pool, draw = np.flatnonzero(is_control), np.random.default_rng(2)

    def batches() -> Iterator[Any]:
        order = draw.permutation(matrix.shape[0])
        for start in range(0, len(order), BATCH):
            cells = order[start : start + BATCH]
            controls = np.where(is_control[cells], cells, draw.choice(pool, len(cells)))
            yield torch.from_numpy(matrix[controls].toarray()), torch.from_numpy(matrix[cells].toarray())

    return batches


def share_of_memory() -> float:
    """Bytes that are this process's, shared pages in parts (PSS)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


class Here:
    """One way, answering ``base``, ``open``, ``epoch`` and ``memory`` with a number each."""

    def __init__(self, way: str, folder: Path, rank: int = 0, world_size: int = 1) -> None:
        import torch
        from scipy import sparse  # noqa: F401  (all ways import the same)
        from torch_geometric.loader import DataLoader  # noqa: F401

        import torchcell_cache as tc

        torch.set_num_threads(1)
        _ = tc.CacheLoader, tc.PairedCells
        self.place, self.base = (way, folder, rank, world_size), 0.0
        self.batches: Callable[[], Iterator[Any]] = lambda: iter(())

    def ask(self, what: str) -> float:
        """Seconds, or bytes of ``memory``."""
        if (
            what == "base"
        ):  # libraries are shared in parts: with as many processes as when memory is asked for
            self.base = share_of_memory()
        if what in ("base", "memory"):
            return share_of_memory() - self.base
        start = time.perf_counter()
        if what == "open":
            self.batches = opened(*self.place)
        else:
            for _batch in self.batches():
                pass
        return time.perf_counter() - start

    def close(self) -> None:
        """Nothing to end."""


class Process:
    """A process that serves one way."""

    def __init__(self, way: str, folder: Path, rank: int = 0, world_size: int = 1) -> None:
        command = [sys.executable, "-m", "experiments.gears.bench", "--serve", way, str(folder), str(rank)]
        self.process = subprocess.Popen(
            [*command, str(world_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).resolve().parents[2],
        )

    def ask(self, what: str) -> float:
        """The answer to one command."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return float(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End it."""
        self.process.communicate()


def measure(folder: Path, rounds: int, kind: Any) -> dict[str, dict[str, float]]:
    """Start-up, epochs in turns, and memory after them, of every way."""
    processes = {way: kind(way, folder) for way in WAYS}
    for _ in range(2):  # the first answers come when all have started
        for process in processes.values():
            process.ask("base")
    out = {way: {"open": process.ask("open")} for way, process in processes.items()}
    epochs: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way, process in processes.items():
            took = process.ask("epoch")
            epochs[way] += [took] * (number > 0)  # the first one reads the disk
    for way, process in processes.items():
        out[way] |= {"epoch": median(epochs[way]), "memory": process.ask("memory")}
    for process in processes.values():
        process.close()
    return out


def memory_of_ranks(way: str, folder: Path, ranks: int, kind: Any) -> float:
    """Memory of all ranks together, after an epoch that they share."""
    processes = [kind(way, folder, rank, ranks) for rank in range(ranks)]
    for command in ("base", "base", "open", "epoch"):  # the first answers come when all have started
        for process in processes:
            process.ask(command)
    total = sum(process.ask("memory") for process in processes)
    for process in processes:
        process.close()
    return total


def size(value: float) -> str:
    """Bytes for people."""
    return f"{value / 1e9:,.2f} GB" if value >= 1e9 else f"{value / 1e6:,.1f} MB"


def table(made: dict[str, Any], found: dict[str, Any], cells: int, genes: int) -> list[str]:
    """One size as a table."""
    share = made["density"]["share"]
    lines = [
        f"{cells:,} cells x {genes:,} genes, {share:.0%} of the values not zero, batches of {BATCH}:",
        "",
        "| way | disk | build | start-up | memory after an epoch | epoch of the loader alone |",
        "|---|---|---|---|---|---|",
    ]
    for way, name in WAYS.items():
        built, ran = made[way.removesuffix("_pyg").removesuffix("_expand")], found[way]
        lines.append(
            f"| {name} | {size(built['disk'])} | {built['build']:.1f} s | {ran['open'] * 1e3:,.0f} ms | "
            f"{size(ran['memory'])} | {ran['epoch']:.2f} s |"
        )
    return [*lines, ""]


def scaled(few: tuple[int, Any, Any], many: tuple[int, Any, Any], ranks: dict[int, float]) -> list[str]:
    """Two sizes as a line through both, taken to the sizes of real screens; the arithmetic is in the table."""
    (n, made_few, found_few), (m, made, found) = few, many
    lines = [
        "| 5,045 genes | "
        + " | ".join(f"{name}, {count:,} cells" for name, count in DATASETS.items())
        + " |",
        "|---|---|---|",
    ]

    def row(label: str, here: float, there: float, show: Callable[[float], str], unit: float = 1) -> None:
        slope = (there - here) / (m - n)
        fixed = max(here - slope * n, 0.0)
        what = f"{label}: {show(fixed)} + {slope / unit:,.2f} {'KB' if unit == 1e3 else 'us'} x cells"
        lines.append(f"| {what} | " + " | ".join(show(fixed + slope * k) for k in DATASETS.values()) + " |")

    for way, name in (("list", "GEARS's list"), ("matrix", "sparse matrix"), ("pairs", "`PairedCells`")):
        row(f"{name}, disk", made_few[way]["disk"], made[way]["disk"], size, 1e3)
        row(f"{name}, memory", found_few[way]["memory"], found[way]["memory"], size, 1e3)
        row(f"{name}, epoch", found_few[way]["epoch"], found[way]["epoch"], lambda s: f"{s:,.1f} s", 1e-6)
    one, four = ranks[1], ranks[4]
    own = (four - one) / 3
    shared = max(one - own, 0.0)
    big = [shared / m * k for k in DATASETS.values()]
    ratio = [(value + 4 * own) / (value + own) for value in big]
    lines += [
        f"| memory of four ranks over one, `PairedCells`: ({shared / m / 1e3:,.2f} KB x cells + 4 x {size(own)}) / "
        f"({shared / m / 1e3:,.2f} KB x cells + {size(own)}); {four / one:.2f} at {m:,} cells | "
        + " | ".join(f"{r:.2f}" for r in ratio)
        + " |",
        "",
    ]
    return lines


def goals(made: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The figures that were asked for."""
    ratios = {
        "disk, pickle over `PairedCells`": made["list"]["disk"] / made["pairs"]["disk"],
        "memory, list over `PairedCells`": found["list"]["memory"] / found["pairs"]["memory"],
        "epoch, `PairedCells` (`x` and `y`) over list": found["pairs"]["epoch"] / found["list"]["epoch"],
        "epoch, `PairedCells` (PyG's batches) over list": found["pairs_expand"]["epoch"]
        / found["list"]["epoch"],
    }
    return ["| ratio | |", "|---|---|", *(f"| {name} | {value:.2f} |" for name, value in ratios.items()), ""]


def run(small: bool, rounds: int) -> str:
    """All tables as Markdown."""
    sizes = ((120, 80), (60, 100), (120, 100)) if small else ((5_000, 2_000), (1_000, 5_045), (3_000, 5_045))
    load, cores = os.getloadavg()[0], os.cpu_count()
    busy = "; a busy machine, so ratios count more than times" if load > 1 else ""
    lines = [
        f"{cores} cores, load {load:.1f} when it began{busy}. Median of {rounds} epochs taken in turns.",
        "",
    ]
    results, ranks, kind = [], {}, Here if small else Process
    for cells, genes in sizes:
        with tempfile.TemporaryDirectory() as folder:
            made = make(Path(folder), cells, genes)
            found = measure(Path(folder), rounds, kind)
            if len(results) == 2:
                ranks = {k: memory_of_ranks("pairs", Path(folder), k, kind) for k in (1, 4)}
            results.append((cells, made, found))
        if len(results) == 1:
            lines += [*table(made, found, cells, genes), *goals(made, found)]
    lines += [*table(made, found, *sizes[-1]), *goals(made, found), *scaled(results[1], results[2], ranks)]
    return "\n".join(lines)


def main() -> None:
    """Parse the command line and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--ranks", type=int, metavar="CELLS", help="memory of one rank and of four, only")
    parser.add_argument("--serve", nargs=4)
    given = parser.parse_args()
    if given.serve:
        way, folder, rank, world_size = given.serve
        here = Here(way, Path(folder), int(rank), int(world_size))
        for line in sys.stdin:
            print(json.dumps(here.ask(line.strip())), flush=True)
        return
    if given.ranks:
        with tempfile.TemporaryDirectory() as made:
            make(Path(made), given.ranks, 5_045, pairs_only=True)
            one, four = (memory_of_ranks("pairs", Path(made), k, Process) for k in (1, 4))
        print(f"{given.ranks:,} cells: {size(one)} and {size(four)}, {four / one:.2f} times")
        return
    text = run(given.small, given.rounds or (1 if given.small else 5))
    print(text)
    if given.markdown:
        from experiments.benchmarks.report import replace_between

        replace_between(given.markdown, "gears", text)


if __name__ == "__main__":
    main()
