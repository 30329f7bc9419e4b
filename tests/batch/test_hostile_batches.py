"""Records and columns that carry right checksums and make no sense: batches answer as ``dataset[i]`` does, never raw."""

import pickle

import numpy as np
import pytest
import torch
from graphs import cell_graph, random_case
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.codec.delta_code import check_gaps_ragged, decode_gaps
from torchcell_cache.codec.envelope import seal
from torchcell_cache.core.files import file_digest
from torchcell_cache.errors import (
    CacheError,
    CorruptRecordError,
    CorruptShardError,
    FormatError,
    SettingError,
)
from torchcell_cache.graph.arrays import arrays_to_bytes
from torchcell_cache.store.table_reader import TableReader

COUNT = 6
EDGES = ("gene", "physical", "gene")


class Records:
    """Files of a store whose records are in memory, sealed as they should be."""

    def __init__(self, bodies, seed):
        self.records = seal(bodies, 0, seed)[0]

    def shard_of(self, positions):
        return np.zeros(len(positions), dtype=np.int64)

    def read(self, wanted, shards):
        return [self.records[k] for k in wanted]

    def visit(self, wanted, shards, use):
        return use([memoryview(self.records[k]) for k in wanted])


ONCE, MANY = {"fitness": [0.5] * COUNT}, [[0.5, 0.1], [], [0.2]] * 2
SEVERAL = {"phenotypes": {"fitness": MANY}, "statistics": {"se": MANY}, "nan": "keep"}
KINDS = {
    "delta": (tc.LazySubgraphRepresentation(), {"phenotypes": ONCE}),
    "delta, induced": (tc.SubgraphRepresentation(), {"phenotypes": ONCE}),
    "delta, several": (tc.LazySubgraphRepresentation(), SEVERAL),
    "perturbation, several": (tc.LazySubgraphRepresentation(gpr="rule"), SEVERAL),
    "perturbation, induced by rule": (tc.SubgraphRepresentation(gpr="rule"), {"phenotypes": ONCE}),
    "perturbation, no labels": (tc.LazySubgraphRepresentation(), {}),
    "full": (tc.SubgraphRepresentation(), {"phenotypes": ONCE}),
}


@pytest.fixture(scope="module", params=KINDS)
def store(request, tmp_path_factory):
    base = cell_graph()
    case, (processor, labels) = random_case(base, num_samples=COUNT), KINDS[request.param]
    source = tc.PerturbationTable(base, case.perturbed, **labels)
    ds = tc.build(
        tmp_path_factory.mktemp("h") / "s",
        source=source,
        processor=processor,
        storage=request.param.split(",")[0],
        progress=False,
    )
    generation = ds.generation
    bodies = [record[8:] for record in generation.read(range(COUNT))]
    return ds, bodies


USES = {
    "samples": lambda b: [b[k] for k in range(COUNT)],
    "edge masks": lambda b: (b.edge_mask(EDGES), b.node_mask("gene"), b.removed_edges(EDGES)),
    "PyG": lambda b: b.to_pyg(),
    "labels": lambda b: (
        b.phenotypes,
        b.perturbed,
        b.perturbed_batch,
        getattr(b, "phenotype_coordinates", None),
    ),
    "travelled": lambda b: (b2 := pickle.loads(pickle.dumps(b))) and (b2.edge_mask(EDGES), b2.to_pyg()),
    "restricted": lambda b: b.restrict("gene", range(9)).to_pyg(),
    "neighbours": lambda b: b.select_nodes("gene", 9, strategy="perturbed_neighbourhood").edge_mask(EDGES),
}


def answers(act):
    """Whether it works; the package's own errors count as an answer, all others are raised."""
    try:
        act()
    except CacheError:
        return False
    return True


def damaged(draw, body):
    at = draw(st.integers(0, len(body) - 1))
    how = draw(st.sampled_from(["byte", "word", "cut", "more", "run"]))
    if how == "byte":
        return body[:at] + bytes([draw(st.integers(0, 255))]) + body[at + 1 :]
    if how == "word":
        at -= at % 2
        return (
            body[:at] + draw(st.sampled_from([b"\xff\xff", b"\xfe\xff", b"\0\0", b"\x09\0"])) + body[at + 2 :]
        )
    if how == "cut":
        return body[:at]
    if how == "more":
        return body + draw(st.binary(min_size=1, max_size=8))
    stop = draw(st.integers(at, min(len(body), at + 16)))
    return body[:at] + draw(st.sampled_from([b"\xff", b"\0"])) * (stop - at) + body[stop:]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_batch_answers_as_the_dataset_does(store, data) -> None:
    ds, bodies = store
    k = data.draw(st.integers(0, COUNT - 1))
    changed = [*bodies[:k], damaged(data.draw, bodies[k]), *bodies[k + 1 :]]
    files, ds.generation.files = ds.generation.files, Records(changed, int(ds.generation.seeds[0]))
    try:
        alone = answers(lambda: [ds[j] for j in range(COUNT)])
        for name, use in USES.items():
            together = answers(lambda use=use: use(ds.read_batch(range(COUNT))))
            # What single samples refuse, a batch of whole records refuses too; columns of labels are not read from records.
            if name == "samples" and not alone and not ds.generation.is_structured:
                assert not together
    finally:
        ds.generation.files = files


WORDS = (0, 1, 3, 7, 9, -1, 1 << 16, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63))


def lying(draw, buffer):
    """A packed batch of which 8 bytes, two runs of them, or any bytes are others."""
    if draw(st.booleans()):
        return damaged(draw, buffer)
    words = np.frombuffer(buffer, dtype=np.int64).copy()
    a, b = (draw(st.integers(0, len(words) - 1)) for _ in range(2))
    if draw(st.booleans()):
        words[a] = draw(st.sampled_from([*WORDS, int(words[a]) // 2, int(words[b])]))
    else:
        words[a], words[b] = words[b], words[a]
    return words.tobytes()


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_packed_batch_that_lies_is_refused_or_answered(store, data) -> None:
    """What came through a pipe or shared memory carries no checksum."""
    ds, _ = store
    buffer = lying(data.draw, ds.read_batch(range(COUNT)).pack().tobytes())
    if answers(lambda: tc.SharedGraphBatch.unpack(ds.generation, buffer)):
        for use in USES.values():
            answers(lambda use=use: use(tc.SharedGraphBatch.unpack(ds.generation, buffer)))


def deletions(root, storage):
    case = random_case(cell_graph(), num_samples=COUNT)
    source = tc.PerturbationTable(case.base, [[0, 3], [2, 5, 8], [1], [], [4, 7], [6]], phenotypes=ONCE)
    return tc.build(
        root, source=source, processor=tc.SubgraphRepresentation(), storage=storage, progress=False
    )


@pytest.mark.parametrize("storage", ["perturbation", "delta"])
@pytest.mark.parametrize("ids", [(3, 0), (3, 3)], ids=["falling", "twice"])
def test_the_nodes_of_a_sample_ascend(tmp_path, storage, ids) -> None:
    """Counted twice, a node makes a sample of fewer nodes than it has, or of a negative number."""
    ds = deletions(tmp_path / storage, storage)
    batch = ds.read_batch(range(COUNT))
    batch.sections["perturbed"][:2] = ids
    with pytest.raises(FormatError, match="does not ascend"):
        tc.SharedGraphBatch.unpack(ds.generation, batch.pack())
    bodies = [record[8:] for record in ds.generation.read(range(COUNT))]
    at = 4 + 4  # header and one measurement
    bodies[0] = bodies[0][:at] + np.array(ids, dtype="<u2").tobytes() + bodies[0][at + 4 :]
    ds.generation.files = Records(bodies, int(ds.generation.seeds[0]))
    ds.generation.__dict__["table_reader"] = None
    for use in (lambda: ds[0], lambda: ds.read_batch([1, 0])):
        with pytest.raises(CorruptRecordError, match="do not ascend"):
            use()


def test_rows_without_columns_are_bounded(tmp_path) -> None:
    """They take no bytes, so their number could be anything."""
    ds = tc.build(
        tmp_path,
        source=tc.PerturbationTable(cell_graph(), [[0], [1]]),
        processor=tc.LazySubgraphRepresentation(),
        progress=False,
    )
    batch = ds.read_batch([0, 1])
    batch.sections["values"] = np.empty((1 << 50, 0), dtype=np.float32)
    batch.sections["value_ptr"] = np.array([0, 1, 1 << 50])
    with pytest.raises(FormatError, match="rows"):
        tc.SharedGraphBatch.unpack(ds.generation, batch.pack())


@pytest.mark.parametrize("storage", ["perturbation", "delta"])
def test_a_selection_that_lies_is_refused(tmp_path, storage) -> None:
    ds = deletions(tmp_path, storage)
    part = ds.read_batch([0, 4]).restrict("gene", [0, 1, 3, 4, 7])
    rebuild, (store, buffer, (nodes, kept)) = part.__reduce__()
    assert len(rebuild(store, buffer, (nodes, kept))) == 2
    number = next(k for k, local in enumerate(kept) if local is not None and len(local) > 1)
    for wrong in (
        (nodes[::-1], kept),
        (nodes + 5, kept),
        (nodes[[0, 0, 1, 2, 3]], kept),
        (nodes[:3], kept),  # fewer than the batch perturbs
        (nodes, kept[:-1]),
        (nodes, (*kept[:number], kept[number][::-1], *kept[number + 1 :])),
        (nodes, (*kept[:number], kept[number] + 1000, *kept[number + 1 :])),
        (nodes, (*kept[:number], kept[number].astype(np.float64), *kept[number + 1 :])),
    ):
        with pytest.raises(FormatError):
            rebuild(store, buffer, wrong)


def test_graphs_that_pyg_cannot_put_together_are_refused_in_words(tmp_path) -> None:
    """Edges of one sample have no rows: PyG's ``__inc__`` of two rows does not fit."""

    def odd(graph):
        if int(graph.k):
            graph.edge_index = torch.zeros(0, 0, dtype=torch.long)
        return graph

    graphs = [
        Data(edge_index=torch.tensor([[0, 1], [1, 0]]), num_nodes=2, k=torch.tensor([k])) for k in (0, 1)
    ]
    ds = tc.build(tmp_path / "s", source=graphs, processor=odd, storage="full", progress=False)
    with pytest.raises(SettingError, match="PyG cannot make one batch of these samples: Sizes"):
        ds.read_batch([0, 1]).to_pyg()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([0, 1, 2, 5, 65534, 65535]), max_size=4), max_size=5),
    st.integers(1, 70000),
)
def test_sound_gap_codes_are_told_from_others(lists, size) -> None:
    """One list at a time, decoded in full."""

    def sound(words):
        positions = decode_gaps(np.array(words, dtype=np.uint16)).tolist()
        return sum(words) < size and positions == sorted(set(positions)) and (not words or words[-1] != 65535)

    words = np.array([word for row in lists for word in row], dtype=np.uint16)
    ptr = np.cumsum([0, *map(len, lists)])
    wrong = [k for k, row in enumerate(lists) if not sound(row)]
    assert check_gaps_ragged(words, ptr, size) == (wrong[0] if wrong else None)


def test_positions_beyond_the_graph_name_the_sample(tmp_path) -> None:
    """Before a device is asked: there, reading beyond a tensor's end would end the process."""
    ds = tc.build(
        tmp_path,
        source=tc.testing.tiny_source(4),
        processor=tc.LazySubgraphRepresentation(),
        storage="delta",
        progress=False,
    )
    bodies = [record[8:] for record in ds.generation.read(range(4))]
    for tail in (b"\xfe\xff", b"\xff\xff", b"\0\0"):
        ds.generation.files = Records([*bodies[:2], bodies[2] + tail, bodies[3]], int(ds.generation.seeds[0]))
        for use in ("edge_mask", "removed_edges"):
            with pytest.raises(CorruptRecordError, match="sample 2 removes positions") as caught:
                getattr(ds.read_batch(range(4)), use)(EDGES)
            assert caught.value.fix


@pytest.mark.parametrize(
    "change",
    [
        {"perturbed": np.array([0, 1, 99], dtype=np.uint8)},
        {"perturbed": np.array([0, 1, -1], dtype=np.int8)},
        {"perturbed": np.array([0, 1, 2], dtype=np.float32)},
        {"perturbed": np.array([0, 1], dtype=np.uint8), "perturbed_count": np.array([1, 1], dtype=np.uint8)},
        {"perturbed": np.array([1, 0, 2], np.uint8), "perturbed_count": np.array([2, 0, 1], np.uint8)},
        {"perturbed": np.array([1, 1, 2], np.uint8), "perturbed_count": np.array([2, 0, 1], np.uint8)},
        {"values": np.zeros((3, 1), dtype=np.float64)},
        {"values": np.zeros((3, 2), dtype=np.float32)},
        {"perturbed_count": np.array([1, 1, 2], dtype=np.uint8)},
    ],
    ids=lambda change: "-".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in change.items()),
)
def test_columns_that_are_of_other_samples(tmp_path, change) -> None:
    """With the digest that the manifest would have."""
    arrays = {
        "perturbed": np.array([0, 1, 2], dtype=np.uint8),
        "perturbed_count": np.ones(3, dtype=np.uint8),
        "values": np.zeros((3, 1), dtype=np.float32),
    }
    path = tmp_path / "columns.safetensors"

    def read(content):
        path.write_bytes(arrays_to_bytes(content))
        return TableReader.load(path, file_digest(path)[2], ("fitness",), (), 3, 9)

    assert read(arrays).perturbed(np.array([2]))[0].tolist() == [2]
    with pytest.raises(CorruptShardError):
        read({**arrays, **change})
