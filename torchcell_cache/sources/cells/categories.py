"""One column of names over all files: values that are the same are one name, however a file holds them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SourceContractError

_WHOLE = re.compile(r"(-?\d+)\.0+")


class Coded(NamedTuple):
    """A column of one file.

    Attributes:
        codes: -1 for none, ``[num_cells] int64``.
        values: What the codes stand for.
        ordered: Whether their order means something.
    """

    codes: Int64Array
    values: list[Any]
    ordered: bool

    @classmethod
    def from_column(cls, column: Any, where: str) -> Coded:
        """From categories, texts, bools or numbers, as pandas or numpy has them."""
        import pandas as pd

        found = column.array if hasattr(column, "array") else column
        if not isinstance(found, pd.Categorical):
            try:
                found = pd.Categorical(pd.Series(column))
            except TypeError:
                odd = (v for v in column if isinstance(v, Iterable) and not isinstance(v, str))
                kind = type(next(odd, "?")).__name__
                said = f"{where} holds {kind} objects, expected names or numbers"
                raise SourceContractError(said) from None
        known = found.categories
        if getattr(known.dtype, "kind", "") == "f" and known.dtype.itemsize < 8:
            known = known.to_numpy()  # of which pandas would give doubles
        values = [v.decode() if isinstance(v, bytes) else v for v in known]
        return cls(np.asarray(found.codes, dtype=np.int64), values, bool(found.ordered))

    def kinds(self) -> set[str]:
        """Which kinds of values it has: ``bool``, ``int``, ``float4``, ``float8``, ``text``."""
        return {_kind(value) for value in self.values}


def plain(value: Any) -> str:
    """A value as text; 7.0 is ``7``."""
    return str(int(value)) if _kind(value).startswith("float") and float(value).is_integer() else str(value)


def texts_of(column: Any) -> list[str]:
    """A column of texts or numbers as texts, missing ones empty."""
    return [_own_text(value) for value in np.asarray(column, dtype=object)]


def _own_text(value: Any) -> str:
    if isinstance(value, str | bytes):
        return value if isinstance(value, str) else value.decode()
    missing = value is None or type(value).__name__ == "NAType" or value != value
    return "" if missing else plain(value)


def merged(parts: Sequence[Coded], urls: Sequence[str], name: str) -> tuple[list[Int64Array], list[str]]:
    """Codes of each file over the names of all files, and those names; ``urls`` and ``name`` are for messages.

    A number is one value whatever its type, so that 1 in one file and 1.0 in another (which has gaps) are one name. Names
    keep the order in which the files name them; an order that means something is kept, if files do not contradict each other.

    Raises:
        SourceContractError: If files hold bools and other numbers, or order the same names differently.
    """
    kinds = set[str]().union(*(part.kinds() for part in parts))
    floats = {kind for kind in kinds if kind.startswith("float")}
    bools = "bool" in kinds and bool(kinds - {"bool", "text"})

    def text(value: Any) -> str:
        """The text of a value; where files differ in type, of the truth or number that it is."""
        if bools:
            return value if isinstance(value, str) else str(bool(value))
        if floats and kinds - floats:
            return whole(plain(value))
        return str(float(value)) if len(floats) == 1 else str(value)

    for part, url in zip(parts, urls, strict=True):
        if bools and any(v not in (0, 1) for v in part.values if _kind(v) != "text"):
            raise SourceContractError(
                f"{url}: obs column {name!r} holds {part.values[:4]}, in other files bools: they are no one column",
                path=url,
                fix="give it one type in all files",
            )
    texts = [[text(value) for value in part.values] for part in parts]
    filled = [part.ordered for part in parts if part.values]
    order = _in_order(texts, urls, name) if filled and all(filled) else []
    known = {text: k for k, text in enumerate(order)}
    codes: list[npt.NDArray[np.int64]] = []
    for part, found in zip(parts, texts, strict=True):
        new = [known.setdefault(each, len(known)) for each in found]
        codes.append(np.array([*new, -1], dtype=np.int64)[part.codes])
    return codes, list(known)


def _kind(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "bool"
    if isinstance(value, int | np.integer):
        return "int"
    if isinstance(value, np.floating):
        return f"float{value.itemsize}"
    return "float8" if isinstance(value, float) else "text"


def whole(text: str) -> str:
    """The text of a whole number without a point: ``1`` for ``1.0``; any other as it is."""
    found = _WHOLE.fullmatch(text)
    return found[1] if found else text


def _in_order(texts: Sequence[list[str]], urls: Sequence[str], name: str) -> list[str]:
    """One order of all names that agrees with each file's: a new name stands before the next one that is known."""
    order: list[str] = []
    for found, url in zip(texts, urls, strict=True):
        for k, text in enumerate(found):
            if text not in order:
                after = next((order.index(each) for each in found[k:] if each in order), len(order))
                order.insert(after, text)
        if (other := [text for text in order if text in set(found)]) != found:
            raise SourceContractError(
                f"{url}: the ordered names of obs column {name!r} are {' < '.join(found)}, in the files before it "
                f"{' < '.join(other)}",
                path=url,
                fix="give the column one order in all files, or none (as_unordered())",
            )
    return order
