"""What a cell of text means as a number, and where a column of cells is none."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from torchcell_cache.sources.delimited import MISSING
from torchcell_cache.sources.name_lists import NameLists, coded

Cell = tuple[int, str]
"""Row (from 0, without the header) and content."""

EXACT = 2.0**53
"""From here on float64 does not hold every whole number."""

_DASH = r"+\-\u2212\u2013"
_BOUND = rf"[<>=~\u2248\u2264\u2265{_DASH}]*"
_MONEY = r"$\u20ac\u00a3\u00a5"
_THOUSANDS = r"\d{1,3}(?:[,.'_ \u00a0\u2009\u2019\u202f]\d{3})+|\d{1,2}(?:,\d\d)+,\d{3}"
_DIGITS = rf"(?:(?:{_THOUSANDS})(?:[.,]\d+)?|\d+(?:_\d+)*(?:[.,]\d*)?|[.,]\d+)"
_POWER = rf"(?:[eEdD][{_DASH}]?\d+|\s*[x*\u00d7\u00b7]\s*10(?:\^[{_DASH}]?|[{_DASH}])\d+)"
_NUMBER = rf"{_BOUND}\s*{_DIGITS}{_POWER}?"
_BEHIND = rf"[%\u2030*{_MONEY}]|(?:\u00b1|\+/-)\s*\d*[.,]?\d+|[(\[]{_NUMBER}[)\]]"
ALMOST = re.compile(rf"\({_NUMBER}\)|[{_MONEY}]?{_NUMBER}\s*(?:{_BEHIND})?")
"""A number as spreadsheets and locales write it: decimal comma, percent, U+2212, thousands, a bound, an error, money."""

POSSIBLE = (
    r"^[($\x{20ac}\x{a3}\x{a5}<>=~\x{2248}\x{2264}\x{2265}+\-\x{2212}\x{2013}\s]*[.,\pN]|^[+\-]?(?i:inf|nan)"
)
"""What every number and every almost number matches (RE2): the rest of a large column need not be looked at."""


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """A column of cells as numbers.

    Attributes:
        values: ``[num_rows] float64``; NaN for no value and for what is no number.
        first: The first cell of each kind there is: ``number``; ``odd``, neither a number nor "no value"; ``almost``, odd but
            clearly meant as a number; ``inexact``, a whole number that would be rounded to another one; ``huge``, a
            finite number that no float64 holds.
    """

    values: npt.NDArray[np.float64]
    first: dict[str, Cell]


def parse_cells(cells: Sequence[str]) -> Numbers:
    """Cells as numbers: what ``float`` takes, without underscores; markers of a missing value are NaN."""
    values = np.full(len(cells), np.nan)
    first: dict[str, Cell] = {}
    for row, cell in enumerate(cells):
        text = cell.strip()  # also of separators that are blanks to text and none to float
        try:
            value = float(text)
            if "_" in text:
                raise ValueError
        except ValueError:
            if text not in MISSING:
                first.setdefault("odd", (row, cell))
                if "almost" not in first and ALMOST.fullmatch(text):
                    first["almost"] = (row, cell)
            continue
        values[row] = value
        if value == value:
            first.setdefault("number", (row, cell))
        if abs(value) < EXACT:
            continue
        if math.isinf(value) and "f" not in cell.casefold():  # neither inf nor infinity
            first.setdefault("huge", (row, cell))
        elif text.lstrip("+-").isdigit() and not stays_whole(int(text)):
            first.setdefault("inexact", (row, cell))
    return Numbers(values, first)


def stays_whole(number: int) -> bool:
    """Whether float32, in which measurements are stored, holds a whole number as it is, or it is beyond float32."""
    return abs(number) > float(np.finfo(np.float32).max) or int(np.float32(number)) == number


@dataclass(frozen=True, slots=True, eq=False)
class CellColumn:
    """A column of cells as the standard library reads them."""

    cells: list[str]
    auto: bool = True

    def __len__(self) -> int:
        return len(self.cells)

    def texts(self) -> list[str]:
        """The cells."""
        return self.cells

    def numbers(self) -> Numbers:
        """The cells as numbers."""
        return parse_cells(self.cells)

    def names(self, separator: str) -> NameLists:
        """The names in each cell."""
        counts = np.fromiter((cell.count(separator) + 1 for cell in self.cells), np.int64, len(self.cells))
        parts = chain.from_iterable(cell.split(separator) for cell in self.cells)  # never all at once
        return NameLists.tidy(*coded(parts), counts)
