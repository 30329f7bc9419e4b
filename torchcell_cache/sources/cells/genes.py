"""Names of genes meet nodes: the genes that a cell is perturbed in, by ``obs``, and the variables of a file, by ``var``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SourceContractError
from torchcell_cache.sources.cells.categories import Coded, plain, texts_of
from torchcell_cache.sources.cells.failures import reading
from torchcell_cache.sources.cells.rows import Matrix
from torchcell_cache.sources.names import NodeNames


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


class Condition(NamedTuple):
    """What cells with one and the same entry are perturbed in.

    Attributes:
        ids: Nodes, ascending, ``[k] int64``.
        numbers: Places in the vocabulary, ascending, ``[n] int64``.
        foreign: Names that are no nodes but kept.
        unknown: Names that are unknown.
        blank: Whether a column has no entry.
    """

    ids: Int64Array
    numbers: Int64Array
    foreign: tuple[str, ...]
    unknown: tuple[str, ...]
    blank: bool


def read_perturbed(
    table: dict[str, Any], how: Perturbations, nodes: NodeNames, numbers: Int64Array
) -> tuple[list[Condition], Int64Array, str]:
    """Conditions of some cells of a file, whose ``numbers`` are for messages; each is looked up once.

    Returns:
        The conditions, that of each cell ``[num_cells] int64``, and what became of unknown names, in a line or nothing.

    Raises:
        SourceContractError: If an entry is missing or names an unknown gene, unless ``unknown`` says what to do then.
    """
    coded = {name: Coded.from_column(table[name], f"obs column {name!r}") for name in how.columns}
    key = np.zeros(len(numbers), dtype=np.int64)
    for name, column in coded.items():
        missing = column.codes < 0
        if missing.any() and how.unknown != "skip":
            control = how.control[0] if how.control else "a control"
            raise SourceContractError(
                f"obs column {name!r} has no value for {int(missing.sum()):,} cells, the first is cell "
                f"{int(numbers[np.argmax(missing)])}: that does not say whether they are perturbed",
                fix=f'fill them with {control!r}, or unknown="skip" to leave these cells out',
            )
        key = np.unique(key * (len(column.values) + 1) + column.codes + 1, return_inverse=True)[1].reshape(-1)
    conditions = []
    for cell in np.unique(key, return_index=True)[1].tolist():
        codes = {name: column.codes[cell] for name, column in coded.items()}
        texts = {name: plain(coded[name].values[code]) for name, code in codes.items() if code >= 0}
        conditions.append(_condition(texts, how, nodes))
    counts = np.bincount(key, minlength=len(conditions))
    return conditions, key, _note(conditions, counts, how)


def _condition(texts: dict[str, str], how: Perturbations, nodes: NodeNames) -> Condition:
    """What the entries of ``obs`` columns name."""
    ids, places = set[int](), set[int]()
    foreign, unknown = dict[str, None](), dict[str, None]()
    for column, text in texts.items():
        names = [part.strip() for part in text.split(how.separator)]
        wanted = [name for name in names if name and name not in how.control]
        numbers = positions = nodes.positions(wanted).tolist()
        if how.vocabulary is not None:  # by its own name, or by the node's
            known = zip(wanted, positions, strict=True)
            called = [nodes.names[k] if k >= 0 and n not in how.vocabulary else n for n, k in known]
            numbers = how.vocabulary.positions(called).tolist()
            places.update(number for number in numbers if number >= 0)
        lost = [name for name, number in zip(wanted, numbers, strict=True) if number < 0]
        if lost and how.unknown == "error":
            report = (how.vocabulary or nodes).report(lost, np.full(len(lost), -1))
            raise SourceContractError(
                f"obs column {column!r} has {text!r}, and {lost[0]!r} is neither a {(how.vocabulary or nodes).what} "
                f"nor a control ({', '.join(how.control)})" + (f"; {report.hint}" if report.hint else ""),
                fix='separator=..., control=..., aliases={"old name": "node name"}, or unknown="skip" to leave '
                "such cells out",
            )
        unknown |= dict.fromkeys(lost)
        for name, node in zip(wanted, positions, strict=True):
            if name in unknown and how.unknown != "keep":
                continue
            if node >= 0:
                ids.add(node)
            else:
                foreign[name] = None
    nodes_of, numbers_of = (np.array(sorted(part), dtype=np.int64) for part in (ids, places))
    return Condition(nodes_of, numbers_of, tuple(foreign), tuple(unknown), len(texts) < len(how.columns))


def _note(conditions: list[Condition], counts: Int64Array, how: Perturbations) -> str:
    """What became of cells that have no entry, or one that names unknown genes; nothing if there are none."""
    blank = np.array([each.blank for each in conditions], dtype=np.bool_)
    lost = np.array([bool(each.unknown) for each in conditions], dtype=np.bool_)
    bare = np.array([not len(each.ids) for each in conditions], dtype=np.bool_)
    none, cells = counts[blank].sum(), f"{counts.sum():,} cells"
    said = f"{none:,} of {cells} have no entry" if none else ""
    if names := sorted({name for each in conditions for name in each.unknown}):
        few = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        count = counts[lost & ~blank].sum()
        who = f"{said}, {count:,} name" if said else f"{count:,} of {cells} name"
        where = "base graph" if how.vocabulary is None else "vocabulary"
        said = f"{who} {len(names):,} genes that the {where} does not have ({few})"
    alone = counts[lost & bare].sum()
    what = {
        "skip": "left out",
        "drop": f"these genes left out, {alone:,} cells now look unperturbed",
        "keep": f"nothing is removed for them, {alone:,} cells have no other gene",
    }
    return f"{said}: {what[how.unknown]}" if said else ""


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
    """Match the variables of a matrix with node names, which stand in ``column`` of ``var``, or its index if ``None``.

    Raises:
        SourceContractError: If a name occurs twice, two are the same node, or none is one.
    """
    file, where = matrix.file, "the index of var" if column is None else f"var column {column!r}"
    with reading(file.url):
        table = file.table("raw/var" if matrix.raw else "var", () if column is None else (column,))
        found = [name.strip() for name in texts_of(table["" if column is None else column])]
        if matrix.shape[1] != len(found):
            raise SourceContractError(f"the matrix has {matrix.shape[1]} variables, var has {len(found)}")
        if twice := [name for name, count in Counter(filter(None, found)).items() if count > 1]:
            raise SourceContractError(
                f"{where} names {len(twice)} genes more than once: {_listed(twice)}",
                fix="gene_column=... with unique names, or make them unique in the file (adata.var_names_make_unique())",
            )
        if not found:
            raise SourceContractError("var has no names, the matrix no variables")
        node_of, first = nodes.positions(found), dict[int, str]()
        for name, node in zip(found, node_of.tolist(), strict=True):
            if node >= 0 and first.setdefault(node, name) != name:
                raise SourceContractError(
                    f"{first[node]!r} and {name!r} in {where} are both the node {nodes.names[node]!r}",
                    fix="leave one of them out of aliases, or out of the file",
                )
        if not first:
            report = nodes.report(found, node_of)
            raise SourceContractError(
                f"no name in {where} is a node of the base graph; the file has {_listed(found)}, "
                f"the graph {_listed(nodes.names)}" + (f"; {report.hint}" if report.hint else ""),
                fix="gene_column=... with the names that the base graph's node_ids use, or aliases={'name': 'node name'}",
            )
    missing = tuple(name for k, name in enumerate(nodes.names) if k not in first)
    unused = tuple(name for name, node in zip(found, node_of.tolist(), strict=True) if node < 0)
    return Alignment(file.url, node_of, len(node_of) - len(unused), missing, unused)


def _listed(names: Any) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def some(names: tuple[str, ...], what: str) -> str:
    """A few of the names in parentheses."""
    return f" ({what}: {_listed(names)})" if names else ""
