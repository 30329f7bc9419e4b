"""What ``source=``, ``processor=`` and ``source.base_graph=`` can name: all of it stands here.

A new source is a function here, its name in ``texts.GROUPS`` and a settings file in ``conf/source``.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from glob import has_magic
from pathlib import Path
from types import ModuleType
from typing import Any

from torchcell_cache import processors, sources
from torchcell_cache.cli.settings import Settings
from torchcell_cache.cli.texts import suggestion
from torchcell_cache.core.progress import Progress
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import CacheError, SettingError, SourceContractError
from torchcell_cache.graph.records import load_base_graph
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.manifest import manifest_path


def make_source(settings: Settings) -> Any:
    """The chosen source, ``None`` for ``source=none``.

    Raises:
        SettingError, SourceContractError: If it cannot be made from its settings.
    """
    return SOURCES[settings.choices["source"]](settings["source"], settings["progress"])


def make_processor(settings: Settings) -> Any:
    """The chosen processor, ``None`` for ``processor=none``."""
    return PROCESSORS[settings.choices["processor"]](settings["processor"])


def _ecoli(values: dict[str, Any], progress: bool) -> Any:
    count = values["num_samples"]
    meter = Progress(count, 0, None, enabled=progress, what="label knock-outs")
    source = sources.EcoliKnockouts(
        count,
        values["seed"],
        self_loops=values["self_loops"],
        progress=lambda done, _: meter(done - meter.done),
    )
    meter.close("complete")
    return source


def _yeast(values: dict[str, Any], progress: bool) -> Any:
    if progress:
        print("reading networks, model and knock-outs, some seconds", file=sys.stderr, flush=True)
    return sources.YeastKnockouts(**values)


def _table(values: dict[str, Any], progress: bool) -> Any:
    path = existing_path("source.path", values["path"])
    rest = {key: value for key, value in values.items() if key not in ("path", "base_graph")}
    return sources.PerturbationTable.from_csv(path, make_base_graph(values["base_graph"]), **rest)


def _anndata(values: dict[str, Any], progress: bool) -> Any:
    given = values["files"]
    files = [given] if isinstance(given, str) else list(given)
    paths = [
        file if "://" in file or has_magic(file) else existing_path("source.files", file) for file in files
    ]
    rest = {key: value for key, value in values.items() if key not in ("files", "base_graph")}
    return sources.AnnDataSource(paths, make_base_graph(values["base_graph"]), **rest)


def _neo4j(values: dict[str, Any], progress: bool) -> Any:
    """The password is no setting: settings are printed, logged and kept in shell histories."""
    rest = {key: value for key, value in values.items() if key not in _NEO4J_OURS}
    if values["base_graph"] is not None:
        rest["base_graph"] = make_base_graph(values["base_graph"])
    elif values["genes"] is None and not values["graphs"]:
        raise SettingError(
            "source=neo4j needs a base graph",
            fix="source.base_graph=..., or source.genes=genes.txt source.graphs={physical:physical.tsv}",
        )
    graphs = {name: existing_path(f"source.graphs.{name}", path) for name, path in values["graphs"].items()}
    if values["genes"] is not None:
        rest["gene_set"] = existing_path("source.genes", values["genes"])
    if values["query_file"] is not None:
        rest["query"] = existing_path("source.query_file", values["query_file"])
    if values["perturbed"] is not None or values["id_column"] is not None:
        rest["columns"] = {key: values[key] for key in ("phenotypes", "statistics")}
        rest["columns"]["perturbed"] = _one("source.perturbed", values["perturbed"])
        rest["columns"]["id"] = values["id_column"]
    return sources.Neo4jCellDataset(**rest, graphs=graphs, progress=progress)


def _one(key: str, names: Any) -> Any:
    """The one name of a setting that elsewhere takes several."""
    if isinstance(names, list) and len(names) != 1:
        raise SettingError(f"{key}={names} names {len(names)} columns, expected one")
    return names[0] if isinstance(names, list) else names


_NEO4J_OURS = (
    "base_graph",
    "genes",
    "graphs",
    "query_file",
    "id_column",
    "perturbed",
    "phenotypes",
    "statistics",
)


def _python(group: str, values: dict[str, Any]) -> Any:
    """Call a function of a Python file the user named on the command line."""
    path = existing_path(f"{group}.file", values["file"]).resolve()
    name = values["name"]
    try:
        module = _loaded(group, path)
        made = getattr(module, name, None)
        if callable(made):
            return made(**values["settings"])
    except CacheError:
        raise
    except Exception as error:
        raise SettingError(
            f"{group}.file={path}: {name}() raised {type(error).__name__}: {error}",
            path=path,
            fix="correct the file or its settings; debug=true shows the traceback",
        ) from error
    names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
    raise SettingError(f"{path} has no function {name!r}{suggestion(name, names)}", path=path)


def _loaded(group: str, path: Path) -> ModuleType:
    """The file as a module under its own name, under which its code is part of fingerprints."""
    name = path.stem
    module = sys.modules.get(name)
    found = importlib.util.find_spec(name) if module is None else module.__spec__
    if found is not None and found.origin != str(path):
        raise SettingError(
            f"{group}.file={path}: {name!r} is the name of another module", fix="rename the file"
        )
    if module is None:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise SettingError(f"{group}.file={path} is not a Python file", path=path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(path.parent))
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module


def make_base_graph(name: str) -> Any:
    """A base graph by name, from a directory, or from another store."""
    if name in BASE_GRAPHS:
        return BASE_GRAPHS[name]()
    path = local_path(name, "source.base_graph")
    if (path / "base_graph.json").is_file():
        return load_base_graph(path)
    if manifest_path(path).is_file():
        graph = Generation.open(path).base_graph
        if graph is not None:
            return graph
    raise SourceContractError(
        f"source.base_graph={name} is neither a directory with base_graph.json nor a store with a base graph",
        path=path,
        fix=f"one of {', '.join(BASE_GRAPHS)}, or the directory of tc.save_base_graph(graph, directory)",
    )


def existing_path(key: str, value: str) -> Path:
    """The file a setting names.

    Raises:
        SettingError: If there is none; names what is there instead.
    """
    path = local_path(value, key)
    if path.is_file():
        return path
    parent = path.parent
    if not parent.is_dir():
        raise SettingError(f"{key}={value}: there is no directory {parent}", path=path)
    names = sorted(p.name for p in parent.iterdir() if p.is_file() and p.suffix == path.suffix)[:20]
    raise SettingError(
        f"{key}={value}: no such file{suggestion(path.name, names) if names else ''}", path=path
    )


BASE_GRAPHS: dict[str, Callable[[], Any]] = {
    "ecoli": lambda: sources.ecoli_base_graph(),
    "yeast": lambda: sources.yeast_base_graph(),
}

SOURCES: dict[str, Callable[[dict[str, Any], bool], Any]] = {
    "none": lambda values, progress: None,
    "ecoli": _ecoli,
    "yeast": _yeast,
    "table": _table,
    "anndata": _anndata,
    "neo4j": _neo4j,
    "python": lambda values, progress: _python("source", values),
}

PROCESSORS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "none": lambda values: None,
    "lazy": lambda values: processors.LazySubgraphRepresentation(**values),
    "subgraph": lambda values: processors.SubgraphRepresentation(**values),
    "perturbation": lambda values: processors.Perturbation(**values),
    "khop": lambda values: processors.KHopSubgraph(**values),
    "python": lambda values: _python("processor", values),
}
