"""What holds on an accelerator, and how long it takes: one run, a table and JSON.

    python -m experiments.gpu_check                      # one card, under eight minutes
    python -m experiments.gpu_check --device cpu --scale 0.02 --batch 4 --steps 2

Needs the package and torch. Everything is compared with the CPU: masks and PyG batches bit by bit, every route and its
gradients with the CPU in double precision. Times are medians. What fails is a line of the table; the rest still runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_geometric.nn as G
from torch import Tensor, nn
from torch_geometric.data import Batch

import torchcell_cache as tc
from experiments.benchmarks import ours
from experiments.benchmarks.workload import gene_edge_types, make_workload
from experiments.train.model import HeteroGin
from torchcell_cache.nn import shared_conv, shared_edges, shared_input
from torchcell_cache.nn.adjacency import adjacency_of

WIDTH = 32
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "gin": lambda: G.GINConv(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))),
    "sage": lambda: G.SAGEConv(WIDTH, WIDTH),
    "graph": lambda: G.GraphConv(WIDTH, WIDTH),
    "gcn": lambda: G.GCNConv(WIDTH, WIDTH),
    "gin max": lambda: G.GINConv(nn.Linear(WIDTH, WIDTH), aggr="max"),
    "gat": lambda: G.GATConv(WIDTH, WIDTH // 2, heads=2),
    "gatv2": lambda: G.GATv2Conv(WIDTH, WIDTH // 2, heads=2),
    "transformer": lambda: G.TransformerConv(WIDTH, WIDTH),
}


class Check:
    """One run on a device: what was compared, what was timed, ``steps`` times."""

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.steps = device, steps
        self.rows: list[dict[str, Any]] = []

    def note(self, what: str, value: Any, unit: str = "") -> None:
        """A line of the table."""
        self.rows.append({"what": what, "value": value, "unit": unit})
        shown = f"{value:.4g}" if isinstance(value, float) else value
        print(f"| {what} | {shown} {unit} |", flush=True)

    def tried(self, what: str, run: Callable[[], Any]) -> None:
        """A section; what it raises is a line of the table, and the others still run."""
        try:
            run()
        except Exception as error:
            self.note(what, False, f"({type(error).__name__}: {' '.join(str(error).split())[:200]})")

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def time(self, what: str, run: Callable[[], Any]) -> float:
        """Median milliseconds of a call, the device's work included."""
        times = []
        for _ in range(self.steps + 1):
            self.wait()
            begun = time.perf_counter()
            run()
            self.wait()
            times.append(1e3 * (time.perf_counter() - begun))
        self.note(what, float(np.median(times[1:])), "ms")
        return float(np.median(times[1:]))

    @contextmanager
    def never_waiting(self) -> Iterator[None]:
        """Any wait of the host for the device is an error."""
        if self.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def same_batches(check: Check, dataset: Any, positions: list[int]) -> None:
    """Masks without a wait, and PyG batches, bit by bit."""
    here, types = dataset.read_batch(positions), dataset.base_graph.edge_types
    masks = [here.edge_mask(t) for t in types]
    for first in (True, False):  # what is moved once per process is there the second time
        there = dataset.read_batch(positions).to(check.device)
        with nullcontext() if first else check.never_waiting():
            found = [there.edge_mask(t) for t in types]
            there.node_mask()
    equal = all(torch.equal(a, b.cpu()) for a, b in zip(masks, found, strict=True))
    equal &= torch.equal(here.node_mask(), there.node_mask().cpu())
    check.note("masks equal the CPU's, made without a wait", equal)
    pinned = dataset.read_batch(positions).pin_memory()
    with check.never_waiting():
        pinned.to(check.device, non_blocking=True).node_mask()
    check.note("a batch copied and its nodes masked without a wait", True)
    for drop in (False, True):
        wanted, made = here.to_pyg(drop_removed=drop), there.to_pyg(drop_removed=drop)
        pairs = [
            (value, made_store[name])
            for store, made_store in zip(wanted.stores, made.stores, strict=True)
            for name, value in store.items()
            if isinstance(value, Tensor)
        ]
        equal = all(
            a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.cpu().nan_to_num()) for a, b in pairs
        )
        check.note(f"to_pyg(drop_removed={drop}) equals the CPU's, {len(pairs)} tensors", equal)


def same_layer(check: Check, name: str, batch: Any, there: Any, edge_type: Any, shared: bool) -> None:
    """Every route and its gradients, against the CPU in double precision; ``shared``: samples that enter alike."""
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    # What single precision holds as well: rounding makes no other value the largest.
    shape = batch.base_graph[edge_type[0]].num_nodes, WIDTH
    x = torch.randn(shape if shared else (len(batch), *shape)).double()
    wanted = _run(layer, x, batch, edge_type, "general")
    for route in ("auto",) if shared else ("auto", "general"):
        for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-4)):
            moved = LAYERS[name]().to(check.device, dtype)
            moved.load_state_dict(layer.state_dict())
            found = _run(moved, x.to(check.device, dtype), there, edge_type, route)
            # Some gradients are nothing but rounding.
            least = 1e-3 * max(float(a.abs().max()) for a in wanted)
            apart = max(
                float((a - b.cpu().double()).abs().max() / a.abs().max().clamp(min=least))
                for a, b in zip(wanted, found, strict=True)
            )
            name_ = f"{name}, {'one input, ' * shared}{route}, {str(dtype).removeprefix('torch.')}: values and gradients"
            check.note(f"{name_} within {tolerance:g}", bool(apart < tolerance), f"({apart:.1e})")


@torch.no_grad()
def half_precision(check: Check, name: str, batch: Any, edge_type: Any) -> None:
    """A layer under autocast to bf16 beside itself in single precision."""
    x = torch.randn(len(batch), batch.base_graph[edge_type[0]].num_nodes, WIDTH, device=check.device)
    edges, layer = shared_edges(batch)[edge_type], LAYERS[name]().to(check.device)
    wanted = shared_conv(layer, x, edges)
    with torch.autocast(check.device.type, torch.bfloat16):
        found = shared_conv(layer, x, edges)
    apart = float((found.float() - wanted).abs().max() / wanted.abs().max())
    check.note(f"{name} under autocast to bf16 within 0.05", apart < 0.05, f"({apart:.1e})")


def _run(layer: nn.Module, x: Tensor, batch: Any, edge_type: Any, route: str) -> list[Tensor]:
    x = x.clone().requires_grad_()
    each = x if x.dim() == 3 else shared_input(x, batch)
    out = shared_conv(layer, each, shared_edges(batch)[edge_type], route=route)
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
    grads = torch.autograd.grad(out, [x, *layer.parameters()], seed, allow_unused=True)
    return [out.detach(), *(g for g in grads if g is not None)]


def products(check: Check, batch: Any, edge_type: Any) -> None:
    """One wide sparse product against a dense one."""
    edges = shared_edges(batch)[edge_type]
    num_nodes = batch.base_graph[edge_type[0]].num_nodes
    x = torch.randn(len(batch), num_nodes, WIDTH, device=check.device)
    matrix = adjacency_of(edges.edge_index, num_nodes, num_nodes).matrices(None, torch.float32).matrix
    wide = x.transpose(0, 1).reshape(num_nodes, -1)
    dense = matrix.sparse.to_dense()
    name = f"{edge_type[1]}, {edges.edge_index.size(1):,} edges"
    half = dense.bfloat16(), wide.bfloat16()
    for what, left, right in (
        ("one wide sparse product", matrix.sparse, wide),
        ("dense product, float32", dense, wide),
        ("dense product for each sample, no transposes", dense, x),
        ("dense product, bf16", *half),
    ):
        check.time(f"{name}: {what}", lambda a=left, b=right: a @ b)


def training(check: Check, dataset: Any, batch_size: int) -> None:
    """A step in three modes: what the data takes of it, and the most memory."""
    base = dataset.base_graph
    graphs = [t for t in base.edge_types if t[0] == t[2]]
    loader = tc.CacheLoader(dataset, batch_size, shuffle=True, seed=0)

    def stock(batch: Any) -> Any:
        return Batch.from_data_list([dataset[int(k)] for k in batch.indices]).to(check.device)

    modes: dict[str, Callable[[Any], Any]] = {
        "shared": lambda batch: batch.to(check.device),
        "to_pyg": lambda batch: batch.to(check.device).to_pyg(),
        "stock": stock,
    }
    for mode, prepare in modes.items():
        torch.manual_seed(0)
        model = HeteroGin(base, WIDTH).to(check.device)
        optimizer = torch.optim.Adam(model.parameters())
        if check.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(check.device)
        try:
            waits, steps = _train(check, model, optimizer, loader, prepare)
        except torch.cuda.OutOfMemoryError as error:
            check.note(f"training, {mode}", f"out of memory: {str(error)[:80]}")
            continue
        name = f"training, {mode}, {len(graphs)} networks: step with its data"
        check.note(name, float(np.median(steps)), "ms")
        check.note(f"training, {mode}: share of waiting for data", 100 * sum(waits) / sum(steps), "%")
        if check.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(check.device) / 1e9
            check.note(f"training, {mode}: most memory", peak, "GB")


def _train(
    check: Check, model: nn.Module, optimizer: Any, loader: Any, prepare: Callable[[Any], Any]
) -> tuple[list[float], list[float]]:
    waits: list[float] = []
    steps: list[float] = []
    batches = iter(loader)
    for _ in range(check.steps + 2):
        check.wait()
        begun = time.perf_counter()
        read = next(batches)
        batch = prepare(read)
        check.wait()
        waited = time.perf_counter() - begun
        loss = nn.functional.mse_loss(model(batch), read.labels("fitness").to(check.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        check.wait()
        waits.append(1e3 * waited)
        steps.append(1e3 * (time.perf_counter() - begun))
    return waits[2:], steps[2:]


def graph_capture(check: Check, batch: Any, edge_type: Any) -> None:
    """Whether a shared layer's forward pass can be captured and replayed."""
    if check.device.type != "cuda":
        return
    edges, layer = shared_edges(batch)[edge_type], LAYERS["sage"]().to(check.device)
    x = shared_input(torch.randn(batch.base_graph[edge_type[0]].num_nodes, WIDTH, device=check.device), batch)
    x = x.contiguous()
    with torch.no_grad():
        wanted = shared_conv(layer, x, edges)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = shared_conv(layer, x, edges)
        graph.replay()
        check.note("CUDA graph of a shared layer replays to the same", bool(torch.allclose(out, wanted)))
        check.time("the same layer, replayed", graph.replay)
        check.time("the same layer, called", lambda: shared_conv(layer, x, edges))


def run(arguments: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    """All checks."""
    check = Check(torch.device(arguments.device), arguments.steps)
    is_cuda = check.device.type == "cuda"
    check.note("device", torch.cuda.get_device_name(check.device) if is_cuda else "CPU")
    check.note("torch", torch.__version__)
    print("|---|---|")
    torch.set_float32_matmul_precision("highest")  # some images of containers ask for TF32
    workload = make_workload(0, arguments.scale, max((arguments.steps + 2) * arguments.batch, 200))
    dataset, _ = ours.build(root / "store", ours.make_source(workload, workload.samples), "perturbation", 1)
    positions = list(range(arguments.batch))
    types = gene_edge_types(dataset.base_graph)
    by_size = sorted(types, key=lambda t: dataset.base_graph[t].edge_index.size(1))
    few = dataset.read_batch(positions[:4])
    batch = dataset.read_batch(positions)
    there, few_there = batch.to(check.device), few.to(check.device)
    pinned = batch.pin_memory()
    check.tried("batches", lambda: same_batches(check, dataset, positions))
    for name in LAYERS:
        for shared in (False, True):
            check.tried(name, lambda n=name, s=shared: same_layer(check, n, few, few_there, by_size[0], s))
        check.tried(f"{name}, bf16", lambda n=name: half_precision(check, n, few_there, by_size[0]))
    timed: dict[str, Callable[[], Any]] = {
        "reading a batch": lambda: dataset.read_batch(positions),
        "a batch to the device": lambda: pinned.to(check.device, non_blocking=True),
        "a batch to the device and all its edge masks": lambda: pinned.to(
            check.device, non_blocking=True
        ).edge_mask(types[0]),
        "to_pyg on the device": there.to_pyg,
        "to_pyg(drop_removed=True) on the device": lambda: there.to_pyg(drop_removed=True),
    }
    for what, work in timed.items():
        check.tried(what, lambda what=what, work=work: check.time(what, work))
    for edge_type in by_size[:: len(by_size) - 1]:
        check.tried("products", lambda t=edge_type: products(check, there, t))
    check.tried("training", lambda: training(check, dataset, arguments.batch))
    check.tried("CUDA graph", lambda: graph_capture(check, there, by_size[0]))  # last: a failed one may harm
    return check.rows


def main(given: list[str] | None = None) -> list[dict[str, Any]]:
    """Entry point of ``python -m experiments.gpu_check``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", type=float, default=1.0, help="of the benchmark's yeast-scale graph")
    parser.add_argument("--batch", type=int, default=28)
    parser.add_argument("--steps", type=int, default=10, help="repetitions of what is timed")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as root:
        rows = run(arguments, Path(root))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
