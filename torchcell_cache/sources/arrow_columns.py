"""Columns through pyarrow, where it is installed: Parquet, and delimited text whose meaning is beyond doubt.

What is in doubt - quotes in odd places, a row of another length, a column that is not all numbers - is left to the
standard library and to ``numbers_in_text``, which define the meaning and the messages.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.errors import SourceContractError, install_line
from torchcell_cache.sources.delimited import MISSING, rows_of
from torchcell_cache.sources.name_lists import NameLists
from torchcell_cache.sources.numbers_in_text import EXACT, POSSIBLE, Cell, Numbers, parse_cells, stays_whole

_BLOCK = 8 << 20


class ArrowColumn:
    """One column of a file.

    Args:
        name: Its name.
        data: A pyarrow array: text, numbers, truth values, or lists of text.
        auto: Whether it may become a label that nobody named.
    """

    def __init__(self, name: str, data: Any, auto: bool = True) -> None:
        import pyarrow as pa

        self.name, self.auto = name, auto
        kinds = pa.types
        if kinds.is_dictionary(data.type):
            data = data.cast(data.type.value_type)
        if kinds.is_string_view(data.type):
            data = data.cast(pa.string())
        if kinds.is_fixed_size_list(data.type):
            data = data.cast(pa.list_(data.type.value_type))
        self._data, self._type = data, data.type
        self.is_text = bool(kinds.is_string(data.type) or kinds.is_large_string(data.type))
        self.is_number = any(
            of(data.type) for of in (kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_null)
        ) or bool(kinds.is_decimal(data.type))

    def __len__(self) -> int:
        return len(self._data)

    def texts(self) -> list[str]:
        """The cells; nothing where there is no value.

        Raises:
            SourceContractError: If they are bytes, lists or records.
        """
        import pyarrow as pa

        if pa.types.is_nested(self._type) or pa.types.is_binary(self._type):
            raise SourceContractError(f"column '{self.name}' holds {self._type}, expected text")
        return ["" if value is None else str(value) for value in self._data.to_pylist()]

    def numbers(self) -> Numbers:
        """The cells as numbers."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self.is_number:
            return self._from_numbers()
        if not self.is_text:
            texts = ["" if value is None else str(value) for value in self._data.to_pylist()]
            odd = [("odd", (row, cell)) for row, cell in enumerate(texts) if cell]
            return Numbers(np.full(len(texts), np.nan), dict(odd[:1]))
        text = pc.utf8_trim_whitespace(self._data)
        text = pc.if_else(
            pc.is_in(text, pa.array(sorted(MISSING), text.type)), pa.scalar(None, text.type), text
        )
        try:
            values = _float64(pc.cast(text, pa.float64()))
        except pa.ArrowInvalid:
            return self._by_hand(text)
        doubtful = np.isnan(values).sum() > text.null_count or bool((np.abs(values) >= EXACT).any())
        if doubtful:
            return self._by_hand(text)
        return Numbers(values, self._first("number", ~np.isnan(values)))

    def _from_numbers(self) -> Numbers:
        import pyarrow as pa
        import pyarrow.compute as pc

        kinds = pa.types
        values = _float64(pc.cast(self._data, pa.float64(), safe=False))
        first = self._first("number", ~np.isnan(values))
        if kinds.is_integer(self._type) or kinds.is_decimal(self._type):
            for row in np.flatnonzero(np.abs(values) >= EXACT).tolist():
                value = self._data[
                    row
                ].as_py()  # compared as what it is: a float would be rounded like values[row]
                if value == int(value) and not stays_whole(int(value)):
                    first["inexact"] = (row, str(value))
                    break
        return Numbers(values, first)

    def _by_hand(self, text: Any) -> Numbers:
        """Cells that may be numbers one by one, the others at once: they are odd, or have no value."""
        import pyarrow as pa
        import pyarrow.compute as pc

        possible = pc.fill_null(pc.match_substring_regex(text, POSSIBLE), False).to_numpy().astype(np.bool_)
        rows = np.flatnonzero(possible)
        found = parse_cells(self._data.take(pa.array(rows)).to_pylist())
        first = {kind: (int(rows[row]), cell) for kind, (row, cell) in found.first.items()}
        odd = self._first("odd", pc.is_valid(text).to_numpy().astype(np.bool_) & ~possible)
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
        import pyarrow as pa
        import pyarrow.compute as pc

        data, kinds = self._data, pa.types
        if kinds.is_integer(self._type):
            data = data.cast(pa.string())
        within = (
            self._type.value_type if kinds.is_list(self._type) or kinds.is_large_list(self._type) else None
        )
        if not (self.is_text or kinds.is_integer(self._type) or (within and not kinds.is_nested(within))):
            fix = (
                f"frame['{self.name}'].astype('Int64') for numbers that are names" if self.is_number else None
            )
            raise SourceContractError(f"column '{self.name}' holds {self._type}, expected names", fix=fix)
        known: dict[str, int] = {}
        codes, counts = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for part in data.chunks:  # one by one: what is split takes several times the room
            lists = pc.split_pattern(part, separator) if not pa.types.is_nested(part.type) else part
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


def read_csv(
    path: Path, data: bytes, separator: str, wanted: Collection[str] | None
) -> dict[str, ArrowColumn] | None:
    """Columns of UTF-8 text with a header, or ``None`` if pyarrow is not there or the text is in doubt."""
    try:
        import pyarrow as pa
        from pyarrow import csv
    except ImportError:
        return None
    quoted = separator != "\t" and b'"' in data
    if not separator.isascii() or len(separator) != 1 or data.count(b"\r") != data.count(b"\r\n"):
        return None
    if quoted and not _is_well_quoted(data, separator):
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
    if pyarrow := sys.modules.get("pyarrow"):
        pyarrow.default_memory_pool().release_unused()


def _is_well_quoted(data: bytes, separator: str) -> bool:
    """Whether each quote opens or closes a whole cell, or is one of a pair in a quoted cell."""
    start = 0
    while start < len(data):
        stop = data.rfind(b"\n", start, start + _BLOCK) + 1 or len(data)
        if data.count(b'"', start, stop) % 2:
            stop = len(data)  # a line ends within a cell: all the rest at once
        part = np.frombuffer(data, np.uint8, stop - start, start)
        at = np.flatnonzero(part == ord('"'))
        if len(at) % 2:
            return False
        opening, closing = at[::2], at[1::2]
        edges = np.frombuffer(f"{separator}\r\n".encode(), np.uint8)
        starts = (opening == 0) | np.isin(part[opening - 1], edges)
        ends = (closing == len(part) - 1) | np.isin(part[np.minimum(closing + 1, len(part) - 1)], edges)
        pair = closing[:-1] + 1 == opening[1:]
        starts[1:] |= pair
        ends[:-1] |= pair
        if not (starts.all() and ends.all()):
            return False
        start = stop
    return True


def read_parquet(path: Path, wanted: Collection[str] | None) -> dict[str, ArrowColumn]:
    """Columns of a Parquet file; pandas' index is there under its name, if it has one, but is no label by itself.

    Raises:
        SourceContractError: If it is no such file, or pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise SourceContractError(
            f"{path}: reading Parquet needs pyarrow", path=path, fix=install_line("table")
        ) from None
    try:
        schema = pq.read_schema(path)
        repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if repeated:
            raise SourceContractError(f"{path} has the columns {repeated} more than once", path=path)
        names = [name for name in schema.names if (name.strip() if wanted is None else name in wanted)]
        index = [k for k in (schema.pandas_metadata or {}).get("index_columns", ()) if isinstance(k, str)]
        table = pq.read_table(path, columns=names)
    except (pa.ArrowException, OSError) as error:
        said = str(error).splitlines()[0]
        raise SourceContractError(
            f"{path} cannot be read as Parquet: {said}",
            path=path,
            fix="write it again (pandas: DataFrame.to_parquet), or save it as CSV",
        ) from None
    return {name: ArrowColumn(name, table.column(name), name not in index) for name in names}
