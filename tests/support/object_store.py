"""A real S3 server on loopback, and a proxy in front of it that does what networks and servers do on bad days."""

import atexit
import functools
import http.client
import importlib.util
import itertools
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from loading import build, make_source
from services import require

import torchcell_cache as tc

_SERVER = """
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
_BUCKETS = itertools.count()
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST0001",
    "AWS_SECRET_ACCESS_KEY": "not-a-real-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@functools.cache
def server_port() -> int:
    """Port of the server, started when first needed; it ends with this process."""
    present = all(importlib.util.find_spec(name) for name in ("moto", "s3fs", "flask"))
    require(present, "needs moto[server] and s3fs")
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    owner = os.getpid()
    atexit.register(lambda: process.kill() if os.getpid() == owner else None)
    assert process.stdout is not None
    return int(process.stdout.readline())


@pytest.fixture
def s3(monkeypatch):
    """``(url, storage_options)`` of a fresh bucket."""
    port = server_port()
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    options = {"endpoint_url": f"http://127.0.0.1:{port}"}
    bucket = f"lab-{next(_BUCKETS)}-{os.getpid()}"
    system(options).mkdir(bucket)
    return f"s3://{bucket}/stores/ko", options


@functools.cache
def _system(endpoint: str):
    import fsspec

    return fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False, endpoint_url=endpoint)


def system(options):
    """A file system to look at the bucket with, independent of the package's own."""
    return _system(options["endpoint_url"])


class Fault:
    """What is to go wrong with the next requests.

    Args:
        kind: ``drop`` the connection, ``hang`` for a minute, ``truncate`` the body, ``flip`` a bit, or an S3 error code.
        times: How many requests it meets.
        where: Part of the path of those it meets.
        method: Their method.
    """

    def __init__(self, kind: str, times: float = 1, where: str = "", method: str = "GET") -> None:
        self.kind, self.left, self.where, self.method = kind, times, where, method
        self.met = 0


class Proxy:
    """Forwards requests to the server; ``faults`` go wrong, ``requests`` says what was asked."""

    def __init__(self, port: int) -> None:
        self.port, self.faults, self.requests = port, [], []
        self.pause = 0.0
        self.lock = threading.Lock()

    def fault_of(self, method: str, path: str):
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.left > 0 and fault.method == method and fault.where in path:
                    fault.left -= 1
                    fault.met += 1
                    return fault
        return None

    def fetched(self, name: str) -> int:
        """How many requests read an object."""
        return sum(method == "GET" and path.split("?")[0].endswith(name) for method, path in self.requests)


_STATUS = {"ExpiredToken": 403, "AccessDenied": 403, "SlowDown": 503, "InternalError": 500}


@functools.cache
def proxy_to(port: int) -> tuple[Proxy, str]:
    """A proxy, and the endpoint that leads to it; one for all tests of a process."""
    proxy = Proxy(port)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args) -> None:
            pass

        def forward(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = self.chunks()
            time.sleep(proxy.pause)
            copies = "x-amz-copy-source" in self.headers
            fault = proxy.fault_of("COPY" if copies else self.command, self.path)
            if fault is not None and fault.kind == "drop":
                self.close_connection = True
                self.connection.close()
                return
            if fault is not None and fault.kind == "hang":
                time.sleep(60)
            if fault is not None and fault.kind in _STATUS:
                text = f"<Error><Code>{fault.kind}</Code><Message>said the test</Message></Error>".encode()
                self.answer(_STATUS[fault.kind], {"Content-Type": "application/xml"}, text, len(text))
                return
            server = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
            try:
                headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
                if body:
                    headers["Content-Length"] = str(len(body))
                server.request(self.command, self.path, body or None, headers)
                response = server.getresponse()
                data = response.read()
            finally:
                server.close()
            sent = bytearray(data)
            if fault is not None and fault.kind == "flip":
                sent[len(sent) // 2] ^= 4
            if fault is not None and fault.kind == "truncate":
                del sent[len(sent) // 2 :]
                self.close_connection = True
            size = len(data) if self.command != "HEAD" else response.getheader("Content-Length", "0")
            self.answer(response.status, dict(response.getheaders()), bytes(sent), size)

        def chunks(self) -> bytes:
            out = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                out += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return out

        def answer(self, status, headers, body, size) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()
            if self.close_connection:
                self.connection.close()

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward  # noqa: N815

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, client_address) -> None:
            pass  # clients that hang up are part of the game

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return proxy, f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def unreliable(s3):
    """``(url, options through the proxy, proxy, options that lead straight to the server)``."""
    url, options = s3
    proxy, endpoint = proxy_to(server_port())
    proxy.faults, proxy.requests, proxy.pause = [], [], 0.0
    yield url, {"endpoint_url": endpoint}, proxy, options
    proxy.faults = []


@pytest.fixture
def store(tmp_path: Path) -> Path:
    build(tmp_path / "store", make_source(), storage="delta")
    return tmp_path / "store"


def push(root, url, options=None, **settings):
    return tc.push(root, url, storage_options=options, progress=False, **settings)


def pull(url, root, options=None, **settings):
    return tc.pull(url, root, storage_options=options, progress=False, **settings)
