"""Stopping in time: SIGTERM, SIGUSR1 and SIGUSR2 ask for a checkpoint after the step that runs, on all ranks after the same one.

Nothing here imports torch until it is needed, so that signals are heard from the first moment of a process.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 75
"""The same command goes on; batch scripts put the job back into the queue."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class _Heard:
    number: int | None = None
    before: dict[int, Any] = {}  # noqa: RUF012 - one per process, as signal handlers are


def listen() -> None:
    """Note these signals instead of ending; a second call changes nothing."""
    for number in SIGNALS:
        if number not in _Heard.before:
            _Heard.before[number] = signal.signal(number, _note)


def ignore() -> None:
    """Let a loader's worker live on: a signal to a whole job step reaches workers too, and ranks decide for them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def stop_listening() -> None:
    """Give the signals back to who had them."""
    while _Heard.before:
        number, before = _Heard.before.popitem()
        signal.signal(number, before)
    _Heard.number = None


def _note(number: int, frame: FrameType | None) -> None:
    if _Heard.number is None:
        _Heard.number = number


def leave() -> None:
    """End the process after its checkpoint: by the handler that was there before (submitit's requeues), else with 75.

    Raises:
        SystemExit: With 75.
    """
    number = _Heard.number
    before: Callable[[int, FrameType | None], Any] | int | None = (
        None if number is None else _Heard.before.get(number)
    )
    stop_listening()
    if callable(before) and number is not None:
        before(number, None)
    raise SystemExit(EXIT_INTERRUPTED)


class StopSignal:
    """Whether any rank was asked to stop, answered alike on all ranks.

    Signals reach ranks at different moments, so each step sums the ranks' flags over gloo, off the device. The sum of one
    step is read at the next one: it has arrived by then, and no step waits for it.

    Args:
        world_size: Number of ranks; all of them make this object.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.group: Any = None
        self.flag: Any = None
        self.work: Any = None
        if world_size > 1:
            from torch import distributed

            self.group = distributed.new_group(backend="gloo")

    @property
    def name(self) -> str:
        """The signal this rank has heard."""
        return "another rank's signal" if _Heard.number is None else signal.Signals(_Heard.number).name

    def agreed(self) -> bool:
        """Call once per step, on every rank; ``True`` on all ranks at the same step."""
        heard = _Heard.number is not None
        if self.world_size == 1:
            return heard
        import torch
        from torch import distributed

        stop = self._answer()
        if not stop:
            self.flag = torch.tensor([int(heard)])
            self.work = distributed.all_reduce(self.flag, group=self.group, async_op=True)
        return stop

    def gathered(self, value: Any) -> list[Any]:
        """A small value of every rank."""
        if self.world_size == 1:
            return [value]
        from torch import distributed

        self._settle()
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            from torch import distributed

            self._settle()
            distributed.barrier(group=self.group)

    def _answer(self) -> bool:
        self._settle()
        return self.flag is not None and bool(self.flag.item())

    def _settle(self) -> None:
        if self.work is not None:
            self.work.wait()
            self.work = None
