"""What a shared batch says about its samples, how it travels, and what it refuses."""

import contextlib
import math
import pickle

import numpy as np
import pytest
import torch
from batch_cases import STORAGES, Case, processors, tiny_case, wide_graph
from torch_geometric.data import HeteroData

import torchcell_cache as tc
from torchcell_cache.batch import SharedGraphBatch, device, release
from torchcell_cache.batch.device import BufferPool
from torchcell_cache.batch.packed import DTYPES
from torchcell_cache.errors import CacheError, CorruptRecordError, FormatError, SettingError
from torchcell_cache.testing import assert_same_graph

PHYSICAL = ("gene", "physical", "gene")
POSITIONS = [6, 4, 2, 0, 1, 3, 5, 7, 2]


def build(root, case, processor=None, storage="delta", **options):
    return tc.build(
        root,
        source=case.source(),
        processor=processor or tc.LazySubgraphRepresentation(),
        storage=storage,
        progress=False,
        **options,
    )


@pytest.fixture(scope="module", params=STORAGES)
def store(request, tmp_path_factory):
    case = tiny_case()
    return case, build(tmp_path_factory.mktemp("store"), case, storage=request.param, shard_size=3)


# Samples


def test_samples_come_in_the_order_asked_for(store) -> None:
    case, ds = store
    batch = ds.read_batch(POSITIONS)
    assert len(batch) == batch.num_graphs == len(POSITIONS)
    assert batch.indices.tolist() == POSITIONS
    source = case.source()
    for k, graph in enumerate(batch):
        assert_same_graph(graph, tc.LazySubgraphRepresentation()(source[POSITIONS[k]]))
    assert_same_graph(batch[-1], ds[2])
    with pytest.raises(IndexError, match="batch of 9"):
        _ = batch[9]
    assert ds[3:].read_batch([0, 2]).indices.tolist() == [3, 5]


def test_positions_that_are_not_there_are_refused(store) -> None:
    _, ds = store
    with pytest.raises(SettingError, match="at least one sample"):
        SharedGraphBatch.read(ds.generation, [])
    for wrong in ([0, 8], [-1]):
        with pytest.raises(IndexError, match="of 8 samples"):
            SharedGraphBatch.read(ds.generation, wrong)


def test_a_sample_edited_in_place_does_not_change_the_batch(store) -> None:
    case, ds = store
    batch = ds.read_batch([2, 4])
    batch[0]["gene"].phenotype_values.fill_(99)
    batch[0][PHYSICAL].mask.fill_(False)
    batch.labels("fitness").fill_(99)
    assert_same_graph(batch[0], tc.LazySubgraphRepresentation()(case.source()[2]))


def test_labels_are_means_over_measurements(store) -> None:
    case, ds = store
    batch = ds.read_batch(POSITIONS)
    for name, column in {**case.phenotypes, **case.statistics}.items():
        got = batch.labels(name)
        assert got.dtype == torch.float32
        for value, at in zip(got.tolist(), POSITIONS, strict=True):
            known = [v for v in column[at] if not math.isnan(v)]
            assert value == pytest.approx(sum(known) / len(known)) if known else math.isnan(value)
    assert list(batch.phenotypes) == ["fitness", "growth"]
    assert np.array_equal(batch.labels("growth").numpy(), ds.columns["growth"][POSITIONS], equal_nan=True)
    with pytest.raises(
        SettingError, match=r"no phenotype or statistic 'size'; there are \['fitness', 'growth', 'se'\]"
    ):
        batch.labels("size")


def test_perturbed_nodes_are_ragged(store) -> None:
    case, ds = store
    batch = ds.read_batch(POSITIONS)
    at = batch.perturbed_ptr.tolist()
    assert [batch.perturbed[at[k] : at[k + 1]].tolist() for k in range(9)] == [
        case.perturbed[k] for k in POSITIONS
    ]
    owner = [k for k, position in enumerate(POSITIONS) for _ in case.perturbed[position]]
    assert batch.perturbed_batch.tolist() == owner


@pytest.mark.parametrize("missing", [False, True])
def test_coordinates_are_those_of_the_samples(tmp_path, missing) -> None:
    case = tiny_case()
    if not missing:  # one value per sample and column: the short cut
        case.phenotypes = {"fitness": [float(k) for k in range(8)], "growth": [k / 8 for k in range(8)]}
        case.statistics = {"se": [0.5] * 8}
    ds = build(tmp_path, case)
    batch = ds.read_batch(POSITIONS)
    graphs = [ds[k]["gene"] for k in POSITIONS]
    for kind, got in (
        ("phenotype", batch.phenotype_coordinates),
        ("phenotype_stat", batch.statistic_coordinates),
    ):
        parts = [g.get(f"{kind}_values", torch.empty(0)) for g in graphs]
        assert torch.equal(got.values.view(torch.int32), torch.cat(parts).view(torch.int32))
        assert got.batch.tolist() == [k for k, part in enumerate(parts) for _ in part]
        assert got.ptr.tolist() == np.cumsum([0, *map(len, parts)]).tolist()
        for field, name in (("types", "type_indices"), ("samples", "sample_indices")):
            want = [v for g in graphs for v in g.get(f"{kind}_{name}", torch.empty(0)).tolist()]
            assert getattr(got, field).tolist() == want


# Masks


def kept_edges(base, key, lost):
    return [a not in lost and b not in lost for a, b in base[key].edge_index.t().tolist()]


def test_masks_say_what_each_sample_keeps(store) -> None:
    case, ds = store
    batch = ds.read_batch(POSITIONS)
    for name in ("physical", "regulatory", "genetic"):
        key = ("gene", name, "gene")
        mask = batch.edge_mask(key)
        assert mask.dtype == torch.bool
        assert mask.is_contiguous()
        want = [kept_edges(case.base, key, case.perturbed[k]) for k in POSITIONS]
        assert mask.tolist() == want
        assert mask.shape == (9, case.base[key].num_edges)
        sample, edge = batch.removed_edges(key)
        pairs = [(k, e) for k, row in enumerate(want) for e, keep in enumerate(row) if not keep]
        assert list(zip(sample.tolist(), edge.tolist(), strict=True)) == pairs
    lost = [
        {r for g, r in pairs_of(case.base["gene", "gpr", "reaction"]) if g in case.perturbed[k]}
        for k in POSITIONS
    ]
    assert batch.node_mask("reaction").tolist() == [[r not in gone for r in range(5)] for gone in lost]
    rmr = pairs_of(case.base["reaction", "rmr", "metabolite"])
    want = [[r not in gone for r, _ in rmr] for gone in lost]
    assert batch.edge_mask(("reaction", "rmr", "metabolite")).tolist() == want
    assert batch.node_mask("gene").tolist() == [
        [g not in case.perturbed[k] for g in range(8)] for k in POSITIONS
    ]
    assert batch.node_mask("metabolite").all()


def pairs_of(store):
    return [tuple(pair) for pair in store.hyperedge_index.t().tolist()]


def test_masks_of_every_representation_agree(tmp_path) -> None:
    case = tiny_case()
    for number, processor in enumerate(processors(case)):
        for storage in ("perturbation", "delta"):
            ds = build(tmp_path / f"{number}{storage}", case, processor, storage)
            batch = ds.read_batch(POSITIONS)
            for name in ("physical", "regulatory"):
                key = ("gene", name, "gene")
                assert batch.edge_mask(key).tolist() == [
                    kept_edges(case.base, key, case.perturbed[k]) for k in POSITIONS
                ]
            if not isinstance(processor, tc.Perturbation):
                want = torch.stack([~processor(case.source()[k])["reaction"].pert_mask for k in POSITIONS])
                assert torch.equal(batch.node_mask("reaction"), want)


def test_a_homogeneous_graph_has_one_edge_type(tmp_path) -> None:
    case = tiny_case(homogeneous=True)
    for storage in STORAGES:
        batch = build(tmp_path / storage, case, storage=storage).read_batch(POSITIONS)
        edges = case.base.edge_index.t().tolist()
        want = [
            [a not in case.perturbed[k] and b not in case.perturbed[k] for a, b in edges] for k in POSITIONS
        ]
        assert batch.edge_mask().tolist() == want
        assert batch.node_mask().tolist() == [
            [n not in case.perturbed[k] for n in range(8)] for k in POSITIONS
        ]
        assert batch.removed_edges()[0].tolist() == [
            k for k, row in enumerate(want) for keep in row if not keep
        ]


def test_types_that_are_not_there_are_named(store) -> None:
    _, ds = store
    batch = ds.read_batch([0])
    with pytest.raises(KeyError, match=r"physical.*rmr"):
        batch.edge_mask(("gene", "fysical", "gene"))
    with pytest.raises(KeyError, match="metabolite"):
        batch.node_mask("metabolit")


def test_a_mask_edited_in_place_does_not_reach_the_next_batch(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(device, "_SMALL_BYTES", 1)
    case = tiny_case()
    ds = build(tmp_path, case)
    held = []
    for _ in range(6):
        batch = ds.read_batch(POSITIONS)
        mask = batch.edge_mask(PHYSICAL)
        assert mask.tolist() == [kept_edges(case.base, PHYSICAL, case.perturbed[k]) for k in POSITIONS]
        mask.logical_not_()
        batch.node_mask().fill_(False)
        got = batch.to_pyg()
        assert got[PHYSICAL].mask.tolist() == (~mask).flatten().tolist()
        held.append((batch, mask[3:5]) if len(held) % 2 else None)
    for item in held[1::2]:
        want = [kept_edges(case.base, PHYSICAL, case.perturbed[k]) for k in POSITIONS]
        assert (~item[1]).tolist() == want[3:5]


# Travelling


def everything(batch):
    return {name: tensor.clone() for name, tensor in batch.tensors.items()}


def test_one_buffer_holds_everything(store) -> None:
    case, ds = store
    batch = ds.read_batch(POSITIONS)
    buffer = batch.pack()
    assert buffer.dtype == np.uint8
    assert np.array_equal(buffer, ds.read_batch(POSITIONS).pack())
    again = SharedGraphBatch.unpack(ds.generation, buffer.tobytes())
    assert type(again) is type(batch)
    for name, tensor in everything(batch).items():
        got = again.tensors[name]
        assert got.dtype == tensor.dtype
        assert torch.equal(
            got.view(torch.uint8) if got.numel() else got, tensor.view(torch.uint8) if got.numel() else tensor
        )
    assert_same_graph(again.to_pyg(), batch.to_pyg())
    for k, graph in enumerate(again):
        assert_same_graph(graph, tc.LazySubgraphRepresentation()(case.source()[POSITIONS[k]]))
    assert again.labels("fitness").tolist()[:4] == [5.0, 3.0, pytest.approx(math.nan, nan_ok=True), 1.0]


def test_a_pickle_is_the_buffer_and_an_address(store) -> None:
    _, ds = store
    batch = ds.read_batch(POSITIONS)
    data = pickle.dumps(batch)
    assert len(data) < batch.num_bytes + 600
    again = pickle.loads(data)
    assert again.generation is ds.generation  # not opened a second time
    assert_same_graph(again.to_pyg(), batch.to_pyg())


def test_a_batch_of_ids_is_a_few_kilobytes(tmp_path) -> None:
    random = np.random.default_rng(0)
    ids = [sorted(random.choice(40, 3, replace=False).tolist()) for _ in range(28)]
    case = Case(wide_graph(), ids, {"a": random.random(28), "b": random.random(28)})
    ds = build(tmp_path, case, storage="perturbation")
    assert ds.read_batch(range(28)).num_bytes < 10_000


def test_a_damaged_buffer_is_refused(store) -> None:
    _, ds = store
    good = ds.read_batch([3, 0, 4]).pack()
    for cut in (0, 10, 79, 80, len(good) - 8, len(good) - 1):
        with pytest.raises(FormatError):
            SharedGraphBatch.unpack(ds.generation, good[:cut].copy())
    with pytest.raises(FormatError):
        SharedGraphBatch.unpack(ds.generation, np.append(good, np.zeros(8, dtype=np.uint8)))
    random = np.random.default_rng(0)
    head = 80 + 48 * int(good[6])
    for _ in range(600):
        bad = good.copy()
        bad[random.integers(0, head)] ^= 1 << random.integers(0, 8)
        with pytest.raises(FormatError):
            SharedGraphBatch.unpack(ds.generation, bad)
    for _ in range(600):
        bad = good.copy()
        bad[random.integers(head, len(bad))] ^= 1 << random.integers(0, 8)
        with contextlib.suppress(
            FormatError
        ):  # a flip in a value is a value; one in a length or an id is refused
            SharedGraphBatch.unpack(ds.generation, bad)


def test_offsets_and_ids_of_a_buffer_are_checked(tmp_path) -> None:
    ds = build(tmp_path, tiny_case())
    batch = ds.read_batch([3, 0, 4])
    for name, wrong in (
        ("perturbed", 8),
        ("indices", 8),
        ("perturbed_ptr", 7),
        ("word_ptr", -1),
        ("indices", -1),
    ):
        other = ds.read_batch([3, 0, 4])
        sections = {key: value.copy() for key, value in batch.sections.items()}
        sections[name][1] = wrong
        other.sections = sections
        with pytest.raises(FormatError, match=name):
            SharedGraphBatch.unpack(ds.generation, other.pack())
    del sections["words"]
    other.sections, other._packed = sections, None
    with pytest.raises(FormatError, match="words"):
        SharedGraphBatch.unpack(ds.generation, other.pack())


def test_a_buffer_of_another_store_is_refused(tmp_path) -> None:
    case = tiny_case()
    one, other = build(tmp_path / "one", case), build(tmp_path / "other", case, storage="perturbation")
    with pytest.raises(FormatError, match="belongs to generation"):
        SharedGraphBatch.unpack(other.generation, one.read_batch([0]).pack())


def test_every_section_name_fits_the_format() -> None:
    assert all(len(name.encode()) <= 24 for name in DTYPES)


def test_moving_keeps_what_a_loader_noted(store) -> None:
    _, ds = store
    batch = ds.read_batch([1, 2])
    assert batch.to("cpu") is batch
    assert batch.cpu() is batch
    assert not batch.is_pinned()
    batch.is_padding = torch.tensor([False, True])
    assert batch._like(None).is_padding.tolist() == [False, True]
    if not torch.cuda.is_available():
        assert batch.pin_memory() is batch
    assert "2 samples" in repr(batch)


# One base graph for all


def test_the_base_graph_is_shared_not_copied(tmp_path) -> None:
    case = tiny_case()
    ds = build(tmp_path, case)
    one, other = ds.read_batch([0, 1]), tc.PreprocessedDataset(tmp_path).read_batch([2])
    assert one.on_device is other.on_device
    assert one.base_graph is ds.base_graph
    index = ds.base_graph[PHYSICAL].edge_index
    one.to_pyg()
    assert one.on_device.tensor(index) is index
    shared = one.on_device
    release("cuda:0")
    assert one.on_device is shared
    release()
    assert one.on_device is not shared or other.on_device is shared
    assert_same_graph(one.to_pyg(), ds.read_batch([0, 1]).to_pyg())


def test_buffers_are_used_again_only_when_nothing_refers_to_them() -> None:
    pool = BufferPool(torch.device("cpu"))
    size = device._SMALL_BYTES
    first = pool.take("a", (size,), torch.uint8)
    place = first.data_ptr()
    second = pool.take("a", (size,), torch.uint8)
    assert second.data_ptr() != place
    row = first.view(2, -1)[1]
    del first
    assert pool.take("a", (size,), torch.uint8).data_ptr() != place  # a view lives
    as_array = row.numpy()[3:5]
    del row
    assert pool.take("a", (size,), torch.uint8).data_ptr() != place  # an array of a view lives
    del as_array
    assert pool.take("a", (size // 8,), torch.int64).data_ptr() == place
    assert pool.take("b", (size,), torch.uint8).data_ptr() != place
    assert pool.take_flags("a", size // 2, True).all()
    assert pool.take("a", (4 * size,), torch.uint8).numel() == 4 * size
    pool.clear()
    assert not pool._buffers
    assert second.fill_(1).all()


# What is refused


def test_dropping_the_masks_is_refused(store) -> None:
    _, ds = store
    batch = ds.read_batch([0, 2])
    with pytest.raises(SettingError, match=r"(?s)unperturbed base graph.*allow_wild_type"):
        batch.to_pyg(exclude_keys=["mask"])
    assert "mask" not in batch.to_pyg(exclude_keys=["mask"], allow_wild_type=True)[PHYSICAL]
    assert "pert_mask" not in batch.to_pyg(exclude_keys=["pert_mask"])["gene"]
    with pytest.raises(SettingError, match="list of names"):
        batch.to_pyg(follow_batch="x")


def test_following_what_is_not_there_warns(store) -> None:
    _, ds = store
    with pytest.warns(UserWarning, match="'perturbed_indices'"):
        ds.read_batch([0]).to_pyg(follow_batch=["x", "perturbed_indices"])


def test_fields_that_only_some_samples_have_are_an_error(tmp_path) -> None:
    case = tiny_case()
    case.statistics = {
        "se": [
            [math.nan] * len(row) if k == 3 else [0.5] * len(row)
            for k, row in enumerate(case.phenotypes["growth"])
        ]
    }
    for storage in STORAGES:
        ds = build(tmp_path / storage, case, storage=storage)
        for positions in ([3, 0], [0, 3]):
            with pytest.raises(
                SettingError, match=r"(?s)phenotype_stat.*exclude_keys|exclude_keys.*phenotype_stat"
            ):
                ds.read_batch(positions).to_pyg()
        assert "phenotype_stat_values" not in ds.read_batch([3]).to_pyg()["gene"]
        assert "phenotype_stat_values" in ds.read_batch([0]).to_pyg()["gene"]
        assert ds.read_batch([0, 3]).labels("se").tolist() == [0.5, pytest.approx(math.nan, nan_ok=True)]


def test_a_delta_that_removes_nothing_where_edges_are_is_an_error(tmp_path) -> None:
    """What training on the wild type would look like in a damaged store."""
    ds = build(tmp_path, tiny_case())
    batch = ds.read_batch([1, 0])
    inert = {key: value.copy() for key, value in batch.sections.items()}
    inert["words"], inert["word_ptr"] = inert["words"][:0], np.zeros(3, dtype=np.int64)
    for use in (
        lambda b: b.edge_mask(PHYSICAL),
        lambda b: b.to_pyg(),
        lambda b: b.removed_edges(PHYSICAL),
    ):
        other = ds.read_batch([1, 0])
        other.sections = inert
        with pytest.raises(
            CorruptRecordError, match=r"sample 0 perturbs nodes \[0\] that have edges, and removes none"
        ):
            use(other)


def test_a_batch_that_equals_the_base_graph_is_found_on_request(tmp_path) -> None:
    ds = build(tmp_path, tiny_case())
    ds.read_batch([0, 1]).check_not_wild_type()
    ds.read_batch([1, 1]).check_not_wild_type()  # nothing perturbed: it is the wild type and says so
    isolated = ds.read_batch([3, 1])  # gene 7 has no edge
    isolated.edge_mask(PHYSICAL)
    with pytest.raises(CacheError, match="equal the unperturbed base graph"):
        isolated.check_not_wild_type()
    with pytest.raises(CacheError, match="genetic"):
        ds.read_batch([0, 1]).check_not_wild_type([("gene", "genetic", "gene")])


def test_a_store_of_graphs_without_perturbations(tmp_path) -> None:
    graphs = []
    for k in range(3):
        graph = HeteroData()
        graph["a"].x = torch.full((k + 1, 2), float(k))
        graph["a", "to", "a"].edge_index = torch.zeros((2, k), dtype=torch.long)
        graphs.append(graph)
    ds = tc.build(tmp_path, source=graphs, processor=None, storage="full", progress=False)
    batch = ds.read_batch([2, 0])
    assert batch.to_pyg()["a"].x.shape == (4, 2)
    with pytest.raises(SettingError, match=r"(?s)no mask.*to_pyg"):
        batch.edge_mask(("a", "to", "a"))
    with pytest.raises(SettingError, match="no perturbed nodes"):
        _ = batch.perturbed
    assert SharedGraphBatch.unpack(ds.generation, batch.pack())[0]["a"].x.shape == (3, 2)
