"""Names of many samples, each distinct name once: what files are read into, and what is looked up; why names do not meet."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array, offsets


def coded(names: Iterable[str]) -> tuple[list[str], Int64Array]:
    """The distinct names in order of first appearance, and the position of each name among them."""
    known: dict[str, int] = {}
    codes = [known.setdefault(name, len(known)) for name in names]
    return list(known), np.array(codes, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class NameLists:
    """Names of many samples, each distinct name once.

    Attributes:
        distinct: The names, without blanks around them.
        codes: Positions in ``distinct``, sample after sample, ``[sum of counts] int64``.
        ptr: Offsets into ``codes``, ``[num_samples + 1] int64``.
    """

    distinct: list[str]
    codes: Int64Array
    ptr: Int64Array

    @classmethod
    def from_rows(cls, rows: Iterable[Iterable[str]]) -> NameLists:
        """From one list of names per sample."""
        lists = list(map(list, rows))
        return cls.flat(
            list(chain.from_iterable(lists)), offsets(np.array(list(map(len, lists)), dtype=np.int64))
        )

    @classmethod
    def flat(cls, names: Iterable[str], ptr: Int64Array) -> NameLists:
        """From all names, one sample behind the other, and the offsets of the samples."""
        return cls.tidy(*coded(names), np.diff(ptr), empty=True)

    @classmethod
    def tidy(
        cls, raw: list[str], codes: Int64Array, counts: npt.NDArray[Any], empty: bool = False
    ) -> NameLists:
        """From names as they stand, positions in them and their number per sample: blanks go, and so do empty names."""
        known: dict[str, int] = {}
        new = [known.setdefault(name, len(known)) if (name := part.strip()) or empty else -1 for part in raw]
        at = np.asarray(new, dtype=np.int64)[codes] if new else codes
        ptr = offsets(counts)
        if -1 in new:
            ptr = offsets(at >= 0)[ptr]
            at = at[at >= 0]
        return cls(list(known), at, ptr)

    @classmethod
    def beside(cls, parts: Sequence[NameLists]) -> NameLists:
        """The names of several columns, row by row, those of the first column first."""
        if len(parts) == 1:
            return parts[0]
        known: dict[str, int] = {}
        counts = [np.diff(part.ptr) for part in parts]
        ptr = offsets(np.sum(counts, axis=0))
        codes, start = np.empty(int(ptr[-1]), dtype=np.int64), ptr[:-1].copy()
        for part, count in zip(parts, counts, strict=True):
            new = np.array([known.setdefault(name, len(known)) for name in part.distinct], dtype=np.int64)
            at = np.repeat(start - part.ptr[:-1], count) + np.arange(len(part.codes))
            codes[at] = new[part.codes]
            start += count
        return cls(list(known), codes, ptr)

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def lists(self) -> list[list[str]]:
        """One list of names per sample."""
        flat = [self.distinct[code] for code in self.codes.tolist()]
        ptr = self.ptr.tolist()
        return [flat[a:b] for a, b in pairwise(ptr)]


# Why names do not meet: what two sides would have in common in another case, without a prefix, a suffix or quotes

_LOOK_AT = 100
"""Names that are looked at; a file whose names do not match has its reason in the first of them."""

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DATE = re.compile(rf"(?i)(\d{{1,2}})-({'|'.join(_MONTHS)})(?:-\d+)?|\d{{4}}-(\d\d)-(\d\d)(?: 00:00:00)?")
_DASHES = dict.fromkeys((*range(0x2010, 0x2016), 0x2212, 0xAD), "-")
_DELTA = "\u0394\u2206\u03b4"
_JOINTS = r"""[\s;:,|+/&_*~'"\[\](){}]+"""
_MARK = r"[.:|/_\-\s]"


def hint(lost: Sequence[str], known: Collection[str]) -> str:
    """What would make the names meet known ones, or nothing."""
    some = list(lost[:_LOOK_AT])
    for name in some:
        parts = [part for part in re.split(_JOINTS, name) if part]
        if len(parts) > 1 and all(part in known for part in parts):
            return f"{name!r:.80} holds several names: the separator is another"
        if said := date_note(name, known):
            return said
    for said, form in _FORMS:
        wanted = {form(name): name for name in reversed(some)}
        meet = next(((wanted[found], name) for name in known if (found := form(name)) in wanted), None)
        if meet is not None and meet[0] != meet[1]:
            return said.format(*(f"{name!r:.80}" for name in meet))
    return ""


def date_note(name: str, known: Collection[str] = ()) -> str:
    """That a name is a date, and which of the known names a spreadsheet may have made it of; or nothing."""
    date = _DATE.fullmatch(name.strip())
    if date is None:
        return ""
    day, month, number, other = date.groups()
    month, day = (month.lower(), day) if month else (_MONTHS[(int(number) - 1) % 12], other)
    made_of = re.compile(rf"(?i){month}(?:ch|t)?-?0*{int(day)}")
    gene = next(filter(made_of.fullmatch, known), None)
    return f"{name!r} is a date, which a spreadsheet made of {f'{gene!r}' if gene else 'a name such as OCT1'}"


def _number(name: str) -> str:
    whole = re.fullmatch(r"\s*0*(\d+)(?:\.0+)?\s*", name)
    return whole[1] if whole else name


_FORMS: tuple[tuple[str, Callable[[str], str]], ...] = (
    (
        "{} and {} differ in blanks or quotes",
        lambda name: name.strip(" \t\r\n\ufeff\u00a0\u200b\u200c\u200d\u2060\"'"),
    ),
    (
        "{} and {} look alike, but are other characters",
        lambda name: normalize("NFKC", name).translate(_DASHES),
    ),
    ("{} and {} differ in letter case only", str.casefold),
    ("{} and {} are one number written in two ways", _number),
    (
        "{} and {} differ by a prefix",
        lambda name: re.sub(rf"^(?:[^.:|/_\s]*{_MARK}|[{_DELTA}])(?=.)", "", name, count=1),
    ),
    (
        "{} and {} differ by a suffix",
        lambda name: re.sub(rf"(?<=.)(?:{_MARK}[^.:|/_\s\-]*|[{_DELTA}])$", "", name, count=1),
    ),
)
