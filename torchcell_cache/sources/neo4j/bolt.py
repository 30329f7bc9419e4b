"""A real Bolt server without a server to install: ArcadeDB from the PyPI package ``arcadedb-embedded``.

It answers the official Neo4j driver and runs torchcell's queries. The server is a process of its own
(``python -m torchcell_cache.sources.neo4j.bolt``), because its Java virtual machine cannot be stopped and started again
within one process and because a server that cannot be killed cannot be used to test what happens when one is.
The child ends when its standard input closes, so it never outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchcell_cache.core.files import make_dirs_durable
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import SettingError, SourceUnavailableError, install_line

_PLUGIN = "Bolt:com.arcadedb.bolt.BoltProtocolPlugin"
_USERNAME = "root"  # ArcadeDB's first user
_MIN_PASSWORD = 8
_TRIES = 3


@dataclass(frozen=True, slots=True)
class BoltServer:
    """A running server.

    Attributes:
        uri: ``bolt://127.0.0.1:<port>``.
        username: Its user.
        password: The user's password; not shown by ``repr``.
        database: Its database.
        process: The server's process.
    """

    uri: str
    username: str
    password: str = field(repr=False)
    database: str
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self.process.pid

    @property
    def login(self) -> dict[str, str]:
        """Keyword arguments of ``Neo4jCellDataset`` and ``load_experiments``."""
        return {name: getattr(self, name) for name in ("uri", "username", "password", "database")}

    @property
    def environment(self) -> dict[str, str]:
        """The same as environment variables."""
        names = ("NEO4J_URI", "NEO4J_USER", "NEO4J_PASSWORD", "NEO4J_DATABASE")
        return dict(zip(names, self.login.values(), strict=True))

    def kill(self) -> None:
        """End the server at once (SIGKILL)."""
        self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = 30.0) -> None:
        """Shut the server down; kill it if that takes longer than ``seconds``."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def embedded_bolt(
    directory: str | os.PathLike[str],
    password: str | None = None,
    port: int = 0,
    *,
    database: str = "torchcell",
    heap: str = "1g",
    seconds: float = 120.0,
) -> Iterator[BoltServer]:
    """Start an embedded server on the databases in ``directory``; stop it at the end of the ``with`` block.

    Args:
        directory: Where databases and ``server.log`` are kept; made if missing, opened again if not.
        password: Password of the user ``root``, at least 8 characters. The server remembers the first one a
            directory was opened with. If ``None``, one is drawn and kept in ``directory/password``, readable by you
            only.
        port: TCP port on the loopback interface; 0 takes a free one.
        database: Database to make unless it is there.
        heap: Java heap.
        seconds: How long the server may take to start.

    Raises:
        SettingError: If ``arcadedb-embedded`` is not installed, or the password is too short.
        SourceUnavailableError: If the server does not start; the message ends with its log.

    Example:
        >>> with tc.sources.embedded_bolt("database") as server:  # doctest: +SKIP
        ...     tc.sources.load_experiments(server.uri, rows)
    """
    if importlib.util.find_spec("arcadedb_embedded") is None:
        raise SettingError(
            "the embedded Bolt server needs the package arcadedb-embedded",
            fix=f"{install_line('graphdb')}, or set NEO4J_URI to a server of your own",
        )
    where = local_path(directory, "directory")
    make_dirs_durable(where)
    if password is None:
        kept = where / "password"
        with contextlib.suppress(FileExistsError):
            kept.touch(0o600, exist_ok=False)
            kept.write_text(secrets.token_urlsafe(18), encoding="ascii")
        password = kept.read_text(encoding="ascii").strip()
    if len(password) < _MIN_PASSWORD:
        raise SettingError(f"the server takes passwords of {_MIN_PASSWORD} characters or more")
    server = _started(where, password, port, database, heap, seconds)
    try:
        yield server
    finally:
        server.stop()


def _started(where: Path, password: str, port: int, database: str, heap: str, seconds: float) -> BoltServer:
    """Start the child; another free port is tried if somebody took ours in between."""
    for _ in range(1 if port else _TRIES):
        bolt, http = port or _free_port(), _free_port()
        process = subprocess.Popen(
            [sys.executable, "-m", "torchcell_cache.sources.neo4j.bolt"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=where,
            env={
                **os.environ,
                "ARCADEDB_JVM_ARGS": f"{os.environ.get('ARCADEDB_JVM_ARGS', '')} -Xmx{heap}",
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            start_new_session=True,  # Ctrl-C in the terminal is the client's to answer
        )
        server = BoltServer(f"bolt://127.0.0.1:{bolt}", _USERNAME, password, database, process)
        order = {"password": password, "bolt": bolt, "http": http, "database": database}
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        if _says_ready(process, seconds):
            return server
        server.kill()
        server.stop()
    log = "(no log)"
    with contextlib.suppress(OSError):
        log = "\n".join((where / "server.log").read_text(errors="replace").splitlines()[-8:])
    raise SourceUnavailableError(
        f"the embedded server in {where} did not start:\n{log}",
        path=where,
        fix="look into server.log; another server may have this directory open",
    )


def _says_ready(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the child's first and only line arrives in time."""
    assert process.stdout is not None
    waiting = select.poll()  # select() knows no descriptor above 1,023
    waiting.register(process.stdout, select.POLLIN)
    return bool(waiting.poll(seconds * 1e3)) and process.stdout.readline() == b"ready\n"


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _serve() -> None:
    """The child: one JSON line in, ``ready`` out, then serve until standard input closes."""
    order: dict[str, Any] = json.loads(sys.stdin.readline())
    answer = os.dup(1)
    log = os.open("server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import arcadedb_embedded

    settings = {"server_plugins": _PLUGIN, "bolt_port": order["bolt"], "http_port": order["http"]}
    server = arcadedb_embedded.create_server(".", order["password"], settings)
    server.start()
    server.create_database(order["database"])
    os.write(answer, b"ready\n")
    os.close(answer)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    with contextlib.suppress(Exception):
        server.stop()
    # Not sys.exit: the Java virtual machine and Python's finalisation do not agree on an order.
    os._exit(0)


def main() -> None:
    """Run a server by hand: ``python -m torchcell_cache.sources.neo4j.bolt directory [database]``; Ctrl-C stops it."""
    if len(sys.argv) == 1:
        _serve()
        return
    database, password = [*sys.argv[2:], "torchcell"][0], os.environ.get("NEO4J_PASSWORD")
    port = int(os.environ.get("PORT", "7687"))
    with embedded_bolt(sys.argv[1], password, port, database=database) as server:
        origin = "NEO4J_PASSWORD" if password else f"{sys.argv[1]}/password"
        print(f"{server.uri} user {server.username}, password from {origin}; Ctrl-C stops", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while server.process.poll() is None:
                time.sleep(0.5)


if __name__ == "__main__":
    main()
