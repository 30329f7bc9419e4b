"""One column of names over all files: values that are the same are one name, however a file holds them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SourceContractError

_WHOLE = re.compile(r"(-?\d+)\.0+")


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
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
    def of(cls, column: Any, where: str) -> Coded:
        """From categories, texts, bools or numbers, as pandas or numpy has them."""
        import pandas as pd

        found = column.array if hasattr(column, "array") else column
        if not isinstance(found, pd.Categorical):
            try:
                found = pd.Categorical(pd.Series(column))
            except TypeError:
                kind = next(
                    (type(v).__name__ for v in column if isinstance(v, Iterable) and not isinstance(v, str)),
                    "?",
                )
                raise SourceContractError(
                    f"{where} holds {kind} objects, expected names or numbers"
                ) from None
        known = found.categories
        short = (
            getattr(known.dtype, "kind", "") == "f" and known.dtype.itemsize < 8
        )  # pandas would give doubles
        values = [v.decode() if isinstance(v, bytes) else v for v in (known.to_numpy() if short else known)]
        return cls(np.asarray(found.codes, dtype=np.int64), values, bool(found.ordered))

    def kinds(self) -> set[str]:
        """Which kinds of values it has: ``bool``, ``int``, ``float4``, ``float8``, ``text``."""
        return {_kind(value) for value in self.values}

    def names(self) -> list[str]:
        """The values as text, whole numbers without a point."""
        return [plain(value) for value in self.values]


def plain(value: Any) -> str:
    """A value as text; 7.0 is ``7``."""
    return str(int(value)) if _kind(value).startswith("float") and float(value).is_integer() else str(value)


def texts_of(column: Any) -> npt.NDArray[Any]:
    """A column of texts or numbers as texts, missing ones empty, ``[n] object``."""
    out = np.asarray(column, dtype=object)
    return np.array([_own_text(value) for value in out], dtype=object)


def _own_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode()
    missing = value is None or type(value).__name__ == "NAType" or value != value
    return "" if missing else plain(value)


def merged(parts: Sequence[Coded], urls: Sequence[str], name: str) -> tuple[list[Int64Array], list[str]]:
    """Codes of each file over the names of all files, and those names.

    A number is one value whatever its type, so that 1 in one file and 1.0 in another (which has gaps) are one name. Names
    keep the order in which the files name them; an order that means something is kept, if files do not contradict each other.

    Args:
        parts: The column in each file.
        urls: The files, for messages.
        name: The column.

    Raises:
        SourceContractError: If files hold bools and other numbers, or order the same names differently.
    """
    kinds = set().union(*(part.kinds() for part in parts)) if parts else set()
    bools = "bool" in kinds and bool(kinds - {"bool", "text"})
    texts = []
    for part, url in zip(parts, urls, strict=True):
        if bools and any(v not in (0, 1) for v in part.values if _kind(v) != "text"):
            raise SourceContractError(
                f"{url}: obs column {name!r} holds {part.values[:4]}, in other files bools: they are no one column",
                path=url,
                fix="give it one type in all files",
            )
        texts.append([_as_bool(v) if bools else _one_text(v, kinds) for v in part.values])
    known: dict[str, int] = {}
    filled = [part for part in parts if part.values]
    if filled and all(part.ordered for part in filled):
        known = {text: k for k, text in enumerate(_in_order(texts, urls, name))}
    codes = []
    for part, found in zip(parts, texts, strict=True):
        new = [known.setdefault(text, len(known)) for text in found]
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


def _one_text(value: Any, kinds: set[str]) -> str:
    """The text of a value; where files differ in type, of the number that it is."""
    floats = {kind for kind in kinds if kind.startswith("float")}
    if floats and kinds - floats:
        return whole(plain(value))
    return str(float(value)) if floats and len(kinds) == 1 else str(value)


def whole(text: str) -> str:
    """The text of a whole number without a point: ``1`` for ``1.0``; any other as it is."""
    found = _WHOLE.fullmatch(text)
    return found[1] if found else text


def _as_bool(value: Any) -> str:
    return str(value) if isinstance(value, str) else str(bool(value))


def _in_order(texts: Sequence[list[str]], urls: Sequence[str], name: str) -> list[str]:
    """One order of all names that agrees with each file's: a new name stands before the next one that is known."""
    order: list[str] = []
    for found, url in zip(texts, urls, strict=True):
        for k, text in enumerate(found):
            if text not in order:
                after = next((order.index(each) for each in found[k:] if each in order), len(order))
                order.insert(after, text)
        if [text for text in order if text in set(found)] != found:
            raise SourceContractError(
                f"{url}: the ordered names of obs column {name!r} are {' < '.join(found)}, in the files before it "
                f"{' < '.join(text for text in order if text in set(found))}",
                path=url,
                fix="give the column one order in all files, or none (as_unordered())",
            )
    return order
