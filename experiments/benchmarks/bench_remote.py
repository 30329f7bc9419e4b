"""From a bucket to batches: a server on loopback, an empty local disk, two epochs. Ours, LitData and MosaicML Streaming.

Alone: ``python -m experiments.benchmarks.cache_bench --sections remote``. The server is moto's S3, in a process of its own, the
same for everybody; each way reads in a fresh process into an empty directory. Needs moto[server], s3fs and boto3.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from experiments.benchmarks import ours
from experiments.benchmarks.context import Context
from experiments.benchmarks.peers.litdata_peer import LitDataFlat
from experiments.benchmarks.peers.mds_peer import MosaicMds, _import_base
from experiments.benchmarks.processes import in_processes
from experiments.benchmarks.records import collate_bytes
from experiments.benchmarks.report import OURS, PEER

SIZE, BUFFER = 256, 8192
# Shards of a few MB, as they are in stores of full size: a small run should not have a single one.
SHARD_SIZE = 1024
_NEEDED = ("moto", "s3fs", "boto3", "flask")
_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
Seconds = tuple[float, float, int]


@contextmanager
def s3_server() -> Iterator[str]:
    """Endpoint of a server that ends with the block; credentials that it takes are in the environment."""
    before = {name: os.environ.get(name) for name in (*_ENVIRONMENT, "S3_ENDPOINT_URL")}
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"
            os.environ.update(_ENVIRONMENT, S3_ENDPOINT_URL=endpoint)
            yield endpoint
        finally:
            process.kill()
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def run(ctx: Context) -> None:
    """Adds the rows; needs the peers' files of the build section."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        ctx.report.skipped["remote"] = f"{', '.join(missing)} not installed"
        print(f"left out: remote: {', '.join(missing)} not installed", flush=True)
        return
    with s3_server() as endpoint:
        _run(ctx, endpoint)


def _run(ctx: Context, endpoint: str) -> None:
    import s3fs

    system = s3fs.S3FileSystem(endpoint_url=endpoint)
    system.mkdir("benchmark")
    count = ctx.sizes.peers
    ways: dict[str, tuple[Any, tuple[Any, ...], str, str]] = {}
    work = f"a store of {count:,} samples into a bucket"
    pushes = ctx.report.row("remote_push", work, "s", None, "torchcell_cache `delta`")
    for storage in ("delta", "perturbation"):
        url = f"s3://benchmark/ours-{storage}"
        pushes.add(f"torchcell_cache `{storage}`", OURS, *_push(ctx, storage, url, endpoint))
        for name, kind in (("", "shuffle"), (", streaming", "stream")):
            note = "full shuffle" if kind == "shuffle" else f"shard by shard, buffer of {BUFFER:,}"
            note += ", base graph and index fetched too"
            if storage == "perturbation":
                note += ", batches come from columns: no shard is fetched"
            ways[f"torchcell_cache `{storage}`{name}"] = (_ours, (url, endpoint, kind), OURS, note)
    for peer in ctx.peers.values():
        for kind, read in ((LitDataFlat, _litdata), (MosaicMds, _mosaic)):
            if type(peer) is kind:
                url = f"s3://benchmark/{peer.root.name}"
                start = time.perf_counter()
                system.put(str(peer.root), url, recursive=True)
                pushes.add(peer.name, PEER, time.perf_counter() - start, "its files put by s3fs")
                note = "`StreamingDataset(shuffle=True)`, its own order"
                ways[peer.name] = (read, (url, endpoint), PEER, note)
    _epochs(ctx, ways, count)


def _push(ctx: Context, storage: str, url: str, endpoint: str) -> tuple[float, str]:
    root = ctx.root / f"ours-remote-{storage}"
    source = ours.make_source(ctx.workload, ctx.workload.samples.head(ctx.sizes.peers))
    ours.build_shards(root, source, storage, ctx.workers, SHARD_SIZE).close()
    start = time.perf_counter()
    ours.push(root, url, {"endpoint_url": endpoint})
    seconds = time.perf_counter() - start
    return seconds, f"{sum(p.stat().st_size for p in root.rglob('*') if p.is_file()) / 1e6:,.0f} MB"


def _epochs(ctx: Context, ways: dict[str, tuple[Any, tuple[Any, ...], str, str]], count: int) -> None:
    work = f"{count:,} samples in shuffled batches of {SIZE} out of a bucket, nothing on local disk"
    first = ctx.report.row("remote_first", f"{work}: first epoch, opening included", "/s")
    second = ctx.report.row("remote_second", "the same, second epoch", "/s")
    found: dict[str, list[Seconds]] = {name: [] for name in ways}
    failed: dict[str, str] = {}
    for turn in range(ctx.rounds):
        for name, (read, arguments, _, _) in ways.items():
            place = ctx.root / "remote-cache" / f"{turn}"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            try:
                found[name].append(in_processes(1, read, str(place), *arguments)[0])
            except Exception as error:  # a peer that cannot read from this server is named, not left out
                failed[name] = str(error).strip().splitlines()[-1][:120]
            shutil.rmtree(place, ignore_errors=True)
    for name, (_, _, role, note) in ways.items():
        if not found[name]:
            ctx.report.skipped[f"{name} (remote)"] = f"could not read from the local server: {failed[name]}"
            print(f"left out: {name}: {failed[name]}", flush=True)
            continue
        for row, which in ((first, 0), (second, 1)):
            row.add(name, role, statistics.median(s[2] / s[which] for s in found[name]), note)


def _two_epochs(begun: float, batches: Iterable[Any], size: Any) -> Seconds:
    """Seconds of the first epoch since ``begun``, of the second one, and samples of an epoch."""
    seconds, samples = [], 0
    for _ in range(2):
        samples = sum(size(batch) for batch in batches)
        seconds.append(time.perf_counter() - begun)
        begun = time.perf_counter()
    return seconds[0], seconds[1], samples


def _ours(_: Barrier, place: str, url: str, endpoint: str, kind: str) -> Seconds:
    ours.warm_imports()
    import s3fs

    assert s3fs
    begun = time.perf_counter()
    dataset = ours.open_remote(url, place, {"endpoint_url": endpoint})
    if kind == "stream":
        batches = ours.stream(dataset, SIZE, BUFFER).batches()
    else:
        batches = ours.loader(dataset, len(dataset), SIZE, 0)
    return _two_epochs(begun, batches, _packed)


def _packed(batch: Any) -> int:
    batch.pack()
    return SIZE


def _litdata(_: Barrier, place: str, url: str, endpoint: str) -> Seconds:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import downloader

    # Its downloads refuse servers without TLS, and have no setting for it.
    getattr(downloader, "_OBSTORE_CLIENT_OPTIONS", {})["allow_http"] = True
    begun = time.perf_counter()
    dataset = StreamingDataset(
        url, cache_dir=place, shuffle=True, drop_last=True, storage_options={"endpoint_url": endpoint}
    )
    loader = StreamingDataLoader(
        dataset, batch_size=SIZE, num_workers=0, collate_fn=collate_bytes, shuffle=True
    )
    return _two_epochs(begun, loader, lambda batch: SIZE)


class _MosaicBatches:
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        held: list[bytes] = []
        for item in self.dataset:
            held.append(item["record"])
            if len(held) == SIZE:
                yield collate_bytes(held)
                held = []


def _mosaic(_: Barrier, place: str, url: str, endpoint: str) -> Seconds:
    base = _import_base()
    begun = time.perf_counter()
    dataset = base.StreamingDataset(
        remote=url,
        local=str(Path(place) / "mds"),
        shuffle=True,
        shuffle_algo="py1e",
        shuffle_block_size=BUFFER,
        num_canonical_nodes=1,
        batch_size=SIZE,
    )
    return _two_epochs(begun, _MosaicBatches(dataset), lambda batch: SIZE)
