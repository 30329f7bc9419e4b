"""``KHopSubgraph``: PyG's ``k_hop_subgraph`` on homogeneous graphs, brute force on the others; stored in any way."""

import copy
import tempfile
from pathlib import Path

import pytest
import torch
from batch_cases import hetero_graphs, plain_graphs
from graphs import cell_graph, cell_graphs, plain_graph, random_case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.utils import k_hop_subgraph

import torchcell_cache as tc
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.testing import assert_same_graph

FLOWS = ("both", "source_to_target", "target_to_source")
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def size_of(base):
    return base.num_nodes if isinstance(base, Data) else base["gene"].num_nodes


def table(base, perturbed):
    return tc.PerturbationTable(
        base, perturbed, phenotypes={"fitness": [float(k) for k in range(len(perturbed))]}
    )


def draw_perturbed(data, base, samples=3):
    node = st.integers(0, size_of(base) - 1)
    return data.draw(st.lists(st.sets(node).map(sorted), min_size=1, max_size=samples), label="perturbed")


@QUICK
@given(base=plain_graphs(), data=st.data())
def test_homogeneous_graphs_are_pygs_k_hop_subgraph(base, data):
    hops, flow = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(FLOWS))
    source = table(base, draw_perturbed(data, base))
    for k in range(len(source)):
        sample = source[k]
        got = tc.KHopSubgraph(hops, flow=flow).process(base, sample)
        index = base.edge_index if base.edge_index is not None else torch.empty((2, 0), dtype=torch.int64)
        walked = torch.cat([index, index.flip(0)], dim=1) if flow == "both" else index
        ids = torch.from_numpy(sample.perturbed)
        direction = "source_to_target" if flow == "both" else flow
        near = k_hop_subgraph(ids, hops, walked, num_nodes=base.num_nodes, flow=direction)[0]
        assert torch.equal(got.n_id, near)
        assert torch.equal(got.n_id[got.is_perturbed], ids)
        mask = torch.isin(index, near).all(dim=0)
        if base.edge_index is not None:
            relabelled = torch.searchsorted(near, index[:, mask])
            assert torch.equal(got.edge_index, relabelled)
            if flow != "both":
                pyg = k_hop_subgraph(
                    ids, hops, index, relabel_nodes=True, num_nodes=base.num_nodes, flow=flow
                )
                assert torch.equal(got.edge_index, pyg[1])
        for name in ("x", "level"):
            if base.get(name) is not None:
                assert torch.equal(got[name], base[name][near])
        if "edge_weight" in base:
            assert torch.equal(got.edge_weight, base.edge_weight[mask])
        if "edge_attr" in base:
            assert torch.equal(got.edge_attr, base.edge_attr[mask])


def brute_force(base, perturbed, hops, types, flow):
    """Breadth-first, one edge at a time."""
    near = set(perturbed)
    for _ in range(hops):
        before = set(near)
        for edge_type in types:
            for s, t in base[edge_type].edge_index.t().tolist():
                if t in before and flow != "target_to_source":
                    near.add(s)
                if s in before and flow != "source_to_target":
                    near.add(t)
    return sorted(near)


@QUICK
@given(base=st.one_of(hetero_graphs(), cell_graphs()), data=st.data())
def test_heterogeneous_graphs_by_brute_force(base, data):
    hops, flow = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(FLOWS))
    kind = data.draw(st.sampled_from(("keep", "delete")))
    valid = [t for t in base.edge_types if t[0] == t[2] == "gene"]
    types = data.draw(
        st.one_of(st.none(), st.sets(st.sampled_from(valid)).map(sorted) if valid else st.none())
    )
    source = table(base, draw_perturbed(data, base, 2))
    processor = tc.KHopSubgraph(hops, types, flow=flow, perturbed=kind)
    for k in range(len(source)):
        got, perturbed = processor.process(base, source[k]), source[k].perturbed.tolist()
        near = brute_force(base, perturbed, hops, valid if types is None else types, flow)
        near = [n for n in near if kind == "keep" or n not in perturbed]
        assert got["gene"].n_id.tolist() == near
        assert got["gene"].num_nodes == len(near)
        assert got["gene"].node_ids == [base["gene"].node_ids[n] for n in near]
        assert got["gene"].perturbation_indices.tolist() == perturbed
        assert got["gene"].is_perturbed.tolist() == [n in perturbed for n in near]
        assert got["gene"].phenotype_values.tolist() == [float(k)]
        assert got.node_types == base.node_types
        new_id = {old: new for new, old in enumerate(near)}
        for edge_type in base.edge_types:
            check_edges(base[edge_type], got[edge_type], edge_type, new_id)


def check_edges(base, got, edge_type, new_id):
    name = "edge_index" if "edge_index" in base else "hyperedge_index"
    expected, rows = [], []
    for row, pair in enumerate(base[name].t().tolist()):
        ends = [
            new_id.get(n, -1) if end == "gene" else n for n, end in zip(pair, edge_type[::2], strict=True)
        ]
        if -1 not in ends:
            expected.append(ends)
            rows.append(row)
    assert got[name].t().tolist() == expected
    assert got.num_edges == len(rows)
    for extra in ("stoichiometry", "edge_weight", "edge_attr"):
        if extra in base:
            assert torch.equal(got[extra], base[extra][rows])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(base=st.one_of(hetero_graphs(), plain_graphs()), data=st.data())
def test_a_store_gives_what_the_definition_gives(base, data):
    """The build goes through the incidence index, verification through the definition."""
    processor = tc.KHopSubgraph(
        data.draw(st.integers(1, 3)),
        flow=data.draw(st.sampled_from(FLOWS)),
        perturbed=data.draw(st.sampled_from(("keep", "delete"))),
    )
    source = table(base, draw_perturbed(data, base))
    storage = data.draw(st.sampled_from(("delta", "full", "auto")))
    want = [processor(source[k]) for k in range(len(source))]
    with tempfile.TemporaryDirectory() as root:
        ds = tc.build(root, source=source, processor=processor, storage=storage, progress=False)
        for k, graph in enumerate(want):
            assert_same_graph(ds[k], graph)
        batch = ds.read_batch(range(len(source)))
        assert_same_graph(batch.to_pyg(), Batch.from_data_list(want))
        assert batch.labels("fitness").tolist() == list(range(len(source)))
        assert tc.verify(root, source=source, processor=processor, progress=False).ok


def test_edges_kept_and_deleted_perturbations_differ():
    base = cell_graph()
    source = table(base, [[0, 1]])
    kept, deleted = (tc.KHopSubgraph(perturbed=kind)(source[0]) for kind in ("keep", "delete"))
    assert set(kept["gene"].node_ids) - set(deleted["gene"].node_ids) == {"Y000", "Y001"}
    assert deleted["gene"].x_pert.equal(base["gene"].x[:2])
    assert deleted["reaction"].num_nodes == 6
    assert not deleted["gene"].is_perturbed.any()


def test_an_unperturbed_sample_has_no_neighbourhood():
    for base in (cell_graph(), plain_graph()):
        graph = tc.KHopSubgraph(2)(table(base, [[]])[0])
        store = graph if isinstance(base, Data) else graph["gene"]
        assert store.num_nodes == 0
        assert (graph if isinstance(base, Data) else graph["gene", "physical", "gene"]).edge_index.shape == (
            2,
            0,
        )


def test_relations_may_be_given_by_name(tmp_path):
    base = cell_graph()
    source = table(base, [[0], [3, 4]])
    by_name, by_type = tc.KHopSubgraph(1, ["physical"]), tc.KHopSubgraph(1, [("gene", "physical", "gene")])
    for k in range(2):
        assert_same_graph(by_name(source[k]), by_type(source[k]))


def test_base_graph_and_sample_are_only_read():
    base = cell_graph()
    before = copy.deepcopy(base)
    tc.KHopSubgraph(2)(random_case(base).source()[1])
    assert_same_graph(base, before)


def test_wrong_settings_are_answered_with_the_valid_ones(tmp_path):
    source = table(cell_graph(), [[0]])
    with pytest.raises(SettingError, match="'physical'"):
        tc.KHopSubgraph(1, ["fysical"])(source[0])
    with pytest.raises(SettingError, match="'physical'"):
        tc.build(
            tmp_path, source=source, processor=tc.KHopSubgraph(1, ["gpr"]), storage="delta", progress=False
        )
    with pytest.raises(SettingError, match="'source_to_target'"):
        tc.KHopSubgraph(flow="up")
    with pytest.raises(SettingError, match="'delete'"):
        tc.KHopSubgraph(perturbed="drop")
    with pytest.raises(SettingError, match="from 1 on"):
        tc.KHopSubgraph(0)
    with pytest.raises(SettingError, match=r"\['physical'\]"):
        tc.KHopSubgraph(1, "physical")
    with pytest.raises(SourceContractError, match="PerturbationTable"):
        tc.KHopSubgraph().process(HeteroData(), Data())
    with pytest.raises(SettingError, match="storage="):
        tc.build(tmp_path, source=source, processor=tc.KHopSubgraph(), storage="perturbation", progress=False)


def test_the_command_line_knows_it():
    from torchcell_cache.cli.registry import make
    from torchcell_cache.cli.settings import read_settings

    settings = read_settings(
        "preprocess",
        [
            "root=x",
            "source=ecoli",
            "processor=khop",
            "processor.num_hops=2",
            "processor.edge_types=[physical]",
        ],
    )
    assert make(settings, "processor").settings() == tc.KHopSubgraph(2, ["physical"]).settings()


def test_graphs_have_no_ids_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(SourceContractError, match=r"KHopSubgraph needs perturbed ids; \w+ gives graphs"):
        tc.build(tmp_path, source=[plain_graph()], processor=tc.KHopSubgraph(1), progress=False)
    assert not any(tmp_path.rglob("*.lmdb"))
