"""Columns through pyarrow, imported where it is installed: Parquet, and delimited text whose meaning is beyond doubt.

What is in doubt - quotes in odd places, a row of another length, a column that is not all numbers - is left to the
standard library and to ``numbers_in_text``, which define the meaning and the messages.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv
from pyarrow import types as kinds

from torchcell_cache.errors import SourceContractError
from torchcell_cache.sources.delimited import MISSING, rows_of
from torchcell_cache.sources.name_lists import NameLists
from torchcell_cache.sources.numbers_in_text import EXACT, POSSIBLE, Cell, Numbers, parse_cells, stays_whole


class ArrowColumn:
    """One column of a file.

    Args:
        name: Its name.
        data: A pyarrow array: text, numbers, truth values, or lists of text.
        auto: Whether it may become a label that nobody named.
    """

    def __init__(self, name: str, data: Any, auto: bool = True) -> None:
        self.name, self.auto = name, auto
        if kinds.is_dictionary(data.type):
            data = data.cast(data.type.value_type)
        if kinds.is_string_view(data.type):
            data = data.cast(pa.string())
        if kinds.is_fixed_size_list(data.type):
            data = data.cast(pa.list_(data.type.value_type))
        self._data, self._type = data, data.type
        self.is_text = bool(kinds.is_string(data.type) or kinds.is_large_string(data.type))
        numeric = (kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_null, kinds.is_decimal)
        self.is_number = any(is_kind(data.type) for is_kind in numeric)

    def __len__(self) -> int:
        return len(self._data)

    def texts(self) -> list[str]:
        """The cells; nothing where there is no value.

        Raises:
            SourceContractError: If they are bytes, lists or records.
        """
        if kinds.is_nested(self._type) or kinds.is_binary(self._type):
            raise SourceContractError(f"column '{self.name}' holds {self._type}, expected text")
        return ["" if value is None else str(value) for value in self._data.to_pylist()]

    def numbers(self) -> Numbers:
        """The cells as numbers."""
        if not (self.is_number or self.is_text):
            return Numbers(np.full(len(self), np.nan), self._first("odd", _flags(pc.is_valid(self._data))))
        if self.is_number:
            values = _float64(pc.cast(self._data, pa.float64(), safe=False))
            first = self._first("number", ~np.isnan(values))
            whole = kinds.is_integer(self._type) or kinds.is_decimal(self._type)
            for row in np.flatnonzero((np.abs(values) >= EXACT) & whole).tolist():
                value = self._data[
                    row
                ].as_py()  # compared as what it is: a float would be rounded as values are
                if value == int(value) and not stays_whole(int(value)):
                    return Numbers(values, {**first, "inexact": (row, str(value))})
            return Numbers(values, first)
        text = pc.utf8_trim_whitespace(self._data)
        missing = pc.is_in(text, pa.array(sorted(MISSING), text.type))
        text = pc.if_else(missing, pa.scalar(None, text.type), text)
        with contextlib.suppress(pa.ArrowInvalid):
            values = _float64(pc.cast(text, pa.float64()))
            if np.isnan(values).sum() == text.null_count and not (np.abs(values) >= EXACT).any():
                return Numbers(values, self._first("number", ~np.isnan(values)))
        # In doubt: cells that may be numbers one by one, the others at once: they are odd, or have no value.
        possible = _flags(pc.fill_null(pc.match_substring_regex(text, POSSIBLE), False))
        rows = np.flatnonzero(possible)
        found = parse_cells(self._data.take(pa.array(rows)).to_pylist())
        first = {kind: (int(rows[row]), cell) for kind, (row, cell) in found.first.items()}
        odd = self._first("odd", _flags(pc.is_valid(text)) & ~possible)
        if odd and odd["odd"] < first.get("odd", (len(text), "")):
            first |= odd
        values = np.full(len(text), np.nan)
        values[rows] = found.values
        return Numbers(values, first)

    def _first(self, kind: str, where: npt.NDArray[np.bool_]) -> dict[str, Cell]:
        """The first cell of a kind, if there is one."""
        row = int(np.argmax(where)) if where.any() else -1
        return {} if row < 0 else {kind: (row, str(self._data[row].as_py()))}

    def names(self, separator: str) -> NameLists:
        """The names in each cell."""
        data = self._data
        if kinds.is_integer(self._type):
            data = data.cast(pa.string())
        listed = kinds.is_list(self._type) or kinds.is_large_list(self._type)
        if not (
            self.is_text or data is not self._data or (listed and not kinds.is_nested(self._type.value_type))
        ):
            fix = (
                f"frame['{self.name}'].astype('Int64') for numbers that are names" if self.is_number else None
            )
            raise SourceContractError(f"column '{self.name}' holds {self._type}, expected names", fix=fix)
        known: dict[str, int] = {}
        codes, counts = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for part in data.chunks:  # one by one: what is split takes several times the room
            lists = part if listed else pc.split_pattern(part, separator)
            coded = pc.list_flatten(lists).dictionary_encode()
            if coded.null_count:
                raise SourceContractError(f"column '{self.name}' holds a list with a missing name")
            names = [str(name) for name in coded.dictionary.to_pylist()]
            new = np.array([known.setdefault(name, len(known)) for name in names], dtype=np.int64)
            codes.append(new[coded.indices.to_numpy()] if len(new) else codes[0])
            counts.append(pc.fill_null(pc.list_value_length(lists), 0).to_numpy())
        return NameLists.tidy(list(known), np.concatenate(codes), np.concatenate(counts))


def _float64(data: Any) -> npt.NDArray[np.float64]:
    return np.asarray(data.to_numpy(), dtype=np.float64)


def _flags(data: Any) -> npt.NDArray[np.bool_]:
    return np.asarray(data.to_numpy(), dtype=np.bool_)


def read_csv(
    path: Path, data: bytes, separator: str, wanted: Collection[str] | None
) -> dict[str, ArrowColumn] | None:
    """Columns of UTF-8 text with a header, or ``None`` if the text is in doubt."""
    quoted = separator != "\t" and b'"' in data
    if not separator.isascii() or len(separator) != 1 or data.count(b"\r") != data.count(b"\r\n"):
        return None
    # Each quote opens or closes a whole cell, or is one of a pair in a quoted cell.
    inner = f"[^{re.escape(separator)}\\r\\n]"
    cells = rf'(?:[^"]++|(?<!{inner})"(?:[^"]++|"")*+"(?!{inner}))*+'
    if quoted and not re.fullmatch(cells.encode(), data):
        return None
    header = next(rows_of(path, data, separator), [])
    names = [name for name in header if wanted is None or name.strip() in wanted]
    text = pa.string()
    try:
        table = csv.read_csv(
            pa.BufferReader(data),
            parse_options=csv.ParseOptions(
                delimiter=separator, quote_char='"' if quoted else False, newlines_in_values=quoted
            ),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, text), include_columns=names, strings_can_be_null=False
            ),
        )
    except (pa.ArrowException, KeyError):
        return None
    return {name.strip(): ArrowColumn(name.strip(), table.column(name)) for name in names}


def release_unused() -> None:
    """Give memory of columns that are gone back to the system, which pyarrow's pools would keep for the next file."""
    pa.default_memory_pool().release_unused()


def read_parquet(path: Path, wanted: Collection[str] | None) -> dict[str, ArrowColumn]:
    """Columns of a Parquet file; pandas' index is there under its name, if it has one, but is no label by itself.

    Raises:
        SourceContractError: If it is no such file.
    """
    try:
        schema = pq.read_schema(path)
        if repeated := sorted({name for name in schema.names if schema.names.count(name) > 1}):
            raise SourceContractError(f"{path} has the columns {repeated} more than once")
        names = [name for name in schema.names if (name.strip() if wanted is None else name in wanted)]
        index = [k for k in (schema.pandas_metadata or {}).get("index_columns", ()) if isinstance(k, str)]
        table = pq.read_table(path, columns=names)
    except (pa.ArrowException, OSError) as error:
        raise SourceContractError(
            f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}",
            fix="write it again (pandas: DataFrame.to_parquet), or save it as CSV",
        ) from None
    return {name: ArrowColumn(name, table.column(name), name not in index) for name in names}
