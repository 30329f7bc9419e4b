"""Where code comes from: the user's own modules and libraries, short names for both, and names that last for our own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

# Known by name even where they are installed in place from a source tree.
LIBRARIES = frozenset(
    {"builtins", "numpy", "scipy", "pandas", "pyarrow", "sklearn", "networkx", "pytest"}
    | {"lightning", "lightning_fabric", "pytorch_lightning", "torch", "torch_geometric", "torchcell_cache"}
    | {"pyg_lib", "torch_cluster", "torch_scatter", "torch_sparse", "torch_spline_conv"}
)
_STDLIB = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
_INSTALLED = ("site-packages", "dist-packages")


def top_level(name: str) -> str:
    """First component of a module name."""
    return name.partition(".")[0]


def is_library(name: str, file: str | None, own: frozenset[str] = frozenset()) -> bool:
    """Whether a module's code is identified by name only; ``own`` packages are hashed although they are installed."""
    top = top_level(name)
    if top in ("__main__", "__mp_main__"):
        return False
    if top in LIBRARIES or top.startswith("_cython_"):
        return True
    if file is None:
        return top in sys.stdlib_module_names or top in sys.builtin_module_names
    if is_installed(file):
        return top not in own
    return file.startswith(_STDLIB) or file.startswith("<frozen")


def is_installed(file: str | None) -> bool:
    """Whether a file was put in place by an installer."""
    return file is not None and any(part in _INSTALLED for part in PurePath(file).parts)


def short_name(module_globals: Mapping[str, Any]) -> str:
    """Last component of a module's name; the same whether it is run, imported or imported in a package."""
    name = str(module_globals.get("__name__", "?"))
    file = module_globals.get("__file__")
    if name in ("__main__", "__mp_main__") and file:
        return Path(file).stem
    return name.rpartition(".")[2]


def library_name(value: object) -> str | None:
    """Public dotted name of a library function, class or module; ``None`` for what has no name."""
    if isinstance(value, ModuleType):
        return value.__name__
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if not isinstance(name, str) or "<" in name:
        return None
    module = getattr(value, "__module__", None) or type(value).__module__
    # Private components move between releases (numpy.core became numpy._core).
    return ".".join(part for part in registered(module, name).split(".") if not part.startswith("_"))


def import_user_module(name: str, package: str | None, own: frozenset[str]) -> ModuleType | str | None:
    """What ``import name`` inside a function would give: a user's module, a library's name, or ``None`` if there is none."""
    try:
        full = importlib.util.resolve_name(name, package)
        top = top_level(full)
        spec = None if top in sys.modules else importlib.util.find_spec(top)
        file = getattr(sys.modules.get(top), "__file__", None) or (spec.origin if spec else None)
        if is_library(full, file, own):
            return full
        return importlib.import_module(full)
    except (ImportError, ValueError):
        return None


# Names by which public things of this package stand in fingerprints, for good, wherever they live: the first stores recorded
# the modules of their time. A name that moves keeps the place it had then, so that no store becomes stale because a file did;
# a new public name is recorded where it lives and needs a line here only once it moves.
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
    "nn.masked": "unmasked",
    "processors.base": "GraphProcessor",
    "processors.dcell": "DCellGraphProcessor",
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
