"""What ``source=`` and ``processor=`` make, where it is more than a call; see :mod:`.registry`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from glob import has_magic
from pathlib import Path
from types import ModuleType
from typing import Any

from torchcell_cache.cli.settings import existing_path
from torchcell_cache.cli.words import mapping_of
from torchcell_cache.core.checks import suggestion
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import CacheError, SettingError, SourceContractError

BASE_GRAPHS = ("ecoli", "yeast")


def ecoli(progress: bool, **values: Any) -> Any:
    """Knock-outs of one to three E. coli genes, labelled with growth by flux balance analysis.

    Needs cobra (the extra demo).
    """
    from torchcell_cache.core.progress import Progress
    from torchcell_cache.sources.ecoli import EcoliKnockouts

    with Progress(values["num_samples"], 0, None, enabled=progress, what="label knock-outs") as meter:
        return EcoliKnockouts(**values, progress=lambda done, _: meter(done - meter.done))


def yeast(progress: bool, **values: Any) -> Any:
    """S. cerevisiae, STRING networks and yeast-GEM, knock-outs of one to three genes with fitness, epsilon and tau."""
    from torchcell_cache.sources.yeast.folder import YeastKnockouts

    if progress:
        print("reading networks, model and knock-outs, some seconds", file=sys.stderr, flush=True)
    return YeastKnockouts(**values)


def table(
    path: str,
    base_graph: str,
    *,
    empty: str = "error",
    nan: str = "error",
    interactions: str | None = None,
    aliases: str | None = None,
    **values: Any,
) -> Any:
    """A CSV, TSV (also .gz) or Parquet file of knock-outs on a base graph.

    Args:
        base_graph: 'ecoli', 'yeast', a directory written by save_base_graph, or the root of another store.
        empty: Rows that perturb nothing.
        nan: Labels that are missing or infinite; ``skip`` leaves the row out.
        interactions: Name of the fitness label, to add the labels epsilon (doubles) and tau (triples).
    """
    from torchcell_cache.sources.table import PerturbationTable

    values |= {"empty": empty, "nan": nan, "interactions": interactions, "aliases": _mapping(aliases)}
    file = existing_path("source.path", path)
    return PerturbationTable.from_csv(file, make_base_graph(base_graph), **values)


def anndata(
    files: Sequence[str],
    base_graph: str,
    *,
    control: Sequence[str] = ("ctrl",),
    aliases: str | None = None,
    uns: str | None = None,
    **values: Any,
) -> Any:
    """Cells of H5AD files on a gene graph; use it with processor=none. Needs anndata and scanpy.

    Args:
        files: Path, URL or pattern of H5AD files, or several: [a.h5ad,plates/*.h5ad].
        base_graph: A directory written by save_base_graph, or the root of another store.
    """
    from torchcell_cache.sources.cells.source import AnnDataSource

    names = [files] if isinstance(files, str) else files
    paths = [f if "://" in f or has_magic(f) else existing_path("source.files", f) for f in names]
    values |= {"control": control, "aliases": _mapping(aliases), "uns": _mapping(uns)}
    return AnnDataSource(paths, make_base_graph(base_graph), **values)


def _mapping(given: str | None) -> Any:
    """A text, or a mapping as one types it: ``{old: G1, "other name": G2}``."""
    typed = mapping_of(given) if given is not None and given.startswith("{") else None
    return given if typed is None else typed


def neo4j(
    root: str = "${root}",
    *,
    query_file: str | None = None,
    base_graph: str | None = None,
    genes: str | None = None,
    graphs: Mapping[str, Any] | None = None,
    id_column: str | None = None,
    perturbed: Sequence[str] | None = None,
    phenotypes: Sequence[str] = (),
    statistics: Sequence[str] = (),
    **values: Any,
) -> Any:
    """Experiments of a graph database, fetched once into root/raw; afterwards no server is needed.

    The password comes from NEO4J_PASSWORD and from nowhere else: settings are printed, logged and kept in shell histories.
    Without source.query_file: every experiment that deletes known genes.

    Args:
        root: Directory that holds raw/.
        query_file: A .cql file that returns e, ref (torchcell's schema), or the columns named below.
        base_graph: 'ecoli', a directory written by save_base_graph, the root of another store; or genes and graphs.
        genes: File with one gene name per line.
        graphs: Networks by name: CSV, TSV, SIF, STRING or BioGRID files, such as  source.graphs={physical:physical.tsv}
        id_column: For other queries: column of ids,
        perturbed: of perturbed names (a list, or one name),
        phenotypes: of labels,
        statistics: of statistics.
        parameters: Parameters of the query besides $gene_set, $after and $limit, such as  source.parameters={medium:YEPD}
    """
    from torchcell_cache.sources.neo4j.source import Neo4jCellDataset

    graphs = graphs or {}
    if base_graph is not None:
        values["base_graph"] = make_base_graph(base_graph)
    elif genes is None and not graphs:
        fix = "source.base_graph=..., or source.genes=genes.txt source.graphs={physical:physical.tsv}"
        raise SettingError("source=neo4j needs a base graph", fix=fix)
    values["graphs"] = {name: existing_path(f"source.graphs.{name}", path) for name, path in graphs.items()}
    if genes is not None:
        values["gene_set"] = existing_path("source.genes", genes)
    if query_file is not None:
        values["query"] = existing_path("source.query_file", query_file)
    if perturbed is not None or id_column is not None:
        if isinstance(perturbed, list) and len(perturbed) != 1:
            raise SettingError(f"source.perturbed={perturbed} names {len(perturbed)} columns, expected one")
        values["columns"] = {"phenotypes": phenotypes, "statistics": statistics, "id": id_column}
        values["columns"]["perturbed"] = perturbed[0] if isinstance(perturbed, list) else perturbed
    return Neo4jCellDataset(root, **values)


def python_source(file: str, name: str = "make_source", settings: Mapping[str, Any] | None = None) -> Any:
    """What a function in a Python file of yours returns.

    The file is executed, so this can only be chosen on the command line, never in a config file.

    Args:
        file: The Python file.
        name: Function that returns a source, a PyG dataset or a list of graphs.
        settings: Its keyword arguments, such as  source.settings={seed:1}
    """
    return _python("source", file, name, settings or {})


def python_processor(
    file: str, name: str = "make_processor", settings: Mapping[str, Any] | None = None
) -> Any:
    """What a function in a Python file of yours returns. Only on the command line, like source=python.

    Args:
        file: The Python file.
        name: Function that returns a processor or any callable.
        settings: Its keyword arguments.
    """
    return _python("processor", file, name, settings or {})


def no_source() -> None:
    """No source."""


def no_processor() -> None:
    """``preprocess`` stores the samples as they are; the other commands use the processor that the store names."""


def _python(group: str, file: str, name: str, settings: Mapping[str, Any]) -> Any:
    """Call a function of a Python file the user named on the command line."""
    from torchcell_cache.processors.base import is_interrupt, said

    path = existing_path(f"{group}.file", file).resolve()
    try:
        module = _loaded(group, path)
        made = getattr(module, name, None)
        if callable(made):
            return made(**settings)
    except BaseException as error:  # a file may end the process, too
        if isinstance(error, CacheError) or is_interrupt(error):
            raise
        text = f"{group}.file={path}: {name}() raised {type(error).__name__}: {said(error)}"
        fix = "correct the file or its settings; debug=true shows the traceback"
        raise SettingError(text, path=path, fix=fix) from error
    names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
    raise SettingError(f"{path} has no function {name!r}{suggestion(name, names)}", path=path)


def _loaded(group: str, path: Path) -> ModuleType:
    """The file as a module under its own name, under which its code is part of fingerprints."""
    name = path.stem
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        sys.path.insert(0, str(path.parent))
        importlib.invalidate_caches()
    found = importlib.util.find_spec(name)
    if found is None:
        raise SettingError(f"{group}.file={path} is not a Python file", path=path)
    if found.origin != str(path):
        text = f"{group}.file={path}: {name!r} is the name of another module"
        raise SettingError(text, fix="rename the file")
    return importlib.import_module(name)


def make_base_graph(name: str, key: str = "source.base_graph") -> Any:
    """A base graph by name, from a directory, or from another store."""
    from torchcell_cache import sources
    from torchcell_cache.graph.files import load_base_graph
    from torchcell_cache.store.generation import Generation
    from torchcell_cache.store.manifest import manifest_path

    if name in BASE_GRAPHS:
        return getattr(sources, f"{name}_base_graph")()
    path = local_path(name, key)
    if (path / "base_graph.json").is_file():
        return load_base_graph(path)
    graph = Generation.open(path).base_graph if manifest_path(path).is_file() else None
    if graph is None:
        text = f"{key}={name} is neither a directory with base_graph.json nor a store with a base graph"
        fix = f"one of {', '.join(BASE_GRAPHS)}, or the directory of tc.save_base_graph(graph, directory)"
        raise SourceContractError(text, path=path, fix=fix)
    return graph
