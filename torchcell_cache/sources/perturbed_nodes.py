"""The nodes that can be perturbed: what callers give, met with the nodes of the base graph."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.columns import frame_parts, row_of
from torchcell_cache.sources.delimited import MISSING
from torchcell_cache.sources.name_lists import NameLists, coded
from torchcell_cache.sources.names import NodeNames, as_texts, resolve
from torchcell_cache.sources.perturbed_ids import RaggedIds, rows_of


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Perturbed nodes by id, and by an id behind those of all nodes each name that no node has and that is kept.

    Attributes:
        given: Ids, sample after sample.
        names: What the ids stand for; empty where nodes have no names.
        first: The first id that is no node's.
        rows: Rows that are samples, ascending.
        total: Number of rows given.
        notes: What became of names that no node has.
    """

    given: RaggedIds
    names: Sequence[Any]
    first: int
    rows: Int64Array
    total: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """The nodes that can be perturbed.

    Attributes:
        names: Their names, if they have any.
        count: How many there are.
        aliases: Other names, as for :class:`NodeNames`.
        pattern: Regular expression with one group that takes the name out of what a table has (``YAL001C_sn12``).
    """

    names: Sequence[Any] | None
    count: int
    aliases: Any = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        if self.names is not None and len(self.names) != self.count:
            raise SourceContractError(
                f"the base graph has {len(self.names)} node_ids for {self.count} nodes that can be perturbed",
                fix="give each node one name in node_ids, in the order of the nodes, or remove node_ids",
            )

    def found(self, perturbations: Any, unknown: str) -> Found:
        """The perturbed nodes of the rows that are samples, and how their names met those of the nodes.

        Raises:
            SourceContractError: Naming the row and the value that is neither a name nor an id of a node.
        """
        columns = list(map(str, (frame_parts(perturbations) or ((),))[0]))
        if columns and self.names is not None and {*columns} <= set(map(str, self.names)):
            raise SourceContractError(  # zeros and ones, which would be read as ids
                f"perturbations is a frame whose columns are nodes ({', '.join(columns[:3])}), expected columns that hold "
                "names or ids of nodes",
                fix="[frame.columns[row] for row in frame.to_numpy(dtype=bool)] makes lists of 0 and 1",
            )
        given = rows_of(perturbations)
        rows = np.arange(len(given))
        if isinstance(given, RaggedIds):
            return Found(self._checked(given), self.names or (), self.count, rows, len(given))
        lists = self._by_name(given) if isinstance(given, list) else given
        if self.pattern is not None:
            search = _compiled(self.pattern).search
            found, new = coded(((match := search(name)) and match[1]) or name for name in lists.distinct)
            lists = NameLists(found, new[lists.codes], lists.ptr)
        nodes = NodeNames(self.names, self.aliases)
        resolved = resolve(lists, nodes, "error" if self.names is None and unknown == "keep" else unknown)
        names, both = nodes.names, resolved
        if unknown == "keep" and resolved.report.unmatched:
            lost = [name for name in lists.distinct if name not in nodes]
            if missing := [name for name in lost if name.strip() in MISSING]:
                at = int(np.argmax(lists.codes == lists.distinct.index(missing[0])))
                raise SourceContractError(
                    f"row {row_of(lists.ptr, at)}: {missing[0]!r} is a missing value, not a name that unknown='keep' could keep",
                    fix="leave it out of the row",
                )
            names = [*names, *sorted({name.strip() for name in lost})]
            both = resolve(lists, NodeNames(names, self.aliases))
        rows = rows if resolved.rows is None else resolved.rows
        ids = RaggedIds(both.ids, both.ptr)
        return Found(ids, names, len(nodes), rows, len(given), resolved.notes(len(given), unknown))

    def _checked(self, given: RaggedIds) -> RaggedIds:
        """Refuse ids that are no node's, that could be names of other nodes, or that are zeros and ones of a mask."""
        outside = (given.ids < 0) | (given.ids >= self.count)
        if outside.any():
            at = int(np.argmax(outside))
            raise SourceContractError(
                f"row {row_of(given.ptr, at)}: id {given.ids[at]} is outside 0..{self.count - 1}",
                fix=_AS_TEXT if self._named(int(given.ids[at])) is not None else None,
            )
        if not given.positions:
            self._refuse_numbers_that_are_names(given)
        self._refuse_masks(given)
        return given

    def _named(self, number: int) -> int | None:
        """The node whose name is a number."""
        return next((k for k, name in enumerate(self.names or ()) if str(name) == str(number)), None)

    def _refuse_numbers_that_are_names(self, given: RaggedIds) -> None:
        """Refuse a whole number that is the position of one node and the name of another (Entrez)."""
        texts = enumerate(map(str, self.names or ()))
        other = [int(text) for k, text in texts if _NUMBER.fullmatch(text) and text != str(k)]
        if other and (wrong := np.isin(given.ids, other)).any():
            at = int(np.argmax(wrong))
            number = int(given.ids[at])
            raise SourceContractError(
                f"row {row_of(given.ptr, at)}: {number} is the position of one node and the name of node {self._named(number)}",
                fix=f"{_AS_TEXT}; positions go in as (ids, ptr), arrays of whole numbers",
            )

    def _refuse_masks(self, given: RaggedIds) -> None:
        """Refuse rows of zeros and ones, one per node, which would perturb nodes 0 and 1."""
        counts, small = np.diff(given.ptr), given.ids <= 1
        odd = counts == self.count if not small.all() else counts >= min(3, self.count)
        if not odd.any():
            return
        zeros_and_ones, ones = offsets(small)[given.ptr], offsets(given.ids == 1)[given.ptr]
        odd &= (np.diff(zeros_and_ones) == counts) & ((counts > 2) | ((counts == 2) & (np.diff(ones) != 1)))
        if odd.any():
            raise SourceContractError(
                f"row {int(np.argmax(odd))} holds nothing but zeros and ones: a mask, no positions of nodes",
                fix="[numpy.flatnonzero(row) for row in rows] makes positions of masks",
            )

    def _by_name(self, rows: list[list[str | int]]) -> NameLists:
        """Rows that hold names and ids, by name."""
        ids = [[entry for entry in row if not isinstance(entry, str)] for row in rows]
        flat = np.array(list(chain(*ids)), dtype=np.int64)
        self._checked(RaggedIds(flat, offsets(np.array(list(map(len, ids)), dtype=np.int64))))
        if self.names is None:
            row, name = next((r, e) for r, row in enumerate(rows) for e in row if isinstance(e, str))
            raise NodeNames(None).unknown(name, f"row {row}")
        names = as_texts(self.names, "name of node")
        return NameLists.from_rows([[e if isinstance(e, str) else names[e] for e in row] for row in rows])


_NUMBER = re.compile(r"0|[1-9]\d{0,17}", re.ASCII)
_AS_TEXT = "names go in as text: [[str(name) for name in row] for row in rows]"


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
        expression.search("")  # a pattern of bytes finds nothing in text
    except (re.error, TypeError) as error:
        raise SettingError(f"name={pattern!r} is no regular expression: {error}") from None
    if expression.groups != 1:
        raise SettingError(
            f"name={pattern!r} has {expression.groups} groups, expected one: the name of the node",
            fix=r'name="^([^_]+)_" takes YAL001C out of YAL001C_sn12',
        )
    return expression
