"""What may be on the disk after a power cut, from the log of the calls that a build made.

The model is as weak as POSIX allows: data that was not fsynced may be there, be missing, be zeros (the size reached the
disk, the data did not) or be torn; a name that was not followed by an fsync of its directory may be there or not, each
one independently of all others. What was fsynced is there.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from faultlib import DATA, SYNC, Call

NEW, OLD, ZEROS, TORN, EMPTY = "new", "old", "zeros", "torn", "empty"
FATES = (NEW, OLD, ZEROS, TORN, EMPTY)


@dataclass(eq=False)
class Inode:
    """A file: its content now, and what of it is safe."""

    data: bytearray = field(default_factory=bytearray)
    safe: bytes = b""
    is_dir: bool = False

    def after(self, fate: str) -> bytes:
        """Its content after the cut."""
        now = bytes(self.data)
        if now == self.safe or fate == NEW:
            return now
        if fate == ZEROS:
            return self.safe[: len(now)] + bytes(max(0, len(now) - len(self.safe)))
        if fate == TORN:
            half = (len(now) // 2) // 512 * 512
            return now[:half] + self.safe[half:]
        return b"" if fate == EMPTY and not self.safe else self.safe


class Disk:
    """Names and files below one directory, now and safe."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: dict[str, Inode] = {}
        self.safe: dict[str, Inode] = {}

    def apply(self, call: Call) -> None:
        """One logged call that succeeded."""
        if call.result < 0 or call.op in ("chmod", "close"):
            return
        path = call.path
        if call.op == "mkdir":
            self.names[path] = Inode(is_dir=True)
        elif call.op == "create":
            self.names.setdefault(path, Inode())
        elif call.op in DATA:
            self._write(self.names[path].data, call.offset, call.data)
        elif call.op == "ftruncate":
            data = self.names[path].data
            del data[call.offset :]
            data.extend(bytes(call.offset - len(data)))
        elif call.op in SYNC:
            self._sync(path)
        elif call.op == "rename":
            self.names[call.path2] = self.names.pop(path)
            self._move_below(path, call.path2)
        elif call.op == "link":
            self.names[call.path2] = self.names[path]
        elif call.op in ("unlink", "rmdir"):
            del self.names[path]
        else:
            raise NotImplementedError(call.op)

    def _move_below(self, path: str, target: str) -> None:
        """What is in a directory comes along: it is there under whichever name the directory will have."""
        for entries in (self.names, self.safe):
            for name in [name for name in entries if name.startswith(f"{path}/")]:
                entries[target + name[len(path) :]] = entries[name]

    @staticmethod
    def _write(data: bytearray, offset: int, content: bytes) -> None:
        data.extend(bytes(max(0, offset - len(data))))
        data[offset : offset + len(content)] = content

    def _sync(self, path: str) -> None:
        inode = self.names.get(path)
        if inode is not None and not inode.is_dir:
            inode.safe = bytes(inode.data)
            return
        for name in {*self.names, *self.safe}:
            if str(Path(name).parent) == path:
                if name in self.names:
                    self.safe[name] = self.names[name]
                else:
                    self.safe.pop(name, None)

    def doubtful(self) -> list[str]:
        """Names whose entry or content is not safe."""
        return sorted(
            name
            for name in {*self.names, *self.safe}
            if self.names.get(name) is not self.safe.get(name) or self._is_dirty(name)
        )

    def _is_dirty(self, name: str) -> bool:
        return any(
            inode is not None and bytes(inode.data) != inode.safe
            for inode in (self.names.get(name), self.safe.get(name))
        )

    def cut(self, entries: dict[str, bool], fates: dict[str, str]) -> dict[str, bytes | None]:
        """Files (and, as ``None``, directories) after a power cut.

        Args:
            entries: For each doubtful name whether its newest entry made it.
            fates: For each doubtful name what became of the data.
        """
        out: dict[str, bytes | None] = {}
        for name in sorted({*self.names, *self.safe}):
            inode = (self.names if entries.get(name, True) else self.safe).get(name)
            parent = str(Path(name).parent)
            if inode is not None and (parent == str(self.root) or out.get(parent, b"") is None):
                out[name] = None if inode.is_dir else inode.after(fates.get(name, NEW))
        return out

    def cuts(self, chance: random.Random, samples: int) -> Iterator[dict[str, bytes | None]]:
        """The plain cases, and random mixtures of them."""
        names = self.doubtful()
        for there in (True, False):
            for fate in FATES:
                yield self.cut(dict.fromkeys(names, there), dict.fromkeys(names, fate))
        for name in names:
            yield self.cut({**dict.fromkeys(names, True), name: False}, dict.fromkeys(names, NEW))
            yield self.cut({**dict.fromkeys(names, False), name: True}, dict.fromkeys(names, NEW))
        for _ in range(samples):
            entries = {name: chance.random() < 0.5 for name in names}
            yield self.cut(entries, {name: chance.choice(FATES) for name in names})


def states(
    root: Path, log: list[Call], moments: Collection[int], seed: int, samples: int
) -> Iterator[tuple[int, dict[str, bytes | None]]]:
    """All distinct states of the disk after a cut at some moments, with the number of calls made before.

    Args:
        root: Directory that the log is about.
        log: The calls with their data.
        moments: Numbers of calls after which the power goes; the end always counts.
        seed: Seed of the mixtures.
        samples: Random mixtures per moment.
    """
    disk, chance, seen = Disk(root), random.Random(seed), set()
    for number in range(len(log) + 1):
        if number:
            disk.apply(log[number - 1])
        for state in disk.cuts(chance, samples) if number in moments or number == len(log) else ():
            key = hash((number == len(log), tuple((name, state[name]) for name in sorted(state))))
            if key not in seen:
                seen.add(key)
                yield number, state


def materialise(state: dict[str, bytes | None], old_root: Path, new_root: Path) -> None:
    """Put a state on a real disk, below another directory."""
    for name in sorted(state):
        path, content = new_root / Path(name).relative_to(old_root), state[name]
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
