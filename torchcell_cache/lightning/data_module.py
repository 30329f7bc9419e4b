"""``CacheDataModule``: a store as Lightning wants its data."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from torchcell_cache.core.checks import refuse_unknown, suggestion, whole_number
from torchcell_cache.core.urls import local_path
from torchcell_cache.data.api import build as build_store
from torchcell_cache.data.dataset import PreprocessedDataset
from torchcell_cache.data.loader import CacheLoader
from torchcell_cache.data.splits import Splits
from torchcell_cache.errors import SettingError
from torchcell_cache.lightning.callbacks import pl
from torchcell_cache.store.manifest import manifest_path

STAGES = ("train", "val", "test", "predict")


class CacheDataModule(pl.LightningDataModule):
    """A store as a data module: built if it is missing, split, loaded on every rank, resumed in mid-epoch.

    ``Trainer.fit`` builds a missing store in one process while the others wait (``prepare_data``). Each rank then opens it and
    gets its own part of one global order. Checkpoints of Lightning hold where the epoch stands, so that
    ``fit(ckpt_path=...)`` goes on in the middle of an epoch without repeating or leaving out a sample, on any number of ranks.

    Batches are :class:`~torchcell_cache.SharedGraphBatch`, or PyG's with ``expand=True``; log with ``batch_size=len(batch)``,
    which Lightning cannot guess. Several ranks need no ``DistributedSampler``. Evaluation sees each sample once on some
    rank; log with ``sync_dist=True``.

    Args:
        store: Root or address of a store, or an open dataset; or one for each part: ``{"train": ..., "val": ...}``.
        source: What a missing store is built from: a source, or a function that makes one, which is called only if there
            is no store. By part where ``store`` is.
        processor: Of that build.
        build: Its other arguments: ``storage``, ``num_workers``, ``shard_size`` and so on.
        splits: Which samples are train, val and test: the directory of a saved split, a :class:`~torchcell_cache.Splits`, or
            a function of the dataset that gives one, such as ``functools.partial(tc.split_random, seed=0)``. Without it
            all samples are for training.
        batch_size: Samples per batch and rank.
        num_workers: Reading processes of each loader.
        sampler: Function of the training samples that gives a sampler, whose batch size counts; by default they are shuffled.
        seed: Of the shuffling.
        stage: Directory on the node's own disk: read from a verified copy there.
        wait: Seconds to wait for a store that another job is building, ``True`` without limit.
        loader: Other arguments of :class:`~torchcell_cache.CacheLoader`, such as ``expand`` and ``prefetch_factor``.

    Attributes:
        datasets: The samples of each part, once ``setup`` has run.

    Raises:
        SettingError: If an argument is unknown or contradicts another.

    Example:
        >>> import functools
        >>> import torchcell_cache as tc
        >>> from torchcell_cache.lightning import CacheDataModule
        >>> data = CacheDataModule(
        ...     "lightning-store", source=tc.testing.tiny_source,
        ...     processor=tc.LazySubgraphRepresentation(), build={"progress": False},
        ...     splits=functools.partial(tc.split_random, progress=False), batch_size=4,
        ... )
        >>> data.prepare_data(); data.setup()  # Trainer.fit(model, data) does both
        >>> {part: len(samples) for part, samples in data.datasets.items()}
        {'train': 10, 'val': 1, 'test': 1}
    """

    def __init__(
        self,
        store: Any,
        *,
        source: Any = None,
        processor: Any = None,
        build: Mapping[str, Any] | None = None,
        splits: Any = None,
        batch_size: int = 1,
        num_workers: int = 0,
        sampler: Callable[[Any], Any] | None = None,
        seed: int = 0,
        stage: str | os.PathLike[str] | None = None,
        wait: bool | float = False,
        **loader: Any,
    ) -> None:
        super().__init__()
        by_part = isinstance(store, Mapping)
        self._stores: dict[str, Any] = dict(store) if by_part else {"": store}
        for name in self._stores if by_part else ():
            if name not in STAGES:
                raise SettingError(f"store= has no part {name!r}{suggestion(str(name), STAGES)}")
        if by_part and splits is not None:
            raise SettingError(
                "splits= divides one store; store= names one for each part", fix="leave out one"
            )
        self._sources = (
            dict(source) if isinstance(source, Mapping) else {} if source is None else {"": source}
        )
        if set(self._sources) - set(self._stores):
            raise SettingError(
                "source= and store= do not name the same parts",
                fix="source={'train': ...} with store={'train': ...}",
            )
        fixed = ("dataset", "shuffle", "sampler", "batch_sampler", "device", "indices", "rank", "world_size")
        valid = [n for n in CacheLoader.__init__.__annotations__ if n not in (*fixed, "unknown", "return")]
        refuse_unknown(
            "CacheDataModule",
            sorted(set(loader) - set(valid)),
            [*inspect.signature(CacheDataModule).parameters, *valid],
        )
        self._processor, self._build, self._splits = processor, dict(build or {}), splits
        self.batch_size, self.num_workers = whole_number("batch_size", batch_size, 1), num_workers
        self._sampler, self._seed, self._stage, self._wait = sampler, seed, stage, wait
        self._loader = loader
        self._train: CacheLoader | None = None
        self._state: dict[str, Any] | None = None
        self.datasets: dict[str, PreprocessedDataset] = {}
        self.prepare_data_per_node = False

    def prepare_data(self) -> None:
        """Build what is missing; called in one process."""
        for part, source in self._sources.items():
            root = self._stores[part]
            if not isinstance(root, str | os.PathLike):
                continue
            if callable(source) and not hasattr(source, "__getitem__"):
                if manifest_path(local_path(root)).is_file():
                    continue
                source = source()
            build_store(root, source=source, processor=self._processor, **self._build)

    def setup(self, stage: str | None = None) -> None:
        """Open the store on this rank and divide its samples."""
        if self.datasets:
            return
        opened: dict[str, PreprocessedDataset] = {}
        for part, store in self._stores.items():
            opened[part] = store
            if not isinstance(store, str | os.PathLike):
                continue
            if self._stage is not None:
                from torchcell_cache.remote.copies import stage as copy

                store = copy(store, self._stage, wait=self._wait, progress=self._build.get("progress", True))
            opened[part] = PreprocessedDataset(store, wait=self._wait)
        if "" not in opened:
            self.datasets = opened
        elif self._splits is None:
            self.datasets = {"train": opened[""]}
        else:
            found = self._splits
            if isinstance(found, str | os.PathLike):
                found = Splits.load(found, opened[""])
            elif callable(found):
                found = found(opened[""])
            if not isinstance(found, Splits):
                raise SettingError(
                    f"splits={found!r:.80}: expected a split, its directory, or a function of the dataset that gives one",
                    fix="splits=functools.partial(tc.split_random, seed=0)",
                )
            self.datasets = {name: found.view(name) for name in found.names}

    @property
    def base_graph(self) -> Any:
        """The graph that all samples share, for the model's sizes; opens the store."""
        self.setup()
        return next(iter(self.datasets.values())).base_graph

    def train_dataloader(self) -> CacheLoader:
        """Batches of the training samples, at the place of the checkpoint that was loaded."""
        if "train" not in self.datasets:
            raise SettingError(f"there is no part 'train', only {', '.join(self.datasets) or 'none'}")
        samples = self.datasets["train"]
        order: dict[str, Any] = {"batch_size": self.batch_size, "shuffle": True, "seed": self._seed}
        if self._sampler is not None:
            order = {"sampler": self._sampler(samples)}
        self._train = self._loading(samples, **order)
        if self._state is not None:
            self._train.load_state_dict(self._state)
        if self._state is not None and self.trainer is not None:
            # Lightning ends an epoch by its count of steps: as this number of ranks counts them.
            current = self.trainer.fit_loop.epoch_loop.batch_progress.current
            same = self._train.epoch == self._state["epoch"]
            moved = len(self._train) - (self._train.steps_left if same else 0) - current.ready
            for name in ("ready", "started", "processed", "completed") if current.ready and moved else ():
                setattr(current, name, getattr(current, name) + moved)
        return self._train

    def val_dataloader(self) -> CacheLoader | list[CacheLoader]:
        """Batches of the validation samples, in their order; none without such a part."""
        return self.evaluation("val")

    def test_dataloader(self) -> CacheLoader | list[CacheLoader]:
        """Batches of the test samples, in their order."""
        return self.evaluation("test")

    def predict_dataloader(self) -> CacheLoader | list[CacheLoader]:
        """Batches of the part ``predict``, else of the test samples."""
        return self.evaluation("predict" if "predict" in self.datasets else "test")

    def evaluation(self, part: str) -> CacheLoader | list[CacheLoader]:
        """Batches of a part or group (``test_unseen1``) in their order, each sample once on some rank."""
        if part not in self.datasets or len(self.datasets[part]) == 0:
            return []
        exact = {"uneven": "exact", "drop_last": False, "batch_size": self.batch_size}
        return self._loading(self.datasets[part], **exact)

    def _loading(self, samples: Any, **order: Any) -> CacheLoader:
        device = None if self.trainer is None else self.trainer.strategy.root_device
        on_gpu = {"device": device} if device is not None and device.type == "cuda" else {}
        settings = {"num_workers": self.num_workers, **on_gpu, **self._loader, **order}
        if "sampler" in order:  # it decides these itself
            settings = {k: v for k, v in settings.items() if k not in ("uneven", "drop_last", "seed")}
        return CacheLoader(samples, **settings)

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands; part of Lightning's checkpoints."""
        own = self._train is not None and self._train._own is not None
        return {"train": self._train.state_dict()} if self._train is not None and own else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on there, on any number of ranks."""
        self._state = state_dict.get("train")
