"""Networks in files and tables: which cells are the ends of an edge, whatever program wrote them.

Pairs with or without a header, with a column of row numbers, weights or more in front or behind; STRING's links;
BioGRID's tables; SIF, where one line may name several targets. What cannot be told is refused, not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from torchcell_cache.core.urls import is_url
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.delimited import BLANKS, check_header, read_text, rows_of, separator_of
from torchcell_cache.sources.network_columns import Known, edge_layout
from torchcell_cache.sources.table_headers import NAMELESS, edge_columns, looks_like_header

_LOOK_AT = 1000
_NO_TABLE = (
    ".gml",
    ".graphml",
    ".xgmml",
    ".gexf",
    ".json",
    ".xml",
    ".net",
    ".mat",
    ".npz",
    ".pkl",
    ".pickle",
)
_TAXON = re.compile(r"^\d+\.(?=.*[A-Za-z])")
_DECIMALS = re.compile(r"(?<=\d)\.0+$")
_NO_NAME = re.compile(r"[\s{}\[\]<>\"|;,]")


@dataclass(slots=True, eq=False)
class Pairs:
    """Edges of a network by name.

    Attributes:
        origin: Where they come from, for messages.
        sources: Names of the sources.
        targets: Names of the targets.
        weights: A weight per edge, unconverted, or ``None``.
        listed: Whether an edge that stands there again is the same edge, as in a file.
        remarks: How they were read.
    """

    origin: str
    sources: list[str]
    targets: list[str]
    weights: list[Any] | None = None
    listed: bool = False
    remarks: list[str] = field(default_factory=list)

    def leave_out(self, names: set[str]) -> None:
        """Leave out edges with one of these on a side, which are no names."""
        ends = zip(self.sources, self.targets, strict=True)
        kept = [k for k, (one, other) in enumerate(ends) if one not in names and other not in names]
        self.remarks.append(
            f"{len(self.sources) - len(kept):,} edges passed over that name no gene on one side"
        )
        self.sources, self.targets = ([side[k] for k in kept] for side in (self.sources, self.targets))
        self.weights = None if self.weights is None else [self.weights[k] for k in kept]

    def tidied(self, known: Known | None) -> Pairs:
        """Names as their database has them: STRING's ``4932.YAL001C`` as ``YAL001C``, ``851262.0`` as ``851262``.

        Only if all names are written so and none of them is a gene as it stands.

        Raises:
            SourceContractError: For a file where there are no genes to compare with: if something is no name, or some
                names have a taxon and others have none.
        """
        names = list(dict.fromkeys(chain(self.sources, self.targets)))
        unsure = self.listed and known is None
        if unsure and (odd := next(filter(_NO_NAME.search, names), None)) is not None:
            raise SourceContractError(
                f"{self.origin}: {odd[:80]!r} is no name of a gene",
                fix="pass gene_set=[...], or a table with a column of names",
            )
        starts = {match[0] if (match := _TAXON.match(name)) else "" for name in names}
        if unsure and len(starts) > 1 and "" in starts:
            raise SourceContractError(
                f"{self.origin}: some names have the taxon {max(starts)!r} in front and others, such as "
                f"{next(name for name in names if not _TAXON.match(name))!r}, do not",
                fix="pass gene_set=[...], or a table with a column of names",
            )
        if not names or (known and any(map(known, names))):
            return self
        cut = re.compile(re.escape(starts.pop())) if len(starts) == 1 and starts != {""} else _DECIMALS
        if all(map(cut.search, names)):
            self.remarks.append(f"names without {(cut.search(names[0]) or [''])[0]!r}")
            self.sources = [cut.sub("", name, count=1) for name in self.sources]
            self.targets = [cut.sub("", name, count=1) for name in self.targets]
        return self


def read_network(
    path: str | Path, known: Known | None, header: bool | None, weight: str | int | None
) -> Pairs:
    """Edges of a file.

    Args:
        path: The file.
        known: Whether a name is a gene of the cell; ``None`` if that is to be learnt from the network.
        header: Whether the first row names the columns; ``None``: told by its cells.
        weight: Name or position of the column of weights.

    Raises:
        SourceContractError: If it holds no edges, or it cannot be told where; names the file.
    """
    if is_url(path):
        raise SettingError(f"{path} is an address, expected a file", fix="download it, and pass the path")
    path = Path(path).expanduser()
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix in _NO_TABLE:
        raise SourceContractError(
            f"{path} is no table of edges (by its name, {suffix})",
            path=path,
            fix="read it, for example with networkx, and pass the graph; or save its edges as TSV",
        )
    data = read_text(path)
    lines = [line for line in islice(_lines(data), _LOOK_AT) if line.strip()]
    separator = _separator(path, [line for line in lines if not line.startswith("#")], data, suffix == ".sif")
    rows = rows_of(path, data, separator, "#")
    head = [[_cleaned(cell) for cell in row] for row in islice(rows, _LOOK_AT)]
    names = _commented_header(path, lines, separator, head) if header is not False else None
    if names is None and head and _has_header(str(path), head, known, header):
        names = head.pop(0)
    pairs = _pairs(str(path), names, head, rows, known, weight, suffix == ".sif")
    if not pairs.sources:
        raise SourceContractError(
            f"{path} holds no edge", path=path, fix="check what wrote it, or leave it out"
        )
    return pairs


def frame_network(frame: Any, known: Known | None, weight: str | int | None) -> Pairs:
    """Edges of a pandas frame; its column names are a header."""
    names = [str(name).strip() for name in frame.columns]
    rows = map(list, frame.itertuples(index=False))
    head = [[_cleaned(cell) for cell in row] for row in islice(rows, _LOOK_AT)]
    return _pairs("a table", names, head, rows, known, weight, False)


def _cleaned(cell: Any) -> str:
    """A cell without the blanks and quotes around it; whole numbers without a decimal point."""
    if not isinstance(cell, str):
        whole = isinstance(cell, float) and cell.is_integer()
        return "" if cell is None else str(int(cell) if whole else cell)
    text: str = cell.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text


def _lines(data: bytes) -> Iterator[str]:
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        yield data[start:end].decode("utf-8", "surrogatepass")
        start = end


def _separator(path: Path, lines: Sequence[str], data: bytes, is_sif: bool) -> str:
    if is_sif:
        return "\t" if b"\t" in data else BLANKS
    told: str = separator_of(path)
    for separator in (told, "\t", ",", ";"):
        if lines and all(separator in line for line in lines):
            return separator
    return told if all(len(line.split()) < 2 for line in lines) else BLANKS


def _commented_header(
    path: Path, lines: Sequence[str], separator: str, head: Sequence[Sequence[str]]
) -> list[str] | None:
    """The last comment above the data, if it names its columns (BioGRID)."""
    comments = []
    for line in lines:
        if not line.startswith("#"):
            break
        comments.append(line)
    if not comments or not head:
        return None
    cells = next(rows_of(path, comments[-1].lstrip("#").encode("utf-8", "surrogatepass"), separator), [])
    return [cell.strip() for cell in cells] if len(cells) == len(head[0]) and edge_columns(cells) else None


def _has_header(origin: str, head: Sequence[Sequence[str]], known: Known | None, told: bool | None) -> bool:
    if told is not None:
        return told
    first, rest = head[0], head[1:]
    if known is not None and any(map(known, first)):
        return False
    if known is not None and any(known(cell) for row in rest for cell in row):
        return True
    found = looks_like_header(first, rest)
    if found is None and known is None:
        raise SourceContractError(
            f"{origin}: the first row, {', '.join(map(repr, first[:2]))}, may be a header or an edge",
            fix="pass header=True or header=False, or gene_set=[...]",
        )
    return bool(found)


def _pairs(
    origin: str,
    names: list[str] | None,
    head: list[list[str]],
    rows: Iterable[list[str]],
    known: Known | None,
    weight: str | int | None,
    is_sif: bool,
) -> Pairs:
    if names and head and all(len(row) == len(names) + 1 for row in head):
        names = ["", *names]  # R names the columns, but not the row names in front of them
    if not head:
        return Pairs(origin, [], [], listed=True)
    check_header(Path(origin), [name for name in names or () if name])
    column = None if weight is None else _weight_column(origin, names, weight)
    layout = edge_layout(origin, names, head, known, is_sif)
    sources: list[Any] = []
    targets: list[Any] = []
    weights: list[Any] = []
    for number, row in enumerate(chain(head, rows)):
        if layout.is_sif and len(row) == 1:
            continue  # a node without edges
        try:
            sources.append(row[layout.source])
            targets.append(row[layout.target])
            if column is not None:
                weights.append(row[column])
        except IndexError:
            raise SourceContractError(
                f"{origin}: row {number} has {len(row)} cells: {row[:5]}, expected the columns of the rows before it"
            ) from None
        if layout.is_sif and len(row) > layout.target + 1:
            more = row[layout.target + 1 :]
            sources += [row[layout.source]] * len(more)
            targets += more
            weights += [row[column]] * len(more) if column is not None else []
    clean = {cell: _cleaned(cell) for cell in {*sources, *targets}}
    pairs = Pairs(origin, [clean[cell] for cell in sources], [clean[cell] for cell in targets], listed=True)
    pairs.weights = weights if column is not None else None
    if none := {name for name in clean.values() if name in NAMELESS and not (known and known(name))}:
        pairs.leave_out(none)
    if names:
        pairs.remarks.append(f"columns {names[layout.source]!r} and {names[layout.target]!r}")
    return pairs


def _weight_column(origin: str, names: list[str] | None, weight: str | int) -> int:
    if isinstance(weight, int) and not isinstance(weight, bool) and weight >= 0:
        return weight
    if names is not None and weight in names:
        return names.index(str(weight))
    what = f"its columns are {', '.join(map(repr, names))}" if names else "it has no header"
    raise SettingError(
        f"{origin}: no column of weights {weight!r}; {what}",
        fix="weights={'network': 'column'}, or its position",
    )
