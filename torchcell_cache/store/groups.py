"""Several records in one value of a shard's file: LMDB gives a value over half a page whole pages of its own.

Records lie one after the other, under the key of the first; a group ends with the record that fills ``group_bytes``. What
stands where is told by one more value, under the largest key: ``u32 num_records | u32 num_groups | u32[num_records] bytes of
each record | u32[num_groups] records of each group``. It is read once per open file, so that a random read stays one look-up.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from torchcell_cache.core.ragged import offsets, shrunk

GROUP_BYTES = 1 << 16
"""Of what is written: the part of a page that a group leaves is 3 % of it on average."""
LAST_KEY = (1 << 64) - 1
_HEAD = struct.Struct("<II")
_PAGE = 4096
_NODE_BYTES = 32
_SPARE_PAGES = 64

Items = list[tuple[int, bytes]]


def numbered(first: int, chunks: Iterable[Sequence[bytes]]) -> Iterator[Items]:
    """Records under their own numbers."""
    for records in chunks:
        yield list(enumerate(records, start=first))
        first += len(records)


def grouped(first: int, chunks: Iterable[Sequence[bytes]], group_bytes: int) -> Iterator[Items]:
    """Groups of records under the numbers of their first ones, and what tells where each lies."""
    lengths: list[int] = []
    counts: list[int] = []
    begun: list[bytes] = []
    size = 0
    for records in chunks:
        items: Items = []
        for record in records:
            begun.append(record)
            size += len(record)
            lengths.append(len(record))
            if size >= group_bytes:
                items.append((first + len(lengths) - len(begun), b"".join(begun)))
                counts.append(len(begun))
                begun, size = [], 0
        if items:
            yield items
    items = [(first + len(lengths) - len(begun), b"".join(begun))] if begun else []
    counts += [len(begun)] if begun else []
    numbers = np.array([*lengths, *counts], dtype="<u4").tobytes()
    yield [*items, (LAST_KEY, _HEAD.pack(len(lengths), len(counts)) + numbers)]


class Room:
    """Whether records fit a map, by what LMDB takes for them at most; a function of the records, however they are cut."""

    def __init__(self, map_bytes: int, page: int) -> None:
        self.pages, self.page = map_bytes // page, page
        self.in_leaves = self.overflow = 0

    def takes(self, records: Sequence[bytes]) -> bool:
        """Note records and say whether there is room for them."""
        # A record that leaves no room for a second one in its leaf has pages of its own. Leaves are at least half full.
        sizes = np.fromiter(map(len, records), dtype=np.int64, count=len(records)) + _NODE_BYTES
        large = sizes[sizes > self.page // 2 - _NODE_BYTES]
        self.in_leaves += int(sizes.sum() - large.sum()) + 2 * _NODE_BYTES * len(large)
        self.overflow += int((large // self.page + 1).sum())
        return 2 * self.in_leaves // (self.page - _NODE_BYTES) + self.overflow + _SPARE_PAGES <= self.pages


class Directory:
    """Where the records of a shard lie, from the value that tells it.

    Raises:
        ValueError: If it does not fit ``count`` records in ``entries`` values.
    """

    def __init__(self, value: bytes | None, first: int, count: int, entries: int) -> None:
        if value is None or len(value) < _HEAD.size:
            raise ValueError("nothing says where its records lie")
        num_records, num_groups = _HEAD.unpack_from(value)
        numbers = np.frombuffer(value[: len(value) // 4 * 4], dtype="<u4", offset=_HEAD.size)
        lengths, counts = numbers[:num_records], numbers[num_records:]
        ends = offsets(counts)
        fits = len(numbers) == num_records + num_groups and entries == num_groups + 1
        if not fits or int(ends[-1]) != num_records:
            raise ValueError("what says where its records lie does not fit it")
        if num_records != count:
            raise ValueError(f"it holds {num_records} records, the manifest says {count}")
        stops = offsets(lengths)
        group = np.repeat(np.arange(num_groups), counts)
        begun = stops[ends[:-1]][group]
        self.first, self.keys = first, [int(first + k).to_bytes(8, "big") for k in ends[:-1]]
        # Memory views of machine numbers, as small as they can be: as quick as lists, a thirtieth of the room.
        places = group, stops[:-1] - begun, stops[1:] - begun
        self.group, self.start, self.stop = (shrunk(array).data for array in places)

    def get(self, values: Callable[[bytes], Any], copies: bool) -> Callable[[int], Any]:
        """``get`` of single records by their numbers, from one of views of values."""
        first, keys, group, start, stop = self.first, self.keys, self.group, self.start, self.stop
        count = len(group)

        def one(number: int) -> Any:
            k = number - first
            value = values(keys[group[k]]) if 0 <= k < count else None
            if value is None:
                return None
            return value[start[k] : stop[k]].tobytes() if copies else value[start[k] : stop[k]]

        return one


def disk_bytes(size: float, group_bytes: int) -> float:
    """What a record of ``size`` bytes takes of a file, about."""
    if group_bytes:
        whole = max(size, group_bytes + size / 2)
        return (-(-(whole + 16) // _PAGE) * _PAGE) * size / whole + 4
    return size + 30 if size < 2000 else -(-(size + 24) // _PAGE) * _PAGE
