"""Networks as pairs of names, whatever they come in: files, frames, networkx graphs, pairs.

Files are tables with or without a header, STRING's links, BioGRID's tables, or SIF. What cannot be told is refused.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress, islice
from pathlib import Path
from typing import Any

import numpy as np

from torchcell_cache.core.urls import is_url
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.columns import (
    column_list,
    columns_of,
    frame_parts,
    is_missing,
)
from torchcell_cache.sources.delimited import (
    BLANKS,
    check_header,
    plain_text,
    rows_of,
    separator_of,
    unquoted,
)
from torchcell_cache.sources.name_lists import date_note
from torchcell_cache.sources.names import as_texts
from torchcell_cache.sources.network_columns import (
    NO_NAME,
    Known,
    Layout,
    edge_columns,
    edge_layout,
    has_header,
    is_nameless,
)

_LOOK_AT = 1000
_COMMENTS = ("#", "!", "%", "//")
_NO_TABLE = re.compile(
    r"\.(gml|graphml|xgmml|gexf|json|cx2?|xml|sbml|net|mat|mtx|np[yz]|pkl|pickle|gpickle|dot|gv|lgl|gmt|h5|hdf5|xlsx?)"
)
_STARTS = {
    "a MatrixMarket matrix": r"%%MatrixMarket",
    "a file of Pajek": r"\*(?i:vertices|network)",
    "JSON": r"\{|\[\s*[\[{\"\d]",
    "XML or HTML": r"<[?!a-zA-Z]",
    "a graph in GML or DOT": r"(?:Creator\s.*\s)?(?:(?:strict\s+)?(?:di)?graph\b[^\n]*|graph\s*)[\[{]",
    "a pointer that Git LFS left in place of a file": r"version https://git-lfs",
}
_TAXON = re.compile(r"^\d+\.(?=.*[A-Za-z])")
_ATTRIBUTES = r"[\s,;]\{.*\}(?=\s*$)"
_DECIMALS = re.compile(r"(?<=\d)\.0+$")
_AS_GRAPH = "read it, for example with networkx, and pass the graph; or save its edges as TSV"


@dataclass(slots=True, eq=False)
class Pairs:
    """Edges of a network by name, and how they were read."""

    origin: str
    sources: list[str]
    targets: list[str]
    weights: list[Any] | None = None  # as they stand
    listed: bool = False  # as in a file, where an edge that stands there again is the same edge
    remarks: list[str] = field(default_factory=list)

    def tidied(self, known: Known | None) -> Pairs:
        """Without edges that have no name on a side; names as their database has them.

        STRING's ``4932.YAL001C`` is ``YAL001C``, ``851262.0`` is ``851262``, if all are written so and none is a gene so.
        """
        lost = filter(is_nameless, {*self.sources, *self.targets})
        if none := {name for name in lost if not (known and known(name))}:
            ends = zip(self.sources, self.targets, strict=True)
            kept = [none.isdisjoint(pair) for pair in ends]
            self.remarks.append(f"{kept.count(False):,} edges passed over that name no gene on one side")
            self.sources, self.targets = (list(compress(side, kept)) for side in (self.sources, self.targets))
            self.weights = None if self.weights is None else list(compress(self.weights, kept))
        names = list(dict.fromkeys(chain(self.sources, self.targets)))
        starts = {match[0] if (match := _TAXON.match(name)) else "" for name in names}
        if self.listed and known is None:
            why = None
            if (odd := next(filter(NO_NAME.search, names), None)) is not None:
                why = date_note(odd) or f"{odd[:80]!r} is no name of a gene"
            elif len(starts) > 1 and "" in starts:
                bare = next(name for name in names if not _TAXON.match(name))
                why = (
                    f"some names have the taxon {max(starts)!r} in front and others, such as {bare!r}, do not"
                )
            if why:
                fix = "pass gene_set=[...], or a table with a column of names"
                raise SourceContractError(f"{self.origin}: {why}", fix=fix)
        if self.listed and names and not (known and any(map(known, names))):
            cut = re.compile(re.escape(starts.pop())) if len(starts) == 1 and starts != {""} else _DECIMALS
            if all(map(cut.search, names)):
                self.remarks.append(f"names without {(cut.search(names[0]) or [''])[0]!r}")
                self.sources, self.targets = (
                    [cut.sub("", name, count=1) for name in side] for side in (self.sources, self.targets)
                )
        return self


def read_network(
    what: str, network: Any, known: Known | None, header: bool | None = None, weight: str | int | None = None
) -> Pairs:
    """Edges of a file, a frame, a networkx graph or pairs; without ``known`` genes, or ``header`` told, by its cells."""
    try:
        if isinstance(network, str | Path):
            return _read_file(network, known, header, weight).tidied(known)
        if (parts := frame_parts(network)) is not None:
            return _read_frame(*parts, getattr(network, "index", None), known, weight).tidied(known)
    except (SourceContractError, SettingError) as error:
        raise error.within(what) from None
    return _read_object(what, network, known, weight).tidied(known)


def _read_object(what: str, network: Any, known: Known | None, weight: str | int | None) -> Pairs:
    if not hasattr(network, "edges"):
        network = getattr(network, "graph", network)  # torchcell's GeneGraph
    if known is None and hasattr(network, "detach"):
        raise SettingError(
            f"{what} is {type(network).__name__}, which holds positions and no names",
            fix="pass gene_set=[...], or pairs of names: [(names[a], names[b]) for a, b in edge_index.t().tolist()]",
        )
    values = None
    if callable(getattr(network, "edges", None)) and not isinstance(network, type):
        edges = list(network.edges() if weight is None else network.edges(data=weight))
        ends: Sequence[Any] = ([edge[0] for edge in edges], [edge[1] for edge in edges])
        values = None if weight is None else [edge[2] for edge in edges]
    elif weight is not None:
        said = f"{what} is pairs of names, which have no {weight!r}"
        raise SettingError(said, fix="weights={'network': 'column'}, by network")
    else:
        ends = columns_of(network, 2, what, "(sources, targets), pairs, a networkx graph, a frame or a file")
    sources, targets = ([text.strip() for text in as_texts(side, f"{what}: edge")] for side in ends)
    return Pairs(type(network).__name__, sources, targets, values)


def _read_frame(
    labels: list[Any], columns: list[Any], index: Any, known: Known | None, weight: str | int | None
) -> Pairs:
    """Edges of a frame of pandas, polars or Arrow; its column names are a header, its index says nothing."""
    names = [str(name).strip() for name in labels]
    rows = zip(*(column_list(column, "column") for column in columns), strict=True)
    head = [list(row) for row in islice(rows, _LOOK_AT)]
    if index is not None and type(index).__name__ != "RangeIndex" and {*index} == {*labels}:  # a matrix
        names, head = ["", *names], [[str(name), *row] for name, row in zip(index, head, strict=False)]
    if not isinstance(weight, bool | None) and weight in labels:
        weight = labels.index(weight)
    return _pairs("a table", names, head, map(list, rows), known, weight)


def _read_file(path: str | Path, known: Known | None, header: bool | None, weight: str | int | None) -> Pairs:
    if is_url(path):
        raise SettingError(f"{path} is an address, expected a file", fix="download it, and pass the path")
    path = Path(path).expanduser()
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    said = f"no table of edges (by its name, {suffix})" if _NO_TABLE.fullmatch(suffix) else ""
    text = "" if said else plain_text(path)
    start = next((what for what, start in _STARTS.items() if re.match(rf"\s*{start}", text)), "")
    if said := f"{start}, no table of edges" if start else said:
        raise SourceContractError(f"{path} is {said}", path=path, fix=_AS_GRAPH)
    lines = list(io.StringIO(text, newline=None))
    some = [line for line in islice(lines, _LOOK_AT) if line.strip()]
    table = [line for line in some if not _is_comment(line)]
    separator = _separator(path, table, text, suffix == ".sif")
    rows = _rows(path, lines, separator)
    head = [[unquoted(cell) for cell in row] for row in islice(rows, _LOOK_AT)]
    names = None
    if head and header is not False:  # the comment right above the data, if it names its columns (BioGRID)
        above = max(some[: some.index(table[0])][-1:] if table else (), default="").lstrip("#!% ")
        cells = [unquoted(cell) for cell in next(_rows(path, [above], separator), [])]
        names = cells if len(cells) == len(head[0]) and edge_columns(cells) else None
    if names is None and head and has_header(str(path), head, known, header):
        names = head.pop(0)
    head, rows = [row for row in head if row != names], filter(names.__ne__, rows)  # of files put together
    pairs = _pairs(str(path), names, head, rows, known, weight, suffix == ".sif")
    if not pairs.sources:
        fix = "check what wrote it, or leave it out"
        raise SourceContractError(f"{path} holds no edge", path=path, fix=fix)
    return pairs


def _rows(path: Path, lines: Iterable[str], separator: str) -> Iterator[list[str]]:
    """Rows that hold something; blank lines stand for comments, so that lines keep their numbers."""
    comment = r"\s#.*|" if separator == BLANKS else ""
    end = re.compile(comment + _ATTRIBUTES)  # as networkx ends lines
    kept = ("\n" if _is_comment(line) else end.sub("", line) for line in lines)
    return (row for row in rows_of(path, "".join(kept).encode(), separator) if any(map(str.strip, row)))


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith(_COMMENTS)


def _separator(path: Path, lines: Sequence[str], text: str, is_sif: bool) -> str:
    if is_sif:
        return "\t" if "\t" in text else BLANKS
    told: str = separator_of(path)
    if lines and all(";" in line.partition(",")[0] for line in lines):
        told = ";"  # and the comma is a decimal one
    bare = [re.sub(_ATTRIBUTES, "", line) for line in lines]
    found = next(
        (mark for mark in (told, "\t", ",", ";") if lines and all(mark in line for line in bare)), None
    )
    return found or (told if all(len(line.split()) < 2 for line in lines) else BLANKS)


def _pairs(
    origin: str,
    names: list[str] | None,
    head: list[list[Any]],
    rows: Iterable[list[Any]],
    known: Known | None,
    weight: str | int | None,
    is_sif: bool = False,
) -> Pairs:
    """The ends of edges in rows, of which some were taken off in ``head``."""
    if not head:
        return Pairs(origin, [], [], listed=True)
    if names and all(len(row) == len(names) + 1 for row in head):
        names = ["", *names]  # R names the columns, but not the row names in front of them
    check_header(Path(origin), [*filter(None, names or ())])
    layout = edge_layout(origin, names, [list(map(_shown, row)) for row in head], known, is_sif)
    column = None if weight is None else _weight_column(origin, names, weight, layout)
    ends: list[list[Any]] = [[], []]
    weights: list[Any] = []
    for number, row in enumerate(chain(head, rows)):
        if layout.is_sif and len(row) == 1 and len(row[0].split()) == 1:
            continue  # a node without edges
        if len(row) <= max(layout.target, column or 0):
            raise SourceContractError(
                f"{origin}: row {number} has {len(row)} cells: {row[:5]}, expected the columns of the rows before it",
                fix="one edge per row, the same columns in each",
            )
        targets = [*filter(None, row[layout.target :])] if layout.is_sif else [row[layout.target]]
        ends[0] += [row[layout.source]] * len(targets)
        ends[1] += targets
        weights += [] if column is None else [row[column]] * len(targets)
    sources, targets = (_names(side, origin) for side in ends)
    pairs = Pairs(origin, sources, targets, weights if column is not None else None, listed=True)
    if names and len(names) > layout.target:  # a SIF may begin with a node without edges, or a short header
        pairs.remarks.append(f"columns {names[layout.source]!r} and {names[layout.target]!r}")
    return pairs


def _shown(cell: Any) -> str:
    """A cell as text, to judge its column by."""
    if isinstance(cell, str):
        return unquoted(cell)
    whole = isinstance(cell, float) and cell.is_integer()
    return "" if is_missing(cell) else str(int(cell) if whole else cell)


def _names(cells: list[Any], origin: str) -> list[str]:
    """Cells as names; nothing where there is none."""
    if set(map(type, cells)) != {str}:
        cells = as_texts(["" if is_missing(cell) else cell for cell in cells], f"{origin}: name of row")
    clean = {cell: unquoted(cell) for cell in set(cells)}
    return [clean[cell] for cell in cells]


def _weight_column(origin: str, names: list[str] | None, weight: str | int, layout: Layout) -> int:
    what = f"its columns are {', '.join(map(repr, names))}" if names else "it has no header"
    is_position = isinstance(weight, int | np.integer) and not isinstance(weight, bool)
    column = names.index(str(weight)) if names and weight in names else int(weight) if is_position else -1
    if column < 0 or (names is not None and column >= len(names)):
        said = f"{origin}: no column of weights {weight!r}; {what}"
        raise SettingError(said, fix="weights={'network': 'column'}, or its position")
    if column in layout[:2]:
        said = f"{origin}: column {weight!r} of weights holds the ends of the edges; {what}"
        raise SettingError(said, fix="name another column")
    return column
