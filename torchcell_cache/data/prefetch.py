"""One batch ahead on the device: the next batch is copied on a side stream while the model works on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")


def move(value: Any, act: Callable[[Any], Any]) -> Any:
    """A batch with ``act`` applied to everything in it that has ``to``; containers are rebuilt."""
    if hasattr(value, "to"):
        return act(value)
    if isinstance(value, dict):
        return {key: move(part, act) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(move(part, act) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(move(part, act) for part in value)
    return value


def on_device(
    items: Iterable[tuple[Item, Any]], device: torch.device | None, pin_memory: bool
) -> Iterator[tuple[Item, Any]]:
    """Batches on their device, in the order they come.

    Args:
        items: Whatever belongs to a batch, and the batch.
        device: Where batches go; ``None`` leaves them as they are.
        pin_memory: Whether to page-lock batches that stay on the host.
    """
    if device is not None and device.type == "cuda":
        yield from _ahead(items, device)
        return
    for item, batch in items:
        if device is not None:
            batch = move(batch, lambda part: part.to(device))
        elif pin_memory:
            batch = move(batch, lambda part: part.pin_memory() if hasattr(part, "pin_memory") else part)
        yield item, batch


def _ahead(items: Iterable[tuple[Item, Any]], device: torch.device) -> Iterator[tuple[Item, Any]]:
    """Copy each batch while its predecessor is in use."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copied(part: Any) -> Any:
        # Only from page-locked memory does a copy run beside the host and the other stream.
        if hasattr(part, "pin_memory"):
            part = part.pin_memory()
        return part.to(device, non_blocking=True)

    def used_here(part: Any) -> Any:
        # Without this the allocator would hand memory of the side stream on while this stream still reads it.
        if hasattr(part, "record_stream"):
            part.record_stream(torch.cuda.current_stream(device))
        return part

    waiting: tuple[Item, Any, torch.cuda.Event] | None = None
    for item, batch in items:
        with torch.cuda.stream(side):
            batch = move(batch, copied)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(side)
        if waiting is not None:
            yield _arrived(waiting, device, used_here)
        waiting = (item, batch, done)
    if waiting is not None:
        yield _arrived(waiting, device, used_here)


def _arrived(
    waiting: tuple[Item, Any, torch.cuda.Event], device: torch.device, used_here: Callable[[Any], Any]
) -> tuple[Item, Any]:
    item, batch, done = waiting
    torch.cuda.current_stream(device).wait_event(done)
    return item, move(batch, used_here)
