"""A process may fork (DataLoader workers do) while another of its threads reads."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
from graphs import cell_graph, random_case

import torchcell_cache as tc


def test_a_child_forked_in_the_middle_of_a_read_can_read(tmp_path: Path) -> None:
    source = random_case(cell_graph(), num_samples=23).source()
    ds = tc.build(
        tmp_path,
        source=source,
        processor=tc.LazySubgraphRepresentation(),
        storage="delta",
        shard_size=6,
        progress=False,
    )
    stop = threading.Event()

    def reads() -> None:
        while not stop.is_set():
            ds.generation.read(np.arange(23))

    thread = threading.Thread(target=reads)
    thread.start()
    hung = failed = 0
    try:
        for _ in range(15):
            child = os.fork()
            if child == 0:
                good = len(ds.generation.read(np.arange(23))) == 23
                os._exit(0 if good else 1)
            deadline = time.monotonic() + 5
            pid, status = 0, 0
            while pid == 0 and time.monotonic() < deadline:
                pid, status = os.waitpid(child, os.WNOHANG)
                time.sleep(0.002)
            if pid == 0:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                hung += 1
            failed += bool(status)
    finally:
        stop.set()
        thread.join()
    assert (hung, failed) == (0, 0)
