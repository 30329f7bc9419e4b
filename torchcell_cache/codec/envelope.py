"""The checksum in front of every record.

A record is ``checksum (8 bytes, little-endian) + body``. The checksum is the low 64 bits of ``xxh3_128(body,
seed=sample index)``, exclusive-or the shard's seed. The sample index as the hash seed makes a record that landed under
another key fail; the shard's seed, derived from the fingerprint, makes a shard of another store fail.
The full 128 bits also feed the content digest: summed over all samples they do not depend on the order of the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import xxhash

from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import CorruptRecordError, RecordTooLargeError

CHECKSUM_BYTES = 8
MAX_RECORD_BYTES = 256 << 20

Buffer: TypeAlias = bytes | memoryview


def seal(
    bodies: Sequence[bytes], first_index: int, shard_seed: int, max_bytes: int = MAX_RECORD_BYTES
) -> tuple[list[bytes], tuple[int, int]]:
    """Put the checksum in front of consecutive records.

    Raises:
        RecordTooLargeError: If a body exceeds ``max_bytes``.
    """
    if bodies and max(map(len, bodies)) > max_bytes:
        where = max(range(len(bodies)), key=lambda k: len(bodies[k]))
        raise RecordTooLargeError(
            f"sample {first_index + where}: its record takes {len(bodies[where]):,} bytes, the cap is {max_bytes:,}",
            fix="raise max_record_bytes, or drop fields in the processor",
        )
    digest = xxhash.xxh3_128_digest
    raw = b"".join([digest(body, first_index + k) for k, body in enumerate(bodies)])
    halves = np.frombuffer(raw, dtype=">u8").reshape(-1, 2)
    high = int(halves[:, 0].sum(dtype=np.uint64))
    low = int(halves[:, 1].sum(dtype=np.uint64))
    checks = (halves[:, 1] ^ np.uint64(shard_seed)).astype("<u8").tobytes()
    return [checks[8 * k : 8 * k + 8] + body for k, body in enumerate(bodies)], (low, high)


def check(values: Sequence[Buffer], indices: Sequence[int], shard_seeds: Sequence[int] | int) -> None:
    """Verify the checksums of records read together.

    Raises:
        CorruptRecordError: Naming the first sample whose checksum does not match.
    """
    digest = xxhash.xxh3_128_digest
    try:
        raw = b"".join([digest(value[8:], index) for value, index in zip(values, indices, strict=True)])
        stored = np.frombuffer(b"".join([value[:8] for value in values]), dtype="<u8")
        computed = np.frombuffer(raw, dtype=">u8")[1::2] ^ np.asarray(shard_seeds, dtype=np.uint64)
        good = stored == computed if len(stored) == len(computed) else None
    except (ValueError, IndexError):
        good = None
    if good is not None and good.all():
        return
    if good is None:
        bad = next((k for k, value in enumerate(values) if len(value) < CHECKSUM_BYTES), 0)
        what = "its record is shorter than a checksum"
    else:
        bad = int(np.argmin(good))
        what = f"checksum {int(computed[bad]):016x} does not match the stored {int(stored[bad]):016x}"
    error = CorruptRecordError(f"sample {indices[bad]}: {what}")
    error.place, error.what = bad, what
    raise error


def digest_sums(bodies: Iterable[Buffer], indices: Int64Array | Sequence[int]) -> tuple[int, int]:
    """The sums that :func:`seal` returns, recomputed from bodies read back."""
    raw = b"".join([xxhash.xxh3_128_digest(body, int(k)) for body, k in zip(bodies, indices, strict=True)])
    halves = np.frombuffer(raw, dtype=">u8").reshape(-1, 2)
    return int(halves[:, 1].sum(dtype=np.uint64)), int(halves[:, 0].sum(dtype=np.uint64))
