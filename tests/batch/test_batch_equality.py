"""``to_pyg()`` is PyG's own batch of the samples, bit for bit, whatever the store, the graph and the batch."""

import tempfile

import pytest
import torch
from batch_cases import STATISTICS, STORAGES, Case, cases, processors, pyg_batch, tiny_case, wide_graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data, HeteroData

import torchcell_cache as tc
from torchcell_cache.batch import device
from torchcell_cache.batch.subgraphs import FilteredFields
from torchcell_cache.errors import SettingError
from torchcell_cache.testing import assert_same_graph

FOLLOW = ["x", "perturbation_indices", "edge_index", "hyperedge_index", "ids_pert", "mask"]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True, scope="module")
def _every_buffer_is_used_again():
    before, device._SMALL_BYTES = device._SMALL_BYTES, 1
    yield
    device._SMALL_BYTES = before


def assert_same_batch(got, want):
    """The same batch, and the same samples out of it."""
    assert type(got) is type(want)
    assert_same_graph(got, want)
    assert got.num_graphs == want.num_graphs
    for own, other in zip(got.stores, want.stores, strict=True):
        assert own.__dict__.get("_num_nodes") == other.__dict__.get("_num_nodes")
        assert own.__dict__.keys() == other.__dict__.keys()
    for name in ("_slice_dict", "_inc_dict"):
        assert order_of(getattr(got, name)) == order_of(getattr(want, name))
    for k in range(want.num_graphs):
        try:
            example = want.get_example(k)
        except Exception as error:
            with pytest.raises(type(error)):
                got.get_example(k)
        else:
            assert_same_graph(got.get_example(k), example)


def order_of(nested):
    return [(key, order_of(value)) for key, value in nested.items()] if isinstance(nested, dict) else None


def scribble(batch):
    """Change every tensor of a batch in place, as a user might."""
    for store in batch.stores:
        for value in store._mapping.values():
            if isinstance(value, torch.Tensor):
                value.logical_not_() if value.dtype == torch.bool else value.fill_(77)


def names_of(graph):
    return {name for store in graph.stores for name in store._mapping}


def follow_of(batch):
    return [name for name in FOLLOW if name in names_of(batch)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(), data=st.data())
def test_to_pyg_equals_pygs_own_batch(case: Case, data) -> None:
    processor = data.draw(st.sampled_from(processors(case)), label="processor")
    storage = data.draw(st.sampled_from(STORAGES), label="storage")
    positions = data.draw(
        st.lists(st.integers(0, len(case.perturbed) - 1), min_size=1, max_size=6), label="positions"
    )
    source = case.source()
    has = ["phenotype_stat_values" in names_of(processor(source[k])) for k in positions]
    exclude = list(STATISTICS) if any(has) and not all(has) else []
    with tempfile.TemporaryDirectory() as root:
        ds = tc.build(root, source=source, processor=processor, storage=storage, progress=False)
        batch = ds.read_batch(positions)
        if exclude:
            with pytest.raises(SettingError, match="exclude_keys"):
                batch.to_pyg()
        want = pyg_batch(source, processor, positions, exclude_keys=exclude)
        got = batch.to_pyg(exclude_keys=exclude)
        assert_same_batch(got, want)
        scribble(got)  # in place: must reach neither the shared batch nor the next one
        del got
        follow = follow_of(want)
        want = pyg_batch(source, processor, positions, follow_batch=follow, exclude_keys=exclude)
        assert_same_batch(batch.to_pyg(follow, exclude), want)
        again = type(batch).unpack(ds.generation, batch.pack().tobytes())
        assert_same_batch(again.to_pyg(follow, exclude), want)
        if isinstance(processor, tc.SubgraphRepresentation):
            FilteredFields.one_by_one = False  # how it is done on an accelerator
            try:
                assert_same_batch(batch.to_pyg(follow, exclude), want)
            finally:
                FilteredFields.one_by_one = None
        for k, at in enumerate(positions):
            assert_same_graph(batch[k], processor(source[at]))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("homogeneous", [False, True], ids=["hetero", "homogeneous"])
def test_batches_of_every_kind_of_sample(tmp_path, storage, homogeneous) -> None:
    case = tiny_case(homogeneous)
    source = case.source()
    batches = [[0], [1], [5], [1, 1], [5, 5, 5], [7, 0, 7], [6, 4, 2, 0, 1, 3, 5, 7], [2, 2, 1, 1, 5, 5]]
    for number, processor in enumerate(processors(case)):
        ds = tc.build(
            tmp_path / str(number),
            source=source,
            processor=processor,
            storage=storage,
            shard_size=3,
            progress=False,
        )
        for positions in batches:
            assert_same_batch(ds.read_batch(positions).to_pyg(), pyg_batch(source, processor, positions))


@pytest.mark.parametrize("storage", ["perturbation", "delta"])
def test_positions_far_apart(tmp_path, storage) -> None:
    """Gaps beyond one 16-bit word, and edge types larger than a block of the filter."""
    case = Case(wide_graph(), [[0], [1, 2], [], [2], [0, 1, 2], [17], [0, 5, 9]])
    source = case.source()
    positions = [4, 0, 6, 2, 1, 5, 3]
    for number, processor in enumerate([tc.LazySubgraphRepresentation(), tc.SubgraphRepresentation()]):
        ds = tc.build(
            tmp_path / str(number), source=source, processor=processor, storage=storage, progress=False
        )
        batch = ds.read_batch(positions)
        assert_same_batch(batch.to_pyg(), pyg_batch(source, processor, positions))
        for key in ds.base_graph.edge_types:
            lost = [~tc.LazySubgraphRepresentation()(source[k])[key].mask for k in positions]
            assert torch.equal(~batch.edge_mask(key), torch.stack(lost))


@pytest.mark.parametrize("name", ["index_of_kind", "batch_of_origin", "face"])
@pytest.mark.parametrize("homogeneous", [False, True], ids=["hetero", "homogeneous"])
def test_names_that_pyg_treats_specially(tmp_path, name, homogeneous) -> None:
    """Fields that PyG shifts because of their name go through PyG itself."""
    case = tiny_case(homogeneous)
    store = case.base if homogeneous else case.base["gene", "physical", "gene"]
    store[name] = torch.arange(store.edge_index.size(1)) % 3
    source = case.source()
    for number, processor in enumerate([tc.LazySubgraphRepresentation(), tc.SubgraphRepresentation()]):
        ds = tc.build(
            tmp_path / str(number), source=source, processor=processor, storage="delta", progress=False
        )
        for positions in ([0, 3, 3], [6]):
            assert_same_batch(ds.read_batch(positions).to_pyg(), pyg_batch(source, processor, positions))


@pytest.mark.parametrize("one_by_one", [True, False])
def test_edges_between_nodes_that_a_rule_removed(tmp_path, monkeypatch, one_by_one) -> None:
    """No gene is at their ends, so they stay, with the number -1 the representation gives a removed end."""
    monkeypatch.setattr(FilteredFields, "one_by_one", one_by_one)
    case = tiny_case()
    case.base["reaction", "next", "reaction"].edge_index = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]])
    source, processor = case.source(), tc.SubgraphRepresentation()
    ds = tc.build(tmp_path, source=source, processor=processor, storage="perturbation", progress=False)
    for positions in ([0], [4, 5, 1, 2]):
        assert_same_batch(ds.read_batch(positions).to_pyg(), pyg_batch(source, processor, positions))


@pytest.mark.parametrize(
    "processor", [tc.LazySubgraphRepresentation(), tc.SubgraphRepresentation()], ids=repr
)
@pytest.mark.parametrize("homogeneous", [False, True])
def test_a_narrow_edge_index_keeps_its_type_as_pyg_would(
    tmp_path, monkeypatch, processor, homogeneous
) -> None:
    case = tiny_case(homogeneous)
    stores = [case.base._store] if homogeneous else [case.base[k] for k in case.base.edge_types]
    for store in stores:
        name = "edge_index" if "edge_index" in store else "hyperedge_index"
        store[name] = store[name].to(torch.int32)
    source = case.source()
    ds = tc.build(tmp_path, source=source, processor=processor, storage="delta", progress=False)
    for positions in ([2], [0, 4, 1]):
        graphs = [processor(source[k]) for k in positions]
        for one_by_one in (None, False):
            monkeypatch.setattr(FilteredFields, "one_by_one", one_by_one)
            batch = ds.read_batch(positions)
            assert_same_batch(batch.to_pyg(), Batch.from_data_list(graphs))
            if isinstance(processor, tc.LazySubgraphRepresentation):
                want = Batch.from_data_list([filtered(processor(source[k])) for k in positions])
                assert_same_batch(batch.to_pyg(drop_removed=True), want)


def test_living_batches_are_never_overwritten(tmp_path) -> None:
    case = tiny_case()
    source = case.source()
    for number, processor in enumerate([tc.LazySubgraphRepresentation(), tc.SubgraphRepresentation()]):
        ds = tc.build(
            tmp_path / str(number), source=source, processor=processor, storage="delta", progress=False
        )
        chosen = [[k % 8, (3 * k + 1) % 8] for k in range(8)]
        alive = [ds.read_batch(positions).to_pyg() for positions in chosen]
        one_view = ds.read_batch([0, 5]).to_pyg()["gene", "physical", "gene"].edge_index[0, 2:]
        before = one_view.clone()
        alive += [ds.read_batch(positions).to_pyg() for positions in chosen]
        assert torch.equal(one_view, before)
        for positions, got in zip(chosen * 2, alive, strict=True):
            assert_same_batch(got, pyg_batch(source, processor, positions))


def test_a_processor_of_your_own_goes_through_pyg(tmp_path) -> None:
    case = tiny_case()
    source = case.source()

    def processor(sample):
        graph = tc.Perturbation()(sample)
        graph["gene"].y = torch.tensor([float(len(sample.perturbed))])
        return graph

    processor.cache_version = 1
    ds = tc.build(tmp_path, source=source, processor=processor, storage="full", progress=False)
    batch = ds.read_batch([3, 0, 3])
    assert_same_batch(batch.to_pyg(["y"]), pyg_batch(source, processor, [3, 0, 3], follow_batch=["y"]))
    assert batch.labels("fitness").tolist() == [2.0, 1.0, 2.0]
    assert batch.node_mask("gene").equal(torch.stack([ds[k]["gene"].mask for k in (3, 0, 3)]))
    with pytest.raises(KeyError, match="reaction"):
        batch.node_mask("reaction")
    with pytest.raises(KeyError, match="physical"):
        batch.edge_mask(("gene", "physical", "gene"))


@needs_cuda
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("homogeneous", [False, True], ids=["hetero", "homogeneous"])
def test_equal_on_cuda_and_masks_without_waiting(tmp_path, storage, homogeneous) -> None:
    case = tiny_case(homogeneous)
    source = case.source()
    for number, processor in enumerate(processors(case)):
        ds = tc.build(
            tmp_path / str(number), source=source, processor=processor, storage=storage, progress=False
        )
        for positions in ([0], [6, 4, 2, 0, 1, 3, 5, 7], [5, 1, 5]):
            batch = ds.read_batch(positions).pin_memory().to("cuda", non_blocking=True)
            got = batch.to_pyg()
            assert all(
                v.is_cuda for s in got.stores for v in s._mapping.values() if isinstance(v, torch.Tensor)
            )
            assert_same_batch(got.cpu(), pyg_batch(source, processor, positions))
        if storage == "full":
            continue
        keys = case.base.edge_types if isinstance(case.base, HeteroData) else [None]
        fresh = ds.read_batch([6, 2]).pin_memory().to("cuda", non_blocking=True)
        torch.cuda.set_sync_debug_mode("error")
        try:
            masks = {key: fresh.edge_mask(key) for key in keys}
            node_mask = fresh.node_mask()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        host = fresh.cpu()
        assert torch.equal(node_mask.cpu(), host.node_mask())
        for key, mask in masks.items():
            assert torch.equal(mask.cpu(), host.edge_mask(key))


def test_batches_add_up_to_the_stock_loader(tmp_path) -> None:
    case = tiny_case()
    processor = tc.LazySubgraphRepresentation()
    ds = tc.build(tmp_path, source=case.source(), processor=processor, storage="perturbation", progress=False)
    whole = Batch.from_data_list([ds[k] for k in (4, 1)])
    assert_same_batch(ds.read_batch([4, 1]).to_pyg(), whole)
    assert_same_batch(ds[4:].read_batch([0]).to_pyg(), Batch.from_data_list([ds[4]]))


def filtered(graph):
    """The same graph with every field of its edges as ``[mask]`` gives it; names of fields are those of these tests."""
    hetero = isinstance(graph, HeteroData)
    for store in graph.edge_stores:
        mask = store.get("mask") if hetero else store.get("edge_mask")
        for name in [] if mask is None else ("edge_index", "hyperedge_index"):
            if name in store:
                store[name] = store[name][:, mask]
        names = ("edge_weight", "edge_attr", "stoichiometry", "mask" if hetero else "edge_mask")
        for name in names if mask is not None else ():
            if name in store:
                store[name] = store[name][mask]
        if mask is not None and "num_edges" in store:
            store.num_edges = int(mask.sum())
    return graph


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(), data=st.data())
def test_edges_already_filtered(case: Case, data) -> None:
    """For models that would take ``edge_index[:, mask]`` next: to the bit, its slices and its samples included."""
    processor = data.draw(st.sampled_from(processors(case)), label="processor")
    storage = data.draw(st.sampled_from(STORAGES), label="storage")
    several = st.lists(st.integers(0, len(case.perturbed) - 1), min_size=1, max_size=6)
    positions = data.draw(several, label="positions")
    source = case.source()

    def made(k):
        graph = processor(source[k])
        return filtered(graph) if isinstance(processor, tc.LazySubgraphRepresentation) else graph

    with tempfile.TemporaryDirectory() as root:
        ds = tc.build(root, source=source, processor=processor, storage=storage, progress=False)
        batch = ds.read_batch(positions)
        want = Batch.from_data_list([made(k) for k in positions], exclude_keys=STATISTICS)
        follow = follow_of(want)
        want = Batch.from_data_list([made(k) for k in positions], follow, STATISTICS)
        for one_by_one in (None, False):
            FilteredFields.one_by_one = one_by_one
            try:
                got = batch.to_pyg(follow, STATISTICS, drop_removed=True)
            finally:
                FilteredFields.one_by_one = None
            assert_same_batch(got, want)
            scribble(got)


@pytest.mark.parametrize("storage", ["perturbation", "full"])
@pytest.mark.parametrize("name", ["edge_weight", "index_of_kind", "essential"])
def test_edges_already_filtered_where_there_are_as_many_nodes(tmp_path, storage, name) -> None:
    """A homogeneous graph's own field is one of edges if its name says so, as in PyG; also in narrow types."""
    base = Data(num_nodes=4, edge_index=torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]], dtype=torch.int32))
    base[name] = torch.arange(4)
    source = tc.PerturbationTable(base, [[1], [], [0, 2]], phenotypes={"y": [1.0, 2.0, 3.0]})
    processor = tc.LazySubgraphRepresentation()
    ds = tc.build(tmp_path, source=source, processor=processor, storage=storage, progress=False)
    want = Batch.from_data_list([filtered(processor(source[k])) for k in (2, 0, 1)])
    assert_same_batch(ds.read_batch([2, 0, 1]).to_pyg(drop_removed=True), want)
