"""torchcell_cache: a preprocessing cache for PyTorch Geometric.

One base graph, hundreds of thousands of variants of it: the base graph is stored and moved once, samples are tiny
deltas, and batches never copy it. Importing this package imports neither torch nor lmdb; names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from torchcell_cache.core.package import __version__, platform_lacks

if TYPE_CHECKING:
    from torchcell_cache import errors as errors
    from torchcell_cache import lightning as lightning
    from torchcell_cache import nn as nn
    from torchcell_cache import sources as sources
    from torchcell_cache import testing as testing
    from torchcell_cache.batch import SharedGraphBatch as SharedGraphBatch
    from torchcell_cache.builder.array import build_part as build_part
    from torchcell_cache.builder.check.repair import repair as repair
    from torchcell_cache.builder.check.verify import verify as verify
    from torchcell_cache.builder.generations import gc as gc
    from torchcell_cache.core.samples import Sample as Sample
    from torchcell_cache.data.api import append as append
    from torchcell_cache.data.api import build as build
    from torchcell_cache.data.api import finalize as finalize
    from torchcell_cache.data.api import import_torchcell as import_torchcell
    from torchcell_cache.data.api import save_subset as save_subset
    from torchcell_cache.data.api import update as update
    from torchcell_cache.data.dataset import Neo4jPreprocessedCellDataset as Neo4jPreprocessedCellDataset
    from torchcell_cache.data.dataset import PreprocessedDataset as PreprocessedDataset
    from torchcell_cache.data.index_file import load_indices as load_indices
    from torchcell_cache.data.index_file import save_indices as save_indices
    from torchcell_cache.data.pairs import PairedCells as PairedCells
    from torchcell_cache.data.samplers.balanced import BalancedCostBatchSampler as BalancedCostBatchSampler
    from torchcell_cache.data.samplers.order import DistributedCacheSampler as DistributedCacheSampler
    from torchcell_cache.data.samplers.shards import DistributedShardSampler as DistributedShardSampler
    from torchcell_cache.data.samplers.weighted import WeightedCacheSampler as WeightedCacheSampler
    from torchcell_cache.data.select import select as select
    from torchcell_cache.data.split_groups import split_by_group as split_by_group
    from torchcell_cache.data.split_nodes import split_by_perturbation as split_by_perturbation
    from torchcell_cache.data.split_nodes import split_random as split_random
    from torchcell_cache.data.splits import Splits as Splits
    from torchcell_cache.data.streaming import StreamingCacheDataset as StreamingCacheDataset
    from torchcell_cache.data.typed_loader import CacheLoader as CacheLoader
    from torchcell_cache.graph.files import load_base_graph as load_base_graph
    from torchcell_cache.graph.files import save_base_graph as save_base_graph
    from torchcell_cache.graph.incidence import IncidenceIndex as IncidenceIndex
    from torchcell_cache.processors import DCellGraphProcessor as DCellGraphProcessor
    from torchcell_cache.processors import GraphProcessor as GraphProcessor
    from torchcell_cache.processors import KHopSubgraph as KHopSubgraph
    from torchcell_cache.processors import LazySubgraphRepresentation as LazySubgraphRepresentation
    from torchcell_cache.processors import Perturbation as Perturbation
    from torchcell_cache.processors import SubgraphRepresentation as SubgraphRepresentation
    from torchcell_cache.processors import Unperturbed as Unperturbed
    from torchcell_cache.remote.copies import pull as pull
    from torchcell_cache.remote.copies import stage as stage
    from torchcell_cache.remote.push import push as push
    from torchcell_cache.sources.cells.source import AnnDataSource as AnnDataSource
    from torchcell_cache.sources.neo4j.source import Neo4jCellDataset as Neo4jCellDataset
    from torchcell_cache.sources.table import PerturbationTable as PerturbationTable


_PLACES = {
    "AnnDataSource": "sources.cells.source",
    "BalancedCostBatchSampler": "data.samplers.balanced",
    "CacheLoader": "data.loader",
    "DCellGraphProcessor": "processors",
    "DistributedCacheSampler": "data.samplers.order",
    "DistributedShardSampler": "data.samplers.shards",
    "GraphProcessor": "processors",
    "IncidenceIndex": "graph.incidence",
    "KHopSubgraph": "processors",
    "LazySubgraphRepresentation": "processors",
    "Neo4jCellDataset": "sources.neo4j.source",
    "Neo4jPreprocessedCellDataset": "data.dataset",
    "PairedCells": "data.pairs",
    "Perturbation": "processors",
    "PerturbationTable": "sources.table",
    "PreprocessedDataset": "data.dataset",
    "Sample": "core.samples",
    "SharedGraphBatch": "batch",
    "Splits": "data.splits",
    "StreamingCacheDataset": "data.streaming",
    "SubgraphRepresentation": "processors",
    "Unperturbed": "processors",
    "WeightedCacheSampler": "data.samplers.weighted",
    "append": "data.api",
    "build": "data.api",
    "build_part": "builder.array",
    "errors": "",
    "lightning": "",
    "finalize": "data.api",
    "nn": "",
    "gc": "builder.generations",
    "import_torchcell": "data.api",
    "load_base_graph": "graph.files",
    "load_indices": "data.index_file",
    "pull": "remote.copies",
    "push": "remote.push",
    "repair": "builder.check.repair",
    "save_base_graph": "graph.files",
    "save_indices": "data.index_file",
    "save_subset": "data.api",
    "select": "data.select",
    "sources": "",
    "split_by_group": "data.split_groups",
    "split_by_perturbation": "data.split_nodes",
    "split_random": "data.split_nodes",
    "stage": "remote.copies",
    "testing": "",
    "update": "data.api",
    "verify": "builder.check.verify",
}

# Without Lightning, which ``import *`` cannot expect to be there.
__all__ = [*sorted(_PLACES.keys() - {"lightning"}), "__version__"]


if not TYPE_CHECKING:  # a type checker is to find unknown names

    def __getattr__(name: str) -> Any:
        if name in _PLACES and (lacks := platform_lacks()) is not None:
            raise ImportError(lacks)
        if name not in _PLACES:
            raise AttributeError(
                f"module 'torchcell_cache' has no attribute {name!r}; it has {', '.join(__all__)}"
            )
        place = _PLACES[name]
        value = import_module(f"torchcell_cache.{name}") if not place else None
        if place:
            value = getattr(import_module(f"torchcell_cache.{place}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
