"""What the golden stores of format 2 were made from: names that no node has, torchcell's records, constants, groups."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import makers
import torch
from torch_geometric.data import Data, HeteroData

import torchcell_cache as tc


def with_strangers(first: int = 0, last: int = 7) -> Any:
    names = [
        [*genes, *(["YXX1"] if k % 2 else []), *(["YXX0"] if k == 3 else [])]
        for k, genes in enumerate(makers.KNOCKOUTS)
    ]
    part = slice(first, last)
    return tc.PerturbationTable(
        makers.cell(), names[part], phenotypes={"fitness": makers.FITNESS[part]}, nan="keep", unknown="keep"
    )


def _phenotype(label: str, statistic: str) -> type:
    fields = {"label_name": label, "label_statistic_name": statistic}
    return type(
        f"{label.title()}Phenotype",
        (),
        {"model_fields": {name: SimpleNamespace(default=value) for name, value in fields.items()}},
    )


class Records:
    """A dataset of raw records, as far as a build touches torchcell's."""

    def __init__(self) -> None:
        self.cell_graph, self.gene_set, self.env = makers.cell(), [*makers.GENES, "YXX1"], None
        self.phenotype_info = [_phenotype("fitness", "fitness_se"), _phenotype("score", "score_p")]

    def __len__(self) -> int:
        return len(makers.KNOCKOUTS)

    def _init_lmdb_read(self) -> None:
        self.env = object()

    def close_lmdb(self) -> None:
        self.env = None

    def _read_from_lmdb(self, index: int) -> int:
        return index

    def _deserialize_json(self, index: int) -> list[dict[str, Any]]:
        """One record for each label that was measured; every third sample twice."""
        genes = [*makers.KNOCKOUTS[index], *(["YXX1"] if index == 5 else [])]
        kinds = ["kanmx_deletion", "natmx_deletion", "damp"]
        genotype = [
            {"systematic_gene_name": gene, "perturbation_type": kinds[(index + k) % 3]}
            for k, gene in enumerate(genes)
        ]
        measured = [{"label_name": "fitness", "fitness": index / 8, "fitness_se": 0.25}]
        if index % 2:
            measured.append({"label_name": "score", "score": -index / 4, "score_p": None})
        if index % 3 == 0:
            measured.append({"label_name": "fitness", "fitness": index / 8 + 1, "fitness_se": None})
        return [
            {
                "experiment": {
                    "genotype": {"perturbations": genotype},
                    "dataset_name": f"Screen{(index + k) % 2}",
                    "phenotype": phenotype,
                }
            }
            for k, phenotype in enumerate(measured)
        ]

    def _reconstruct_experiments(self, records: Any) -> Any:
        raise NotImplementedError


def with_constants() -> list[HeteroData]:
    """Samples of a foreign processor: a list and a tensor that all have in common, and a few values of their own."""
    graphs = []
    for k in range(8):
        graph = HeteroData()
        graph["gene"].names = [f"long systematic name {name}" for name in makers.GENES]
        graph["gene"].weights = torch.arange(200, dtype=torch.float64) / 3
        graph["gene"].x = torch.full((3, 2), k / 4)
        graph["gene", "physical", "gene"].edge_index = makers.pairs([0, 1, k % 3], [1, 2, 0])
        graph.y = torch.tensor([k / 8])
        graphs.append(graph)
    return graphs


def bags(first: int = 0, last: int = 60) -> list[Data]:
    """Mostly zero, one-hot and mostly one other value; enough records for several groups."""
    graphs = []
    for k in range(first, last):
        counts, offset = torch.zeros(40, 5), torch.full((30,), 2.5)
        counts[k % 40, k % 5], counts[(7 * k) % 40, 1] = 1.0, -0.0
        offset[k % 30] = float("nan")
        hot = torch.nn.functional.one_hot(torch.arange(k, k + 40) % 6, 6)
        graphs.append(Data(x=counts, offset=offset, hot=hot, y=torch.tensor([k]), condition=f"drug {k % 3}"))
    return graphs


def setups() -> dict[str, dict[str, Any]]:
    """As in ``makers``."""
    lazy, lists = tc.LazySubgraphRepresentation, {"processor": None}
    made: Callable[[Any], Callable[[Path], Any]] = lambda value: lambda folder: value()  # noqa: E731
    return {
        "strangers": {"source": made(with_strangers), "processor": lazy(), "storage": "perturbation"},
        "strangers-delta": {"source": made(with_strangers), "processor": lazy(), "storage": "delta"},
        "records": {"source": made(Records), "processor": lazy(), "storage": "perturbation"},
        "constants": {"source": made(with_constants), "storage": "delta", **lists},
        "constants-full": {"source": made(with_constants), "storage": "full", **lists},
        "bags": {"source": made(bags), "storage": "delta", "shard_size": 32, **lists},
        "bags-auto": {"source": made(bags), "storage": "auto", "shard_size": 32, **lists},
    }


if __name__ == "__main__":  # pragma: no cover - ran once
    for name, setup in setups().items():
        arguments = {"shard_size": 3, **setup, "source": setup["source"](Path(sys.argv[1]))}
        tc.build(Path(sys.argv[1]) / name, progress=False, **arguments)
