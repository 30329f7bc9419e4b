"""Google's and Azure's object stores as their emulators serve them, each behind the proxy of ``object_store``."""

import atexit
import contextlib
import functools
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
from object_store import proxy_to
from services import require

ACCOUNT = "devstoreaccount1"
PUBLIC_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The emulator's own account, in Microsoft's documentation of Azurite."""
_RUNNING: list[subprocess.Popen] = []


@functools.cache
def google_port() -> int:
    """Port of Google's emulator, which ends with this process."""
    found = importlib.util.find_spec("gcp_storage_emulator") and importlib.util.find_spec("gcsfs")
    require(found, "needs gcsfs and gcp-storage-emulator")
    program = f"{Path(sys.executable).parent}/gcp-storage-emulator"
    return _started(
        [program, "start", "--in-memory", "--host", "127.0.0.1", "--default-bucket", "lab", "--port"]
    )


@functools.cache
def azure_port() -> int:
    """Port of Azurite, fetched by npm where there is none; it ends with this process."""
    require(importlib.util.find_spec("adlfs"), "needs adlfs")
    program = shutil.which("azurite-blob") or _fetched_azurite()
    return _started([program, "--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--blobPort"])


def _fetched_azurite() -> str:
    folder = Path(tempfile.gettempdir()) / f"azurite-of-{os.getuid()}"
    program = folder / "node_modules/.bin/azurite-blob"
    if not program.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("needs azurite-blob, or npm to fetch it")
        command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), "azurite"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, timeout=120)
        if not program.exists():
            pytest.skip("npm could not fetch azurite")
    return str(program)


def _started(command: list[str]) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, str(port)], **quiet)
    _RUNNING.append(process)
    owner = os.getpid()
    atexit.register(lambda: process.kill() if os.getpid() == owner else None)
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return port
        assert process.poll() is None, f"{command[0]} ended at once"
        time.sleep(0.05)
    raise AssertionError(f"{command[0]} does not answer")


class Cloud:
    """One of the two: ``url`` of a store in a bucket of its own, options for the package, the proxy in between."""

    def __init__(self, name: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name, self.url, self.monkeypatch = name, f"{name}://{bucket}/stores/ko", monkeypatch
        self.port = google_port() if name == "gs" else azure_port()
        self.proxy, self.endpoint = proxy_to(self.port)
        self.proxy.faults, self.proxy.requests, self.proxy.pause = [], [], 0.0
        if name == "gs":
            monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks over gRPC and TLS
            self.options = {"endpoint_url": self.endpoint, "token": "anon"}
            body = f'{{"name": "{bucket}"}}'.encode()
            headers = {"Content-Type": "application/json"}
            address = f"http://127.0.0.1:{self.port}/storage/v1/b?project=lab"
            urllib.request.urlopen(urllib.request.Request(address, body, headers)).close()
        else:
            self.options = {}
            self.log_in(PUBLIC_KEY)
            self.system().mkdir(bucket)

    def log_in(self, key: str) -> None:
        """Credentials as a user gives them to Azure's library: in the environment."""
        text = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={self.endpoint}/{ACCOUNT};"
        self.monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)

    def system(self):
        """A file system to look at the bucket with, independent of the package's own."""
        import fsspec

        return fsspec.filesystem(
            self.name, skip_instance_cache=True, use_listings_cache=False, **self.options
        )
