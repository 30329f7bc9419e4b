"""Who a process is, and whether it still lives: decided from the kernel's own facts, never from a clock.

A pid alone is recycled, and means nothing on another machine or in another container. Together with the boot
id, the pid namespace and the start time in clock ticks after boot it names one process for good.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import xxhash

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, on one boot of one machine.

    Attributes:
        host: Host name, for messages only: two machines may share one.
        boot_id: The kernel's id of this boot; empty where the kernel gives none.
        namespace: Inode of the pid namespace, 0 where unknown: two containers of a machine share the boot id.
        pid: Process id within the namespace.
        start_time: Start in clock ticks after boot, 0 where unknown.
    """

    host: str
    boot_id: str
    namespace: int
    pid: int
    start_time: int

    @classmethod
    def from_record(cls, record: Any) -> ProcessId | None:
        """The process that JSON speaks of, which anybody may have damaged; ``None`` if it speaks of none."""
        kinds = {"host": str, "boot_id": str, "namespace": int, "pid": int, "start_time": int}
        if not isinstance(record, dict) or any(type(record.get(k)) is not kind for k, kind in kinds.items()):
            return None
        return cls(**{name: record[name] for name in kinds})

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"

    @property
    def machine(self) -> str:
        """Eight hexadecimal digits that differ between boots, machines and pid namespaces."""
        return xxhash.xxh32_hexdigest(f"{self.boot_id}/{self.namespace}".encode())

    def is_alive(self) -> bool | None:
        """Whether the process still runs; ``None`` if it is not of this machine, boot and namespace."""
        here = this_process()
        if not self.boot_id or self.machine != here.machine:
            return None
        return runs_here(self.pid, self.start_time)


def this_process() -> ProcessId:
    """Identity of the calling process (read anew each time: it changes with ``fork``)."""
    pid = os.getpid()
    boot_id, namespace = _machine(pid)
    started = _start_time(pid)
    return ProcessId(os.uname().nodename, boot_id, namespace, pid, started or 0)


def runs_here(pid: int, start_time: int) -> bool | None:
    """Whether process ``pid``, started at ``start_time``, runs in this namespace; ``None``: cannot tell."""
    if not (_PROC / "self/stat").exists():
        return None
    return pid > 0 and start_time > 0 and _start_time(pid) == start_time


@lru_cache(maxsize=8)
def _machine(pid: int) -> tuple[str, int]:
    """Boot id and pid namespace; keyed by pid because a forked child may have entered another namespace."""
    try:
        boot_id = (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        boot_id = ""
    try:
        namespace = (_PROC / "self/ns/pid").stat().st_ino
    except OSError:
        namespace = 0
    return boot_id, namespace


def _start_time(pid: int) -> int | None:
    """Field 22 of ``/proc/<pid>/stat``; ``None`` for a process that is gone or only waits to be reaped."""
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
        # The second field is the command in parentheses and may itself hold spaces and parentheses.
        fields = stat[stat.rindex(b")") + 2 :].split()
        state, started = fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
    return None if state in (b"Z", b"X") else started
