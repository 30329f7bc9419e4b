"""Headers of tables of names: whether the first row is one, and which two columns hold the ends of an edge."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torchcell_cache.sources.delimited import MISSING

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
_TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_ENOUGH = 3

NAMELESS = MISSING | {"-"}
"""Cells without a name; BioGRID writes a dash where an interactor has no name of that kind."""


def is_column_name(cell: str) -> bool:
    """Whether a cell reads like the name of a column of genes: ``gene_a``, ``protein1``, ``Systematic Name``."""
    words = _words(cell)
    return bool(words) and words <= _NOUNS | _MORE and bool(words & _NOUNS)


def looks_like_header(first: Sequence[str], rest: Sequence[Sequence[str]]) -> bool | None:
    """Whether a first row is a header, judged by its cells alone; ``None`` if it could be either.

    Args:
        first: The first row.
        rest: Some of the rows after it.
    """
    columns = [[row[k] for row in rest if len(row) > k and row[k] not in NAMELESS] for k in range(len(first))]
    if rest and not first[0] and len(columns[0]) == len(rest):
        return True  # pandas leaves the name of the index blank
    named = [(cell, column) for cell, column in zip(first, columns, strict=True) if is_column_name(cell)]
    if named and not any(_family(cell) in map(_family, column) for cell, column in named):
        return True
    for cell, column in zip(first, columns, strict=True):
        kinds = {is_number(other) for other in column}
        if cell not in NAMELESS and len(kinds) == 1 and is_number(cell) not in kinds:
            return True
    cells = [(cell, column) for cell, column in zip(first, columns, strict=True) if column][:2]
    apart = [not _has_digit(cell) and all(map(_has_digit, column)) for cell, column in cells]
    return None if apart and all(apart) and len(rest) >= _ENOUGH else False


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


def is_number(cell: str) -> bool:
    """Whether a cell is a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _words(cell: str) -> frozenset[str]:
    return frozenset(word.lower() for word in _TOKEN.findall(cell))


def _family(cell: str) -> str:
    """What ``gene1`` and ``gene3`` have in common: genes named like columns are no header."""
    return re.sub(r"\d+", "", cell)


def _has_digit(cell: str) -> bool:
    return any(letter.isdigit() for letter in cell)
