"""Which genes a cell is perturbed in, from columns of ``obs``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SourceContractError
from torchcell_cache.sources.cells.categories import Coded
from torchcell_cache.sources.names import NodeNames


@dataclass(frozen=True, slots=True)
class Perturbations:
    """Where the perturbed genes of a cell stand.

    Attributes:
        columns: Columns of ``obs``.
        separator: What joins several genes.
        control: Names that stand for no perturbation.
        unknown: What to do with names that no node has, see :data:`torchcell_cache.sources.names.UNKNOWN`.
    """

    columns: tuple[str, ...]
    separator: str
    control: tuple[str, ...]
    unknown: str


@dataclass(frozen=True, slots=True, eq=False)
class Perturbed:
    """Perturbed nodes of the cells that are samples.

    Attributes:
        ids: Nodes, ascending per cell, ``[num_perturbed] int64``.
        ptr: Where each cell starts in ``ids``, ``[num_cells + 1] int64``.
        foreign: Names that are no nodes but kept, by cell.
        rows: Rows of the file that are samples, ascending, ``[num_cells] int64``.
        notes: What became of unknown names, in plain lines.
    """

    ids: Int64Array
    ptr: Int64Array
    foreign: dict[int, tuple[str, ...]]
    rows: Int64Array
    notes: tuple[str, ...] = ()

    @classmethod
    def joined(cls, parts: Sequence[Perturbed]) -> Perturbed:
        """Cells of several files, one after the other; ``rows`` are those of the files."""
        starts = np.cumsum([0, *(len(part.rows) for part in parts)])
        shifts = np.cumsum([0, *(len(part.ids) for part in parts)])
        ptr = [part.ptr[1:] + shift for part, shift in zip(parts, shifts, strict=False)]
        foreign = {
            cell + int(start): names
            for part, start in zip(parts, starts, strict=False)
            for cell, names in part.foreign.items()
        }
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([np.zeros(1, dtype=np.int64), *ptr]),
            foreign,
            np.concatenate([part.rows for part in parts]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Entries:
    """The distinct entries of one column: nodes of each, and names that no node has."""

    codes: Int64Array
    nodes: list[list[int]]
    foreign: list[list[str]]


def read_perturbed(
    url: str, table: dict[str, Any], how: Perturbations, nodes: NodeNames, length: int
) -> Perturbed:
    """Perturbed nodes of each cell of a file; each distinct entry is looked up once.

    Raises:
        SourceContractError: If an entry is missing or names an unknown gene, unless ``unknown`` says what to do then.
    """
    everything = np.arange(length, dtype=np.int64)
    if not how.columns:
        return Perturbed(np.empty(0, dtype=np.int64), np.zeros(length + 1, dtype=np.int64), {}, everything)
    found = [
        _entries(
            f"{url}: obs column {column!r}",
            url,
            Coded.of(table[column], f"{url}: obs column {column!r}"),
            how,
            nodes,
        )
        for column in how.columns
    ]
    owners, ids = zip(*(_spread(part.codes, part.nodes) for part in found), strict=True)
    pairs = np.unique(np.stack([np.concatenate(owners), np.concatenate(ids)], axis=1), axis=0)
    odd = np.zeros(length, dtype=np.bool_)
    for part in found:
        odd |= np.array([*(bool(names) for names in part.foreign), True], dtype=np.bool_)[part.codes]
    rows = np.flatnonzero(~odd) if how.unknown == "skip" else everything
    counts = np.bincount(pairs[:, 0], minlength=length)
    kept = np.isin(pairs[:, 0], rows)
    ptr = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(counts[rows], out=ptr[1:])
    foreign = {}
    if how.unknown == "keep":
        for cell in np.flatnonzero(odd).tolist():
            names = dict.fromkeys(name for part in found for name in part.foreign[part.codes[cell]])
            foreign[cell] = tuple(names)
    notes = _notes(url, how, found, odd, counts)
    return Perturbed(pairs[kept, 1].copy(), ptr, foreign, rows, notes)


def _notes(
    url: str, how: Perturbations, found: list[_Entries], odd: npt.NDArray[np.bool_], counts: Int64Array
) -> tuple[str, ...]:
    """What became of cells whose entry names unknown genes."""
    if not odd.any():
        return ()
    names = sorted({name for part in found for some in part.foreign for name in some})
    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    none = np.logical_or.reduce([part.codes < 0 for part in found])
    said = f"{int(none.sum()):,} of {len(odd):,} cells have no entry" if none.any() else ""
    if names:
        count = (
            f"{int((odd & ~none).sum()):,} name" if said else f"{int(odd.sum()):,} of {len(odd):,} cells name"
        )
        lost = f"{count} {len(names):,} genes that the base graph does not have ({some})"
        said = f"{said}, {lost}" if said else lost
    bare = int((odd & (counts == 0)).sum())
    what = {
        "skip": "left out",
        "drop": f"these genes left out, {bare:,} cells now look unperturbed",
        "keep": f"nothing is removed for them, {bare:,} cells have no other gene",
    }
    return (f"{url}: {said}: {what[how.unknown]}",)


def _entries(where: str, url: str, coded: Coded, how: Perturbations, nodes: NodeNames) -> _Entries:
    missing = coded.codes < 0
    if missing.any() and how.unknown != "skip":
        control = how.control[0] if how.control else "a control"
        raise SourceContractError(
            f"{where} has no value for {int(missing.sum()):,} cells, the first is cell "
            f"{int(np.argmax(missing))}: that does not say whether they are perturbed",
            path=url,
            fix=f'fill them with {control!r}, or unknown="skip" to leave these cells out',
        )
    used = np.bincount(coded.codes[~missing], minlength=len(coded.values)) > 0  # a category may be of no cell
    found = [
        _nodes(where, url, name, how, nodes) if there else ([], [])
        for name, there in zip(coded.names(), used.tolist(), strict=True)
    ]
    return _Entries(coded.codes, [ids for ids, _ in found], [names for _, names in found])


def _nodes(
    where: str, url: str, text: str, how: Perturbations, nodes: NodeNames
) -> tuple[list[int], list[str]]:
    """Nodes of one entry, and names in it that no node has."""
    names = [part.strip() for part in text.split(how.separator)]
    wanted = [name for name in names if name and name not in how.control]
    positions = nodes.positions(wanted).tolist()
    foreign = [name for name, node in zip(wanted, positions, strict=True) if node < 0]
    if foreign and how.unknown == "error":
        report = nodes.report(foreign, np.full(len(foreign), -1))
        raise SourceContractError(
            f"{where} has {text!r}, and {foreign[0]!r} is neither a node of the base graph "
            f"nor a control ({', '.join(how.control)})" + (f"; {report.hint}" if report.hint else ""),
            path=url,
            fix='separator=..., control=..., aliases={"old name": "node name"}, or unknown="skip" to leave such cells out',
        )
    return [node for node in positions if node >= 0], foreign


def _spread(codes: Int64Array, lists: list[list[int]]) -> tuple[Int64Array, Int64Array]:
    """The items of each cell's entry: the cell and the item, ``[sum of counts] int64`` each."""
    counts = np.array([*(len(items) for items in lists), 0], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
    flat = np.array([item for items in lists for item in items], dtype=np.int64)
    per_cell = counts[codes]
    shift = np.repeat(starts[codes] - np.cumsum(per_cell) + per_cell, per_cell)
    owner = np.repeat(np.arange(len(codes), dtype=np.int64), per_cell)
    return owner, flat[shift + np.arange(int(per_cell.sum()))]
