"""Names of a file or table meet the nodes of a base graph: the one place that looks them up.

A name is looked up as it stands, then without blanks around it, then through the alias table. Nothing else is tried:
what would have matched in another case or without a prefix is said, not done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, get_args

import numpy as np

from torchcell_cache.core.checks import choice
from torchcell_cache.core.choices import Unknown
from torchcell_cache.core.markup import Shown
from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.graph.topology import count_nodes
from torchcell_cache.processors.deletion import node_names
from torchcell_cache.sources.columns import plain
from torchcell_cache.sources.delimited import MISSING, read_rows, unquoted
from torchcell_cache.sources.name_lists import NameLists, hint

UNKNOWN = get_args(Unknown)
"""What to do with a name no node has: refuse; leave the sample out; leave the name out; keep it, removing nothing."""

_EXAMPLES = 3
_REPEATED = -2


@dataclass(frozen=True, slots=True)
class NameReport(Shown):
    """How names met nodes, each distinct name counted once.

    Attributes:
        matched: Names that a node has.
        renamed: How many of them through the alias table.
        unmatched: Names that no node has.
        examples: Some names that no node has.
        nodes: Some names of nodes, those that no name met first.
        hint: What would make the names match, or nothing.
    """

    matched: int
    renamed: int
    unmatched: int
    examples: tuple[str, ...]
    nodes: tuple[str, ...]
    hint: str

    def __str__(self) -> str:
        said = f"{self.matched:,} of {self.matched + self.unmatched:,} names are nodes of the base graph"
        if self.renamed:
            said += f", {self.renamed:,} of them by another name"
        if self.unmatched:
            lost = _listed(self.examples, self.unmatched)
            said += f"; not among them {lost}; nodes are {_listed(self.nodes)}"
        return f"{said}; {self.hint}" if self.hint else said


@dataclass(frozen=True, slots=True, eq=False)
class Resolved:
    """Samples as nodes, unknown names dealt with.

    Attributes:
        ids: Nodes, sample after sample, in the order of the names, ``[sum of counts] int64``.
        ptr: Offsets into ``ids``, ``[num_samples + 1] int64``.
        rows: Rows that are samples, ascending; ``None`` for all.
        changed: Number of samples that lost a name (``drop``) or have one that removes nothing (``keep``).
        emptied: How many of them have no node left.
        report: How the names met the nodes.
    """

    ids: Int64Array
    ptr: Int64Array
    rows: Int64Array | None
    changed: int
    emptied: int
    report: NameReport

    def notes(self, total: int, unknown: str) -> tuple[str, ...]:
        """Lines on what became of names that no node has, of ``total`` rows."""
        said = [str(self.report)] if self.report.unmatched or self.report.renamed else []
        if self.rows is not None:
            said.append(left_out(total - len(self.rows), total, "a name is no node"))
        elif self.changed:
            what = "a name that is no node: it stays with them and removes nothing"
            what = what if unknown == "keep" else "fewer nodes than their row names"
            none = f"{self.emptied:,} of them perturb no node at all (unknown={unknown!r})"
            said.append(f"{self.changed:,} of {total:,} samples perturb {what}, {none}")
        return tuple(said)


def left_out(count: int, total: int, why: str) -> str:
    """That rows are left out, and why."""
    return f"{count:,} of {total:,} rows are left out: {why}"


class NodeNames:
    """The names of nodes, for looking names up.

    Args:
        names: ``node_ids``, one per node; numbers count as their text. ``None``: the nodes have no names.
        aliases: Other names of nodes: a mapping of name to node name, or a file of two such columns.
        what: What the nodes are called in messages.

    Raises:
        SourceContractError: If a name is no text, or an alias stands for two nodes.
    """

    def __init__(
        self,
        names: Iterable[Any] | None,
        aliases: Mapping[str, str] | str | Path | None = None,
        what: str = "node of the base graph",
    ) -> None:
        self.what, self.has_names = what, names is not None
        self.names = as_texts(names if names is not None else (), f"name of a {what}")
        self._position = {name: k for k, name in enumerate(self.names)}
        if len(self._position) < len(self.names):
            self._position |= {name: _REPEATED for name, n in Counter(self.names).items() if n > 1}
        self._aliases = read_aliases(aliases)

    @classmethod
    def from_graph(cls, graph: Any, node_type: str | None, aliases: Any = None) -> NodeNames:
        """The ``node_ids`` of a base graph.

        Raises:
            SourceContractError: If there are none, or not one for each node.
        """
        store = graph._store if node_type is None else graph[node_type]
        names = node_names(store)
        if names is None:
            where = "graph" if node_type is None else f"graph[{node_type!r}]"
            raise SourceContractError(
                "the base graph has no node_ids: genes are looked up in it by name",
                fix=f"set {where}.node_ids to the list of gene names",
            )
        count = count_nodes(store, f"'{node_type}'")
        if len(names) != count:
            said = f"node_ids has {len(names)} names for {count} nodes"
            raise SourceContractError(said, fix="give each node one name")
        return cls(names, aliases)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: str) -> bool:
        return self.find(name) >= 0

    def find(self, name: str) -> int:
        """Position of one name, -1 if no node has it.

        Raises:
            SourceContractError: If several nodes have it.
        """
        bare = name.strip()
        for form in (name, bare, self._aliases.get(bare, bare)):
            if (found := self._position.get(form)) is not None:
                if found != _REPEATED:
                    return found
                one, other = [k for k, name in enumerate(self.names) if name == form][:2]
                raise SourceContractError(
                    f"{form!r} is the name of a {self.what} twice (nodes {one} and {other}), so it does not say which one",
                    fix="give each node a name of its own in node_ids, or pass positions in place of names",
                )
        return -1

    def positions(self, names: Iterable[str]) -> Int64Array:
        """Position of each name, ``[n] int64``, -1 where no node has it; raises as :meth:`find`."""
        names = list(names)
        found = np.fromiter(map(self._position.get, names, repeat(-1)), dtype=np.int64, count=len(names))
        for k in np.flatnonzero(found < 0).tolist():
            found[k] = self.find(names[k])
        return found

    def report(self, names: Sequence[str], positions: Int64Array, *, hints: bool = True) -> NameReport:
        """How distinct names met the nodes."""
        lost = [names[k] for k in np.flatnonzero(positions < 0).tolist()]
        free = np.ones(len(self.names), dtype=np.bool_)
        free[positions[positions >= 0]] = False
        nodes = np.flatnonzero(free)[:_EXAMPLES].tolist() or range(min(_EXAMPLES, len(self.names)))
        strange = sum(name.strip() not in self._position for name in names) if self._aliases else len(lost)
        near = hint(lost, self._position) if hints and lost else ""
        counts, free_names = (len(names) - len(lost), strange - len(lost)), [self.names[k] for k in nodes]
        return NameReport(*counts, len(lost), tuple(lost[:_EXAMPLES]), tuple(free_names), near)

    def unknown(self, name: str, where: str, fix: str | None = None) -> SourceContractError:
        """The error for a name that no node has, with examples of both sides."""
        said = f"{where}: {name!r:.80} is not a {self.what}"
        if (alias := self._aliases.get(name.strip())) is not None:
            said += f", nor is {alias!r:.80}, which aliases have for it"
        if not self.has_names:
            return SourceContractError(f"{said} (it has no node_ids)", fix="set node_ids, or pass positions")
        near = hint([name], self._position)
        said += f"; its names are {_listed(tuple(self.names[:_EXAMPLES]))}"
        if name in MISSING:
            fix = fix or "leave it out, or its cell empty, where there is no name"
        return SourceContractError(f"{said}; {near}" if near else said, fix=fix or FIX_UNKNOWN)


FIX_UNKNOWN = (
    'correct the name, pass aliases={"old name": "node name"}, '
    'or unknown="skip" to leave out the samples with such names'
)


def resolve(lists: NameLists, nodes: NodeNames, unknown: str = "error") -> Resolved:
    """Look up the names of samples and deal with those that no node has.

    Args:
        lists: The names.
        nodes: Where they are looked up.
        unknown: One of :data:`UNKNOWN`.

    Raises:
        SourceContractError: Naming the row (from 0) and the name, if ``unknown`` is ``error``.
        SettingError: If ``unknown`` is no such policy.
    """
    choice("unknown", unknown, UNKNOWN)
    position = nodes.positions(lists.distinct)
    ids = position[lists.codes] if len(position) else np.empty(0, dtype=np.int64)
    lost = ids < 0
    report = nodes.report(lists.distinct, position)
    if not lost.any():
        return Resolved(ids, lists.ptr, None, 0, 0, report)
    owner = np.repeat(np.arange(len(lists)), np.diff(lists.ptr))
    if unknown == "error":
        at = int(np.argmax(lost))
        raise nodes.unknown(lists.distinct[int(lists.codes[at])], f"row {owner[at]}")
    odd = np.zeros(len(lists), dtype=np.bool_)
    odd[owner[lost]] = True
    counts = np.bincount(owner[~lost], minlength=len(lists))
    if unknown == "skip":
        rows = np.flatnonzero(~odd)
        return Resolved(ids[~odd[owner]], offsets(counts[rows]), rows, 0, 0, report)
    return Resolved(
        ids[~lost], offsets(counts), None, int(odd.sum()), int((odd & (counts == 0)).sum()), report
    )


def as_texts(names: Iterable[Any], what: str = "name") -> list[str]:
    """Names as text; whole numbers count as their digits.

    Raises:
        SourceContractError: Naming the position and the value that is neither.
    """
    out = list(names.tolist() if hasattr(names, "tolist") else names)
    for k, name in enumerate(out):
        if type(name) is not str:
            value = int(name) if isinstance(name, float) and name.is_integer() else plain(name)
            if isinstance(value, bool) or not isinstance(value, str | int):
                raise SourceContractError(
                    f"{what} {k} is {name!r}, expected text", fix="give each node a name"
                )
            out[k] = str(value if isinstance(value, str) else int(value))
    return out


def read_aliases(aliases: Mapping[str, str] | str | Path | None) -> dict[str, str]:
    """An alias table as a mapping of name to node name.

    Raises:
        SourceContractError: If a name stands for two nodes, or a file does not have two columns.
        SettingError: If it is neither a mapping nor a path.
    """
    if aliases is None:
        return {}
    origin, pairs = "aliases" if isinstance(aliases, Mapping) else str(aliases), list[Any]()
    if isinstance(aliases, Mapping):
        sides = as_texts(aliases, "alias"), as_texts(aliases.values(), "name of alias")
        pairs = list(zip(*sides, strict=True))
    elif isinstance(aliases, str | Path):
        pairs = list(read_rows(aliases))
    else:
        raise SettingError(
            f"aliases is {type(aliases).__name__}, expected a mapping of name to node name, or a file of two columns"
        )
    if (odd := next((k for k, row in enumerate(pairs) if len(row) != 2), None)) is not None:
        said = f"{origin}: row {odd} has {len(pairs[odd])} cells, expected a name and the node it stands for"
        raise SourceContractError(said, path=origin)
    out: dict[str, str] = {}
    for name, target in pairs:
        name, target = unquoted(name), unquoted(target)
        if name and target and out.setdefault(name, target) != target:
            raise SourceContractError(
                f"{origin}: {name!r:.80} stands for {out[name]!r:.80} and for {target!r:.80}"
            )
    return out


def _listed(names: Sequence[str], total: int | None = None) -> str:
    shown = [*(f"{name!r:.80}" for name in names), *([] if total == len(names) else ["..."])]
    return ", ".join(shown) if names else "none"
