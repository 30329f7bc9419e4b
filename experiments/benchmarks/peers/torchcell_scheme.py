"""torchcell's scheme, written from its description: removed positions, pickled, in LMDB.

* index: per gene-gene edge type a list with one tensor of edge positions for every node, filled by a Python
  loop;
* processing one sample: comprehensions over all node names, edge masks through the index, reactions by a
  Python loop;
* store: ``pickle`` of a dictionary of tensors under ``str(index)``, all samples in one LMDB transaction;
* read: ``pickle.loads``, then masks rebuilt into a ``HeteroData`` that refers to the base graph's tensors;
* batch: ``torch_geometric`` ``Batch.from_data_list``, which copies the base graph once per sample.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from torch_geometric.data import Batch, HeteroData

from experiments.benchmarks.workload import Samples, gene_edge_types

PHENOTYPES = ["fitness", "interaction"]
GPR, RMR = ("gene", "gpr", "reaction"), ("reaction", "rmr", "metabolite")


@dataclass(frozen=True)
class IndexCost:
    """What the Python loop costs for the whole graph, extrapolated from a part of it.

    Attributes:
        seconds: Edge loop plus making one tensor per node and edge type.
        num_tensors: Tensors of the complete index.
        num_bytes: Bytes of positions plus Python's and torch's overhead per tensor (about 600 bytes).
        measured_share: Share of the work that was really done.
    """

    seconds: float
    num_tensors: int
    num_bytes: int
    measured_share: float


def index_cost(base_graph: HeteroData, share: float = 0.05, per_element: bool = True) -> IndexCost:
    """Times the index build on a share of the edges and of the nodes; ``share=1`` does all of it.

    ``per_element`` reads each edge's ends with ``.item()``, as the scheme does (about 20 s in all); without
    it the edges are turned into Python lists first, the kindest reading of "a Python loop".
    """
    seconds, num_tensors, num_entries = 0.0, 0, 0
    num_nodes = int(base_graph["gene"].num_nodes)
    stride = max(1, round(1 / share))
    for edge_type in gene_edge_types(base_graph):
        edge_index = base_graph[edge_type].edge_index
        part = edge_index[:, : max(1, edge_index.shape[1] // stride)]
        lists: list[list[int]] = [[] for _ in range(num_nodes)]
        start = time.perf_counter()
        _fill(lists, part, per_element)
        seconds += (time.perf_counter() - start) * edge_index.shape[1] / part.shape[1]
        complete = [t.tolist() for t in _positions_by_node(edge_index, num_nodes)[::stride]]
        start = time.perf_counter()
        tensors = [torch.tensor(entries, dtype=torch.long) for entries in complete]
        seconds += (time.perf_counter() - start) * num_nodes / len(tensors)
        num_tensors += num_nodes
        num_entries += 2 * edge_index.shape[1]
    return IndexCost(seconds, num_tensors, 8 * num_entries + 600 * num_tensors, 1 / stride)


def _fill(lists: list[list[int]], edge_index: torch.Tensor, per_element: bool) -> None:
    if per_element:
        for position in range(edge_index.shape[1]):
            source, target = edge_index[0, position].item(), edge_index[1, position].item()
            lists[source].append(position)
            if target != source:
                lists[target].append(position)
        return
    for position, (source, target) in enumerate(
        zip(edge_index[0].tolist(), edge_index[1].tolist(), strict=True)
    ):
        lists[source].append(position)
        if target != source:
            lists[target].append(position)


def _positions_by_node(edge_index: torch.Tensor, num_nodes: int) -> list[torch.Tensor]:
    """The same lists, made quickly, for the parts of the benchmark that do not time the index."""
    ends = edge_index.numpy().reshape(-1)
    order = torch.from_numpy(np.argsort(ends, kind="stable") % edge_index.shape[1])
    sizes = np.bincount(ends, minlength=num_nodes).tolist()
    return [part.clone() for part in torch.split(order, sizes)]


class TorchcellScheme:
    """Processor, store and loader of the scheme in one object."""

    name = "torchcell's scheme"

    def __init__(self, base_graph: HeteroData, root: Path) -> None:
        self.base, self.root = base_graph, root
        num_genes = int(base_graph["gene"].num_nodes)
        self.edge_types = gene_edge_types(base_graph)
        self.index = {t: _positions_by_node(base_graph[t].edge_index, num_genes) for t in self.edge_types}
        self.genes_of_reaction: dict[int, list[int]] = {}
        for gene, reaction in base_graph[GPR].hyperedge_index.t().tolist():
            self.genes_of_reaction.setdefault(reaction, []).append(gene)

    def process(self, perturbed: Sequence[int], labels: Sequence[float]) -> dict[str, Any]:
        """Positions that one sample lacks, as a dictionary of tensors."""
        gene, reaction = self.base["gene"], self.base["reaction"]
        names = {gene.node_ids[int(i)] for i in perturbed}
        kept_names = [name for name in gene.node_ids if name not in names]
        kept = {i for i, name in enumerate(gene.node_ids) if name not in names}
        removed_genes = [i for i in range(len(gene.node_ids)) if i not in kept]
        removed_reactions = []
        for r in range(int(reaction.num_nodes)):
            genes = self.genes_of_reaction.get(r)
            if genes and not all(g in kept for g in genes):
                removed_reactions.append(r)
        record: dict[str, Any] = {
            "ids_pert": [name for name in gene.node_ids if name in names],
            "perturbation_indices": torch.tensor(removed_genes, dtype=torch.long),
            "num_kept": len(kept_names),
            "removed_reactions": torch.tensor(removed_reactions, dtype=torch.long),
        }
        for edge_type in self.edge_types:
            mask = torch.ones(self.base[edge_type].num_edges, dtype=torch.bool)
            mask[torch.cat([self.index[edge_type][g] for g in removed_genes])] = False
            record[edge_type[1]] = (~mask).nonzero().flatten()
        hyperedge = self.base[GPR].hyperedge_index
        record["gpr"] = torch.isin(hyperedge[0], record["perturbation_indices"]).nonzero().flatten()
        hyperedge = self.base[RMR].hyperedge_index
        record["rmr"] = torch.isin(hyperedge[0], record["removed_reactions"]).nonzero().flatten()
        record["phenotype_values"] = torch.tensor([float(v) for v in labels])
        record["phenotype_type_indices"] = torch.arange(len(PHENOTYPES))
        record["phenotype_sample_indices"] = torch.zeros(len(PHENOTYPES), dtype=torch.long)
        record["phenotype_types"] = list(PHENOTYPES)
        return record

    def rebuild(self, record: dict[str, Any]) -> HeteroData:
        """The full sample: references to the base tensors plus masks."""
        data = HeteroData()
        data["gene"].x = self.base["gene"].x
        for node_type, removed in (
            ("gene", record["perturbation_indices"]),
            ("reaction", record["removed_reactions"]),
            ("metabolite", None),
        ):
            store = data[node_type]
            store.node_ids = self.base[node_type].node_ids
            store.num_nodes = self.base[node_type].num_nodes
            store.mask = _mask(store.num_nodes, removed)
            store.pert_mask = ~store.mask
        for name in ("ids_pert", "perturbation_indices", "phenotype_values", "phenotype_type_indices"):
            data["gene"][name] = record[name]
        data["gene"].phenotype_sample_indices = record["phenotype_sample_indices"]
        data["gene"].phenotype_types = record["phenotype_types"]
        for edge_type in (*self.edge_types, GPR, RMR):
            source, store = self.base[edge_type], data[edge_type]
            for key, value in source.items():
                store[key] = value
            store.mask = _mask(source.num_edges, record[edge_type[1]])
        return data

    def write(self, samples: Samples) -> None:
        """Processes and stores all samples in one transaction."""
        self.root.mkdir(parents=True, exist_ok=True)
        size = (16 << 20) + 65_536 * len(samples)
        env = lmdb.open(str(self.root / "data.lmdb"), subdir=False, map_size=size, lock=False)
        with env.begin(write=True) as txn:
            for i, (perturbed, labels) in enumerate(zip(samples.perturbed, samples.labels, strict=True)):
                txn.put(str(i).encode(), pickle.dumps(self.process(perturbed, labels)))
        env.close()

    def open(self) -> None:
        self.env = lmdb.open(str(self.root / "data.lmdb"), subdir=False, readonly=True, lock=False)

    def get_record(self, index: int) -> dict[str, Any]:
        """Only the unpickled record."""
        with self.env.begin() as txn:
            return pickle.loads(txn.get(str(index).encode()))

    def get(self, index: int) -> HeteroData:
        return self.rebuild(self.get_record(index))

    def batch(self, indices: Sequence[int]) -> HeteroData:
        """What a stock PyG DataLoader hands to the training loop."""
        return Batch.from_data_list([self.get(i) for i in indices])

    def close(self) -> None:
        self.env.close()


def _mask(size: int, removed: torch.Tensor | None) -> torch.Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    if removed is not None:
        mask[removed] = False
    return mask
