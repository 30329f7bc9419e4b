"""Batches written straight into their packed buffer.

In most stores every sample has one complete measurement. Then all of a packed batch is known from its size except the
indices, ids, values and removed positions: a buffer made once by the ordinary way serves as the form of every later one.
The result is the ordinary buffer, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.batch import packed as packing
from torchcell_cache.batch.sections import structured_sections
from torchcell_cache.codec.deletions import StructuredColumns, words_of
from torchcell_cache.codec.envelope import Buffer
from torchcell_cache.core.ragged import Float32Array, Int64Array
from torchcell_cache.store.generation import Generation

_NO_WORDS = np.zeros(0, dtype=np.uint16)
_KEPT = 8
"""Forms kept per store: batch sizes in use."""


class BatchForm:
    """The packed form of batches of one size, in which only some places differ.

    Args:
        generation: The store's generation.
        count: Samples per batch.
    """

    def __init__(self, generation: Generation, count: int) -> None:
        schema, self.count = generation.structured, count
        self.width, self.phenotypes = schema.num_columns, len(generation.schema["phenotypes"])
        steps = np.arange(count + 1)
        none = np.zeros(count + 1, dtype=np.int64)
        blank = StructuredColumns(
            ids=np.zeros(0, dtype=schema.id_dtype),
            ptr=none,
            values=np.zeros((count, self.width), dtype=np.float32),
            value_ptr=steps,
            words=np.zeros(0, dtype=np.uint16),
            word_ptr=none,
        )
        sections = structured_sections(steps[:-1], blank, self.phenotypes, schema.has_removed, None)
        buffer, self.places = packing.pack(generation.manifest.generation, sections)
        self.fixed = self.places["perturbed"][0]
        self.start = buffer[: self.fixed].copy()
        at = {name: place[0] >> 3 for name, place in self.places.items()}
        self.indices, self.perturbed_ptr, self.word_ptr = (
            slice(at[name], at[name] + len(sections[name])) if name in at else slice(0, 0)
            for name in ("indices", "perturbed_ptr", "word_ptr")
        )
        self.values = [
            (slice(place[0] >> 2, place[1] >> 2), columns)
            for place, columns in (
                (self.places.get(name, (0, 0, ())), columns)
                for name, columns in (
                    ("values", slice(None)),
                    ("phenotype_values", slice(0, self.phenotypes)),
                    ("statistic_values", slice(self.phenotypes, None)),
                )
            )
            if place[1] > place[0]
        ]
        names = list(sections)
        self.entries = {
            name: packing.entry_words(names.index(name)) for name in ("perturbed", "words") if name in at
        }

    def fill(
        self,
        indices: Int64Array,
        ids: npt.NDArray[Any],
        ptr: Int64Array,
        values: Float32Array,
        words: Sequence[Buffer] = (),
        word_ptr: Int64Array | None = None,
    ) -> tuple[packing.Buffer, packing.Places]:
        """One batch.

        Args:
            indices: Store positions, ``[count] int64``.
            ids: Perturbed ids, ``[num_ids]``.
            ptr: Their offsets, ``[count + 1] int64``.
            values: One measurement per sample, without NaN, ``[count, num_columns] float32``.
            words: The bytes of each sample's gap code, in stores that have it.
            word_ptr: Its offsets in words, ``[count + 1] int64``.
        """
        end = self.fixed + 8 * len(ids)
        places = {**self.places, "perturbed": (self.fixed, end, (len(ids),))}
        if word_ptr is None:
            buffer, size = np.empty(end, dtype=np.uint8), end
        else:
            stop = end + 2 * int(word_ptr[-1])
            padding = bytes(-stop % 8)
            # The only copy of what may lie in the page cache: from there to its place.
            joined = bytearray().join([bytes(end), *words, padding])
            buffer, size = np.frombuffer(joined, dtype=np.uint8), stop + len(padding)
            places["words"] = (end, stop, (int(word_ptr[-1]),))
        buffer[: self.fixed] = self.start
        long = buffer[:end].view(np.int64)
        long[1] = size
        long[self.indices] = indices
        long[self.perturbed_ptr] = ptr
        long[self.fixed >> 3 :] = ids
        long[self.entries["perturbed"][1]] = len(ids)
        if word_ptr is not None:
            long[self.word_ptr] = word_ptr
            first, rows = self.entries["words"]
            long[first], long[rows] = end, word_ptr[-1]
        single = buffer[: self.fixed].view(np.float32)
        for where, which in self.values:
            single[where].reshape(self.count, -1)[:] = values[:, which]
        return buffer, places


def pack_directly(
    generation: Generation, positions: Int64Array
) -> tuple[packing.Buffer, packing.Places] | None:
    """Read a batch into its packed buffer, or ``None`` if it has to go the ordinary way.

    Args:
        generation: The store's generation.
        positions: Store positions within range, ``[batch] int64``.

    Raises:
        CorruptRecordError: If a record is damaged.
    """
    reader, schema = generation.table_reader, generation.structured
    if reader is None or not generation.schema["phenotypes"]:
        return None
    values, value_ptr = reader.measurements(positions)
    if value_ptr is not None or not bool((values == values).all()):
        return None
    form, (ids, ptr) = form_of(generation, len(positions)), reader.perturbed(positions)
    if not schema.has_removed:
        by_rule = generation.removal is not None and generation.removal.by_rule is not None
        return None if by_rule else form.fill(positions, ids, ptr, values)

    def fill(records: Sequence[Buffer]) -> tuple[packing.Buffer, packing.Places]:
        words, word_ptr = words_of(schema, records, ptr[1:] - ptr[:-1])
        return form.fill(positions, ids, ptr, values, words, word_ptr)

    return generation.visit(positions, fill)


def gather(generation: Generation, positions: Int64Array) -> StructuredColumns:
    """Samples as columns: from memory where that holds all of them, else from records.

    Raises:
        CorruptRecordError: If a record is damaged.
    """
    reader = generation.table_reader
    if reader is None or generation.structured.has_removed:
        return generation.read_columns(positions)
    ids, ptr = reader.perturbed(positions)
    values, value_ptr = reader.measurements(positions)
    none = np.zeros(len(positions) + 1, dtype=np.int64)
    steps = np.arange(len(none))
    return StructuredColumns(ids, ptr, values, steps if value_ptr is None else value_ptr, _NO_WORDS, none)


def form_of(generation: Generation, count: int) -> BatchForm:
    """The form of batches of a size; the latest few sizes are kept with the generation."""
    forms: dict[int, BatchForm] = generation.__dict__.setdefault("_batch_forms", {})
    form = forms.get(count)
    if form is None:
        if len(forms) >= _KEPT:
            forms.pop(next(iter(forms)))
        form = forms[count] = BatchForm(generation, count)
    return form
