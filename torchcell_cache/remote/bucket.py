"""One prefix of an object store, through fsspec. The only file that imports fsspec.

Every operation is tried again after a pause if the failure may pass, and ends in an error of this package otherwise.
Credentials are fsspec's business: none is held, pickled or printed here.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from torchcell_cache.core import failures
from torchcell_cache.core.files import make_dirs_durable, remove_stale_temps, written
from torchcell_cache.core.lazy import ThreadLock
from torchcell_cache.core.urls import PROTOCOLS, checked_options, checked_url, protocol_of
from torchcell_cache.errors import (
    CacheError,
    CorruptShardError,
    SettingError,
    StorageLostError,
    install_line,
)

ATTEMPTS = 4
"""Tries of one operation; s3fs itself has tried a few times before it reports a failure."""

_CHUNK = 8 << 20
_AHEAD = 2
_FIRST_PAUSE_S = 0.2
_SILENCE_S = 60.0
"""How long Google's library is to wait for the next bytes, which by itself waits for ever; that of S3 waits as long."""

T = TypeVar("T")


class Bucket:
    """Objects below one address.

    Args:
        url: Such as ``s3://bucket/prefix``.
        options: Options of the file system (``endpoint_url``, ``anon``, ...), no credentials.

    Raises:
        SettingError: If the address or an option cannot be used.
    """

    def __init__(self, url: Any, options: Mapping[str, Any] | None = None) -> None:
        self.url = checked_url(url)
        self.protocol = protocol_of(self.url)
        self.options = checked_options(options, self.protocol)
        self._base = self.url.partition("://")[2] if self.protocol != "memory" else f"/{self.url[9:]}"
        self._key = f"{self.protocol} {sorted(self.options.items(), key=str)}"
        self._cleared: set[Path] = set()

    def __repr__(self) -> str:
        return f"Bucket({self.url})"

    def label(self, name: str) -> str:
        """An object as messages call it."""
        return f"{self.url}/{name}"

    @property
    def push(self) -> str:
        """The command that puts a store here; only who built it knows where it is."""
        return f"torchcell-cache push root=... {shlex.quote(f'url={self.url}')}"

    @property
    def push_again(self) -> str:
        """The fix where objects are damaged."""
        return f"where the store was built: {self.push} force=true"

    # Reading

    def read(self, name: str) -> bytes:
        """A small object, whole.

        Raises:
            FileNotFoundError: If there is none.
            RemoteAccessError: If the store does not let us in.
            RemoteUnavailableError: If it does not answer.
        """
        path = self._path(name)
        return bytes(self._try("read", name, lambda system: system.cat_file(path)))

    def blocks(self, name: str, size: int) -> Iterator[bytes]:
        """An object from its beginning; one byte too many shows that it is longer than ``size``, an end too early is one.

        The next range is asked for while one is worked on: a broken connection costs one range.
        """
        starts, coming = range(0, max(size, 1), _CHUNK), deque[Future[bytes]]()
        pool = ThreadPoolExecutor(_AHEAD)
        try:
            for start in starts:
                coming.append(pool.submit(self._range, name, start, min(start + _CHUNK, size), size))
                if len(coming) == _AHEAD:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _range(self, name: str, start: int, stop: int, size: int) -> bytes:
        path, tries = self._path(name), iter(range(1, ATTEMPTS))

        def get(system: Any) -> bytes:
            try:
                data = bytes(system.cat_file(path, start=start, end=stop + (stop == size)))
            except Exception as error:
                if failures.is_short(error):
                    return b""
                raise
            if 0 < len(data) < stop - start and next(tries, None):  # else the object is that short
                raise ConnectionError(f"{len(data):,} of {stop - start:,} bytes arrived")
            return data

        return self._try("read", name, get)

    def sizes(self, directory: str) -> dict[str, int]:
        """Names and sizes of the objects in a directory."""
        path = self._path(directory)

        def find(system: Any) -> dict[str, int]:
            system.invalidate_cache()
            try:
                found = system.find(path, maxdepth=1, detail=True)
            except FileNotFoundError:
                return {}
            return {name.rpartition("/")[2]: int(info["size"]) for name, info in found.items()}

        return self._try("list", directory, find)

    # Writing

    def put(self, data: bytes, name: str) -> None:
        """Write a small object; readers see all of it or what was there before."""
        path = self._path(name)
        self._write(name, lambda to: to.write_bytes(data), lambda system: system.pipe_file(path, data))

    def put_file(self, source: Path, name: str) -> None:
        """Write an object from a local file."""
        path = self._path(name)
        self._write(
            name, lambda to: shutil.copyfile(source, to), lambda system: system.put_file(str(source), path)
        )

    def copy(self, source: str, name: str) -> None:
        """Write an object from another one, without moving its bytes through this machine."""
        paths = self._path(source), self._path(name)
        self._write(name, lambda to: shutil.copyfile(paths[0], to), lambda system: system.cp_file(*paths))

    def _write(self, name: str, here: Callable[[Path], Any], there: Callable[[Any], Any]) -> None:
        """On a file system an object appears by renaming, so that nobody sees half of one."""
        if self.protocol != "file":
            self._try("write", name, there, writing=True)
            return
        target = Path(self._path(name))
        make_dirs_durable(target.parent)
        if target.parent not in self._cleared:  # listing it for every shard would take their number squared
            remove_stale_temps(target.parent)
            self._cleared.add(target.parent)
        with written(target) as temporary:
            here(temporary)

    # fsspec

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"

    def _open(self) -> Any:
        """The file system, one per process and options: making one costs tenths of a second.

        A forked child has its own: it cannot use its parent's, nor close them, whose event loop did not come along.
        """
        with _LOCK:
            key = os.getpid(), self._key
            if key not in _SYSTEMS:
                _SYSTEMS[key] = self._connect()
            return _SYSTEMS[key]

    def _connect(self) -> Any:
        import fsspec

        settings = dict(self.options)
        if self.protocol != "memory":  # whose content belongs to the class
            settings |= {"skip_instance_cache": True, "use_listings_cache": False}
        try:
            if self.protocol in ("gs", "gcs"):
                import aiohttp

                patience = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
                settings.setdefault("requests_timeout", patience)
            return fsspec.filesystem(self.protocol, **settings)
        except ImportError as error:
            raise SettingError(
                f"{self.protocol}:// needs a library that is not installed ({error})",
                fix=install_line(PROTOCOLS[self.protocol] or "s3"),
            ) from None
        except (TypeError, ValueError) as error:
            raise SettingError(f"storage_options of {self.protocol}://: {failures.text_of(error)}") from None

    def _try(self, action: str, name: str, call: Callable[[Any], T], writing: bool = False) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call(self._open())
            except CacheError:
                raise
            except Exception as error:
                kind = failures.kind_of(error)
                if kind == failures.GONE and not writing:
                    raise FileNotFoundError(f"{self.label(name)} does not exist") from None
                if kind not in (failures.TRANSIENT, failures.WRONG) or attempt == ATTEMPTS:
                    raise self._error(kind, error, action, name) from None
            time.sleep(_FIRST_PAUSE_S * 2**attempt * (0.5 + random.random()))
        raise AssertionError

    def _error(self, kind: str, error: Exception, action: str, name: str) -> CacheError:
        label, said = self.label(name), failures.text_of(error)
        if kind == failures.WRONG:
            text = f"{label}: {ATTEMPTS} times other bytes than the server's checksum says ({said})"
            return CorruptShardError(text, path=label, fix=self.push_again)
        if kind == failures.GONE:
            text, fix = f"cannot {action} {label}: {said}", "create the bucket, or check its name"
            return StorageLostError(text, path=label, fix=fix)
        if kind == failures.ACCESS:
            with _LOCK:
                _SYSTEMS.pop((os.getpid(), self._key), None)  # the next one looks for credentials anew
        tried = f"{ATTEMPTS} tries ended in " if kind == failures.TRANSIENT else ""
        return failures.server_error(error, action, label, self.protocol, tried)


_SYSTEMS: dict[tuple[int, str], Any] = {}
_LOCK = ThreadLock()
