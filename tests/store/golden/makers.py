"""What the golden stores were made from. The stores beside this file are never made again: old stores must go on opening.

Nothing here is drawn at random, so that the same sources and processors can be made in any later version.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch_geometric.data import Data, HeteroData

import torchcell_cache as tc
import torchcell_cache.processors
from torchcell_cache import LazySubgraphRepresentation

GENES = [f"Y{k:03d}" for k in range(12)]
KNOCKOUTS = [["Y000"], ["Y003", "Y001"], [], ["Y011", "Y005", "Y004"], ["Y007"], ["Y002", "Y008"], ["Y010"]]
FITNESS = [0.5, 0.25, 1.0, float("nan"), 0.75, 0.125, 0.875]
STANDARD_ERROR = [0.0625, float("nan"), 0.03125, float("nan"), 0.5, 0.25, float("nan")]


def pairs(*columns: list[int]) -> torch.Tensor:
    return torch.tensor(columns, dtype=torch.int64)


def cell() -> HeteroData:
    """Genes in two networks, with parallel edges, a loop and an isolated gene; reactions with rules; metabolites."""
    graph = HeteroData()
    graph["gene"].node_ids = list(GENES)
    graph["gene"].num_nodes = 12
    graph["gene"].x = torch.arange(24, dtype=torch.float32).reshape(12, 2) / 8
    graph["reaction"].num_nodes = 4
    graph["reaction"].node_ids = ["r0", "r1", "r2", "r3"]
    graph["reaction"].w_growth = torch.tensor([0.0, 0.0, 0.0, 1.0])
    graph["reaction"].gene_rules = ["Y000 and Y001", "Y001 or Y002", "", "(Y000 and Y003) or Y004"]
    graph["metabolite"].node_ids = ["m0", "m1", "m2"]
    graph["metabolite"].num_nodes = 3
    ring = list(range(11))
    networks = {
        "physical": pairs([*ring, 0, 0, 5], [*ring[1:], 0, 1, 1, 5]),
        "regulatory": pairs([3, 1, 8, 9], [7, 4, 2, 3]),
        "empty": pairs([], []),
    }
    for name, edges in networks.items():
        graph["gene", name, "gene"].edge_index = edges
        graph["gene", name, "gene"].num_edges = edges.shape[1]
    gpr = graph["gene", "gpr", "reaction"]
    gpr.hyperedge_index, gpr.num_edges = pairs([0, 1, 1, 2, 0, 3, 4], [0, 0, 1, 1, 3, 3, 3]), 7
    rmr = graph["reaction", "rmr", "metabolite"]
    rmr.hyperedge_index, rmr.num_edges = pairs([0, 0, 1, 2, 3, 3], [0, 1, 1, 2, 0, 2]), 6
    rmr.stoichiometry = torch.tensor([-1, 1, -2, 1, 0.5, -1])
    return graph


def table(first: int = 0, last: int = 7) -> Any:
    part = slice(first, last)
    return tc.PerturbationTable(
        cell(),
        KNOCKOUTS[part],
        phenotypes={"fitness": FITNESS[part]},
        statistics={"fitness_se": STANDARD_ERROR[part]},
        nan="keep",
    )


def csv_table(folder: Path) -> Any:
    """The same from a file, whose rows have ids of their own."""
    rows = [f"s{k},{'|'.join(genes)},{k / 8},{k / 64}\n" for k, genes in enumerate(KNOCKOUTS) if genes]
    path = folder / "knockouts.csv"
    path.write_text("id,genes,fitness,fitness_se\n" + "".join(rows))
    return tc.PerturbationTable.from_csv(
        path, cell(), phenotypes=["fitness"], statistics=["fitness_se"], id_column="id"
    )


def graphs() -> list[Data]:
    return [
        Data(
            x=torch.arange(8, dtype=torch.float32).reshape(4, 2) * (k + 1),
            edge_index=pairs([0, 1, 2, k % 4], [1, 2, 3, 0]),
            y=torch.tensor([k / 4]),
            name=f"graph {k}",
            nested={"list": [k, "a", (1.5, None)], "flag": k % 2 == 0},
        )
        for k in range(6)
    ]


def halved(graph: Data) -> Data:
    """A user's transform."""
    out = graph.clone()
    out.x = out.x / 2
    return out


class Marked(LazySubgraphRepresentation):
    """A user's subclass of a built-in processor."""

    def process(self, base_graph: Any, sample: Any) -> Any:
        graph = super().process(base_graph, sample)
        graph["gene"].marked = torch.tensor([len(sample.perturbed)])
        return graph


class Delegating:
    """A user's own processor that calls built-in ones by the names of this package."""

    def process(self, base_graph: Any, sample: Any) -> Any:
        graph = torchcell_cache.processors.SubgraphRepresentation(gpr="rule").process(base_graph, sample)
        graph["gene"].count = int(sample.perturbed.shape[0])
        return graph

    def settings(self) -> dict[str, Any]:
        return {"gpr": "rule"}


def cells(folder: Path) -> Any:
    """Cells of a file that lies beside the stores."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's own deprecations, at import
        return tc.AnnDataSource(
            Path(__file__).with_name("cells.h5ad"),
            cell_genes(),
            phenotypes=["score"],
            categories=["cell_type"],
        )


def cell_genes() -> HeteroData:
    graph = cell()
    out = HeteroData()
    out["gene"].node_ids, out["gene"].num_nodes = graph["gene"].node_ids, 12
    out["gene", "physical", "gene"].edge_index = graph["gene", "physical", "gene"].edge_index
    return out


def setups() -> dict[str, dict[str, Any]]:
    """Per store: how the source is made from a scratch directory, and the other arguments of ``build``."""
    lazy, rule = tc.LazySubgraphRepresentation, {"gpr": "rule"}
    whole: Callable[[Path], Any] = lambda folder: table()  # noqa: E731
    listed: Callable[[Path], Any] = lambda folder: graphs()  # noqa: E731
    return {
        "lazy-perturbation": {"source": whole, "processor": lazy(), "storage": "perturbation"},
        "lazy-delta": {"source": whole, "processor": lazy(), "storage": "delta"},
        "lazy-full": {"source": whole, "processor": lazy(), "storage": "full"},
        "subgraph-rule": {
            "source": whole,
            "processor": tc.SubgraphRepresentation(**rule),
            "storage": "delta",
        },
        "perturbation": {"source": whole, "processor": tc.Perturbation(), "storage": "perturbation"},
        "khop": {"source": whole, "processor": tc.KHopSubgraph(1), "storage": "delta"},
        "csv": {"source": csv_table, "processor": lazy(), "storage": "perturbation"},
        "subclass": {"source": whole, "processor": Marked(), "storage": "delta"},
        "delegating": {"source": whole, "processor": Delegating(), "storage": "full"},
        "graphs": {"source": listed, "processor": None, "storage": "delta"},
        "graphs-transform": {"source": listed, "processor": halved, "storage": "full"},
        "cells": {"source": cells, "processor": None, "storage": "delta"},
        "appended": {"source": lambda folder: table(0, 4), "processor": lazy(), "storage": "perturbation"},
    }


def make(folder: Path) -> None:  # pragma: no cover - ran once
    """Build all stores, as it was done once."""
    for name, setup in setups().items():
        arguments = {**setup, "source": setup["source"](folder)}
        tc.build(folder / name, shard_size=3, progress=False, **arguments)
    tc.append(folder / "appended", table(4, 7), progress=False)


if __name__ == "__main__":  # pragma: no cover
    import sys

    make(Path(sys.argv[1]))
    print(json.dumps(sorted(setups())))
