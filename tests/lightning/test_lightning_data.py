"""A store under Lightning: the same samples in the same order, stopped anywhere, resumed on any number of ranks."""

import csv
import functools
import os
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import fresh
import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

import torchcell_cache as tc
from torchcell_cache.store import facts

pl = pytest.importorskip("lightning.pytorch", reason="the lightning extra is not installed")
from torchcell_cache.lightning import CacheDataModule, DataWaitCallback, PreemptionCallback  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("lightning")]

SAMPLES, TRAIN, BATCH, EPOCHS = 26, 22, 4, 3


def source() -> tc.PerturbationTable:
    return tc.testing.tiny_source(SAMPLES, tc.testing.tiny_graph(24))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lightning") / "store"
    tc.build(
        root, source=source(), processor=tc.LazySubgraphRepresentation(), storage="delta", progress=False
    )
    return root


class Model(pl.LightningModule):
    """A linear model that remembers what it saw."""

    def __init__(self, at: tuple[int, ...] = (), seconds: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)
        self.seen: list[list[int]] = []
        self.evaluated: list[int] = []
        self.at, self.seconds = at, seconds

    def forward(self, batch: Any) -> torch.Tensor:
        removed = batch.node_mask("gene").logical_not().float().mean(1, keepdim=True)
        return self.layer(removed)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        self.seen.append(batch.indices.tolist())
        time.sleep(self.seconds)
        loss = self(batch).square().mean()
        self.log("loss", loss, batch_size=len(batch))
        if self.global_step in self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        self.evaluated += batch.indices.tolist()
        self.log("val", self(batch).mean(), batch_size=len(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluated += batch.indices.tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def fit(model: Model, data: CacheDataModule, where: Path, *callbacks: Any, **settings: Any) -> Any:
    given = {"max_epochs": EPOCHS, "logger": False, "enable_checkpointing": False, **settings}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=where,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"log_every_n_steps": 1, **given},
    )
    last = where / "last.ckpt"
    trainer.fit(model, data, ckpt_path=str(last) if last.is_file() else None, weights_only=False)
    return trainer


def module(store: Any, **settings: Any) -> CacheDataModule:
    divide = functools.partial(tc.split_random, fractions=(0.85, 0.15), seed=1, progress=False)
    return CacheDataModule(store, **{"splits": divide, "batch_size": BATCH, "seed": 3, **settings})


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, int]:
    """An undisturbed run and its steps per epoch."""
    model = Model()
    fit(model, module(store), tmp_path_factory.mktemp("whole"))
    steps = len(model.seen) // EPOCHS
    assert steps == 6
    for epoch in range(EPOCHS):
        seen = Counter(k for batch in model.seen[epoch * steps : (epoch + 1) * steps] for k in batch)
        assert set(seen.values()) == {1}
        assert len(seen) == TRAIN
    return model, steps


@pytest.mark.parametrize(
    ("at", "workers"),
    [((0,), 0), ((8,), 0), ((5,), 0), ((9, 11), 0), ((7,), 1)],
    ids=["first step", "middle", "last step of an epoch", "twice", "with a worker"],
)
def test_preempted_anywhere_it_goes_on_as_if_nothing_had_happened(
    store: Path, whole: tuple[Model, int], tmp_path: Path, at: tuple[int, ...], workers: int
) -> None:
    seen = []
    before = signal.getsignal(signal.SIGTERM)
    for stop in at:
        model = Model((stop,))
        with pytest.raises(SystemExit) as ended:
            fit(
                model,
                module(store, num_workers=workers),
                tmp_path,
                PreemptionCallback(tmp_path / "last.ckpt"),
            )
        assert ended.value.code == 75
        seen += model.seen
        assert len(seen) == stop + 1
        assert signal.getsignal(signal.SIGTERM) is before
    model = Model()
    fit(model, module(store, num_workers=workers), tmp_path, PreemptionCallback(tmp_path / "last.ckpt"))
    assert seen + model.seen == whole[0].seen
    for name, value in whole[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_each_of_lightnings_own_checkpoints_goes_on(
    store: Path, whole: tuple[Model, int], tmp_path: Path
) -> None:
    every = pl.callbacks.ModelCheckpoint(
        tmp_path / "all",
        filename="{step}",
        every_n_train_steps=3,
        save_top_k=-1,
        save_on_train_epoch_end=False,
    )
    ends = pl.callbacks.ModelCheckpoint(tmp_path / "ends", filename="{step}", save_top_k=-1)
    fit(Model(), module(store), tmp_path, every, ends, enable_checkpointing=True)
    found = sorted([*(tmp_path / "all").iterdir(), *(tmp_path / "ends").iterdir()])
    steps = [int(path.stem.partition("=")[2]) for path in found]
    assert {3, 6, 9, 12, 15} <= set(steps)
    for path, step in zip(found, steps, strict=True):
        place = tmp_path / f"from-{path.parent.name}-{step}"
        place.mkdir()
        path.rename(place / "last.ckpt")
        model = Model()
        trainer = fit(model, module(store), place)
        assert model.seen == whole[0].seen[step:], path
        assert trainer.global_step == len(whole[0].seen)


@pytest.mark.parametrize(("ranks", "then"), [(2, 1), (1, 2), (2, 3)])
def test_another_number_of_ranks_ends_the_epoch_and_no_sooner(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, then: int
) -> None:
    """Ranks one after the other: what each sees is a function of its number, nothing passes between them."""
    seen: list[list[list[int]]] = []

    def run(world: int, ends: bool) -> None:
        for rank in reversed(range(world)):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(world))
            model = Model(() if ends else (1,))
            stop = [] if ends else [PreemptionCallback(tmp_path / f"rank-{rank}.ckpt")]
            try:
                fit(model, module(store, batch_size=2, splits=None), tmp_path, *stop, max_epochs=1)
            except SystemExit:
                assert not ends
            seen.append(model.seen)

    run(ranks, False)
    (tmp_path / "rank-0.ckpt").rename(tmp_path / "last.ckpt")
    run(then, True)
    counted = Counter(k for steps in seen for batch in steps for k in batch)
    assert set(counted.values()) == {1}
    assert SAMPLES - len(counted) < then


def test_what_every_logger_gets(store: Path, tmp_path: Path) -> None:
    """How fast, how long it waited and how many samples, through ``self.log``; also after a checkpoint."""
    slow = functools.partial(module, store, collate_fn=_slowly)
    logs = {}
    for name, data, seconds in (("slow loader", slow(), 0.0), ("slow step", module(store), 0.06)):
        logger = pl.loggers.CSVLogger(tmp_path / name)
        fit(
            Model(seconds=seconds),
            data,
            tmp_path,
            DataWaitCallback(2),
            logger=logger,
            max_epochs=2,
            log_every_n_steps=2,
        )
        with Path(logger.log_dir, "metrics.csv").open(newline="") as file:
            logs[name] = [row for row in csv.DictReader(file) if row["it_per_s"]]
    assert [float(row["samples_seen"]) for row in logs["slow step"]] == [8, 16, 22, 30, 38, 44]
    share = {name: np.median([float(row["data_wait_share"]) for row in rows]) for name, rows in logs.items()}
    assert share["slow loader"] > share["slow step"] + 0.2  # medians: a busy machine adds to both
    assert all(0 < float(row["it_per_s"]) < 50 for row in logs["slow step"])


def _slowly(samples: list[Any]) -> Any:
    time.sleep(0.06)
    return _Graphs(samples)


class _Graphs:
    """What a loader with a collate function of one's own gives: here as much as the model reads of it."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples, self.indices = samples, torch.arange(len(samples))

    def __len__(self) -> int:
        return len(self.samples)

    def node_mask(self, name: str) -> torch.Tensor:
        return torch.stack([sample[name].mask for sample in self.samples])


def test_samples_seen_are_counted_on(store: Path, tmp_path: Path) -> None:
    first, second = DataWaitCallback(), DataWaitCallback()
    with pytest.raises(SystemExit):
        fit(Model((6,)), module(store), tmp_path, first, PreemptionCallback(tmp_path / "last.ckpt"))
    fit(Model(), module(store), tmp_path, second)
    assert (first.samples_seen, second.samples_seen) == (TRAIN + BATCH, EPOCHS * TRAIN)


def test_parts_come_from_where_they_are_said_to(store: Path, tmp_path: Path) -> None:
    dataset = tc.PreprocessedDataset(store)
    splits = tc.split_by_perturbation(dataset, seed=2, progress=False)
    splits.save(tmp_path / "split")
    ways: dict[str, Any] = {
        "directory": tmp_path / "split",
        "split": splits,
        "function": functools.partial(tc.split_by_perturbation, seed=2, progress=False),
    }
    for way, given in ways.items():
        data = module(store, splits=given)
        model = Model()
        trainer = fit(model, data, tmp_path, max_epochs=1)
        assert sorted(model.evaluated) == splits.val.tolist(), way
        assert {k for batch in model.seen for k in batch} <= set(splits.train.tolist())
        model.evaluated.clear()
        trainer.test(model, data, verbose=False)
        assert sorted(model.evaluated) == splits.test.tolist(), way
        assert {name: len(part) for name, part in data.datasets.items()} == {
            n: len(splits[n]) for n in splits.names
        }
    parts = module({"train": store, "val": dataset[:5]}, splits=None)
    model = Model()
    fit(model, parts, tmp_path, max_epochs=1)
    assert model.evaluated == [0, 1, 2, 3, 4]
    model = Model()
    fit(model, module(store, splits=None), tmp_path, max_epochs=1)
    assert (len(model.seen), model.evaluated) == (-(-SAMPLES // BATCH), [])


def test_a_missing_store_is_built_once(tmp_path: Path) -> None:
    made = []

    def make() -> tc.PerturbationTable:
        made.append(1)
        return source()

    processor = tc.LazySubgraphRepresentation()
    settings: dict[str, Any] = {"source": make, "processor": processor, "build": {"progress": False}}
    for _ in range(2):
        fit(Model(), module(tmp_path / "store", **settings), tmp_path, max_epochs=1)
    assert made == [1]
    direct = module(tmp_path / "store", **settings | {"source": source()})
    direct.prepare_data()
    assert len(direct.base_graph["gene"].x) == 24
    with pytest.raises(tc.errors.StaleCacheError):
        module(tmp_path / "store", **settings | {"source": tc.testing.tiny_source(3)}).prepare_data()
    staged = module(tmp_path / "store", stage=tmp_path / "disk", build={"progress": False})
    staged.setup("fit")
    assert staged.datasets["train"].generation.root.parent == tmp_path / "disk"


def test_ranks_evaluate_each_sample_once_and_none_is_given_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = module(store, splits=None)
    data.setup()
    data.datasets["val"] = data.datasets["train"][:13]
    seen = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        for expand in (False, True):
            data._loader["expand"] = expand
            sizes = [batch.num_graphs for batch in data.val_dataloader()]
            assert min(sizes) > 0
        data._loader["expand"] = False
        seen += [k for batch in data.val_dataloader() for k in batch.indices.tolist()]
    assert sorted(seen) == list(range(13))


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "argument": ({"batchsize": 3}, "batch_size"),
    "order": ({"shuffle": False}, "shuffle"),
    "batch size": ({"batch_size": 0}, "batch_size"),
    "part": ({"store": {"training": "x"}, "splits": None}, "train"),
    "two ways": ({"store": {"train": "x"}}, "splits="),
    "source of no store": ({"source": {"train": 1}}, "source="),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_said_at_once(store: Path, mistake: str) -> None:
    settings, said = MISTAKES[mistake]
    with pytest.raises(tc.errors.SettingError, match=said):
        module(**{"store": store, **settings})


def test_a_split_that_is_none(store: Path) -> None:
    with pytest.raises(tc.errors.SettingError, match="split_random"):
        module(store, splits=lambda dataset: [1, 2]).setup()


ALONE = """
import sys, warnings
warnings.simplefilter("ignore")
sys.modules["lightning"] = None
import torchcell_cache as tc
import pytorch_lightning as pl
assert issubclass(tc.lightning.CacheDataModule, pl.LightningDataModule)
for name in [n for n in sys.modules if n.startswith("torchcell_cache.lightning")]:
    del sys.modules[name]
for name in [n for n in sys.modules if n.startswith("pytorch_lightning")] + ["pytorch_lightning"]:
    sys.modules[name] = None
from torchcell_cache import *
try:
    import torchcell_cache.lightning
except tc.errors.SettingError as error:
    assert error.fix == "pip install lightning", error.fix
else:
    sys.exit("imported")
"""


def test_with_the_other_package_and_with_none() -> None:
    done = fresh.run([sys.executable, "-c", ALONE], text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("error")
def test_stock_collate_of_a_large_graph_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "_said", bytearray(1))
    large = Data(x=torch.zeros(2**17, 4), edge_index=torch.tensor([[0, 1], [1, 2]]))
    table = tc.PerturbationTable(large, [[k] for k in range(40)])
    ds = tc.build(
        tmp_path / "large",
        source=table,
        processor=tc.LazySubgraphRepresentation(),
        progress=False,
        storage="delta",
    )
    for quiet in (DataLoader(ds, batch_size=2), tc.CacheLoader(ds, batch_size=20)):
        next(iter(quiet))
    with pytest.warns(
        UserWarning, match=r"2\.1 MB\) into each of 20 samples, 42.* MB per batch.*CacheLoader"
    ) as said:
        next(iter(DataLoader(ds, batch_size=20)))
    assert len(said) == 1
    next(iter(DataLoader(ds, batch_size=20)))
    small = tc.build(
        tmp_path / "small", source=source(), processor=tc.LazySubgraphRepresentation(), progress=False
    )
    monkeypatch.setattr(facts, "_said", bytearray(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(iter(DataLoader(small, batch_size=20)))
