"""``StreamingCacheDataset``: from shard to shard through a shuffle buffer, for data that does not fit in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Unpack

from torch.utils.data import IterableDataset, get_worker_info
from torch_geometric.loader.dataloader import Collater

from torchcell_cache.batch import SharedGraphBatch
from torchcell_cache.core.checks import function_or_none, refuse_unknown, whole_number
from torchcell_cache.core.samples import Sample
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.data.loader import CacheLoader
from torchcell_cache.data.reading import Collated, StoreReader, mark_padding
from torchcell_cache.data.samplers.base import Common
from torchcell_cache.data.samplers.ranges import StreamPlan
from torchcell_cache.data.samplers.shard_order import ShardLayout, ShuffleQuality, shuffle_quality
from torchcell_cache.data.samplers.shards import StreamSampler
from torchcell_cache.data.source_reader import SourceReader, WindowReader
from torchcell_cache.data.view import store_view
from torchcell_cache.errors import SettingError

_AT_ONCE = 16
_SHUFFLING = ("batch_size", "shuffle", "chunk_size", "shuffle_buffer_size", *Common.__annotations__)
_LOADER = (
    *("num_workers", "collate_fn", "expand", "drop_removed", "follow_batch", "exclude_keys", "device"),
    "prefetch_factor",
    *("pin_memory", "persistent_workers", "multiprocessing_context", "timeout", "worker_init_fn"),
)


class StreamingCacheDataset(IterableDataset[Any]):
    """Samples or batches of a store in one pass from shard to shard, shuffled in windows of bounded size.

    An epoch's order is a function of (seed, epoch): shards in a drawn order, within a shard its chunks of ``chunk_size``
    consecutive samples in a drawn order, and every ``shuffle_buffer_size`` samples of that row permuted. Every rank takes
    a stretch of that order and every worker of the rank a stretch of that one: nobody reads another's shards except
    where a cut falls, ranks have equally many steps, and a run goes on in the middle of an epoch on any number of ranks
    and workers.

    Three ways to iterate: :meth:`batches` (a ``CacheLoader``: workers, device, resuming; the usual way), the dataset
    itself (``SharedGraphBatch`` with ``batch_size``, single samples without), and torch's ``DataLoader``
    (``batch_size=None`` there if it is given here). In torch's loader call :meth:`set_epoch` before each epoch.

    Args:
        dataset: A ``PreprocessedDataset``, a view or a ``Subset`` of one, or the root of a store.
        batch_size: Samples per batch and rank; ``None`` yields single samples.
        shuffle: Whether to permute, anew each epoch; without it the order is the dataset's, shard by shard.
        chunk_size: Consecutive samples that stay together until the buffer takes them apart.
        shuffle_buffer_size: Samples permuted together. Larger is closer to a full shuffle (:meth:`shuffle_quality`) and
            keeps more of the store mapped.
        common: ``seed``, ``drop_last``, ``rank``, ``world_size``, ``uneven`` of :class:`CacheSampler`; single samples carry
            no mark of padding.

    Raises:
        SettingError: If an argument is unknown or wrong, or a rank would get no batch, or an empty one.

    Example:
        >>> sum(len(batch) for batch in tc.StreamingCacheDataset(ds, 4).batches())
        12
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = None,
        *,
        shuffle: bool = True,
        chunk_size: int = 64,
        shuffle_buffer_size: int = 8192,
        **common: Unpack[Common],
    ) -> None:
        refuse_unknown("StreamingCacheDataset", set(common) - set(_SHUFFLING), ["dataset", *_SHUFFLING])
        self._source = dataset if isinstance(dataset, SourceReader) else None
        if self._source is not None:
            self.dataset = self._source.source
            layout = ShardLayout.from_runs(len(self.dataset), self._source.run_size)
        else:
            self.dataset = PreprocessedDataset(dataset) if isinstance(dataset, str | os.PathLike) else dataset
            self._view = store_view(self.dataset, "StreamingCacheDataset needs the shards of")
            layout = ShardLayout.from_view(self._view)
        size = 1 if batch_size is None else whole_number("batch_size", batch_size, 1)
        self.batch_size = None if batch_size is None else size
        buffer = whole_number("shuffle_buffer_size", shuffle_buffer_size, 1)
        self.sampler = StreamSampler(self.dataset, layout, size, shuffle, chunk_size, buffer, **common)

    @classmethod
    def from_source(
        cls,
        source: Any,
        processor: Any = None,
        batch_size: int | None = None,
        *,
        shuffle: bool = True,
        chunk_size: int = 64,
        shuffle_buffer_size: int = 1024,
        run_size: int = 4096,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        **common: Unpack[Common],
    ) -> StreamingCacheDataset:
        """The same stream straight from a source, processed on the way, nothing stored: for one pass.

        The source is read in runs: a window's samples are fetched in the source's own order, held in memory, and
        processed when they are handed out. Batches are PyG's, with the base graph in every sample; from the second pass
        on a store is cheaper.

        Args:
            source: What ``build`` takes.
            processor: What ``build`` takes.
            batch_size: See :class:`StreamingCacheDataset`; likewise ``shuffle`` and ``chunk_size``.
            shuffle: See there.
            chunk_size: See there.
            shuffle_buffer_size: Samples of the source held in memory at most, per worker.
            run_size: Consecutive samples that are read before the next run begins, as a shard's would be.
            collate_fn: Makes a batch of a list of graphs; PyG's by default.
            common: See there.

        Raises:
            SettingError: If an argument is unknown or wrong, or a rank would get no batch, or an empty one.
            SampleError: On iterating, if the source or the processor raises.
        """
        valid = ["source", "processor", *_SHUFFLING, "run_size", "collate_fn"]
        refuse_unknown("StreamingCacheDataset.from_source", set(common) - set(_SHUFFLING), valid)
        collate = function_or_none("collate_fn", collate_fn) or _collated
        run_size = whole_number("run_size", run_size, 1)
        reader = SourceReader(source, processor, None if batch_size is None else collate, run_size)
        sizes = {"chunk_size": chunk_size, "shuffle_buffer_size": shuffle_buffer_size}
        return cls(reader, batch_size, shuffle=shuffle, **sizes, **common)

    # Iterating

    def batches(self, num_workers: int = 0, **settings: Any) -> CacheLoader:
        """A ``CacheLoader`` over this stream: batches through workers, onto a device, resumable.

        The loader and this stream have one state. Worker ``k`` reads only its own stretch of the rank's samples.

        Args:
            num_workers: Reading processes, the same number on all ranks; 0 reads in this one.
            settings: What else ``CacheLoader`` takes for reading (``device``, ``expand``, ``collate_fn``, ...).

        Raises:
            SettingError: If there is no store or no ``batch_size``, or a setting is unknown.
        """
        refuse_unknown("StreamingCacheDataset.batches", set(settings) - set(_LOADER), [*_LOADER])
        if self._source is not None:
            raise SettingError(
                "batches() reads a store, and this stream comes straight from a source",
                fix="iterate the stream itself, or torch's DataLoader(stream, batch_size=None, num_workers=...)",
            )
        if self.batch_size is None:
            raise SettingError(
                "batches() needs a batch size", fix="StreamingCacheDataset(dataset, batch_size=256)"
            )
        self.sampler.streams = max(1, whole_number("num_workers", num_workers, 0))
        return CacheLoader(self.dataset, num_workers=num_workers, sampler=self.sampler, **settings)

    def __iter__(self) -> Iterator[Any]:
        if self._source is None:  # its transform may have been set since
            self._view = store_view(self.dataset, "StreamingCacheDataset needs the shards of")
        worker = get_worker_info()
        self.sampler.streams, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        plan = self.sampler.start_epoch()
        assert isinstance(plan, StreamPlan)
        for step, item in self._read(plan, number):
            self.sampler.note_step(plan, step)
            yield item
        self.sampler.end_epoch(plan)

    def _read(self, plan: StreamPlan, number: int) -> Iterator[tuple[int, Any]]:
        """Steps of a worker stream and what they give."""
        single, source = self.batch_size is None, self._source
        make: Any = SharedGraphBatch.read
        if source is None and (single or self._view.transform is not None):
            collate = None if single else Collater([])
            make = Collated(self._view.transform, collate, pairing=self._view.pairing)
        if source is None:
            reader: Any = StoreReader(self._view.generation, make, self.sampler.shards_at_once)
        else:
            reader = WindowReader(source, plan, number)
        try:
            for steps, start, stop in plan.mine.stretches(number, _AT_ONCE if single else 1):
                indices, padding = plan.take(start, stop)
                found = reader[indices if source is not None else self._view._rows(indices, plan.epoch)]
                found = self._view._batch(found) if isinstance(found, SharedGraphBatch) else found
                if single:
                    yield from zip(steps, found, strict=True)
                    continue
                if self.sampler.uneven == "pad":
                    mark_padding(found, padding, None if source is not None else self._view.pairing)
                yield steps[0], found
            if source is not None:
                source.check()
        finally:
            reader.close()

    def __len__(self) -> int:
        """Batches, or single samples without ``batch_size``, of a whole epoch on this rank."""
        return len(self.sampler)

    # Epochs and resuming

    @property
    def epoch(self) -> int:
        """The epoch that runs, or the next one."""
        return self.sampler.epoch

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch; a resumed epoch keeps its place if it is the same one."""
        self.sampler.set_epoch(epoch)

    def state_dict(self, steps: int | None = None, num_workers: int = 0) -> dict[str, Any]:
        """Where the run stands, as JSON values, the same on every rank.

        Args:
            steps: Batches taken from this epoch by way of torch's ``DataLoader``, whose workers read ahead and cannot
                be asked; not needed otherwise.
            num_workers: That loader's number of workers.

        Raises:
            SettingError: If torch's loader makes the batches in several workers: which samples it took is not known.
        """
        if steps is None:
            return self.sampler.state_dict()
        if self.batch_size is None and num_workers > 1:
            raise SettingError(
                "the state of single samples in several workers depends on how torch's loader batches them",
                fix="give the stream its batch_size, and DataLoader(stream, batch_size=None, num_workers=...)",
            )
        self.sampler.streams = max(1, whole_number("num_workers", num_workers, 0))
        plan = self.sampler._plan_of(self.epoch, self.sampler._place, 0)
        place = plan.place(whole_number("steps", steps, 0))
        return {**self.sampler.state_dict(), self.sampler.place_name: place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken, whatever the number of ranks, workers and the batch size now.

        Raises:
            SettingError: If the state is of another dataset or kind of order.
        """
        self.sampler.load_state_dict(state)

    def shuffle_quality(self, epoch: int = 0, batch_size: int | None = None) -> ShuffleQuality:
        """How far an epoch's order is from the dataset's and from a full shuffle; reads nothing.

        Args:
            epoch: Which epoch.
            batch_size: Of what is said about batches; the stream's own by default, else 256.
        """
        order = self.sampler.order(whole_number("epoch", epoch, 0))
        size = (self.batch_size or 256) if batch_size is None else whole_number("batch_size", batch_size, 1)
        return shuffle_quality(order.indices(0, len(order)), size)

    def __repr__(self) -> str:
        return f"StreamingCacheDataset({self.dataset!r}, batch_size={self.batch_size})"


def _collated(graphs: list[Any]) -> Any:
    if any(isinstance(graph, Sample) for graph in graphs):
        raise SettingError(
            "without a processor the samples of a table are no graphs, which a batch is made of",
            fix="from_source(source, processor=tc.LazySubgraphRepresentation(), ...), or collate_fn= of your own",
        )
    return Collater([])(graphs)
