"""Building the incidence index: node -> positions of its edges, for every gene-gene edge type."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch_geometric.data import HeteroData

from experiments.benchmarks import ours
from experiments.benchmarks.harness import Budget, Timing, alternate
from experiments.benchmarks.peers.torchcell_scheme import TorchcellScheme, index_cost
from experiments.benchmarks.report import FLOOR, OURS, SCHEME, Report, Row
from experiments.benchmarks.workload import LARGE_INDEX_EDGES, gene_edge_types, make_base_graph


def run(report: Report, base_graph: HeteroData, seed: int, scale: float, budget: Budget, large: bool) -> None:
    """Adds the rows for the usual graph and, with ``large``, for one of 21.6 M edges."""
    row = report.row("index", "build the incidence index, 2.55 M edges", "ms", target=150)
    _add_ways(row, base_graph, budget)
    # The scheme reads edge ends with ``.item()``; the other loop only shows how much of its time that is.
    for per_element, label, role in (
        (True, "`.item()` per edge end", SCHEME),
        (False, "kinder loop over lists", FLOOR),
    ):
        cost = index_cost(base_graph, per_element=per_element)
        size = f"{cost.num_tensors:,} tensors, {cost.num_bytes / 1e6:.0f} MB"
        note = f"extrapolated from {cost.measured_share:.0%}; {size}"
        row.add(f"{TorchcellScheme.name} ({label})", role, cost.seconds * 1e3, note)
    if large:
        row = report.row("index_large", "build the incidence index, 21.6 M edges", "ms", target=1500)
        graph = make_base_graph(seed, scale, total_edges=round(LARGE_INDEX_EDGES * scale))
        _add_ways(row, graph, Budget(min_rounds=2, max_rounds=3, seconds=0))


def _add_ways(row: Row, graph: HeteroData, budget: Budget) -> None:
    edges = [graph[t].edge_index for t in gene_edge_types(graph)]
    num_nodes = int(graph["gene"].num_nodes)
    reported: list[float] = []

    def build_ours(_: int) -> object:
        index = ours.build_index(graph)
        reported.append(index.build_ms / 1e3)
        return index

    def each(one: Callable[[torch.Tensor, int], object]) -> Callable[[int], object]:
        return lambda _: [one(edge_index, num_nodes) for edge_index in edges]

    timings = alternate(
        {
            "ours": build_ours,
            "numpy": each(numpy_csr),
            "radix": each(numpy_radix_csr),
            "torch": each(torch_csr),
        },
        budget,
    )
    row.add("torchcell_cache", OURS, Timing.of(reported), "also covers reactions; bound to the graph's hash")
    row.add(
        "torchcell_cache, hashing the graph included",
        OURS,
        timings["ours"],
        "`IncidenceIndex.build(base_graph)`",
    )
    row.add("numpy argsort, int64", FLOOR, timings["numpy"], "CSR only")
    row.add(
        "numpy argsort, uint16 (radix)", FLOOR, timings["radix"], "CSR only; needs fewer than 65,536 nodes"
    )
    row.add("torch.sort", FLOOR, timings["torch"], "CSR only")


def numpy_csr(edge_index: torch.Tensor, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """The obvious vectorised way."""
    ends = edge_index.numpy().reshape(-1)
    positions = np.argsort(ends, kind="stable") % edge_index.shape[1]
    return np.concatenate([[0], np.cumsum(np.bincount(ends, minlength=num_nodes))]), positions


def numpy_radix_csr(edge_index: torch.Tensor, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """The same on 16-bit keys, for which numpy's stable sort is a radix sort."""
    ends = edge_index.numpy().reshape(-1).astype(np.uint16)
    positions = (np.argsort(ends, kind="stable") % edge_index.shape[1]).astype(np.int32)
    return np.concatenate([[0], np.cumsum(np.bincount(ends, minlength=num_nodes))]), positions


def torch_csr(edge_index: torch.Tensor, num_nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What one would write without leaving torch."""
    ends, order = torch.sort(edge_index.reshape(-1), stable=True)
    return torch.searchsorted(ends, torch.arange(num_nodes + 1)), order % edge_index.shape[1]
