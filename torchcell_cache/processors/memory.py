"""Memory that tensors and arrays show, perhaps the same from several sides, and copies of it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_ALIGNED = 16


class Span(NamedTuple):
    """Where the first and one past the last byte of a tensor or array lie."""

    device: str
    start: int
    stop: int
    part: Any

    @classmethod
    def of(cls, part: Any) -> Span:
        """The span of a tensor or an array that has elements."""
        if isinstance(part, np.ndarray):
            return cls("cpu", *np.lib.array_utils.byte_bounds(part), part)
        last = sum((n - 1) * step for n, step in zip(part.shape, part.stride(), strict=True))
        start = part.data_ptr()
        return cls(str(part.device), start, start + (int(last) + 1) * part.element_size(), part)

    @property
    def is_folded(self) -> bool:
        """Whether elements of a tensor lie in each other's memory: rows of ``expand``, windows of ``unfold``."""
        if isinstance(self.part, np.ndarray):
            return False
        shape, strides = self.part.shape, self.part.stride()
        return self.part.nbytes > self.stop - self.start or any(
            step == 0 and n > 1 for n, step in zip(shape, strides, strict=True)
        )


def in_same_memory(parts: Iterable[Any]) -> Iterator[list[Span]]:
    """Tensors and arrays, those together whose spans overlap."""
    together: list[Span] = []
    stop = 0
    for span in sorted(map(Span.of, parts), key=lambda span: span[:3]):
        if together and (span.device != together[0].device or span.start >= stop):
            yield together
            together = []
        stop = max(stop, span.stop) if together else span.stop
        together.append(span)
    if together:
        yield together


class Memory:
    """A copy of the bytes that overlapping spans cover.

    Args:
        spans: The spans, in the order of their starts.
    """

    def __init__(self, spans: list[Span]) -> None:
        self.device, self.start, self.stop = spans[0].device, spans[0].start, max(s.stop for s in spans)
        self._before = self.start % _ALIGNED  # elements stay aligned
        size = self.stop - self.start
        self._bytes = torch.empty(self._before + size, dtype=torch.uint8, device=self.device)
        if self.device == "cpu":  # in one piece: several storages may lie over each other
            ctypes.memmove(self._bytes.data_ptr() + self._before, self.start, size)
            return
        for span in spans:
            tensor, at = span.part, self._before + span.start - self.start
            first = tensor.storage_offset() * tensor.element_size()
            shown = torch.empty(0, dtype=torch.uint8, device=self.device)
            shown.set_(tensor.untyped_storage(), first, (span.stop - span.start,), (1,))
            self._bytes[at : at + len(shown)] = shown

    def holds(self, spans: list[Span]) -> bool:
        """Whether the bytes of all spans are here."""
        return all(
            self.device == span.device and self.start <= span.start and span.stop <= self.stop
            for span in spans
        )

    def seen_as(self, span: Span) -> Any:
        """The tensor or array that shows of this memory what the span's shows of its own."""
        part = span.part
        if isinstance(part, np.ndarray):
            offset = self._before + part.__array_interface__["data"][0] - self.start
            return np.ndarray(part.shape, part.dtype, self._bytes.numpy(), offset, part.strides)
        offset = (self._before + span.start - self.start) // part.element_size()
        plain = torch.empty(0, dtype=part.dtype, device=part.device)
        made: Tensor = plain.set_(self._bytes.untyped_storage(), offset, part.shape, part.stride())
        return made.requires_grad_(part.requires_grad)
