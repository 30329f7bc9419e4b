"""Columns of what graphs say of themselves in a word or a number (``pert``, ``dose``, a date as text), one value per sample.

Kept in ``columns.safetensors`` as ``attribute.<name>``: numbers, whole ones in the smallest dtype, or the codes of texts, which
stand in ``attribute_names.<name>`` (UTF-8, with ``attribute_lengths.<name>``) in the order in which samples have them first; the
code behind the last one is that of no text. The schema's ``attributes`` says of each what it is, or why it is no column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.ragged import Int64Array, smallest_unsigned
from torchcell_cache.errors import CorruptShardError
from torchcell_cache.store.columns import Arrays, Names, encoded

STEM = "attribute"
TEXT = "text"
KINDS = (TEXT, "bool", "int64", "float32", "float64")
OTHER = ""
"""Why a value that is no text and no single number is no column: there is nothing to say about it."""
_MIXED = "text in some samples and numbers in others"
_LARGE = "whole numbers of more than 53 bits beside samples that have none or a real number"
_HUGE = "whole numbers of more than 64 bits"
_ODD = "text that is no Unicode"
MOST_BYTES = 1 << 20
FREE_BYTES, BYTES_PER_SAMPLE = 16 << 10, 32
"""What the different texts of a column may take: so much, and no more than the free bytes and those per sample."""
_TYPES: dict[type, Any] = {bool: np.bool_, int: np.int64, float: np.float64, np.float32: np.float32}


@dataclass(frozen=True, slots=True, eq=False)
class Attribute:
    """One value per sample.

    Attributes:
        values: Numbers, NaN for none, or codes of ``names``, ``len(names)`` for none, ``[n]``.
        names: Texts by code, ``None`` for numbers.
    """

    values: npt.NDArray[Any]
    names: Sequence[str] | None = None

    @property
    def kind(self) -> str:
        """One of :data:`KINDS`; whole numbers lie in the dtype that holds them."""
        if self.names is not None:
            return TEXT
        return "int64" if self.values.dtype.kind in "iu" else str(self.values.dtype)

    def at(self, rows: Any) -> npt.NDArray[Any]:
        """Values of some samples as users see them: int64 for codes and whole numbers, NaN for none, ``[n]``."""
        found: npt.NDArray[Any] = self.values[rows]
        if self.names is not None and len(self.values) and int(self.values.max()) == len(self.names):
            return np.where(found == len(self.names), np.nan, found.astype(np.float64))
        return found.astype(np.int64) if self.kind in (TEXT, "int64") else found

    def take(self, rows: Any) -> Attribute:
        """Of some samples alone: names that none of them has are gone."""
        if self.names is None:
            return Attribute(self.values[rows])
        return _texts(len(rows), [(slice(None), Attribute(self.values[rows], self.names))])

    def one(self, index: int) -> Any:
        """The value of one sample, ``None`` for no text."""
        value = self.values[index].item()
        return value if self.names is None else self.names[value] if value < len(self.names) else None


Column = Attribute | str
"""A column, or why there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Attributes:
    """What consecutive samples say of themselves, ``count`` of them; what is not among the columns no sample has."""

    count: int
    columns: dict[str, Column]

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]]) -> Attributes:
        """From each sample's texts and numbers of Python, float32 of numpy, or ``OTHER`` in a tuple."""
        pieces: dict[str, dict[type, tuple[list[int], list[Any]]]] = {}
        for at, row in enumerate(rows):
            for name, value in row.items():
                places, values = pieces.setdefault(name, {}).setdefault(type(value), ([], []))
                places.append(at)
                values.append(value)
        out: dict[str, Column] = {}
        for name, found in pieces.items():
            parts = [(np.array(at), _of_type(kind, values)) for kind, (at, values) in found.items()]
            out[name] = _merged(len(rows), parts)
        return cls(len(rows), out)

    @classmethod
    def joined(cls, parts: Sequence[Attributes | None]) -> Attributes | None:
        """Those of several runs one behind the other, names by their value; ``None`` if they are not known of all."""
        pieces: dict[str, list[tuple[Any, Column]]] = {}
        count = 0
        for part in parts:
            if part is None:
                return None
            for name, column in part.columns.items():
                pieces.setdefault(name, []).append((slice(count, count + part.count), column))
            count += part.count
        return cls(count, {name: _merged(count, found) for name, found in pieces.items()})

    def take(self, rows: Int64Array) -> Attributes:
        """Those of some of the samples, ``[n] int64``."""
        taken = {n: c if isinstance(c, str) else c.take(rows) for n, c in self.columns.items()}
        return Attributes(len(rows), taken)

    def shown(self) -> dict[str, Attribute]:
        """Those that are columns."""
        return {name: column for name, column in self.columns.items() if not isinstance(column, str)}

    def texts(self) -> dict[str, list[str]]:
        """The names behind the codes of those that are texts."""
        return {name: list(c.names) for name, c in self.shown().items() if c.names is not None}

    # On disk

    def kept(self, apart: Sequence[str] = ()) -> Attributes:
        """Without texts that are too many for a column, and those that are columns already."""
        out = dict(self.columns)
        for name, names in self.texts().items():
            if (size := _size(names)) > FREE_BYTES + BYTES_PER_SAMPLE * self.count:
                out[name] = f"{len(names):,} different texts of {size:,} bytes in {self.count:,} samples"
        return Attributes(self.count, out | dict.fromkeys(apart, OTHER))

    def like(self, schema: Mapping[str, str]) -> Attributes:
        """The columns that a schema has, numbers of the kind that it says: of more samples than these, perhaps."""
        out: dict[str, Column] = dict(schema)
        for name, kind in schema.items():
            column = self.shown().get(name)
            if kind == TEXT:
                out[name] = column or Attribute(np.zeros(self.count, dtype=np.int64), [])
            elif kind in KINDS:
                values = np.full(self.count, np.nan) if column is None else column.values
                out[name] = Attribute(values.astype(kind))
        return Attributes(self.count, out)

    def notes(self) -> list[str]:
        """A line for each text or number that is no column."""
        reasons = ((name, why) for name, why in self.columns.items() if isinstance(why, str) and why != OTHER)
        return [f"{name} is no column: {why}" for name, why in reasons]

    def schema(self) -> dict[str, str]:
        """What the schema says of them."""
        return {name: c if isinstance(c, str) else c.kind for name, c in self.columns.items()}

    def arrays(self) -> Arrays:
        """The columns' arrays."""
        out: Arrays = {}
        for name, column in self.shown().items():
            out[f"{STEM}.{name}"] = _small(column)
            if column.names is not None:
                data, lengths = encoded(column.names)
                out |= {f"{STEM}_names.{name}": data, f"{STEM}_lengths.{name}": lengths}
        return out

    @classmethod
    def from_arrays(cls, arrays: Arrays, schema: Mapping[str, str], count: int) -> Attributes:
        """The inverse, values still mapped.

        Raises:
            CorruptShardError: If the arrays are not those of ``count`` samples that the schema speaks of.
        """
        out: dict[str, Column] = {}
        for name, kind in schema.items():
            if kind not in KINDS:
                out[name] = kind
                continue
            try:
                column = Attribute(arrays[f"{STEM}.{name}"])
                if kind == TEXT:
                    data, lengths = (arrays[f"{STEM}_{part}.{name}"] for part in ("names", "lengths"))
                    column = Attribute(column.values, list(Names(data, lengths)))
                good = column.values.shape == (count,) and column.kind == kind
                if good and column.names is not None and count:
                    good = column.values.dtype.kind == "u" and int(column.values.max()) <= len(column.names)
            except (KeyError, IndexError, UnicodeDecodeError, ValueError):
                good = False
            if not good:
                raise CorruptShardError(f"the stored column of the attribute {name!r} is not {kind}[{count}]")
            out[name] = column
        return cls(count, out)

    def to_json(self) -> dict[str, Any]:
        """For a sidecar."""
        arrays = {name: [array.dtype.str, array.tobytes().hex()] for name, array in self.arrays().items()}
        return {"count": self.count, "schema": self.schema(), "arrays": arrays}

    @classmethod
    def from_json(cls, found: dict[str, Any] | None) -> Attributes | None:
        """The inverse of :meth:`to_json`; ``None`` of a sidecar that has none."""
        if found is None:
            return None
        parts = found["arrays"].items()
        arrays = {name: np.frombuffer(bytes.fromhex(data), np.dtype(kind)) for name, (kind, data) in parts}
        return cls.from_arrays(arrays, found["schema"], found["count"])


def is_attribute(array: str) -> bool:
    """Whether an array of the columns' file is an attribute's."""
    return array.partition(".")[0] in (STEM, f"{STEM}_names", f"{STEM}_lengths")


def _small(column: Attribute) -> npt.NDArray[Any]:
    """Values in the dtype that the file has."""
    values = column.values
    if column.names is not None:
        return values.astype(smallest_unsigned(len(column.names)))
    if values.dtype.kind not in "iu":
        return values
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    return values.astype(np.min_scalar_type(-max(high + 1, -low)) if low < 0 else smallest_unsigned(high))


def _size(names: Sequence[str]) -> int:
    return sum(len(name.encode()) for name in names)


def _of_type(kind: type, values: list[Any]) -> Column:
    """Values of one type as a column of their own."""
    if kind is str:
        known = {name: code for code, name in enumerate(dict.fromkeys(values))}
        return Attribute(np.array([known[value] for value in values], dtype=np.int64), list(known))
    if kind not in _TYPES:
        return OTHER
    try:
        return Attribute(np.array(values, dtype=_TYPES[kind]))
    except OverflowError:
        return _HUGE


def _merged(count: int, pieces: list[tuple[Any, Column]]) -> Column:
    """One column of pieces, each with the places of its values; the same whichever way samples are divided."""
    columns = [(at, piece) for at, piece in pieces if not isinstance(piece, str)]
    reasons = [piece for _, piece in pieces if isinstance(piece, str)]
    texts = {piece.names is not None for _, piece in columns}
    if reasons or len(texts) > 1:
        return max([*reasons, *([_MIXED] if len(texts) > 1 else [])])
    if False in texts:
        return _numbers(count, columns)
    found = _texts(count, columns)
    try:
        large = _size(found.names or ()) > MOST_BYTES
    except UnicodeEncodeError:
        return _ODD
    return f"its different texts take more than {MOST_BYTES:,} bytes" if large else found


def _texts(count: int, pieces: list[tuple[Any, Attribute]]) -> Attribute:
    known: dict[str, int] = {}
    codes = np.full(count, -1, dtype=np.int64)
    for at, piece in pieces:
        names = piece.names or ()
        used, first = np.unique(piece.values, return_index=True)
        new = np.full(len(names) + 1, -1, dtype=np.int64)
        for code in used[np.argsort(first)].tolist():
            if code < len(names):
                new[code] = known.setdefault(names[code], len(known))
        codes[at] = new[piece.values]
    codes[codes < 0] = len(known)
    return Attribute(codes, list(known))


def _numbers(count: int, pieces: list[tuple[Any, Attribute]]) -> Column:
    """Numbers of one dtype that holds all of them exactly, NaN where there is none."""
    kinds = {piece.kind for _, piece in pieces}
    full = sum(len(piece.values) for _, piece in pieces) == count
    kind = "float32" if kinds == {"float32"} else "float64"
    if full and kinds <= {"bool", "int64"}:
        kind = max(kinds)
    out = np.full(count, np.nan if kind.startswith("float") else 0, dtype=kind)
    for at, piece in pieces:
        ends = (int(end(initial=0)) for end in (piece.values.max, piece.values.min) if piece.kind == "int64")
        if kind == "float64" and any(abs(end) > 2**53 for end in ends):
            return _LARGE
        out[at] = piece.values
    return Attribute(out)
