"""What a notebook shows of a dataset, and a store's card: one page that needs nothing beside it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.markup import Markup, bars, shares, table, text
from torchcell_cache.core.package import __version__
from torchcell_cache.core.progress import human_bytes, human_seconds
from torchcell_cache.core.ragged import Int64Array, ragged_rows
from torchcell_cache.store.facts import StoredFacts
from torchcell_cache.store.generation import Generation
from torchcell_cache.store.summary import (
    edge_lists,
    facts_of,
    histogram,
    libraries,
    processor_of,
    sized,
    tree,
)

_CHARTS = 6
_ROW = '<div style="display:flex;flex-wrap:wrap;gap:4px 16px">{}</div>'
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --quiet: #767676; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin: 0; overflow-wrap: anywhere; } h2 { margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: .5rem 0; } td, th { padding: .15rem .8rem .15rem 0; text-align: left;
vertical-align: top; overflow-wrap: anywhere; } td:first-child { white-space: nowrap; }
tr + tr > * { border-top: 1px solid var(--soft); }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; } code { overflow-wrap: anywhere; }
.quiet { color: var(--quiet); }
.charts { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; } @media print { body { max-width: none; } }
"""


class WholeStore(StoredFacts):
    """All samples of a generation, for those who have no dataset."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    @property
    def generation(self) -> Generation:
        """The generation that is read."""
        return self._generation

    def positions(self, indices: Any = None) -> Int64Array:
        """All positions, ``[n] int64``."""
        return np.arange(len(self._generation))


def _pictures(histograms: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, facts in histograms.items():
        if facts.get("names"):
            yield f"<span>{text(name)} ({facts['count']:,})<br>{shares(facts['names'])}</span>"
        else:
            yield bars(name, facts)


def _count_bar(column: npt.NDArray[Any]) -> Markup:
    values, counts = np.unique(column, return_counts=True)
    pairs = zip(values[:20].tolist(), counts.tolist(), strict=False)
    return shares(dict(pairs))


def batch_html(title: str, perturbed: npt.NDArray[Any] | None, labels: Mapping[str, npt.NDArray[Any]]) -> str:
    """What a notebook shows of a batch: how many nodes its samples perturb, ``[batch]``, and its labels, ``[batch]`` each."""
    if perturbed is None:
        return table([("samples", "graphs as their source gave them: to_pyg()")], title=title)
    pictures = "".join(bars(name, histogram(values, 12)) for name, values in labels.items())
    return table([("perturbed", _count_bar(perturbed))], title=title) + _ROW.format(pictures)


def dataset_html(dataset: StoredFacts, name: str) -> str:
    """What a notebook shows of a dataset; of one in object storage nothing that would have to be fetched."""
    manifest = dataset.generation.manifest
    if dataset.generation.fetcher is not None and "base_graph" not in vars(dataset.generation):
        rows: list[tuple[str, Any]] = [("samples", manifest.num_samples), ("storage", manifest.storage)]
        return table([*rows, ("content digest", manifest.content_digest)], title=name)
    facts = facts_of(dataset, 16)
    pictures = list(_pictures(facts["histograms"]))[:_CHARTS]
    rows = [*_overview(facts, dataset), ("from", dataset.generation.root)]
    return table(rows, title=name) + _ROW.format("".join(pictures))


def _overview(facts: Mapping[str, Any], dataset: StoredFacts) -> list[tuple[str, Any]]:
    size, source = facts["bytes"], facts["fingerprint"].get("source", {})
    if isinstance(source, dict):
        source = source.get("class", source.get("name", "unknown"))
    column, sizes = dataset.columns.get("perturbed_count", np.empty(0)), facts["base_graph"].items()
    stored = f"{facts['storage']}, {human_bytes(size['total'])}, {size['per_sample']:,} bytes per sample"
    part = f"{facts['in_view']:,} of " if facts["in_view"] != facts["samples"] else ""
    return [
        ("samples", f"{part}{facts['samples']:,}"),
        ("labels", ", ".join(dataset.label_columns.values()) or ("y" if "y" in dataset.columns else "none")),
        *([("perturbed", _count_bar(column))] if len(column) else []),
        ("base graph", "; ".join(f"{name}: {sized(count)}" for name, count in sizes) or "none"),
        ("processor", processor_of(facts)),
        ("source", source),
        ("storage", stored),
        ("built", f"in {human_seconds(facts['built'].get('seconds', 0.0))}, {libraries(facts['built'])}"),
        ("content\u00a0digest", facts["content_digest"]),
    ]


def card(
    dataset: StoredFacts,
    name: str,
    address: str,
    parts: Mapping[str, Int64Array] | None = None,
    bins: int = 20,
) -> str:
    """The page about a store: where it is from, what is in it, how to open and to cite it.

    Args:
        dataset: The store or a view of it.
        name: Its title.
        address: What to open it by.
        parts: Indices into ``dataset`` of the parts of a split, by name.
        bins: Bars per histogram.
    """
    facts = facts_of(dataset, bins)
    lines = [
        "import torchcell_cache as tc\n",
        f"dataset = tc.PreprocessedDataset({address!r})",
        f"assert dataset.content_digest == {facts['content_digest']!r}",
        "for batch in tc.CacheLoader(dataset, batch_size=32, shuffle=True):\n    ...",
    ]
    title = name.replace("{", "").replace("}", "")
    cite = (
        f"@misc{{dataset,\n  title = {{{title}}},\n"
        f"  note = {{{facts['samples']:,} samples, content digest {facts['content_digest']}}}\n}}\n"
        f"@software{{torchcell_cache,\n  author = {{{{The torchcell_cache authors}}}},\n"
        f"  title = {{torchcell_cache}},\n  version = {{{__version__}}}\n}}"
    )
    schema = [(column, kind) for column, kind in facts["columns"].items()]
    layouts = [(f"fields of {layout}", ", ".join(names)) for layout, names in facts["fields"].items()]
    notes = [Markup(f"<li>{text(note)}") for note in facts["built"].get("notes", [])]
    digests = {n: facts[n] for n in ("content_digest", "manifest_digest", "generation", "format_version")}
    sections = {
        "Open it": f"<pre>{text(chr(10).join(lines))}</pre>",
        "Samples": f"<div class=charts>{''.join(_pictures(facts['histograms']))}</div>",
        "Base graph": table([(kind, sized(size)) for kind, size in facts["base_graph"].items()])
        + f"<div class=charts>{''.join(_degrees(dataset.base_graph))}</div>",
        "Split": "" if parts is None else _split(dataset, parts),
        "Where it is from": table(
            (Markup("&emsp;" * depth + text(part)), Markup(f"<code>{text(said)}</code>"))
            for depth, part, said in tree(facts["fingerprint"])
        )
        + f"<ul>{''.join(notes)}</ul>" * bool(notes),
        "Schema": table([*schema, *layouts], ("column", "dtype and shape")),
        "Digests": table(
            (n.replace("_", " "), Markup(f"<code>{text(v)}</code>")) for n, v in digests.items()
        ),
        "Cite it": f"<pre>{text(cite)}</pre>",
    }
    body = "".join(f"<h2>{head}</h2>{inner}" for head, inner in sections.items() if inner)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{text(name)}</title><style>{_STYLE}</style></head><body><h1>{text(name)}</h1>"
        f"<p class=quiet>a store of torchcell_cache {text(__version__)}</p>{table(_overview(facts, dataset))}"
        f"{body}</body></html>\n"
    )


def _degrees(graph: Any) -> Iterator[str]:
    """Degrees of the nodes of each edge type, in classes that double."""
    for name, index in () if graph is None else edge_lists(graph):
        if index is None or not index.numel():
            continue
        ends = index.numpy()
        key = name.split("|")
        same = len(key) < 3 or key[0] == key[2]
        size = int(graph.num_nodes if len(key) < 3 else graph[key[0]].num_nodes)
        degree = np.bincount(ends.ravel() if same else ends[0], minlength=size)
        classes = np.zeros(len(degree), dtype=np.int64)
        classes[degree > 0] = 1 + np.log2(degree[degree > 0]).astype(np.int64)
        counts = np.bincount(classes)
        labels = ["0", "1", *(f"{2**k}-{2 ** (k + 1) - 1}" for k in range(1, len(counts)))][: len(counts)]
        edges = list(range(len(counts) + 1))
        facts = histogram(degree, 2) | {"counts": counts.tolist(), "edges": edges, "whole": True}
        yield bars(f"degree, {name}", facts, labels, "nodes")


def _split(dataset: StoredFacts, parts: Mapping[str, Int64Array]) -> str:
    """Sizes of the parts, and which perturbed sets and nodes they have in common."""
    total, known = max(len(dataset.positions()), 1), dataset.generation.table
    sized_parts = [(name, len(rows), f"{len(rows) / total:.1%}") for name, rows in parts.items()]
    bar = shares({name: len(rows) for name, rows in parts.items()})
    if known is None:
        return bar + table(sized_parts, ("part", "samples", "share"))
    sets: dict[str, set[bytes]] = {}
    nodes: dict[str, set[int]] = {}
    for name, rows in parts.items():
        at, ptr = ragged_rows(known.ptr, dataset.positions(rows))
        ids, ends = np.asarray(known.ids[at]), ptr.tolist()
        nodes[name] = set(np.unique(ids).tolist())
        sets[name] = {ids[a:b].tobytes() for a, b in itertools.pairwise(ends) if b > a}
    rows_of = [(*row, len(sets[row[0]]), len(nodes[row[0]])) for row in sized_parts]
    names = list(parts)
    shared = [
        (f"{one} and {other}", len(sets[one] & sets[other]), len(nodes[one] & nodes[other]))
        for k, one in enumerate(names)
        for other in names[k + 1 :]
    ]
    return (
        f"{bar}{table(rows_of, ('part', 'samples', 'share', 'perturbed sets', 'perturbed nodes'))}"
        f"{table(shared, ('in common', 'perturbed sets', 'perturbed nodes'))}"
    )
