"""``torchcell-cache info``."""

from __future__ import annotations

import json as json_
from collections.abc import Iterator
from typing import Any

from torchcell_cache.builder.generations import generation_dirs
from torchcell_cache.cli.figures import as_text, histogram, save_plot
from torchcell_cache.codec.layout import Layout
from torchcell_cache.core.checks import whole_number
from torchcell_cache.core.progress import human_bytes, human_seconds
from torchcell_cache.core.urls import local_path
from torchcell_cache.data.dataset import PreprocessedDataset

_ONE_NUMBER = ("perturbed_count", "unknown_count", "removed_edges", "y")


def info(*, root: str, wait: float = 0, plot: str | None = None, bins: int = 10, json: bool = False) -> None:
    """What is in a store: sizes, schema, fingerprint, histograms.

    Also its digests; histograms are of removed edges and labels.

    Args:
        root: Directory of the store.
        wait: Seconds to wait for a store that another job is building; inf for no limit.
        plot: Image file for the histograms (needs matplotlib).
        bins: Bars per histogram.
        json: Print everything as JSON.

    Example:
        torchcell-cache info root=demo/ecoli
        torchcell-cache info root=demo/ecoli plot=ecoli.png
    """
    whole_number("bins", bins, 1, most=10_000)
    facts = store_facts(PreprocessedDataset(root, wait=wait), bins)
    if plot is not None:
        title = f"{facts['root']}, {facts['samples']:,} samples"
        save_plot(facts["histograms"], title, local_path(plot, "plot"))
    print(json_.dumps(facts, indent=1) if json else "\n".join(_lines(facts)))
    if plot is not None and not json:
        print(f"\nplot written to {plot}")


def store_facts(dataset: PreprocessedDataset, bins: int) -> dict[str, Any]:
    """Everything about a store that needs no record, as plain JSON values."""
    generation, manifest = dataset.generation, dataset.generation.manifest
    records = sum(shard.file.size for shard in manifest.shards)
    files = {file.name: file.size for file in manifest.files}
    count = max(manifest.num_samples, 1)
    schema = manifest.schema
    return {
        "root": str(generation.root),
        "generation": manifest.generation,
        "generations": [path.name for path in generation_dirs(generation.root)],
        "format_version": manifest.format_version,
        "samples": manifest.num_samples,
        "storage": manifest.storage,
        "records": schema["records"],
        "shards": len(manifest.shards),
        "shard_size": manifest.shard_size,
        "bytes": {
            "records": records,
            "per_sample": round(records / count, 1),
            "base_graph": sum(size for name, size in files.items() if name.startswith("base_graph")),
            "index": files.get("incidence.safetensors", 0),
            "columns": files.get("columns.safetensors", 0),
            "total": records + sum(files.values()),
        },
        "base_graph": dict(_base_graph(dataset.base_graph)),
        "schema": {key: schema[key] for key in ("phenotypes", "statistics", "processor", "structured")}
        | {"layouts": len(schema["layouts"])},
        "columns": {name: f"{c.dtype}{list(c.shape)}" for name, c in generation.columns.items()},
        "fields": {name: list(Layout.from_dict(layout).labels) for name, layout in schema["layouts"].items()},
        "fingerprint": manifest.fingerprint,
        "content_digest": manifest.content_digest,
        "manifest_digest": manifest.digest,
        "built": manifest.created,
        "histograms": _histograms(dataset, bins),
    }


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
    for key in graph.edge_types:
        index = graph[key].get("edge_index", graph[key].get("hyperedge_index"))
        yield "|".join(key), {"edges": 0 if index is None else int(index.size(1))}


def _histograms(dataset: PreprocessedDataset, bins: int) -> dict[str, Any]:
    labels = set(dataset.label_columns.values())
    return {
        name: histogram(column, bins)
        for name, column in dataset.columns.items()
        if column.ndim == 1 and column.dtype.kind in "iufb" and (name in labels or name in _ONE_NUMBER)
    }


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    size, built = facts["bytes"], facts["built"]
    rows = {
        "root": facts["root"],
        "samples": f"{facts['samples']:,} as '{facts['storage']}' ({facts['records']} records), "
        f"{facts['shards']:,} shards of {facts['shard_size']:,}",
        "size": f"{human_bytes(size['total'])}: records {human_bytes(size['records'])} "
        f"({size['per_sample']:,} bytes per sample), base graph {human_bytes(size['base_graph'])}, "
        f"index {human_bytes(size['index'])}, columns {human_bytes(size['columns'])}",
        "processor": _processor(facts),
        "phenotypes": ", ".join(facts["schema"]["phenotypes"]) or "none",
        "statistics": ", ".join(facts["schema"]["statistics"]) or "none",
        "generation": f"{facts['generation']} ({len(facts['generations'])} on disk), format {facts['format_version']}",
        "content digest": facts["content_digest"],
        "manifest digest": facts["manifest_digest"],
        "built": f"in {human_seconds(built.get('seconds', 0.0))} on {built.get('host', '?')}, "
        f"index in {built.get('index_ms', 0.0):.0f} ms, python {built.get('python', '?')}, "
        + ", ".join(f"{name} {text}" for name, text in built.get("libraries", {}).items()),
    }
    yield from (f"{name:<16}{text}" for name, text in rows.items())
    if built.get("notes"):
        yield "\nnotes"
        yield from (f"  {note}" for note in built["notes"])
    if facts["base_graph"]:
        yield "\nbase graph"
        yield from (f"  {name:<34}{_sized(size)}" for name, size in facts["base_graph"].items())
    yield "\ncolumns"
    yield from (f"  {name:<34}{text}" for name, text in facts["columns"].items())
    for name, fields in facts["fields"].items():
        yield f"\nfields of layout {name}"
        yield f"  {', '.join(fields)}"
    yield "\nfingerprint"
    yield from _tree(facts["fingerprint"], "  ")
    for name, values in facts["histograms"].items():
        yield "\n" + as_text(name, values)


def _sized(size: int | dict[str, int]) -> str:
    """Such as ``1,234 nodes``."""
    return (
        f"{size:,}" if isinstance(size, int) else ", ".join(f"{count:,} {of}" for of, count in size.items())
    )


def _processor(facts: dict[str, Any]) -> str:
    stored = facts["schema"]["processor"]
    if stored is None:
        tree = facts["fingerprint"].get("processor", {})
        return str(tree.get("name", tree.get("class", "unknown"))).rsplit(".", 1)[-1]
    settings = ", ".join(f"{key}={value!r}" for key, value in stored["settings"].items())
    return f"{stored['name']}({settings})"


def _tree(node: dict[str, Any], indent: str) -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{name}"
            yield from _tree(value, indent + "  ")
        else:
            text = json_.dumps(value) if not isinstance(value, str) else value
            yield f"{indent}{name}: {text if len(text) <= 90 else text[:90] + '...'}"
