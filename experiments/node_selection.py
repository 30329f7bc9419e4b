"""Memory and time of batches restricted to some nodes, on the yeast-scale workload; prints the table of docs/node_selection.md.

Run ``python -m experiments.node_selection [scale]``; scale 1 is the yeast graph's size and needs 6 GB of memory.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

import torchcell_cache as tc
from experiments.benchmarks.workload import make_workload

BATCH, REPEATS = 28, 5


def main(scale: float = 1.0) -> None:
    """Build a small store and measure."""
    torch.set_num_threads(1)
    work = make_workload(scale=scale, num_samples=2_000)
    source = tc.PerturbationTable(
        work.base_graph, work.samples.perturbed, phenotypes={"fitness": work.samples.labels[:, 0]}
    )
    num_genes = work.base_graph["gene"].num_nodes
    values = torch.rand(num_genes, generator=torch.Generator().manual_seed(0))
    counts = [None, *(max(BATCH * 3, round(k * scale)) for k in (2_000, 1_000, 500))]
    with tempfile.TemporaryDirectory() as root:
        ds = tc.build(root, source=source, processor=tc.LazySubgraphRepresentation(), progress=False)
        print("| nodes | edges | base graph | masks | `to_pyg` | select | masks made | nine GIN layers |")
        print("|---|---|---|---|---|---|---|---|")
        for k in counts:
            print(row(ds, k, values))
    _khop(source, scale)


def row(ds: Any, k: int | None, values: torch.Tensor) -> str:
    """One line of the table: bytes are exact, times medians in milliseconds."""
    times: dict[str, list[float]] = {"select": [], "masks": [], "conv": []}
    for repeat in range(REPEATS):
        batch = ds.read_batch(range(repeat * BATCH, (repeat + 1) * BATCH))
        part = timed(
            times["select"], lambda b=batch: b if k is None else b.select_nodes("gene", k, values=values)
        )
        timed(times["masks"], lambda p=part: [p.edge_mask(t) for t in edge_types(p)])
        timed(times["conv"], lambda p=part: convolve(p))
    graph = part.base_graph
    edges = sum(graph[t].edge_index.size(1) for t in edge_types(part))
    masks = sum(part.edge_mask(t).numel() for t in edge_types(part))
    shared = sum(v.nbytes for s in graph.stores for v in s._mapping.values() if isinstance(v, torch.Tensor))
    pyg = part.to_pyg()
    whole = sum(v.nbytes for s in pyg.stores for v in s._mapping.values() if isinstance(v, torch.Tensor))
    select, made, conv = (f"{statistics.median(times[n]):.1f} ms" for n in ("select", "masks", "conv"))
    sizes = " | ".join(f"{n / 1e6:,.1f} MB" for n in (shared, masks, whole))
    num = graph["gene"].num_nodes
    return f"| {num:,} | {edges:,} | {sizes} | {'-' if k is None else select} | {made} | {conv} |"


def edge_types(batch: Any) -> list[Any]:
    """Edge types between two genes."""
    return [t for t in batch.base_graph.edge_types if t[0] == t[2] == "gene"]


def convolve(batch: Any) -> None:
    """One GIN layer per edge type, forward and backward, on 64 features."""
    from torch_geometric.nn import GINConv

    from torchcell_cache.nn import shared_conv, shared_edges

    torch.manual_seed(0)
    layer = GINConv(torch.nn.Linear(64, 64))
    x = batch.base_graph["gene"].x.expand(len(batch), -1, -1)
    edges = shared_edges(batch)
    torch.stack([shared_conv(layer, x, edges[t]) for t in edge_types(batch)]).sum().backward()


def timed(into: list[float], run: Callable[[], Any]) -> Any:
    """The result; its time in milliseconds is added to the list."""
    begun = time.perf_counter()
    out = run()
    into.append((time.perf_counter() - begun) * 1e3)
    return out


def _khop(source: Any, scale: float) -> None:
    print("\n| processor | storage | genes per sample | bytes per sample | build |")
    print("|---|---|---|---|---|")
    few = tc.PerturbationTable(source.base_graph, source.table.ids.reshape(-1, 3)[:40])
    cases = [(tc.KHopSubgraph(1), "delta"), (tc.KHopSubgraph(1, ["string_fusion"]), "delta")]
    cases += [(tc.KHopSubgraph(1, ["physical"]), mode) for mode in ("full", "delta")]
    for processor, storage in cases:
        with tempfile.TemporaryDirectory() as root:
            spent: list[float] = []
            ds = timed(
                spent,
                lambda p=processor, s=storage, r=root: tc.build(
                    r, source=few, processor=p, storage=s, progress=False
                ),
            )
            size = sum(shard.file.size for shard in ds.generation.manifest.shards) / len(ds)
            genes = statistics.mean(ds[k]["gene"].num_nodes for k in range(8))
            walked = "all" if processor.edge_types is None else ", ".join(processor.edge_types)
            per = spent[0] / len(ds)
            print(f"| 1 hop, {walked} | {storage} | {genes:,.0f} | {size:,.0f} | {per:.0f} ms each |")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
