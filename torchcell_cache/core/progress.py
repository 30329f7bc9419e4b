"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere, a status file for other processes."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TextIO

from torchcell_cache.core.checks import rank_and_world_size
from torchcell_cache.core.lazy import ThreadLock
from torchcell_cache.core.locks import write_status
from torchcell_cache.errors import EXIT_INTERRUPTED, SettingError

_LINE_SECONDS = 30.0
_LINE_SHARE = 0.05
_STATUS_SECONDS = 1.0


def human_bytes(count: float) -> str:
    """Bytes with a unit, such as ``1.5 GB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """Seconds as ``45 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _in_notebook() -> bool:
    """Whether cells of a notebook run in this process; nothing is imported to find out."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())


class Progress:
    """Reports the samples done.

    On a terminal a tqdm bar; elsewhere (SLURM logs) one plain line every 30 s or 5 %, whichever comes later of the two
    first minutes; always a status file that ``torchcell-cache status`` reads from another process or node.
    """

    def __init__(
        self,
        total: int,
        done: int,
        status_path: Path | None,
        *,
        enabled: bool = True,
        stream: TextIO | None = None,
        what: str = "preprocess",
        facts: dict[str, Any] | None = None,
        unit: str = "samples",
    ) -> None:
        self.facts, self.unit, self._turn = facts or {}, unit, ThreadLock()
        self.total, self.done, self.initial = total, done, done
        self.status_path, self.stream = status_path, stream or sys.stderr
        self.begun = self.last_status = self.last_line = time.monotonic()
        self.last_share = done / max(total, 1)
        self.bar: Any = None
        self.lines, self.what = enabled, what
        if enabled and (self.stream.isatty() or _in_notebook()):
            with warnings.catch_warnings():
                # Where a notebook has no widgets, tqdm's line of text will do.
                warnings.simplefilter("ignore")
                from tqdm.auto import tqdm

            sized = {"unit": "B", "unit_scale": True} if unit == "bytes" else {"unit": "sample"}
            self.bar = tqdm(total=total, initial=done, desc=what, file=self.stream, **sized)
            self.lines = False
        self._write_status("building")

    def __call__(self, count: int) -> None:
        """Note ``count`` more samples; any thread may."""
        with self._turn:
            self.done += count
            now = time.monotonic()
            if self.bar is not None:
                self.bar.update(count)
            if now - self.last_status >= _STATUS_SECONDS:
                self.last_status = now
                self._write_status("building")
            share = self.done / self.total if self.total else 0.0
            waited = now - self.last_line
            if self.lines and (
                waited >= _LINE_SECONDS or (share - self.last_share >= _LINE_SHARE and waited >= 1.0)
            ):
                self.last_line, self.last_share = now, share
                print(f"{self.what}: {self._text(now)}", file=self.stream, flush=True)

    def _text(self, now: float) -> str:
        rate = (self.done - self.initial) / max(now - self.begun, 1e-9)
        if not self.total:  # nobody knows how many there will be
            return f"{self.done:,} {self.unit}, {rate:,.0f}/s"
        left = (self.total - self.done) / rate if rate else float("inf")
        eta = human_seconds(left) if rate else "unknown"
        share = f"({100 * self.done / max(self.total, 1):.0f} %)"
        if self.unit == "bytes":
            return f"{human_bytes(self.done)} of {human_bytes(self.total)} {share}, {human_bytes(rate)}/s, {eta} left"
        return f"{self.done:,}/{self.total:,} samples {share}, {rate:,.0f}/s, {eta} left"

    def _write_status(self, state: str) -> None:
        if self.status_path is not None:
            elapsed = time.monotonic() - self.begun
            status = {"state": state, "samples": self.done, "total": self.total, "seconds": round(elapsed, 1)}
            write_status(self.status_path, {**self.facts, **status, "initial": self.initial})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        stopped = "interrupted" if getattr(error, "code", 0) == EXIT_INTERRUPTED else "failed"
        self.close("complete" if error is None else stopped)

    def close(self, state: str) -> None:
        """Finish with a last state: ``complete``, ``interrupted`` or ``failed``."""
        if self.bar is not None:
            self.bar.close()
        self._write_status(state)


class Console:
    """Prints a line on stderr if asked to."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def __call__(self, text: str) -> None:
        """Print it."""
        if self.enabled:
            print(text, file=sys.stderr, flush=True)

    def notes(self, lines: Sequence[str]) -> None:
        """Print what a source has to say; one of several ranks does."""
        with contextlib.suppress(SettingError):  # half of RANK and WORLD_SIZE: whoever needs them will say so
            if rank_and_world_size()[0] != 0:
                return
        for line in lines:
            self(line)
