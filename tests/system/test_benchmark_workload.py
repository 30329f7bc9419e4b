"""The benchmark's own parts at a small size: a wrong workload or peer makes every figure worthless."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.benchmarks.bench_loader import Stream
from experiments.benchmarks.harness import Budget, Timing, Way, alternate
from experiments.benchmarks.peers import GENERAL_PEERS, Peer, TorchcellScheme
from experiments.benchmarks.peers.loading import peer_loader
from experiments.benchmarks.peers.streams import STREAMS
from experiments.benchmarks.peers.torchcell_scheme import index_cost
from experiments.benchmarks.plots import draw_all
from experiments.benchmarks.records import Records, make_records, to_typed_object
from experiments.benchmarks.report import OURS, PEER, Row, replace_between
from experiments.benchmarks.workload import (
    EDGE_COUNTS,
    Workload,
    gene_edge_types,
    make_base_graph,
    make_workload,
)

SCALE, NUM_SAMPLES = 0.01, 40


@pytest.fixture(scope="module")
def workload() -> Workload:
    return make_workload(seed=3, scale=SCALE, num_samples=NUM_SAMPLES)


@pytest.fixture(scope="module")
def records(workload: Workload) -> Records:
    return make_records(workload.base_graph, workload.samples)


def slow_removed(workload: Workload, index: int) -> list[int]:
    """Every edge looked at, one by one."""
    gone, removed, start = set(workload.samples.perturbed[index].tolist()), [], 0
    for edge_type in gene_edge_types(workload.base_graph):
        edges = workload.base_graph[edge_type].edge_index.t().tolist()
        removed += [start + k for k, (a, b) in enumerate(edges) if a in gone or b in gone]
        start += len(edges)
    return removed


def test_workload_has_the_announced_sizes(workload: Workload) -> None:
    graph = workload.base_graph
    assert graph["gene"].num_nodes == len(graph["gene"].node_ids) == 66
    assert graph["gene"].x.shape == (66, 64)
    assert len(gene_edge_types(graph)) == 9
    for name, count in EDGE_COUNTS.items():
        edge_index = graph["gene", name, "gene"].edge_index
        assert edge_index.shape == (2, round(count * SCALE))
        assert not bool((edge_index[0] == edge_index[1]).any())
        assert int(edge_index.max()) < 66
    rmr = graph["reaction", "rmr", "metabolite"]
    assert rmr.hyperedge_index.shape == (2, rmr.num_edges)
    assert rmr.stoichiometry.shape == (rmr.num_edges,)
    assert int(rmr.hyperedge_index[0].max()) < graph["reaction"].num_nodes
    assert int(rmr.hyperedge_index[1].max()) < graph["metabolite"].num_nodes
    gpr = graph["gene", "gpr", "reaction"].hyperedge_index
    assert len(set(map(tuple, gpr.t().tolist()))) == gpr.shape[1]


def test_workload_depends_on_the_seed_only(workload: Workload) -> None:
    again = make_workload(seed=3, scale=SCALE, num_samples=NUM_SAMPLES)
    other = make_workload(seed=4, scale=SCALE, num_samples=NUM_SAMPLES)
    key = ("gene", "physical", "gene")
    assert torch.equal(again.base_graph[key].edge_index, workload.base_graph[key].edge_index)
    assert np.array_equal(again.samples.labels, workload.samples.labels)
    assert not np.array_equal(other.samples.perturbed, workload.samples.perturbed)


def test_samples_are_ascending_distinct_triples(workload: Workload) -> None:
    perturbed = workload.samples.perturbed
    assert perturbed.shape == (NUM_SAMPLES, 3)
    assert bool((np.diff(perturbed, axis=1) > 0).all())


def test_total_edges_and_order_can_be_chosen() -> None:
    graph = make_base_graph(scale=SCALE, total_edges=5_000, edge_order="source")
    total = sum(graph[t].num_edges for t in gene_edge_types(graph))
    assert abs(total - 5_000) < 10
    source = graph["gene", "physical", "gene"].edge_index[0]
    assert bool((source.diff() >= 0).all())


def test_records_hold_what_a_slow_scan_finds(workload: Workload, records: Records) -> None:
    for i in range(10):
        assert records[i][2].tolist() == slow_removed(workload, i)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer_class", GENERAL_PEERS, ids=lambda c: c.__name__)
def test_peer_returns_what_it_was_given(peer_class: type[Peer], records: Records, tmp_path: Path) -> None:
    reason = peer_class.missing()
    if reason is not None:
        pytest.skip(reason)
    peer = peer_class(tmp_path / "store")
    peer.write(records)
    peer.open()
    try:
        for i in (0, NUM_SAMPLES - 1, 7):
            for got, expected in zip(peer.get_raw(i), records[i], strict=True):
                assert got.dtype == expected.dtype
                assert np.array_equal(got, expected)
        batch = peer.batch_raw([5, 1, 5])
        assert np.array_equal(batch.perturbed, records.perturbed[[5, 1, 5]])
        assert np.array_equal(batch.labels, records.labels[[5, 1, 5]])
        assert np.array_equal(batch.removed[batch.ptr[1] : batch.ptr[2]], records[1][2])
        objects = peer.get_objects([4, 2])
        if objects is not None:
            assert np.array_equal(objects[1]["gene"].removed.numpy(), records[2][2])
    finally:
        peer.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer_class", GENERAL_PEERS, ids=lambda c: c.__name__)
def test_peer_loader_hands_out_every_record_of_an_epoch(
    peer_class: type[Peer], records: Records, tmp_path: Path
) -> None:
    reason = peer_class.missing()
    if reason is not None:
        pytest.skip(reason)
    peer = peer_class(tmp_path / "store")
    peer.write(records)
    loader, closing = peer_loader(peer, NUM_SAMPLES, 8, 0)
    batches = list(loader)
    got = {
        tuple(row) + tuple(labels) for b in batches for row, labels in zip(b.perturbed, b.labels, strict=True)
    }
    stored = zip(records.perturbed, records.labels, strict=True)
    assert got == {tuple(row) + tuple(labels) for row, labels in stored}
    assert sum(len(b.removed) for b in batches) == len(records.removed)
    if closing is not None:
        closing.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [k for kinds in STREAMS.values() for k in kinds], ids=lambda k: k.name)
def test_peer_stream_hands_out_every_record_of_an_epoch(kind: Any, records: Records, tmp_path: Path) -> None:
    peer_class = next(peer for peer, kinds in STREAMS.items() if kind in kinds)
    reason = peer_class.missing()
    if reason is not None:
        pytest.skip(reason)
    peer = peer_class(tmp_path / "store")
    peer.write(records)
    peer.open()
    stream = kind(peer, NUM_SAMPLES, 8)
    batches = list(stream)
    stream.close()
    peer.close()
    rows = [tuple(row) for batch in batches for row in batch.perturbed]
    assert sorted(rows) == sorted(map(tuple, records.perturbed))
    assert rows != list(map(tuple, records.perturbed))


def test_typed_object_counts_positions_from_the_start_of_their_edge_type(
    workload: Workload, records: Records
) -> None:
    edge_types = gene_edge_types(workload.base_graph)
    starts = np.cumsum([0] + [workload.base_graph[t].num_edges for t in edge_types])
    sample = to_typed_object(records[4], edge_types, starts)
    again = [sample[t].removed.numpy() + start for t, start in zip(edge_types, starts, strict=False)]
    assert np.concatenate(again).tolist() == records[4][2].tolist()
    for edge_type in edge_types:
        assert bool((sample[edge_type].removed < workload.base_graph[edge_type].num_edges).all())


class CountingBatch:
    """A batch that knows whether it was packed."""

    packed = 0

    def pack(self) -> None:
        CountingBatch.packed += 1


def test_a_stretch_never_crosses_the_start_of_an_epoch() -> None:
    CountingBatch.packed = 0
    stream = Stream([CountingBatch()] * 7, length=2, ahead=1, packed=False)
    for _ in range(4):  # three batches per round: two rounds fit into an epoch of seven
        stream.prepare(0)
        stream.run(0)
        assert stream.left in (4, 1)
    assert CountingBatch.packed == 12
    stream.close()


@pytest.mark.filterwarnings("ignore")
def test_figures_are_drawn_for_the_rows_there_are(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = []
    for key in ("batch_28_delta", "loader_28_0", "loader_28_2"):
        row = Row(key, "work", "us")
        row.add("mine", OURS, 5.0)
        row.add("peer", PEER, 50.0)
        rows.append(asdict(row))
    drawn = draw_all(rows, tmp_path / "img")
    assert [path.name for path in drawn] == ["batch.png", "loader.png"]
    assert all(path.stat().st_size > 1000 for path in drawn)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scheme_stores_and_rebuilds_masks(workload: Workload, records: Records, tmp_path: Path) -> None:
    scheme = TorchcellScheme(workload.base_graph, tmp_path / "scheme")
    scheme.write(workload.samples)
    scheme.open()
    sample = scheme.get(6)
    masks = [sample[t].mask for t in gene_edge_types(workload.base_graph)]
    assert (~torch.cat(masks)).nonzero().flatten().tolist() == records[6][2].tolist()
    assert sample["gene"].pert_mask.nonzero().flatten().tolist() == workload.samples.perturbed[6].tolist()
    gone = set(workload.samples.perturbed[6].tolist())
    gpr = workload.base_graph["gene", "gpr", "reaction"].hyperedge_index.t().tolist()
    lost = sorted({reaction for gene, reaction in gpr if gene in gone})
    assert sample["reaction"].pert_mask.nonzero().flatten().tolist() == lost
    batch = scheme.batch([1, 2])
    assert batch["gene", "physical", "gene"].edge_index.shape[1] == 2 * round(144_000 * SCALE)
    assert index_cost(workload.base_graph, share=0.5).num_tensors == 9 * 66
    scheme.close()


def test_all_ways_take_turns() -> None:
    calls: list[str] = []
    ways = {"a": lambda _: calls.append("a"), "b": Way(lambda _: calls.append("b"), max_rounds=1)}
    timings = alternate(ways, Budget(min_rounds=3, max_rounds=3, seconds=0, burst=1))
    assert {name: t.calls for name, t in timings.items()} == {"a": 3, "b": 1}
    assert calls == ["a", "a", "b", "a", "a"]


def test_row_compares_with_the_best_peer() -> None:
    row = Row("key", "work", "us", target=150)
    row.add("mine", OURS, Timing(100e-6, 90e-6, 110e-6, 9))
    row.add("slow", PEER, 900.0)
    row.add("fast", PEER, 400.0)
    assert row.ratio(row.best(PEER)) == pytest.approx(4)
    assert row.met() == "yes"
    rate = Row("key", "work", "/s", target=10)
    rate.add("mine", OURS, 5.0)
    rate.add("peer", PEER, 10.0)
    assert rate.ratio(rate.best(PEER)) == pytest.approx(0.5)
    assert rate.met() == "no"


def test_table_goes_between_the_markers(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- t:start -->\nold\n<!-- t:end -->\nafter\n")
    assert replace_between(path, "t", "new")
    assert path.read_text() == "before\n<!-- t:start -->\nnew\n<!-- t:end -->\nafter\n"
    assert not replace_between(path, "other", "new")
