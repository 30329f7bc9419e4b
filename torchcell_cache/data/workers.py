"""Reading in worker processes, by torch's own machinery: it knows how to start, watch and stop them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from torchcell_cache.core.ragged import Int64Array


class Job(NamedTuple):
    """One batch to read.

    Attributes:
        step: Its number in the epoch.
        positions: Store positions, ``[n] int64``.
        padding: Which of them only fill up the step, ``[n] bool``.
    """

    step: int
    positions: Int64Array
    padding: npt.NDArray[np.bool_]


class _Feed:
    """What torch's loader takes as a sampler: positions of the epoch's jobs, in the order they are sent."""

    def __init__(self) -> None:
        self.jobs: Iterable[Job] = ()
        self.sent: deque[Job] = deque()

    def __iter__(self) -> Iterator[Int64Array]:
        sent = self.sent
        for job in self.jobs:
            sent.append(job)
            yield job.positions


class WorkerProcesses:
    """Runs a reader in worker processes.

    Args:
        reader: ``reader[positions]`` reads one batch; sent to the workers once.
        num_workers: How many.
        prefetch_factor: Batches each worker reads ahead.
        persistent: Keep them from epoch to epoch.
        context: Start method, multiprocessing context or ``None``.
        timeout: Seconds to wait for a batch; 0 waits as long as the worker lives.
        init: Called in each worker with its number.
    """

    def __init__(
        self,
        reader: Any,
        num_workers: int,
        *,
        prefetch_factor: int,
        persistent: bool,
        context: Any,
        timeout: float,
        init: Callable[[int], None] | None,
    ) -> None:
        self._feed, self._generator = _Feed(), torch.Generator()
        self._loader: DataLoader[Any] = DataLoader(
            reader,
            batch_size=None,
            sampler=self._feed,
            num_workers=num_workers,
            collate_fn=_same,
            timeout=timeout,
            worker_init_fn=init,
            multiprocessing_context=context,
            generator=self._generator,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent,
        )

    def read(self, jobs: Iterable[Job], seed: int) -> Iterator[tuple[Job, Any]]:
        """What the reader makes of each job, in order.

        Args:
            jobs: The epoch's jobs; taken a few ahead.
            seed: Of the workers' random numbers; the caller's own generator stays untouched.

        Raises:
            RuntimeError: If a worker dies; whatever the reader raises is raised here too.
        """
        sent: deque[Job] = deque()
        self._feed.jobs, self._feed.sent = jobs, sent
        self._generator.manual_seed(seed)
        try:
            for result in self._loader:
                yield sent.popleft(), result
        except RuntimeError as error:
            if "DataLoader worker" in str(error):
                error.add_note(
                    "a worker that dies without an error of its own was mostly killed for memory: fewer workers, a "
                    "smaller prefetch_factor, or num_workers=0"
                )
            raise


def _same(value: Any) -> Any:
    return value
