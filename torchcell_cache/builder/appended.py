"""A source that goes on where a store ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from torchcell_cache.builder.publishing import insist_same
from torchcell_cache.core.hints import root_argument
from torchcell_cache.core.origins import Origins
from torchcell_cache.core.samples import Sample, SampleTable, UnknownNames
from torchcell_cache.errors import SourceContractError
from torchcell_cache.graph.fields import graph_digests
from torchcell_cache.sources.base import FieldSource, RunSource, Source
from torchcell_cache.sources.table import PerturbationTable
from torchcell_cache.store.generation import Generation

_FIX_GRAPH = (
    "use the store's own base graph (PreprocessedDataset(root).base_graph), or update with a whole source"
)
_FIX_CELLS = (
    "start from the graph that the store's source was given; files must measure no other genes and name no other categories; "
    "else update with a source of all files"
)


class AppendedSource:
    """The samples of a store, followed by those of another source. The store's own are never made again.

    ``by_table``, all samples are rows of ``table``; else the tail is read as it can be: one by one, in runs, as fields.
    """

    def __init__(self, old: Generation, tail: Source, table: SampleTable | None, by_table: bool) -> None:
        self.base_graph, self.table, self._by_table = old.base_graph, table, by_table
        self.gives_graphs = getattr(tail, "gives_graphs", False)
        self.first, self.tail, self.root = len(old), tail, old.root
        self._stored = old.manifest.fingerprint["source"]
        if old.topology is not None:
            self.node_type = old.topology.node_type
        for kind, name in ((RunSource, "items"), (FieldSource, "field_chunks")):
            if isinstance(tail, kind) and not by_table:
                setattr(self, name, partial(self._read, getattr(tail, name)))

    def __len__(self) -> int:
        return self.first + len(self.tail)

    def __getitem__(self, index: int) -> Any:
        if self.table is not None and self._by_table:
            return self.table.sample(index, self.base_graph)
        return self._read(lambda first, _: self.tail[first], index, index + 1)

    def _read(self, read: Callable[[int, int], Any], start: int, stop: int) -> Any:
        if start < self.first:
            raise SourceContractError(
                f"sample {start} is the store's own and its record cannot be read, so it would have to be made again",
                fix=f"torchcell-cache repair {root_argument(self.root)}, then append again",
            )
        return read(start - self.first, stop - self.first)

    def identity(self) -> dict[str, Any]:
        """Those of both parts; a source that holds all samples at once has another."""
        return {"class": "AppendedSource", "stored": self._stored, "appended": self.tail.identity()}


def appended(old: Generation, tail: Source, digests: dict[str, str] | None) -> Source:
    """The source of a store that has grown by ``tail``, whose base graph has ``digests``.

    Where both are ``PerturbationTable``, it is the table of all samples, so that a build from that table finds the grown
    store up to date.

    Raises:
        StaleCacheError: If the tail stands on another base graph.
        SourceContractError: If store and tail do not hold the same kind of samples.
    """
    continued, before = getattr(tail, "continued", None), tail.base_graph
    tail = continued(old.base_graph) if callable(continued) else tail
    graph = tail.base_graph
    if graph is not None and graph is not before:
        digests = graph_digests(graph)
    gives_graphs = getattr(tail, "gives_graphs", False)
    stored, what = {"base_graph": old.manifest.fingerprint["base_graph"]}, "stand on another base graph than"
    what = f"the samples to append {what} the store at {old.root}"
    fix = _FIX_CELLS if gives_graphs else _FIX_GRAPH
    insist_same(stored, {"base_graph": digests or {}}, what, old.root, fix)
    _check_settings(old, tail)
    table = getattr(tail, "table", None)
    if (old.table is None) != (not isinstance(table, SampleTable)):
        ours, theirs = ("graphs", "perturbations")[:: 1 if old.table is None else -1]
        raise SourceContractError(
            f"the store's samples are {ours}, those of {type(tail).__name__} are {theirs}"
        )
    whole = None
    if old.table is not None and isinstance(table, SampleTable):
        if gives_graphs:  # cells: plates may share barcodes, and old stores kept none
            table = replace(table, source_ids=None) if old.table.source_ids is None else table
        whole = _joined(old.table, table, unique=not gives_graphs)
    by_table = whole is not None and not (len(tail) and type(tail[0]) is not Sample)
    stored_as = old.manifest.fingerprint["source"].get("class")
    if (
        whole is not None
        and by_table
        and type(tail) is PerturbationTable
        and stored_as == "PerturbationTable"
    ):
        return PerturbationTable.of_table(graph, whole, tail.node_type)
    return AppendedSource(old, tail, whole, by_table)


def _check_settings(old: Generation, tail: Source) -> None:
    """Refuse samples that are made in another way than the store's own of the same kind of source."""
    settings = getattr(tail, "settings", None)
    identity = old.manifest.fingerprint["source"]
    while identity.get("class") == "AppendedSource":
        identity = identity["appended"]
    if not callable(settings) or identity.get("class") != type(tail).__name__:
        return
    wanted = settings()
    stored = {"source": {name: identity.get(name) for name in wanted}}
    what = f"the store at {old.root} and the samples to append are made in different ways"
    fix = f"{type(tail).__name__}(...) with the settings of the store, or update with all samples"
    insist_same(stored, {"source": wanted}, what, old.root, fix)


def _joined(first: SampleTable, then: SampleTable, unique: bool) -> SampleTable:
    for what in ("phenotypes", "statistics"):
        ours, theirs = list(getattr(first, what)), list(getattr(then, what))
        if ours != theirs:
            raise SourceContractError(f"the store's {what} are {ours}, those to append {theirs}")
    if (first.source_ids is None) != (then.source_ids is None):
        named, other = ("store", "samples to append")[:: 1 if then.source_ids is None else -1]
        raise SourceContractError(f"the {named} have names (source_ids), the {other} have none")
    names = None
    if first.source_ids is not None and then.source_ids is not None:
        names = list(chain(first.source_ids, then.source_ids))
        if unique and len(set(names)) < len(names):
            seen = set(first.source_ids)
            again = next(name for name in then.source_ids if name in seen)
            what = f"the store has a sample {again!r} already"
            raise SourceContractError(what, fix="append new samples only")
    return SampleTable(
        ids=np.concatenate([first.ids.astype(np.int64), then.ids.astype(np.int64)]),
        ptr=np.concatenate([first.ptr, then.ptr[1:] + first.ptr[-1]]),
        values=np.concatenate([first.values, then.values]),
        value_ptr=np.concatenate([first.value_ptr, then.value_ptr[1:] + first.value_ptr[-1]]),
        phenotypes=first.phenotypes,
        statistics=first.statistics,
        source_ids=names,
        unknown=UnknownNames.joined([(first.unknown, len(first)), (then.unknown, len(then))]),
        origins=Origins.joined(first.origins, then.origins),
    )
