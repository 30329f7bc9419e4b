"""Which cells of a table are its header, and which two columns hold the two genes of each edge.

Both are told by the cells alone where that is beyond doubt, and by the genes of the cell where those are known; what is in
doubt is refused. So a table means the same with and without known genes, or is refused without them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain, combinations
from typing import NamedTuple

from torchcell_cache.core.checks import truth
from torchcell_cache.errors import SourceContractError
from torchcell_cache.sources.delimited import MISSING

Known = Callable[[str], bool]
"""Whether a name is a gene of the cell."""

_RELATIONS = ("pp", "pd", "pr", "rc", "cr", "gl", "pm", "mp", "interacts", "binds", "activates", "inhibits")
"""Second cells of SIF lines: SIF's own abbreviations, and words that name a relation and never a gene."""

_SIDES = (
    *(("source", "target"), ("from", "to"), ("a", "b"), ("1", "2"), ("x", "y"), ("query", "array")),
    *(("regulator", "target"), ("tf", "target"), ("bait", "prey"), ("bait", "hit")),
)
"""Words that tell the two ends of an edge apart."""

_NOUNS = frozenset(
    {word for pair in _SIDES for word in pair if len(word) > 3}  # HIT1 is a gene
    | {"gene", "genes", "protein", "proteins", "node", "interactor", "orf", "locus", "symbol", "systematic"}
    | {"entrez", "ensembl", "uniprot", "biogrid"}
)
_MORE = frozenset(
    {word for pair in _SIDES for word in pair} | {"id", "ids", "name", "names", "official", "tag"}
)
_VAGUE = frozenset({*"ijpquv0", "var", "col", "column", "value", "values", "left", "right", "index"})
"""Names that programs and people give to columns of anything."""

_DIGITS = re.compile(r"\d+")
_TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?i:inf(?:inity)?|nan)", re.ASCII)
NO_NAME = re.compile(r"[\s{}\[\]<>\"|;,]|^\d{1,2}-[A-Z][a-z]{2}$|^\d{4}-\d\d-\d\d$")
"""What no name of a gene holds; dates, which spreadsheets make of names."""

_NAMELESS = frozenset(word.lower() for word in MISSING - {"NA"}) | {"-", "--", "?", ".", "<na>", "nat", "#na"}


class Layout(NamedTuple):
    """Columns of the sources and of the targets; in SIF all columns from there on are targets."""

    source: int
    target: int
    is_sif: bool = False


def is_nameless(cell: str) -> bool:
    """Whether a cell stands for no name; BioGRID writes a dash where an interactor has no name of that kind."""
    return cell == "NA" or cell.lower() in _NAMELESS


def is_number(cell: str) -> bool:
    """Whether a cell is a number or a truth value."""
    return _NUMBER.fullmatch(cell) is not None or cell.lower() in ("true", "false")


def looks_like_header(first: Sequence[str], rest: Sequence[Sequence[str]]) -> bool | None:
    """Whether a first row is a header, judged by its cells alone; ``None`` if it could be either.

    Args:
        first: The first row.
        rest: Some of the rows after it.
    """
    columns = [_column(rest, k) for k in range(len(first))]
    if rest and not first[0] and len(columns[0]) == len(rest):
        return True  # pandas leaves the name of the index blank
    pairs = [(cell, column) for cell, column in zip(first, columns, strict=True) if not is_nameless(cell)]
    for cell, column in pairs:
        words, kinds = _words(cell), {is_number(other) for other in column}
        is_name = words & _NOUNS and words <= _NOUNS | _MORE  # gene_a, protein1, Systematic Name
        if is_name and _family(cell) not in map(_family, column):
            return True
        if len(kinds) == 1 and is_number(cell) not in kinds:
            return True
    pairs = [(cell, column) for cell, column in pairs if column]
    enough = min(2, len(pairs))
    if enough and sum(_is_vague(cell, column) for cell, column in pairs) >= enough:
        return True
    apart = sum(not _DIGITS.search(cell) and all(map(_DIGITS.search, column)) for cell, column in pairs)
    return None if enough and apart >= enough else False


def has_header(origin: str, head: Sequence[Sequence[str]], known: Known | None, told: bool | None) -> bool:
    """Whether the first row names the columns: as ``told``, or else by the cells and the known genes."""
    if told is not None:
        return truth("header", told)
    rest = [row for row in head[1:] if row != head[0]]
    found = looks_like_header(head[0], rest)
    if known is not None:
        below = any(map(known, chain(*rest)))
        return not below and bool(found) if any(map(known, head[0])) else found or (found is None and below)
    if found is None:
        raise SourceContractError(
            f"{origin}: the first row, {', '.join(map(repr, head[0][:2]))}, may be a header or an edge",
            fix="pass header=True or header=False, or gene_set=[...]",
        )
    return bool(found)


def edge_columns(header: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of columns whose names differ in nothing but the side, those most likely to hold genes first.

    Example:
        >>> edge_columns(["score", "gene_b", "gene_a"])
        [(2, 1)]
    """
    words = [_words(name) for name in header]
    found: list[tuple[int, int, int, int]] = []
    for one, other in _SIDES:
        for i, left in enumerate(words):
            for j, right in enumerate(words):
                alike = one in left and other in right and left - {one} == right - {other}
                if alike and left & _NOUNS:
                    strange = len((left | right) - _NOUNS - _MORE) - 9 * ("systematic" in left)
                    found.append((strange, i, j, len(found)))
    return [(i, j) for _, i, j, _ in sorted(found)]


def edge_layout(
    origin: str, names: list[str] | None, head: Sequence[list[str]], known: Known | None, is_sif: bool
) -> Layout:
    """Where the ends of the edges are, from the header and some rows.

    Raises:
        SourceContractError: If that cannot be told.
    """
    if is_sif or (names is None and all(len(row) > 2 and row[1].lower() in _RELATIONS for row in head)):
        return Layout(0, 2, is_sif=True)
    width = len(names) if names else max(map(len, head))
    start = int(_numbers_rows(names, head))
    if width < start + 2:
        raise SourceContractError(
            f"{origin}: expected two columns, got {(names or head[0])[:3]}",
            fix="one edge per row: source and target, separated by tab (TSV) or comma (CSV); frame.reset_index() for an index",
        )
    named = edge_columns(names) if names else []
    if matrix := names is not None and not named and _matrix(names, head):
        found: tuple[int, int] | str = matrix
    elif known is None:
        found = named[0] if named else _by_cells(names, head, start, width)
    else:
        found = _by_genes(names, head, [*named, (start, start + 1)], known)
    if not isinstance(found, str):
        return Layout(*found)
    raise SourceContractError(
        f"{origin}: it cannot be told which columns hold the two genes of an edge: {found}",
        fix="pass networkx.from_pandas_adjacency(frame), or the pairs of names whose entry is not 0"
        if matrix
        else "give the columns a header with source and target, pass gene_set=[...], or pass (sources, targets)",
    )


def _by_genes(
    names: list[str] | None, head: Sequence[list[str]], candidates: list[tuple[int, int]], known: Known
) -> tuple[int, int] | str:
    """The two columns that hold most genes in one row, those with names of sides first; or why there are none."""
    counts = [sum(len(row) > k and known(row[k]) for row in head) for k in range(max(map(len, head)))]
    holding = [k for k, count in enumerate(counts) if count]
    if names is None and any(k > 1 for k in holding) and _is_ragged(head):
        return "rows of several lengths with genes behind the second column (an adjacency list?)"
    if len(candidates) == 1 and len(holding) > 2 and 2 * sorted(counts)[-3] >= sorted(counts)[-2]:
        return f"{len(holding)} columns hold genes of the cell"
    candidates = [*candidates, *combinations(holding, 2)]
    met = [
        sum(len(row) > max(i, j) and known(row[i]) and known(row[j]) for row in head) for i, j in candidates
    ]
    return candidates[met.index(max(met))]


def _by_cells(
    names: list[str] | None, head: Sequence[list[str]], start: int, width: int
) -> tuple[int, int] | str:
    """The two columns that can hold names, if they are two: names in letters, or else whole numbers; or why not."""
    if names is None and _is_ragged(head):
        return "rows of several lengths without a header (an adjacency list?)"
    columns = {k: _column(head, k) for k in range(start, width)}
    shares = {k: sum(map(is_number, cells)) / len(cells) for k, cells in columns.items() if cells}
    found = [k for k in shares if shares[k] <= 0.5 and not any(map(NO_NAME.search, columns[k][:9]))]
    if not found:
        found = [k for k in shares if all(cell.removesuffix(".0").isdigit() for cell in columns[k])]
    if len(found) == 2:
        return found[0], found[1]
    if names is not None and len(found) > 2:
        return f"the columns are {', '.join(map(repr, names[:4]))}"
    if (odd := next((k for k in (start, start + 1) if shares.get(k, 0) > 0.5), None)) is not None:
        return f"column {odd + 1} holds numbers ({columns[odd][0]!r}), the other names"
    if len(head) > 1 and len(set(columns[start + 1])) == 1:
        return f"the second column is {columns[start + 1][0]!r} throughout, and names follow it"
    for cell in filter(NO_NAME.search, chain.from_iterable(columns.values())):
        return f"{cell[:80]!r} is no name of a gene"
    return f"{len(found)} columns could be names: {', '.join(map(repr, head[0][:4]))}"


def _matrix(names: list[str], head: Sequence[Sequence[str]]) -> str:
    """That it is a matrix: numbers under, or beside, the names of all genes; or nothing."""
    bare = [k for k in range(len(names)) if all(map(is_number, _column(head, k)))]
    rows = {row[0] for row in head if row}
    named = {*bare} >= {*range(1, len(names))} and (
        rows == {*names[1:]} or (0 not in bare and rows & {*names[1:]})
    )
    if named or (len(bare) == len(names) and not all(map(is_number, names)) and len(head) >= len(names)):
        return f"column {bare[0] + 1} holds numbers ({head[0][bare[0]]!r}), and the columns are named like genes: a matrix"
    return ""


def _numbers_rows(names: list[str] | None, head: Sequence[Sequence[str]]) -> bool:
    """Whether the first column numbers the rows, as pandas and R write it."""
    if any(len(row) < 3 or not row[0].isdigit() for row in head):
        return False
    if names is not None:
        return names[0].lower() in ("", "unnamed: 0", "index", "level_0")
    first = int(head[0][0])
    counts = first < 2 and all(int(row[0]) == first + k for k, row in enumerate(head))
    return counts and not any(is_number(row[1]) for row in head)


def _is_ragged(head: Sequence[Sequence[str]]) -> bool:
    lengths = {max((k + 1 for k, cell in enumerate(row) if not is_nameless(cell)), default=0) for row in head}
    return len(lengths) > 1 and max(lengths) > 2


def _column(rows: Sequence[Sequence[str]], k: int) -> list[str]:
    """The cells of a column that hold something."""
    return [row[k] for row in rows if len(row) > k and not is_nameless(row[k])]


def _is_vague(cell: str, column: Sequence[str]) -> bool:
    """Whether a cell reads like the name of a column of anything (``x``, ``V1``, ``Name``) and its column holds no such."""
    words = _words(cell)
    if not words or not all(word in _MORE | _VAGUE or word.isdigit() for word in words):
        return False
    in_letters = max(map(len, words)) > 1 and not _DIGITS.search(cell)
    form = _family if in_letters else _shape
    return form(cell) not in map(form, column)


def _words(cell: str) -> frozenset[str]:
    return frozenset(word.lower() for word in _TOKEN.findall(cell))


def _family(cell: str) -> str:
    """What ``gene1`` and ``gene3`` have in common: genes named like columns are no header."""
    return _DIGITS.sub("", cell)


def _shape(cell: str) -> str:
    return _DIGITS.sub("0", re.sub("[a-z]+", "a", re.sub("[A-Z]+", "A", cell)))
