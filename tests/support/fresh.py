"""Python programs in processes of their own, quickly: forked from one process that has loaded torch and what reads stores.

``run([sys.executable, ...])`` is ``subprocess.run([sys.executable, ...])`` with captured output, without the seconds that
importing torch takes: own hash seed, arguments, environment, working directory, ``sys.path`` and streams; it ends as Python
does. Tests of what is imported, and of what Python does when it starts, start Python itself.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import pickle
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import memory

LOADED = ("torch", "torch_geometric.data", "torch_geometric.loader", "lmdb", "xxhash")
CALL = "import pickle, sys; function, given = pickle.loads(bytes.fromhex(sys.argv[1])); function(*given)"
SEED = "5" if os.environ.get("PYTHONHASHSEED") != "5" else "6"
_servers: list[tuple[subprocess.Popen[bytes], str]] = []  # at most one


class Process:
    """A program that runs; as much of ``subprocess.Popen`` as is needed."""

    def __init__(
        self,
        command: Sequence[object],
        streams: Sequence[int] = (0, 1, 2),
        cwd: object = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        assert command[0] == sys.executable
        words, place = list(map(str, command[1:])), str(cwd or Path.cwd())
        request = json.dumps([words, place, dict(os.environ if env is None else env)]).encode()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(_server())
        socket.send_fds(self._socket, [struct.pack("<I", len(request))], list(streams))
        self._socket.sendall(request)
        self.pid = _number(self._socket)
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._socket.settimeout(timeout)
            try:
                self.returncode = _number(self._socket)
            except TimeoutError:
                raise subprocess.TimeoutExpired("python", timeout or 0) from None
            self._socket.close()
        return self.returncode

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._socket], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once and forget it."""
        self.send_signal(signal.SIGKILL)
        self._socket.close()


def run(
    command: Sequence[object],
    *,
    input: bytes | str = b"",
    cwd: object = None,
    env: Mapping[str, str] | None = None,
    text: bool = False,
    capture_output: bool = True,
    timeout: float = 120,
    check: bool = False,
) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end: its exit code and what it printed."""
    assert capture_output
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(input.encode() if isinstance(input, str) else input)
        files[0].seek(0)
        process = Process(command, [file.fileno() for file in files], cwd, env)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        printed = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0) for file in files[1:]]
    done = subprocess.CompletedProcess(
        command, code, *([part.decode() for part in printed] if text else printed)
    )
    if check:
        done.check_returncode()
    return done


def call(function: Callable[..., object], *arguments: object, **environment: str) -> Process:
    """Start a function of a module that can be imported there too."""
    told = pickle.dumps((function, arguments)).hex()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return Process([sys.executable, "-c", CALL, told], env=environment)


def _server() -> str:
    """Where the server listens; it ends when this process does."""
    if not _servers:
        path = tempfile.mkdtemp(prefix="fresh-") + "/socket"
        environment = {**os.environ, "PYTHONHASHSEED": SEED, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        server = subprocess.Popen(
            [sys.executable, __file__, path],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        _servers.append((server, path))
        atexit.register(server.communicate)  # an end of its input is the end of it
    return _servers[0][1]


def _number(connection: socket.socket) -> int:
    data = connection.recv(4, socket.MSG_WAITALL)
    assert len(data) == 4, "the process that forks has died"
    return int(struct.unpack("<i", data)[0])


def _serve(path: str) -> tuple[list[str], str, dict[str, str]]:
    """Fork for every request; returns in the new process only, with what it is to do."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    memory.settle()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # is for the tests
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.write(1, b"ready\n")
    while 0 not in select.select([0, listener], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            size, streams, _, _ = socket.recv_fds(connection, 4, 3)
            request = connection.recv(struct.unpack("<I", size)[0], socket.MSG_WAITALL)
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for number, stream in enumerate(streams):
                    os.dup2(stream, number)
                    os.close(stream)
                connection.close()
                return json.loads(request)  # type: ignore[no-any-return]
            with contextlib.suppress(OSError):  # nobody waits any more
                connection.sendall(struct.pack("<i", child))
                _, status = os.waitpid(child, 0)
                connection.sendall(struct.pack("<i", os.waitstatus_to_exitcode(status)))
            os._exit(0)
        connection.close()
    shutil.rmtree(Path(path).parent)
    os._exit(0)


def _become(words: list[str], cwd: str, environment: dict[str, str]) -> None:
    """What Python does when it starts."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.warnoptions[:] = filter(None, environment.get("PYTHONWARNINGS", "").split(","))
    while words[0] in ("-W", "-B"):
        sys.dont_write_bytecode |= words[0] == "-B"
        sys.warnoptions += words[1:2] if words[0] == "-W" else []
        del words[: 1 + (words[0] == "-W")]
    for option in sys.warnoptions:
        warnings._setoption(option)  # type: ignore[attr-defined]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    kind, *rest = words
    first = "" if kind == "-c" else cwd if kind == "-m" else str(Path(kind).resolve().parent)
    places = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[0:1] = [first, *map(str, map(Path.absolute, map(Path, places)))]
    importlib.import_module("numpy").random.seed()
    if kind == "-m":
        sys.argv = rest
        importlib.import_module("runpy")._run_module_as_main(rest[0])
    else:
        sys.argv = [kind, *rest[1:]] if kind == "-c" else words
        code = rest[0] if kind == "-c" else Path(kind).read_bytes()
        if kind != "-c":
            main.__file__ = kind
        name = "<string>" if kind == "-c" else kind
        exec(compile(code, name, "exec", dont_inherit=True), vars(main))


def _end(code: int) -> None:
    """What Python does when it ends, but for taking apart every module: that copies all the memory that was shared."""
    importlib.import_module("threading")._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 255)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in LOADED:
            importlib.import_module(name)
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
        cache = importlib.import_module("torchcell_cache")
        for name in ("PreprocessedDataset", "CacheLoader"):  # with all that reads, and nothing that builds
            getattr(cache, name)
        del sys.path[0]
    try:
        _become(*_serve(sys.argv[1]))
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            raise
        _end(end.code or 0)
    _end(0)
