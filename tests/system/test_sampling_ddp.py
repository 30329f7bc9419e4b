"""Real ranks over gloo draw, stream, train and resume: each sample once, equal steps, the same draw on 2 and 3 ranks."""

import json
import multiprocessing
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import cell_graph, random_case
from loading import build
from torch import distributed as dist

import torchcell_cache as tc

pytestmark = pytest.mark.xdist_group("sampling_ddp")  # what its fixtures make is made once

COUNT, SIZE = 61, 4
KINDS = ("stream", "stream in workers", "shard", "weighted", "cost")


def loader_of(kind, ds, **settings):
    """A loader whose ranks are found through torch.distributed."""
    if kind.startswith("stream"):
        streaming = tc.StreamingCacheDataset(
            ds, SIZE, chunk_size=2, shuffle_buffer_size=9, seed=5, **settings
        )
        return streaming.batches(num_workers=2 if kind.endswith("workers") else 0)
    if kind == "shard":
        sampler = tc.DistributedShardSampler(ds, SIZE, seed=5, **settings)
    elif kind == "weighted":
        sampler = tc.WeightedCacheSampler(ds, SIZE, by="perturbed_count", warmup_epochs=2, seed=5, **settings)
    else:
        sampler = tc.BalancedCostBatchSampler(ds, SIZE, by="removed_edges", base_cost=1, seed=5, **settings)
    return tc.CacheLoader(ds, sampler=sampler)


def read(loader):
    """``[step] -> [(store position, is padding)]`` of an epoch, and what each batch costs."""
    return [list(zip(b.indices.tolist(), b.is_padding.tolist(), strict=True)) for b in loader]


def trained(ds):
    """Weights after an epoch of plain DDP; a rank with more steps than another would wait for ever."""
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(ds.base_graph["gene"].num_nodes, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for kind in ("stream", "cost"):
        for batch in loader_of(kind, ds, uneven="exact"):
            optimizer.zero_grad()
            out = model(batch.node_mask("gene").float()).squeeze(1)
            (out - batch.labels("fitness")).square().mean().backward()
            optimizer.step()
    return [p.detach().flatten().tolist() for p in model.parameters()]


def work(rank, world, root, place, states):
    torch.set_num_threads(1)
    where = f"file://{place}/init"
    dist.init_process_group("gloo", where, timeout=timedelta(seconds=60), rank=rank, world_size=world)
    ds, out = tc.PreprocessedDataset(root), {}
    for turn in range(world):
        # One rank after the other: a collective call in a sampler would wait for ranks that are not there.
        if turn == rank:
            for kind in KINDS:
                loader = loader_of(kind, ds, uneven="pad")
                out[kind] = {"len": len(loader), "epochs": [read(loader), read(loader)]}
                resumed = loader_of(kind, ds, uneven="pad")
                resumed.load_state_dict(states[kind])
                first = next(iter(resumed)).indices.tolist()
                out[kind] |= {"first": first, "state": resumed.state_dict()}
                resumed.load_state_dict(states[kind])
                out[kind]["rest"] = read(resumed)
        dist.barrier()
    out["weights"] = trained(ds)
    (Path(place) / f"{rank}.json").write_text(json.dumps(out))
    dist.destroy_process_group()


def run(world, root, place, states):
    place.mkdir()
    fork = multiprocessing.get_context("fork")  # a spawned rank imports torch anew, seconds each
    ranks = [fork.Process(target=work, args=(r, world, str(root), str(place), states)) for r in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * world
    return [json.loads((place / f"{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sampling-ddp")
    labels = np.random.default_rng(5).random(COUNT).astype(np.float32)
    perturbed = random_case(cell_graph(), num_samples=COUNT, seed=2).perturbed
    build(
        root / "store",
        tc.PerturbationTable(cell_graph(), perturbed, phenotypes={"fitness": labels}),
        storage="delta",
    )
    return root


@pytest.fixture(scope="module")
def start(root):
    """States after five steps of one rank, and what had been read by then."""
    ds, states, seen = tc.PreprocessedDataset(root / "store"), {}, {}
    for kind in KINDS:
        loader = loader_of(kind, ds, uneven="pad", rank=0, world_size=1)
        batches = iter(loader)
        seen[kind] = [k for _ in range(5) for k in next(batches).indices.tolist()]
        states[kind] = loader.state_dict()
        del batches
    return states, seen


@pytest.fixture(scope="module")
def two(root, start):
    return run(2, root / "store", root / "two", start[0])


@pytest.fixture(scope="module")
def three(root, two):
    return run(3, root / "store", root / "three", {kind: two[0][kind]["state"] for kind in KINDS})


def real(per_rank):
    """Samples that are not padding, step by step over the ranks, which must have equally many steps."""
    assert len({len(steps) for steps in per_rank}) == 1
    return [
        k for step in zip(*per_rank, strict=True) for batch in step for k, padding in batch if not padding
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_each_sample_once_in_equal_steps(root, two, three, kind) -> None:
    ds = tc.PreprocessedDataset(root / "store")
    plain = loader_of(kind, ds, uneven="exact", rank=0, world_size=1)
    for epoch in (0, 1):
        alone = [k for batch in plain for k in batch.indices.tolist()]
        for ranks in (two, three):
            runs = [rank[kind] for rank in ranks]
            assert {len(run["epochs"][epoch]) for run in runs} == {run["len"] for run in runs}
            seen = real([run["epochs"][epoch] for run in runs])
            assert sorted(seen) == sorted(alone)
            if kind == "weighted":
                assert seen == alone
            else:
                assert sorted(seen) == list(range(COUNT))


@pytest.mark.parametrize("kind", KINDS)
def test_resumes_in_the_middle_on_two_and_then_three_ranks(root, start, two, three, kind) -> None:
    ds = tc.PreprocessedDataset(root / "store")
    whole = [k for b in loader_of(kind, ds, uneven="exact", rank=0, world_size=1) for k in b.indices.tolist()]
    seen = list(start[1][kind])
    for ranks in (two, three):
        assert all(rank[kind]["state"] == ranks[0][kind]["state"] for rank in ranks)
        assert sorted(seen + real([rank[kind]["rest"] for rank in ranks])) == sorted(whole)
        firsts = [rank[kind]["first"] for rank in ranks]
        assert firsts == [[k for k, _ in rank[kind]["rest"][0]] for rank in ranks]
        seen += [k for first in firsts for k in first]


def test_streams_train_to_the_end_and_ranks_agree(two, three) -> None:
    for ranks in (two, three):
        assert all(rank["weights"] == ranks[0]["weights"] for rank in ranks)
