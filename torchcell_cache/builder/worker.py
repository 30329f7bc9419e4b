"""The loop of a build worker, and the numpy-only worker process of structured builds.

Started as ``python -m torchcell_cache.builder.worker <fd> <directory> <scratch>``: a fresh interpreter that never imports
torch and never re-imports the caller's script.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from torchcell_cache.builder.shards import PLAN_FILE, Report, ShardPlan, StructuredMaker, build_shard
from torchcell_cache.errors import CacheError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def serve(connection: Connection, build: Callable[[int, Report], None]) -> None:
    """Build the shards asked for over ``connection`` until it closes; messages are JSON, never pickles."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the parent decides; a shard in work is finished or dropped
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def report(count: int, size: int) -> None:
        connection.send_bytes(json.dumps({"samples": count, "bytes": size}).encode())

    parent = os.getppid()
    while True:
        try:
            while not connection.poll(0.25):
                if os.getppid() != parent:  # killed; a forked sibling may keep the pipe open
                    return
            request = connection.recv_bytes()
        except (EOFError, OSError):
            return
        if not request:
            return
        shard = int(request)
        try:
            build(shard, report)
            reply: dict[str, object] = {"done": shard}
        except Exception as error:
            reply = {
                "failed": shard,
                "type": type(error).__name__,
                "message": str(error),
                "code": error.code if isinstance(error, CacheError) else 1,
                "traceback": traceback.format_exc(),
            }
        try:
            connection.send_bytes(json.dumps(reply).encode())
        except (BrokenPipeError, OSError):
            return


def main(arguments: list[str]) -> None:
    """Entry point of the worker process."""
    descriptor, directory, scratch = int(arguments[0]), Path(arguments[1]), arguments[2]
    plan = ShardPlan.from_bytes((directory / PLAN_FILE).read_bytes())
    maker = StructuredMaker.open(directory, plan)
    where = Path(scratch) if scratch else None

    def build(shard: int, report: Report) -> None:
        build_shard(directory, plan, maker, shard, report, where)

    with Connection(descriptor) as connection:
        serve(connection, build)


if __name__ == "__main__":
    main(sys.argv[1:])
