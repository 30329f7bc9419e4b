"""Looks into an LMDB file without LMDB: entry count, first and last key.

LMDB trusts what it maps, and a damaged page can end the process. A quick look therefore reads the few pages it needs
with plain reads and checks every number; it finds a foreign, truncated or swapped file in microseconds, whatever its
size. It proves nothing about the records: that takes the file's digest.

Layout (LMDB 0.9 file format, little-endian): pages 0 and 1 hold ``u64 page number, u16, u16 flags, u16 lower, u16
upper``, then ``u32 magic, u32 version, u64 address, u64 map size``, the free list's and the main tree's descriptor
(``u32 page size, u16 flags, u16 depth, u64 branch, leaf and overflow pages, u64 entries, u64 root``), ``u64 last page,
u64 transaction``. Tree pages list ``u16`` offsets of nodes ``u16 low, u16 high, u16 flags, u16 key length, key``.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from torchcell_cache.errors import CorruptShardError, FormatError

_MAGIC = 0xBEEFC0DE
_PAGE = struct.Struct("<QHHHH")
_META = struct.Struct("<IIQQ")
_TREE = struct.Struct("<IHHQQQQQ")
_NODE = struct.Struct("<HHHH")
_BRANCH, _LEAF, _META_PAGE = 0x01, 0x02, 0x08
_MAX_DEPTH = 32
_NO_ROOT = (1 << 64) - 1
KEY_BYTES = 8


@dataclass(frozen=True, slots=True)
class ShardOutline:
    """What the pages of a shard say: number of entries, first and last key as sample index (-1 when empty)."""

    entries: int
    first: int
    last: int


def outline(path: str | Path) -> ShardOutline:
    """Read the outline of a shard file.

    Raises:
        CorruptShardError: If a page is not what LMDB writes.
        FormatError: If it is the other file format of LMDB 1.0.
        OSError: If the file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - unbuffered
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        try:
            return _outline(descriptor, size)
        except (struct.error, ValueError) as error:
            raise CorruptShardError(f"{path} is not the LMDB file of a shard: {error}", path=path) from None
        except FormatError as error:
            raise FormatError(f"{path}: {error}", path=path) from None


def _outline(descriptor: int, size: int) -> ShardOutline:
    page_size, entries, root, depth = _newest_meta(descriptor)
    if size % page_size:
        raise ValueError(f"{size:,} bytes are no multiple of its page size {page_size}")
    if root == _NO_ROOT:
        return ShardOutline(entries, -1, -1)
    ends = [_end_key(descriptor, size, page_size, root, depth, last=last) for last in (False, True)]
    return ShardOutline(entries, *ends)


def _newest_meta(descriptor: int) -> tuple[int, int, int, int]:
    """Page size, entries, root page and depth of the main tree, from the meta page of the last transaction."""
    found: list[tuple[int, int, int, int, int]] = []
    page_size = 0
    for number in (0, 1):
        page = os.pread(descriptor, 256, number * page_size)
        flags = _PAGE.unpack_from(page)[2]
        magic, version, _, _ = _META.unpack_from(page, _PAGE.size)
        if flags & _META_PAGE == 0 or magic != _MAGIC:
            raise ValueError(f"page {number} is no meta page")
        if version != 1:
            raise FormatError(
                f"LMDB file format {version}, this version reads 1",
                fix="build the store again, or upgrade torchcell_cache",
            )
        at = _PAGE.size + _META.size
        size = _TREE.unpack_from(page, at)[0]
        if not 512 <= size <= 65536 or size & (size - 1) or page_size not in (0, size):
            raise ValueError(f"page size {size}")
        page_size = size
        _, _, depth, _, _, _, entries, root = _TREE.unpack_from(page, at + _TREE.size)
        transaction = struct.unpack_from("<QQ", page, at + 2 * _TREE.size)[1]
        found.append((transaction, size, entries, root, depth))
    return max(found)[1:]


def _end_key(descriptor: int, size: int, page_size: int, root: int, depth: int, *, last: bool) -> int:
    """First or last key of the tree."""
    number = root
    for level in range(min(depth, _MAX_DEPTH)):
        if not 2 <= number < size // page_size:
            raise ValueError(f"page {number} of {size // page_size}")
        page = os.pread(descriptor, page_size, number * page_size)
        own, _, flags, lower, _ = _PAGE.unpack_from(page)
        count = (lower - _PAGE.size) // 2
        if own != number or not 0 < count <= page_size // 2:
            raise ValueError(f"page {number} says it is page {own} with {count} nodes")
        where = struct.unpack_from("<H", page, _PAGE.size + 2 * (count - 1 if last else 0))[0]
        low, high, more, key_bytes = _NODE.unpack_from(page, where)
        if flags & _LEAF and level == depth - 1:
            key = page[where + _NODE.size : where + _NODE.size + key_bytes]
            if len(key) != KEY_BYTES:
                raise ValueError(f"a key of {key_bytes} bytes, expected {KEY_BYTES}")
            return int.from_bytes(key, "big")
        if not flags & _BRANCH:
            break
        number = low | high << 16 | more << 32
    raise ValueError(f"its tree of depth {depth} does not end in a leaf")
