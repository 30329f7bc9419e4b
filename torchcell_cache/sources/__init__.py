"""Sources: where samples come from. Nothing heavy is imported before it is used."""

from __future__ import annotations

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

_LAZY = {"AnnDataSource": "torchcell_cache.sources.cells.source"}
_LAZY |= dict.fromkeys(
    ("EcoliKnockouts", "ecoli_base_graph", "ecoli_knockouts"), "torchcell_cache.sources.ecoli"
) | dict.fromkeys(
    ("YeastKnockouts", "yeast_base_graph", "yeast_knockouts"), "torchcell_cache.sources.yeast.folder"
)
_LAZY |= {
    "Neo4jCellDataset": "torchcell_cache.sources.neo4j.source",
    "cell_graph": "torchcell_cache.sources.networks",
    "embedded_bolt": "torchcell_cache.sources.neo4j.bolt",
    "load_experiments": "torchcell_cache.sources.neo4j.experiment_loader",
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
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
