"""What says the same as a published store in other words: then the store stands, and goes on with its own words.

A base graph made from Python sets has its edges in another order in every process. The store's own graph is the one that
counts: it is served, and what is computed for the store is computed on it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

from torchcell_cache.builder.codehash.parts import legacy_processor_part
from torchcell_cache.core.samples import Sample, SampleTable
from torchcell_cache.errors import CacheError
from torchcell_cache.graph.fields import graph_digests
from torchcell_cache.graph.order import reordered_parts
from torchcell_cache.sources.base import Source
from torchcell_cache.store.generation import Generation


def in_stored_words(
    stored: dict[str, Any], wanted: dict[str, Any], processor: Any, graph: Any, load: Callable[[], Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Parts of a fingerprint, in the stored ones' words where they mean the same.

    Args:
        stored: The store's fingerprint.
        wanted: Parts of what it should be.
        processor: The processor, for ``wanted["processor"]``.
        graph: The base graph, for ``wanted["base_graph"]``.
        load: Gives the store's base graph.

    Returns:
        The parts, and a line to print if an order was passed over.
    """
    out: dict[str, Any] = dict(wanted)
    notes: tuple[str, ...] = ()
    differs = "processor" in wanted and wanted["processor"] != stored.get("processor")
    if differs and stored.get("processor") == legacy_processor_part(processor):
        out["processor"] = stored["processor"]
    if "base_graph" in wanted and wanted["base_graph"] != stored.get("base_graph"):
        notes = _order_note(stored, wanted["base_graph"], graph, load)
        if notes:
            out["base_graph"] = stored["base_graph"]
    return out, notes


def _order_note(
    stored: dict[str, Any], digests: dict[str, str], graph: Any, load: Callable[[], Any]
) -> tuple[str, ...]:
    known = stored.get("base_graph", {})
    if graph is None or set(known) != set(digests):
        return ()
    try:
        parts = reordered_parts(load(), graph)
    except CacheError:  # the stored graph cannot be read: whoever reads it will say so
        return ()
    if not parts:
        return ()
    return (
        f"base graph: {', '.join(parts)} in another order than in the store (made from a set?); the store's own graph is "
        "used",
    )


def on_stored_graph(source: Source, old: Generation) -> tuple[Source, tuple[str, ...]]:
    """The source, on the store's own base graph if its own is the same but for the order of edges.

    Only a source of ids and measurements moves; other samples may depend on the order themselves.
    """
    graph = source.base_graph
    if graph is None or not isinstance(getattr(source, "table", None), SampleTable):
        return source, ()
    wanted = {"base_graph": graph_digests(graph)}
    _, notes = in_stored_words(old.manifest.fingerprint, wanted, None, graph, lambda: old.base_graph)
    moved = copy.copy(source)
    if notes:
        with contextlib.suppress(AttributeError):  # a property of its own
            moved.base_graph = old.base_graph
            if not len(moved) or (type(moved[0]) is Sample and moved[0].base_graph is old.base_graph):
                return moved, notes
    return source, ()
