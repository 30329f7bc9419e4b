"""Sources: where samples come from. Nothing heavy is imported before it is used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from torchcell_cache.sources.base import PerturbationSource, Source
from torchcell_cache.sources.pyg import PygSource, as_source
from torchcell_cache.sources.table import PerturbationTable

if TYPE_CHECKING:
    from torchcell_cache.sources.cells.source import AnnDataSource
    from torchcell_cache.sources.ecoli import EcoliKnockouts, ecoli_base_graph, ecoli_knockouts
    from torchcell_cache.sources.neo4j.bolt import embedded_bolt
    from torchcell_cache.sources.neo4j.experiment_loader import load_experiments
    from torchcell_cache.sources.neo4j.source import Neo4jCellDataset
    from torchcell_cache.sources.networks import cell_graph
    from torchcell_cache.sources.yeast.folder import YeastKnockouts, yeast_base_graph, yeast_knockouts

_PLACES = {
    "cells.source": ("AnnDataSource",),
    "ecoli": ("EcoliKnockouts", "ecoli_base_graph", "ecoli_knockouts"),
    "neo4j.bolt": ("embedded_bolt",),
    "neo4j.experiment_loader": ("load_experiments",),
    "neo4j.source": ("Neo4jCellDataset",),
    "networks": ("cell_graph",),
    "yeast.folder": ("YeastKnockouts", "yeast_base_graph", "yeast_knockouts"),
}

__all__ = [
    "AnnDataSource",
    "EcoliKnockouts",
    "Neo4jCellDataset",
    "PerturbationSource",
    "PerturbationTable",
    "PygSource",
    "Source",
    "YeastKnockouts",
    "as_source",
    "cell_graph",
    "ecoli_base_graph",
    "ecoli_knockouts",
    "embedded_bolt",
    "load_experiments",
    "yeast_base_graph",
    "yeast_knockouts",
]


def __getattr__(name: str) -> Any:
    for place, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{place}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
