"""Names by which public things of this package stand in fingerprints, for good, wherever they live.

The first stores recorded the modules of their time. A name that moves keeps the place it had then, so that no store becomes
stale because a file did; a new public name is recorded where it lives and needs a line here only once it moves.
"""

from __future__ import annotations

_PLACES = {
    "batching.shared": "SharedGraphBatch",
    "builder.api": "build",
    "builder.array": "build_part finalize",
    "checking.repairing": "repair",
    "checking.verification": "verify",
    "cleanup": "gc",
    "dataset": "Neo4jPreprocessedCellDataset PreprocessedDataset",
    "growing.update": "append update",
    "incidence": "IncidenceIndex",
    "loader": "CacheLoader",
    "loading.costs": "BalancedCostBatchSampler",
    "loading.distributed": "DistributedCacheSampler",
    "loading.shard_sampler": "DistributedShardSampler",
    "loading.streaming": "StreamingCacheDataset",
    "loading.weighted": "WeightedCacheSampler",
    "nn.batch_edges": "shared_edges",
    "nn.conv": "SharedConv shared_conv shared_hetero_conv",
    "nn.edges": "KeptEdges SharedEdges",
    "processors.base": "GraphProcessor",
    "processors.khop": "KHopSubgraph",
    "processors.lazy": "LazySubgraphRepresentation",
    "processors.perturbation": "Perturbation",
    "processors.subgraph": "SubgraphRepresentation",
    "record": "Sample",
    "remote.pull": "pull",
    "remote.push": "push",
    "sources.anndata": "AnnDataSource",
    "sources.base": "PerturbationSource Source",
    "sources.bolt": "embedded_bolt",
    "sources.ecoli": "EcoliKnockouts ecoli_base_graph ecoli_knockouts",
    "sources.experiment_loader": "load_experiments",
    "sources.neo4j_cell": "Neo4jCellDataset",
    "sources.networks": "cell_graph",
    "sources.pyg": "PygSource as_source",
    "sources.table": "PerturbationTable",
    "sources.yeast": "YeastKnockouts yeast_base_graph yeast_knockouts",
    "staging": "stage",
    "subsets.index_file": "load_indices save_indices",
    "subsets.select": "select",
    "subsets.split_sets": "Splits",
    "subsets.splits": "split_by_perturbation split_random",
    "subsets.substore": "save_subset",
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names.split()}
_PACKAGE = "torchcell_cache"


def registered(module: str, qualname: str) -> str:
    """Dotted name of a class or function as fingerprints have it."""
    place = _PLACE_OF.get(qualname.partition(".")[0])
    is_ours = module == _PACKAGE or module.startswith(f"{_PACKAGE}.")
    return f"{_PACKAGE}.{place}.{qualname}" if is_ours and place else f"{module}.{qualname}"
