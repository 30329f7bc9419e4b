"""What is to say about a store without reading a record: sizes, schema, fingerprint, histograms; as JSON values and as lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.codec.layout import Layout
from torchcell_cache.core.markup import bin_label
from torchcell_cache.core.progress import human_bytes, human_seconds
from torchcell_cache.store.attributes import is_attribute
from torchcell_cache.store.columns import single_columns
from torchcell_cache.store.facts import StoredFacts, attributes_of

_ONE_NUMBER = ("perturbed_count", "unknown_count", "removed_edges")
_WIDTH = 40
_MOST_PARTS = 12
"""Histograms of a label of several values per sample."""


def facts_of(dataset: StoredFacts, bins: int) -> dict[str, Any]:
    """Everything about a store that needs no record, as plain JSON values; histograms of the samples of this view."""
    generation, manifest = dataset.generation, dataset.generation.manifest
    records = sum(shard.file.size for shard in manifest.shards)
    files = {file.name: file.size for file in manifest.files}
    schema = manifest.schema
    return {
        "root": str(generation.root),
        "generation": manifest.generation,
        "format_version": manifest.format_version,
        "samples": manifest.num_samples,
        "in_view": len(dataset.positions()),
        "storage": manifest.storage,
        "records": schema["records"],
        "shards": len(manifest.shards),
        "shard_size": manifest.shard_size,
        "bytes": {
            "records": records,
            "per_sample": round(records / max(manifest.num_samples, 1), 1),
            "base_graph": sum(size for name, size in files.items() if name.startswith("base_graph")),
            "index": files.get("incidence.safetensors", 0),
            "columns": files.get("columns.safetensors", 0),
            "total": records + sum(files.values()),
        },
        "base_graph": dict(_base_graph(dataset.base_graph)),
        "schema": {key: schema[key] for key in ("phenotypes", "statistics", "processor", "structured")}
        | {"layouts": len(schema["layouts"])},
        "columns": _columns(dataset),
        "fields": {name: list(Layout.from_dict(layout).labels) for name, layout in schema["layouts"].items()},
        "fingerprint": manifest.fingerprint,
        "content_digest": manifest.content_digest,
        "manifest_digest": manifest.digest,
        "built": manifest.created,
        "histograms": _histograms(dataset, bins),
    }


def _columns(dataset: StoredFacts) -> dict[str, str]:
    """Dtype and shape of each stored array; of texts how many different ones there are."""
    arrays = {name: c for name, c in dataset.generation.columns.items() if not is_attribute(name)}
    texts = {
        name: f"{c.kind}[{len(c.values)}]" + (f", {len(c.names):,} different" if c.names is not None else "")
        for name, c in attributes_of(dataset.generation).items()
    }
    return {name: f"{c.dtype}{list(c.shape)}" for name, c in arrays.items()} | texts


def _base_graph(graph: Any) -> Iterator[tuple[str, int | dict[str, int]]]:
    """Size of each store of the base graph; a number by itself for a graph of one type."""
    if graph is None:
        return
    if not hasattr(graph, "node_types"):
        yield "nodes", int(graph.num_nodes)
        yield "edges", int(graph.num_edges)
        return
    for name in graph.node_types:
        yield name, {"nodes": int(graph[name].num_nodes)}
    for key, index in edge_lists(graph):
        yield key, {"edges": 0 if index is None else int(index.size(1))}


def edge_lists(graph: Any) -> Iterator[tuple[str, Any]]:
    """Name and edge list of each edge type, ``[2, num_edges]`` or ``None``."""
    stores = [("edges", graph)]
    if hasattr(graph, "edge_types"):
        stores = [("|".join(key), graph[key]) for key in graph.edge_types]
    for name, store in stores:
        yield name, store.get("edge_index", store.get("hyperedge_index"))


def _histograms(dataset: StoredFacts, bins: int) -> dict[str, Any]:
    shown = {*dataset.label_columns.values(), *attributes_of(dataset.generation), *_ONE_NUMBER}
    columns = {name: column for name, column in dataset.columns.items() if name in shown}
    y = {"y": dataset.columns["y"]} if "y" in dataset.columns else {}
    parts = dict(list(single_columns(y).items())[:_MOST_PARTS])
    return {
        name: histogram(column, bins, dataset.categories.get(name))
        for name, column in {**columns, **parts}.items()
        if column.ndim == 1 and column.dtype.kind in "iufb"
    }


def histogram(values: npt.NDArray[Any], bins: int, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Counts and bounds of the finite values, ``[num_samples]``, and how many are not; whole numbers stand amid their bins.

    With ``names`` values are codes, and the counts of the most frequent ones are given by name too.
    """
    numbers = np.asarray(values, dtype=np.float64)
    finite = numbers[np.isfinite(numbers)]
    out: dict[str, Any] = {"count": len(finite), "missing": len(numbers) - len(finite)}
    if len(finite) == 0:
        return out
    low, high = float(finite.min()), float(finite.max())
    whole = values.dtype.kind in "iub" or names is not None
    if whole and high - low < 2.0**52:
        step = -(-(high - low + 1) // bins)
        edges = np.arange(low, high + step + 1, step)[: int((high - low) // step) + 2] - 0.5
    else:
        edges = np.histogram_bin_edges(finite, bins=bins)
    counts, edges = np.histogram(finite, bins=edges)
    out |= {"min": low, "median": float(np.median(finite)), "mean": float(finite.mean()), "max": high}
    out |= {"whole": whole, "edges": edges.tolist(), "counts": counts.tolist()}
    if names is not None:
        known = finite[(finite >= 0) & (finite < len(names))].astype(np.int64)
        codes, often = np.unique(known, return_counts=True)
        order = np.argsort(-often, kind="stable")[:_MOST_PARTS].tolist()
        out["names"] = {names[codes[k]]: int(often[k]) for k in order}
    return out


def as_text(name: str, facts: Mapping[str, Any]) -> str:
    """A histogram as lines with bars of ``#``."""
    if not facts["count"]:
        return f"{name}: no values"
    missing = f", {facts['missing']:,} without a value" if facts["missing"] else ""
    if "names" in facts:
        rows, head = facts["names"], f"{name}: {facts['count']:,} samples by name"
    else:
        rows = {bin_label(facts, k): count for k, count in enumerate(facts["counts"])}
        head = f"{name}: min {facts['min']:.6g}, median {facts['median']:.6g}, mean {facts['mean']:.6g}, max {facts['max']:.6g}"
    most = max(rows.values(), default=0)
    bars = {label: "#" * max(round(_WIDTH * count / most), int(count > 0)) for label, count in rows.items()}
    lines = [f"  {label:>24}  {count:>9,}  {bars[label]}".rstrip() for label, count in rows.items()]
    return "\n".join([head + missing, *lines])


def lines_of(facts: dict[str, Any]) -> Iterator[str]:
    """The facts as text."""
    size, built = facts["bytes"], facts["built"]
    part = f"{facts['in_view']:,} of " if facts["in_view"] != facts["samples"] else ""
    kept = f" ({len(facts['generations'])} on disk)" if "generations" in facts else ""
    rows = {
        "root": facts["root"],
        "samples": f"{part}{facts['samples']:,} as '{facts['storage']}' ({facts['records']} records), "
        f"{facts['shards']:,} shards of {facts['shard_size']:,}",
        "size": f"{human_bytes(size['total'])}: records {human_bytes(size['records'])} "
        f"({size['per_sample']:,} bytes per sample), base graph {human_bytes(size['base_graph'])}, "
        f"index {human_bytes(size['index'])}, columns {human_bytes(size['columns'])}",
        "processor": processor_of(facts),
        "phenotypes": ", ".join(facts["schema"]["phenotypes"]) or "none",
        "statistics": ", ".join(facts["schema"]["statistics"]) or "none",
        "generation": f"{facts['generation']}{kept}, format {facts['format_version']}",
        "content digest": facts["content_digest"],
        "manifest digest": facts["manifest_digest"],
        "built": f"in {human_seconds(built.get('seconds', 0.0))} on {built.get('host', '?')}, "
        f"index in {built.get('index_ms', 0.0):.0f} ms, {libraries(built)}",
    }
    yield from (f"{name:<16}{text}" for name, text in rows.items())
    if built.get("notes"):
        yield "\nnotes"
        yield from (f"  {note}" for note in built["notes"])
    if facts["base_graph"]:
        yield "\nbase graph"
        yield from (f"  {name:<34}{sized(size)}" for name, size in facts["base_graph"].items())
    yield "\ncolumns"
    yield from (f"  {name:<34}{text}" for name, text in facts["columns"].items())
    for name, fields in facts["fields"].items():
        yield f"\nfields of layout {name}"
        yield f"  {', '.join(fields)}"
    yield "\nfingerprint"
    for depth, name, text in tree(facts["fingerprint"]):
        text = text if len(text) <= 90 else text[:90] + "..."
        yield f"  {'  ' * depth}{name}{': ' * bool(text)}{text}"
    for name, values in facts["histograms"].items():
        yield "\n" + as_text(name, values)


def libraries(built: Mapping[str, Any]) -> str:
    """What a store was built with."""
    names = {"python": built.get("python", "?"), **built.get("libraries", {})}
    return ", ".join(f"{name} {text}" for name, text in names.items())


def sized(size: int | dict[str, int]) -> str:
    """Such as ``1,234 nodes``."""
    if isinstance(size, int):
        return f"{size:,}"
    return ", ".join(f"{count:,} {of}" for of, count in size.items())


def processor_of(facts: Mapping[str, Any]) -> str:
    """The processor with its settings."""
    stored = facts["schema"]["processor"]
    if stored is None:
        found = facts["fingerprint"].get("processor", {})
        return str(found.get("name", found.get("class", "unknown"))).rsplit(".", 1)[-1]
    settings = ", ".join(f"{key}={value!r}" for key, value in stored["settings"].items())
    return f"{stored['name']}({settings})"


def tree(node: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[int, str, str]]:
    """Depth, name and value of each part of a fingerprint; no value for what has parts itself."""
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield depth, name, ""
            yield from tree(value, depth + 1)
        else:
            yield depth, name, value if isinstance(value, str) else json.dumps(value)
