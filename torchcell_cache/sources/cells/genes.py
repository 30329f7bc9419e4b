"""Names of genes meet nodes: the genes that a cell is perturbed in, by ``obs``, and the variables of a file, by ``var``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array, offsets, segments
from torchcell_cache.errors import SourceContractError
from torchcell_cache.sources.cells.categories import Coded, texts_of
from torchcell_cache.sources.cells.rows import Matrix
from torchcell_cache.sources.names import NodeNames

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Perturbations:
    """Where the perturbed genes of a cell stand.

    Attributes:
        columns: Columns of ``obs``.
        separator: What joins several genes.
        control: Names that stand for no perturbation.
        unknown: What to do with names that no node has, see :data:`torchcell_cache.sources.names.UNKNOWN`.
        vocabulary: What perturbed genes are numbered by beside nodes; a name in it is no unknown one.
    """

    columns: tuple[str, ...]
    separator: str
    control: tuple[str, ...]
    unknown: str
    vocabulary: NodeNames | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Perturbed:
    """Perturbed nodes of the cells that are samples.

    Attributes:
        ids: Nodes, ascending per cell, ``[num_perturbed] int64``.
        ptr: Where each cell starts in ``ids``, ``[num_cells + 1] int64``.
        foreign: Names that are no nodes but kept, by cell.
        rows: Rows of the file that are samples, ascending, ``[num_cells] int64``.
        notes: What became of unknown names, in plain lines.
        numbers: Places in the vocabulary, ascending per cell, ``[num_numbers] int64``.
        number_ptr: Where each cell starts in ``numbers``, ``[num_cells + 1] int64``.
    """

    ids: Int64Array
    ptr: Int64Array
    foreign: dict[int, tuple[str, ...]]
    rows: Int64Array
    notes: tuple[str, ...] = ()
    numbers: Int64Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    number_ptr: Int64Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Perturbed]) -> Perturbed:
        """Cells of several files, one after the other; ``rows`` are those of the files."""
        starts = np.cumsum([0, *(len(part.rows) for part in parts)])
        foreign = {
            cell + int(start): names
            for part, start in zip(parts, starts, strict=False)
            for cell, names in part.foreign.items()
        }
        return cls(
            np.concatenate([part.ids for part in parts]),
            offsets(np.concatenate([np.diff(part.ptr) for part in parts])),
            foreign,
            np.concatenate([part.rows for part in parts]),
            (),
            np.concatenate([part.numbers for part in parts]),
            offsets(np.concatenate([np.diff(part.number_ptr) for part in parts])),
        )


def read_perturbed(
    url: str, table: dict[str, Any], how: Perturbations, nodes: NodeNames, numbers: Int64Array
) -> Perturbed:
    """Perturbed nodes of some cells of a file, whose ``numbers`` are for messages; each condition is looked up once.

    Raises:
        SourceContractError: If an entry is missing or names an unknown gene, unless ``unknown`` says what to do then.
    """
    length = len(numbers)
    rows = np.arange(length, dtype=np.int64)
    if not how.columns:
        return Perturbed(np.empty(0, dtype=np.int64), np.zeros(length + 1, dtype=np.int64), {}, rows)
    columns = {f"{url}: obs column {name!r}": table[name] for name in how.columns}
    coded = {where: Coded.of(column, where) for where, column in columns.items()}
    key = np.zeros(length, dtype=np.int64)
    for where, column in coded.items():
        _refuse_blank(where, url, column.codes < 0, how, numbers)
        key = np.unique(key * (len(column.values) + 1) + column.codes + 1, return_inverse=True)[1].reshape(-1)
    _, first = np.unique(key, return_index=True)
    names = {where: column.names() for where, column in coded.items()}
    texts = [
        {
            where: names[where][column.codes[cell]]
            for where, column in coded.items()
            if column.codes[cell] >= 0
        }
        for cell in first.tolist()
    ]
    found = [_nodes(each, url, how, nodes) for each in texts]
    foreign = [unknown for *_, unknown in found]
    blank = np.array([len(each) < len(coded) for each in texts], dtype=np.bool_)[key]
    lost = np.array([bool(unknown) for unknown in foreign], dtype=np.bool_)[key]
    counts, amounts = (np.array([len(each[k]) for each in found], dtype=np.int64) for k in (0, 1))
    notes = _notes(
        url, how, sorted({name for some in foreign for name in some}), blank, lost, counts[key] == 0
    )
    if how.unknown == "skip":
        rows = np.flatnonzero(~(blank | lost))
    kept = {cell: stay for cell, at in enumerate(key[rows].tolist()) if (stay := found[at][2])}
    flat, places = (np.array([k for each in found for k in each[n]], dtype=np.int64) for n in (0, 1))
    numbered = segments(places, offsets(amounts), key[rows])
    return Perturbed(*segments(flat, offsets(counts), key[rows]), kept, rows, notes, *numbered)


def _notes(
    url: str, how: Perturbations, names: list[str], blank: Flags, lost: Flags, bare: Flags
) -> tuple[str, ...]:
    """What became of cells that have no entry, or one that names unknown genes."""
    if not (blank | lost).any():
        return ()
    said = f"{int(blank.sum()):,} of {len(blank):,} cells have no entry" if blank.any() else ""
    if names:
        few = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        count = int((lost & ~blank).sum())
        who = f"{said}, {count:,} name" if said else f"{count:,} of {len(lost):,} cells name"
        where = "base graph" if how.vocabulary is None else "vocabulary"
        said = f"{who} {len(names):,} genes that the {where} does not have ({few})"
    alone = int((lost & bare).sum())
    what = {
        "skip": "left out",
        "drop": f"these genes left out, {alone:,} cells now look unperturbed",
        "keep": f"nothing is removed for them, {alone:,} cells have no other gene",
    }
    return (f"{url}: {said}: {what[how.unknown]}",)


def _refuse_blank(where: str, url: str, missing: Flags, how: Perturbations, numbers: Int64Array) -> None:
    if missing.any() and how.unknown != "skip":
        control = how.control[0] if how.control else "a control"
        raise SourceContractError(
            f"{where} has no value for {int(missing.sum()):,} cells, the first is cell "
            f"{int(numbers[np.argmax(missing)])}: that does not say whether they are perturbed",
            path=url,
            fix=f'fill them with {control!r}, or unknown="skip" to leave these cells out',
        )


def _nodes(
    texts: dict[str, str], url: str, how: Perturbations, nodes: NodeNames
) -> tuple[list[int], list[int], tuple[str, ...], tuple[str, ...]]:
    """Nodes of one condition and its places in the vocabulary, ascending, names that stay without a node, unknown ones."""
    ids, places = set[int](), set[int]()
    stay, unknown = dict[str, None](), dict[str, None]()
    for where, text in texts.items():
        names = [part.strip() for part in text.split(how.separator)]
        wanted = [name for name in names if name and name not in how.control]
        positions = nodes.positions(wanted).tolist()
        numbers = positions
        if how.vocabulary is not None:  # by its own name, or by the node's
            known = zip(wanted, positions, strict=True)
            called = [nodes.names[k] if k >= 0 and n not in how.vocabulary else n for n, k in known]
            numbers = how.vocabulary.positions(called).tolist()
            places.update(number for number in numbers if number >= 0)
        foreign = [name for name, number in zip(wanted, numbers, strict=True) if number < 0]
        if foreign and how.unknown == "error":
            report = (how.vocabulary or nodes).report(foreign, np.full(len(foreign), -1))
            raise SourceContractError(
                f"{where} has {text!r}, and {foreign[0]!r} is neither a {(how.vocabulary or nodes).what} "
                f"nor a control ({', '.join(how.control)})" + (f"; {report.hint}" if report.hint else ""),
                path=url,
                fix='separator=..., control=..., aliases={"old name": "node name"}, or unknown="skip" to leave '
                "such cells out",
            )
        unknown |= dict.fromkeys(foreign)
        for name, node in zip(wanted, positions, strict=True):
            if name not in unknown or how.unknown == "keep":
                ids.update([node] if node >= 0 else [])
                stay |= {} if node >= 0 else {name: None}
    return sorted(ids), sorted(places), tuple(stay), tuple(unknown)


# Which variable of a file is which node of the base graph, by name

_SHOWN = 8


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """How one file's variables meet the base graph's nodes.

    Attributes:
        url: The file.
        node_of: Node of each variable, -1 for none, ``[num_variables] int64``.
        matched: Number of variables that are nodes.
        missing: Names of nodes the file does not measure; their expression is zero.
        unused: Names of variables that are no nodes; they count for the total of a cell and are not stored.
    """

    url: str
    node_of: Int64Array
    matched: int
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        total = self.matched + len(self.missing)
        return (
            f"{self.url}: {self.matched:,} of {total:,} genes of the base graph measured"
            f"{some(self.missing, 'zero')}; {len(self.unused):,} of {len(self.node_of):,} variables are not in it"
            f"{some(self.unused, 'left out')}"
        )


def align(matrix: Matrix, nodes: NodeNames, column: str | None) -> Alignment:
    """Match the variables of a matrix with node names.

    Args:
        matrix: The matrix.
        nodes: Names of the base graph's nodes.
        column: Column of ``var`` with the genes' names; the index of ``var`` if ``None``.

    Raises:
        SourceContractError: If a name occurs twice, two are the same node, or none is one.
    """
    file = matrix.file
    table = file.table("raw/var" if matrix.raw else "var", () if column is None else (column,))
    found = [name.strip() for name in texts_of(table["" if column is None else column]).tolist()]
    if matrix.shape[1] != len(found):
        raise SourceContractError(
            f"{file.url}: the matrix has {matrix.shape[1]} variables, var has {len(found)}", path=file.url
        )
    where = "the index of var" if column is None else f"var column {column!r}"
    node_of = nodes.positions(found)
    _refuse_repeated(file.url, where, found, node_of, nodes.names)
    if not found:
        raise SourceContractError(f"{file.url}: var has no names, the matrix no variables", path=file.url)
    measured = set(node_of.tolist())
    if not measured - {-1}:
        report = nodes.report(found, node_of)
        raise SourceContractError(
            f"{file.url}: no name in {where} is a node of the base graph; the file has "
            f"{', '.join(found[:_SHOWN])}, ..., the graph {', '.join(nodes.names[:_SHOWN])}, ..."
            + (f"; {report.hint}" if report.hint else ""),
            path=file.url,
            fix="gene_column=... with the names that the base graph's node_ids use, or aliases={'name': 'node name'}",
        )
    missing = tuple(name for k, name in enumerate(nodes.names) if k not in measured)
    unused = tuple(name for name, node in zip(found, node_of.tolist(), strict=True) if node < 0)
    return Alignment(file.url, node_of, len(node_of) - len(unused), missing, unused)


def _refuse_repeated(url: str, where: str, found: list[str], node_of: Int64Array, names: list[str]) -> None:
    """Refuse names that occur twice, and variables that are one node."""
    counts = Counter(name for name in found if name)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise SourceContractError(
            f"{url}: {where} names {len(twice)} genes more than once: {', '.join(twice[:_SHOWN])}"
            + (", ..." if len(twice) > _SHOWN else ""),
            path=url,
            fix="gene_column=... with unique names, or make them unique in the file (adata.var_names_make_unique())",
        )
    first: dict[int, str] = {}
    for name, node in zip(found, node_of.tolist(), strict=True):
        if node >= 0 and first.setdefault(node, name) != name:
            raise SourceContractError(
                f"{url}: {first[node]!r} and {name!r} in {where} are both the node {names[node]!r}",
                path=url,
                fix="leave one of them out of aliases, or out of the file",
            )


def some(names: tuple[str, ...], what: str) -> str:
    """A few of the names in parentheses."""
    if not names:
        return ""
    return f" ({what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
