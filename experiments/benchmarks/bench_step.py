"""A training step: what message passing costs in PyG's batches, on the shared graph, and where nothing is deleted.

    python -m experiments.benchmarks.bench_step                  # yeast scale, some minutes, 12 GB for the stock batches
    python -m experiments.benchmarks.bench_step --small          # to see that it runs

Each way lives in a process of its own with one thread; all take turns, one step at a time, so that a slow moment hits
everybody, and one that has taken its steps ends. A step reads a batch, runs the layers over the nine gene networks forwards
and backwards, and nothing else.
Peak memory is above what the process had before its first step: libraries, base graph and store.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch_geometric.nn as G
from torch import Tensor, nn
from torch_geometric.data import Batch

from experiments.benchmarks import ours
from experiments.benchmarks.harness import Machine, memory_mb, single_thread
from experiments.benchmarks.report import replace_between
from experiments.benchmarks.workload import gene_edge_types, make_workload
from torchcell_cache.nn import shared_edges, shared_hetero_conv, shared_input

WIDTH = 32
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "GIN": lambda: G.GINConv(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))),
    "GAT": lambda: G.GATConv(WIDTH, WIDTH),
    "GATv2": lambda: G.GATv2Conv(WIDTH, WIDTH),
    "Transformer": lambda: G.TransformerConv(WIDTH, WIDTH),
    "PNA": lambda: G.PNAConv(WIDTH, WIDTH, ["mean", "max", "std"], ["identity", "amplification"], DEGREES),
}
DEGREES = torch.ones(100, dtype=torch.int64)
WAYS = {
    "stock": "stock PyG: Batch.from_data_list, edge_index[:, mask]",
    "to_pyg": "to_pyg(), edge_index[:, mask]",
    "filtered": "to_pyg(drop_removed=True)",
    "shared": "shared batches",
    "static": "floor: PyG's layers on [batch, nodes, width], one static graph, nothing deleted",
    "sparse": "floor: torch.sparse, all samples side by side, nothing deleted",
}
TIMEOUT = 1200.0


class Work(NamedTuple):
    """One way of doing one kind of step."""

    layer: str
    depth: int
    way: str
    batch: int

    @property
    def slow(self) -> bool:
        """Whether one step has to do, so that all of them stay within eight minutes."""
        return self.layer != "GIN" or self.way != "shared"

    @property
    def deletes(self) -> bool:
        """Whether what the samples lack is left out, so that losses of all such ways agree."""
        return self.way not in ("static", "sparse")


def plan(batch: int, stock_attention: int) -> list[Work]:
    """The table's rows: stock batches of attention only as large as they fit."""
    two = [Work("GIN", 2, way, batch) for way in WAYS]
    three = [Work("GIN", 3, way, batch) for way in ("stock", "shared")]
    attention = [
        Work(layer, 2, way, size)
        for layer in ("GAT", "GATv2", "Transformer")
        for way, size in (("stock", stock_attention), ("shared", stock_attention), ("shared", batch))
    ]
    any_layer = [Work("PNA", 1, "stock", stock_attention), Work("PNA", 1, "shared", batch)]
    return two + three + attention + any_layer


class Model(nn.Module):
    """An embedding of genes and layers over all networks; one number out."""

    def __init__(self, work: Work, base_graph: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.types = gene_edge_types(base_graph)
        self.genes = nn.Embedding(int(base_graph["gene"].num_nodes), WIDTH)
        self.matrices: dict[Any, Tensor] = {}
        make = LAYERS[work.layer]
        self.convs = nn.ModuleList(G.HeteroConv({t: make() for t in self.types}) for _ in range(work.depth))

    def forward(self, x: Tensor, run: Callable[[G.HeteroConv, Tensor], Tensor]) -> Tensor:
        """Mean square of the last layer, of what each ``run`` makes of the features."""
        for conv in self.convs:
            x = run(conv, x) / len(self.types)
        return x.square().mean()


def step(work: Work, dataset: Any, model: Model) -> float:
    """One step; returns its loss."""
    positions = list(range(work.batch))
    genes, types = model.genes.weight, model.types
    if work.way == "shared":
        batch = dataset.read_batch(positions)
        edges = {t: shared_edges(batch)[t] for t in types}
        loss = model(
            shared_input(genes, batch), lambda conv, x: shared_hetero_conv(conv, {"gene": x}, edges)["gene"]
        )
    elif work.deletes:
        index = _pyg_edges(work, dataset, positions, types)
        loss = model(genes.repeat(work.batch, 1), lambda conv, x: conv({"gene": x}, index)["gene"])
    else:
        loss = _nothing_deleted(work, dataset.base_graph, model)
    loss.backward()
    model.zero_grad(set_to_none=True)
    return float(loss.detach())


def _pyg_edges(work: Work, dataset: Any, positions: list[int], types: list[Any]) -> dict[Any, Tensor]:
    if work.way == "filtered":
        pyg = dataset.read_batch(positions).to_pyg(drop_removed=True)
        return {t: pyg[t].edge_index for t in types}
    stock = work.way == "stock"
    pyg = (
        Batch.from_data_list([dataset[k] for k in positions])
        if stock
        else dataset.read_batch(positions).to_pyg()
    )
    return {t: pyg[t].edge_index[:, pyg[t].mask] for t in types}


def _nothing_deleted(work: Work, base_graph: Any, model: Model) -> Tensor:
    index = {t: base_graph[t].edge_index for t in model.types}
    x = model.genes.weight.repeat(work.batch, 1, 1)
    if work.way == "static":
        return model(x, lambda conv, x: conv({"gene": x}, index)["gene"])
    if not model.matrices:
        with warnings.catch_warnings(action="ignore"):  # "CSR is in beta"
            for t, (source, target) in index.items():
                matrix = torch.sparse_coo_tensor(
                    torch.stack([target, source]), torch.ones(len(source)), (x.size(1),) * 2
                )
                model.matrices[t] = matrix.to_sparse_csr()

    def run(conv: G.HeteroConv, x: Tensor) -> Tensor:
        wide = x.flatten(1)
        outs = [conv.convs[t].nn((wide + m @ wide).view_as(x)) for t, m in model.matrices.items()]
        return torch.stack(outs).sum(0)

    return model(x.transpose(0, 1).contiguous(), run)


def live(pipe: Any, work: Work, root: str) -> None:
    """A process: steps when told to, then how much memory the steps took at most."""
    single_thread()
    dataset = ours.open_store(Path(root))
    model = Model(work, dataset.base_graph)
    before = memory_mb("Rss")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    while pipe.recv() is not None:
        begun = time.perf_counter()
        try:
            loss = step(work, dataset, model)
        except (RuntimeError, MemoryError) as error:
            pipe.send((None, f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"))
            continue
        pipe.send((1e3 * (time.perf_counter() - begun), loss))
    pipe.send(peak_since(before))


def peak_since(before: float) -> float:
    """Most memory of this process since its peak was started anew, in MB above ``before``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024 - before


def measure(works: list[Work], root: Path, rounds: int) -> list[dict[str, Any]]:
    """All ways in turns; a row each. The first step of a way that takes several is not counted."""
    fork = multiprocessing.get_context("fork")  # libraries are there already, and no thread runs yet
    pipes, processes = {}, []
    for work in works:
        pipes[work], end = fork.Pipe()
        processes.append(fork.Process(target=live, args=(end, work, str(root)), daemon=True))
        processes[-1].start()
        end.close()
    times: dict[Work, list[float]] = {work: [] for work in works}
    losses: dict[Work, Any] = {}
    peaks: dict[Work, float | None] = {}
    for number in range(rounds + 1):
        for work in works:
            if work in peaks:
                continue
            took, losses[work] = _answer(pipes[work], True) or (None, "killed: not enough memory")
            times[work] += [took] if took is not None else []
            shown = losses[work] if took is None else f"{took:.0f} ms"
            print(f"  {work.layer}, {work.depth} layers, {work.way}, {work.batch}: {shown}", flush=True)
            if work.slow or number == rounds or took is None:
                peaks[work] = _answer(pipes[work], None)  # and its memory is free for the others
    rows = []
    for work in works:
        counted = times[work][1:] or times[work]
        row = {
            **work._asdict(),
            "deletes": work.deletes,
            "ms": statistics.median(counted) if counted else None,
            "calls": len(counted),
        }
        rows.append({**row, "loss": losses[work], "peak_mb": peaks[work] if counted else None})
    for process in processes:
        process.terminate()
        process.join()
    return rows


def _answer(pipe: Any, question: Any) -> Any:
    """What a process says; ``None`` if it is gone."""
    try:
        pipe.send(question)
        if not pipe.poll(TIMEOUT):
            raise RuntimeError(f"a step took more than {TIMEOUT} s")
        return pipe.recv()
    except (EOFError, BrokenPipeError):
        return None


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, each beside the first of its kind: stock."""
    lines = [
        "| step | way | samples | ms | ms a sample | stock / this | peak MB | calls |",
        "|---|---|---|---|---|---|---|---|",
    ]
    stock = {(r["layer"], r["depth"]): r["ms"] / r["batch"] for r in rows if r["way"] == "stock" and r["ms"]}
    for row in rows:
        kind = row["layer"], row["depth"]
        name = f"{row['depth']} layer{'s' * (row['depth'] > 1)} of {row['layer']}"
        if row["ms"] is None:
            lines.append(f"| {name} | {WAYS[row['way']]} | {row['batch']} | {row['loss']} | | | | |")
            continue
        each = row["ms"] / row["batch"]
        ratio = f"{stock[kind] / each:.1f}" if kind in stock else "-"
        figures = f"{row['ms']:.0f} | {each:.1f} | {ratio} | {row['peak_mb']:.0f} | {row['calls']}"
        lines.append(f"| {name} | {WAYS[row['way']]} | {row['batch']} | {figures} |")
    for kind in sorted({(r["layer"], r["depth"], r["batch"]) for r in rows}):
        found = [
            r["loss"]
            for r in rows
            if (r["layer"], r["depth"], r["batch"]) == kind and r["ms"] and r["deletes"]
        ]
        if len(found) > 1:
            apart = (max(found) - min(found)) / abs(max(found, key=abs))
            lines.append(
                f"\nLosses of {kind[1]} layers of {kind[0]}, {kind[2]} samples, {len(found)} ways: {apart:.0e} apart"
            )
    return "\n".join(lines)


def main(given: list[str] | None = None) -> list[dict[str, Any]]:
    """Entry point of ``python -m experiments.benchmarks.bench_step``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a hundredth of the graph, three samples")
    parser.add_argument(
        "--rounds", type=int, default=3, help="counted steps of GIN on shared batches; all else takes one"
    )
    parser.add_argument("--only", nargs="*", help="layers, ways or depths, such as GIN shared 2")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="page with the markers of benchmark:step")
    arguments = parser.parse_args(given)
    single_thread()
    scale, batch, stock_attention = (0.01, 3, 2) if arguments.small else (1.0, 28, 1)
    works = plan(batch, stock_attention)
    for group in (LAYERS, WAYS, "123"):
        wanted = [name for name in arguments.only or () if name in group]
        works = [w for w in works if not wanted or {w.layer, w.way, str(w.depth)} & set(wanted)]
    machine = f"{Machine.here().describe()}; one thread, width {WIDTH}"
    print(machine, flush=True)
    with tempfile.TemporaryDirectory() as root:
        workload = make_workload(0, scale, batch)
        ours.build(Path(root) / "store", ours.make_source(workload, workload.samples), "perturbation", 1)
        rows = measure(works, Path(root) / "store", 1 if arguments.small else arguments.rounds)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    said = f"{table(rows)}\n\nLargest process: {peak:.1f} GB."
    print(said)
    page = arguments.markdown
    if page and not replace_between(page, "benchmark:step", f"Measured on {machine}.\n\n{said}"):
        parser.exit(1, f"{page} has no markers <!-- benchmark:step:start --> and :end\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
