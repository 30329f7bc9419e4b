"""The same function in several fresh processes at once, and what each one reports."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Barrier
from typing import Any

from experiments.benchmarks.harness import single_thread

TIMEOUT = 600


def in_processes(count: int, function: Any, *arguments: Any) -> list[Any]:
    """Calls ``function(barrier, *arguments)`` in ``count`` new processes; raises if one of them fails."""
    spawn = multiprocessing.get_context("spawn")
    barrier, queue = spawn.Barrier(count), spawn.Queue()
    processes = [
        spawn.Process(target=_call, args=(barrier, queue, function, arguments)) for _ in range(count)
    ]
    for process in processes:
        process.start()
    results = [queue.get(timeout=TIMEOUT) for _ in processes]
    for process in processes:
        process.join()
    for result in results:
        if isinstance(result, str):
            raise RuntimeError(f"measuring failed in its process: {result}")
    return results


def _call(barrier: Barrier, queue: Any, function: Any, arguments: tuple[Any, ...]) -> None:
    single_thread()
    try:
        queue.put(function(barrier, *arguments))
    except BaseException as error:
        barrier.abort()
        queue.put(repr(error))
        raise
