"""Real ranks over gloo: each sample once, equal steps, one global order, resume on another number of ranks."""

import json
from datetime import timedelta
from pathlib import Path

import fresh
import pytest
import torch
from loading import COUNT, build, make_source
from torch import distributed as dist

import torchcell_cache as tc
from torchcell_cache.data.samplers.order import epoch_order

pytestmark = pytest.mark.xdist_group("ddp")  # what its fixtures make is made once

MODES = ("drop_last", "pad", "exact")
SEED = 6
FORK = {"multiprocessing_context": "fork"}  # a spawned rank would otherwise spawn its workers too, 4 s each


def read(loader):
    """``[step] -> [(store position, is padding)]`` of an epoch."""
    return [
        list(zip(b.indices.tolist(), b.is_padding.tolist(), strict=True))
        if loader.sampler.uneven == "pad"
        else [(k, False) for k in b.indices.tolist()]
        for b in loader
    ]


def by_mode(ds):
    """Two epochs in every mode, with and without workers; ranks are found through torch.distributed."""
    out = {}
    for mode in MODES:
        for workers in (0, 1):
            loader = tc.CacheLoader(ds, 4, True, workers, seed=SEED, uneven=mode, **FORK)
            out[f"{mode} {workers}"] = {"len": len(loader), "epochs": [read(loader), read(loader)]}
    return out


def resumed(ds, state):
    """What is left of the epoch of a state, in batches of another size, and a state from the middle of that."""
    loader = tc.CacheLoader(ds, 3, True, 1, uneven="exact", **FORK)
    loader.load_state_dict(state)
    first = next(iter(loader)).indices.tolist()
    later = loader.state_dict()
    loader.load_state_dict(state)
    return {"batches": read(loader), "first": first, "state": later}


def trained(ds):
    """Weights after an epoch of plain DDP; a rank with more steps than another would wait for ever."""
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(ds.base_graph["gene"].num_nodes, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in tc.CacheLoader(ds, 2, True, uneven="exact"):
        optimizer.zero_grad()
        (
            model(batch.node_mask("gene").float()).squeeze(1) - batch.labels("fitness")
        ).square().mean().backward()
        optimizer.step()
    return [p.detach().flatten().tolist() for p in model.parameters()]


def work(rank, world, root, place, state):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{place}/init", timeout=timedelta(seconds=60), rank=rank, world_size=world
    )
    ds = tc.PreprocessedDataset(root)
    out = {}
    for turn in range(world):
        # One rank after the other: a collective call in the loader would wait for ranks that are not there.
        if turn == rank:
            out = {"modes": by_mode(ds), "resumed": resumed(ds, state)}
        dist.barrier()
    out["weights"] = trained(ds)
    (Path(place) / f"{rank}.json").write_text(json.dumps(out))
    dist.destroy_process_group()


def run(world, root, place, state):
    place.mkdir()
    ranks = [fresh.call(work, rank, world, str(root), str(place), state) for rank in range(world)]
    assert [rank.wait(120) for rank in ranks] == [0] * world
    return [json.loads((place / f"{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("ddp")
    build(root / "store", make_source(), storage="delta")
    return root


@pytest.fixture(scope="module")
def start(root):
    """A state after three of six steps on one rank."""
    loader = tc.CacheLoader(tc.PreprocessedDataset(root / "store"), 4, True, seed=SEED)
    list(loader)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    return loader.state_dict()


@pytest.fixture(scope="module")
def two(root, start):
    return run(2, root / "store", root / "two", start)


@pytest.fixture(scope="module")
def three(root, two):
    return run(3, root / "store", root / "three", two[0]["resumed"]["state"])


@pytest.fixture(params=["two", "three"])
def ranks(request):
    return request.getfixturevalue(request.param)


def global_order(per_rank):
    """Steps of the ranks, interleaved step by step."""
    assert len({len(steps) for steps in per_rank}) == 1
    return [tuple(item) for step in zip(*per_rank, strict=True) for batch in step for item in batch]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_ranks_share_one_global_order(ranks, mode, workers) -> None:
    runs = [rank["modes"][f"{mode} {workers}"] for rank in ranks]
    for epoch in (0, 1):
        assert {len(run["epochs"][epoch]) for run in runs} == {run["len"] for run in runs}
        seen = global_order([run["epochs"][epoch] for run in runs])
        order = epoch_order(COUNT, SEED, epoch).tolist()
        real = [k for k, padding in seen if not padding]
        dropped = COUNT % len(ranks) if mode == "drop_last" else 0
        assert real == order[: COUNT - dropped]
        assert [k for k, padding in seen if padding] == order[: -COUNT % len(ranks)] * (mode == "pad")


def test_one_rank_has_the_same_order(root, start) -> None:
    ds = tc.PreprocessedDataset(root / "store")
    for run in by_mode(ds).values():
        for epoch in (0, 1):
            assert [k for k, _ in global_order([run["epochs"][epoch]])] == epoch_order(
                COUNT, SEED, epoch
            ).tolist()


def test_resumes_in_the_middle_of_an_epoch_on_more_ranks(two, three, start) -> None:
    order = epoch_order(COUNT, SEED, 1).tolist()
    assert start["samples_seen"] == 12
    for before, ranks in ((12, two), (18, three)):
        left = [k for k, _ in global_order([rank["resumed"]["batches"] for rank in ranks])]
        assert left == order[before:]
        assert all(rank["resumed"]["state"] == ranks[0]["resumed"]["state"] for rank in ranks)
        assert [rank["resumed"]["first"] for rank in ranks] == [
            [k for k, _ in rank["resumed"]["batches"][0]] for rank in ranks
        ]
    assert two[0]["resumed"]["state"]["samples_seen"] == 18


def test_ddp_trains_to_the_end_and_ranks_agree(ranks) -> None:
    assert all(rank["weights"] == ranks[0]["weights"] for rank in ranks)
