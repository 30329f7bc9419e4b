"""What the Neo4j source does without a server: parsing, aggregation, base graphs, the raw store, logins."""

import json
import math

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchcell_cache as tc
from torchcell_cache.cli import main
from torchcell_cache.errors import (
    CacheError,
    CorruptManifestError,
    CorruptShardError,
    SettingError,
    SourceContractError,
)
from torchcell_cache.sources import cell_graph
from torchcell_cache.sources.names import NodeNames
from torchcell_cache.sources.neo4j.driver import Login, parameters_of
from torchcell_cache.sources.neo4j.experiments import Malformed, Parsed, TableBuilder, parse_experiment
from torchcell_cache.sources.neo4j.raw import RawRecords, RawWriter

EXPERIMENT = {
    "experiment_type": "fitness",
    "dataset_name": "SmfCostanzo2016Dataset",
    "genotype": {
        "perturbations": [
            {
                "systematic_gene_name": "YAL001C",
                "perturbed_gene_name": "TFC3",
                "description": "Deletion via KanMX or NatMX gene replacement",
                "perturbation_type": "deletion",
                "strain_id": "YAL001C_dma1",
            }
        ]
    },
    "environment": {
        "media": {"name": "YEPD", "state": "solid"},
        "temperature": {"value": 30.0, "unit": "Celsius"},
    },
    "phenotype": {
        "graph_level": "global",
        "label_name": "fitness",
        "label_statistic_name": "fitness_se",
        "fitness": 0.91,
        "fitness_se": None,
        "fitness_std": 0.02,
        "n_samples": 4,
    },
}
"""As torchcell's pydantic models write it into ``serialized_data``."""


def changed(**phenotype):
    return json.dumps({**EXPERIMENT, "phenotype": {**EXPERIMENT["phenotype"], **phenotype}})


def test_a_torchcell_experiment():
    parsed = parse_experiment(json.dumps(EXPERIMENT))
    assert (parsed.genes, parsed.labels, parsed.statistics) == (
        ["YAL001C"],
        {"fitness": 0.91},
        {"fitness_se": None},
    )
    essential = parse_experiment(
        changed(label_name="is_essential", label_statistic_name=None, is_essential=True)
    )
    assert essential.labels == {"is_essential": 1.0}
    several = parse_experiment(
        changed(label_names=["fitness", "tau"], tau=-0.1, label_statistic_names=["fitness_std"])
    )
    assert (several.labels, several.statistics) == ({"fitness": 0.91, "tau": -0.1}, {"fitness_std": 0.02})
    shape = parse_experiment(
        changed(label_name="calmorph", label_statistic_name=None, calmorph={"A101": 1, "A102": 2})
    )
    assert shape.labels == {"calmorph.A101": 1.0, "calmorph.A102": 2.0}
    assert parse_experiment(changed(fitness=math.nan)).labels == {"fitness": None}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["genotype", "phenotype", "perturbations", "label_name", "fitness"]), inner
            )
        ),
        max_leaves=8,
    )
)
def test_whatever_json_there_is_parses_or_is_malformed(value):
    for document in (value, {**EXPERIMENT, "genotype": value}, {**EXPERIMENT, "phenotype": value}):
        try:
            parsed = parse_experiment(json.dumps(document))
        except Malformed:
            continue
        assert all(isinstance(gene, str) for gene in parsed.genes)
        assert all(v is None or isinstance(v, float) for v in parsed.labels.values())


def measured(*rows, **settings):
    builder = TableBuilder(NodeNames(["A", "B", "C"]), **settings)
    for number, (genes, labels, statistics, condition) in enumerate(rows):
        builder.add(f"e{number}", lambda row=(genes, labels, statistics, condition): Parsed(*row))
    return builder.table()


ROWS = [
    (["B", "A"], {"fitness": 0.5}, {"se": 0.1}, ""),
    (["C"], {"fitness": 1.0}, {}, ""),
    (["A", "B"], {"fitness": 0.75}, {"se": 0.3}, ""),
    (["A", "B"], {"tau": -1.0}, {}, ""),
    (["A", "B"], {"fitness": 0.0}, {}, "37 degrees"),
]


def test_duplicates_kept_grouped_and_averaged():
    kept = measured(*ROWS)
    assert len(kept) == 5
    assert kept.phenotypes == ("fitness", "tau")
    grouped = measured(*ROWS, replicates="group")
    assert grouped.source_ids == ["e0", "e1", "e4"]
    assert grouped.value_ptr.tolist() == [0, 3, 4, 5]
    assert np.array_equal(grouped.values[:3, 0], np.float32([0.5, 0.75, math.nan]), equal_nan=True)
    mean = measured(*ROWS, replicates="mean")
    assert mean.statistics == ("se", "fitness_count", "tau_count")
    assert np.array_equal(
        mean.values,
        np.float32([[0.625, -1, 0.2, 2, 1], [1, math.nan, math.nan, 1, 0], [0, math.nan, math.nan, 1, 0]]),
        equal_nan=True,
    )
    assert [mean.ids[a:b].tolist() for a, b in zip(mean.ptr, mean.ptr[1:], strict=False)] == [
        [0, 1],
        [2],
        [0, 1],
    ]


def test_an_id_twice_is_refused():
    builder = TableBuilder(NodeNames(["A"]))
    builder.add("x", lambda: Parsed(["A"], {}))
    with pytest.raises(SourceContractError, match=r"'x' is returned more than once\n.*DISTINCT"):
        builder.add("x", lambda: Parsed(["A"], {}))


def bipartite():
    graph = nx.DiGraph()
    graph.add_node("r2", node_type="reaction", genes={"B"}, subsystem="Growth")
    graph.add_node("r1", node_type="reaction", genes={"A", "Z"}, subsystem="other")
    graph.add_nodes_from(["m1", "m0"], node_type="metabolite")
    graph.add_edge("r2", "m0", edge_type="reactant", stoichiometry=2.0)
    graph.add_edge("r2", "m1", edge_type="product", stoichiometry=1.0)
    graph.add_edge("r1", "m1", edge_type="reactant", stoichiometry=0.5)
    return graph


def test_a_base_graph_from_networkx(tmp_path):
    physical = nx.Graph([("B", "A"), ("A", "outside"), ("C", "C")])
    regulatory = nx.DiGraph([("C", "A"), ("A", "C")])
    (tmp_path / "string.tsv").write_text("# a comment\ngene1\tgene2\tscore\nC\tB\t900\n")
    graph = cell_graph(
        ["C", "A", "B"],
        {"physical": physical, "regulatory": regulatory, "string": tmp_path / "string.tsv"},
        {"metabolism_bipartite": bipartite()},
        self_loops=True,
    )
    assert graph["gene"].node_ids == ["A", "B", "C"]
    edges = {
        name: graph["gene", name, "gene"].edge_index.t().tolist()
        for name in ("physical", "regulatory", "string")
    }
    loops = [[0, 0], [1, 1], [2, 2]]
    assert edges == {
        "physical": [[1, 0], *loops],
        "regulatory": [[2, 0], [0, 2], *loops],
        "string": [[2, 1], *loops],
    }
    assert graph["reaction"].node_ids == ["r1", "r2"]
    assert graph["reaction"].w_growth.tolist() == [0, 1]
    assert graph["gene", "gpr", "reaction"].hyperedge_index.tolist() == [[0, 1], [0, 1]]
    rmr = graph["reaction", "rmr", "metabolite"]
    assert rmr.hyperedge_index.t().tolist() == [[1, 0], [1, 1], [0, 1]]
    assert rmr.stoichiometry.tolist() == [-2, 1, -0.5]


def test_a_base_graph_from_tables_takes_every_processor(tmp_path):
    tables = {
        "reactions": ["r1", "r2"],
        "metabolites": ["m"],
        "gene_rules": ["A and B", "B or C"],
        "rmr": (["r1", "r2"], ["m", "m"], [-1, 1]),
    }
    graph = cell_graph(None, {"net": (["A", "C"], ["B", "A"])}, {"metabolism": tables}, both_directions=True)
    assert graph["gene", "net", "gene"].edge_index.t().tolist() == [[0, 1], [2, 0], [1, 0], [0, 2]]
    assert graph["gene", "gpr", "reaction"].hyperedge_index.tolist() == [[0, 1, 1, 2], [0, 0, 1, 1]]
    source = tc.PerturbationTable(graph, [["A"], ["B", "C"]])
    for name, processor in (
        ("any", tc.LazySubgraphRepresentation()),
        ("rule", tc.SubgraphRepresentation(gpr="rule")),
    ):
        dataset = tc.build(tmp_path / name, source=source, processor=processor, progress=False)
        tc.testing.assert_same_graph(dataset[1], processor(source[1]))
    assert cell_graph(["A"], features=torch.ones(1, 3))["gene"].x.shape == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "no genes"),
        ({"gene_set": ["A"], "graphs": {"x": 3}}, "network 'x' is int"),
        ({"gene_set": ["A"], "graphs": {"x": (["A"], [])}}, "columns of 1 and 0 entries"),
        ({"gene_set": ["A"], "graphs": {"x": "no/such.csv"}}, "network 'x': no file at"),
        ({"gene_set": ["A"], "incidence_graphs": {"ontology": {}}}, "valid: metabolism"),
        ({"gene_set": ["A"], "incidence_graphs": {"metabolism": {"reactions": []}}}, r"missing \['metabolites', 'rmr'\]"),
        ({"gene_set": ["A"], "features": torch.ones(2, 1)}, r"expected \[1, d\]"),
    ],
)  # fmt: skip
def test_what_is_no_base_graph(arguments, match):
    with pytest.raises(CacheError, match=match):
        cell_graph(**arguments)


def test_parameters_of_a_query():
    query = "MATCH (a {x: $one, y: '$two \\' $three'}) // $four\nWHERE a.`$five` = $six /* $seven */ RETURN \"$eight\""
    assert parameters_of(query) == {"one", "six"}


@pytest.mark.parametrize(
    "uri", ["localhost:7687", "bolt://", "bolt://[::1", "", "bolt://h:port", "file:///etc/x"]
)
def test_addresses_that_are_none(uri, monkeypatch):
    monkeypatch.delenv("NEO4J_URI", raising=False)
    with pytest.raises(SettingError):
        Login.from_settings(uri, "user", "secret-word")


def raw(root, cuts=(3, 4)):
    writer = RawWriter(root, {"query": "q", "columns": None})
    bodies = [json.dumps([f"id{k}", "x" * k, None]).encode() for k in range(7)]
    done = 0
    for count in cuts:
        writer.append(bodies[done : done + count], f"id{done + count - 1}")
        done += count
    return writer, bodies


def test_raw_records_come_back_and_do_not_depend_on_the_cuts(tmp_path):
    digests = set()
    for cuts in ((7,), (3, 4), (1, 1, 1, 4)):
        writer, bodies = raw(tmp_path / str(len(cuts)), cuts)
        assert RawRecords.open(tmp_path / str(len(cuts))) is None
        writer.publish()
        records = RawRecords.open(tmp_path / str(len(cuts)))
        assert list(records) == bodies
        digests.add(records.content)
    assert len(digests) == 1


def test_a_resumed_writer_keeps_whole_shards_only(tmp_path):
    writer, _ = raw(tmp_path, (2, 2, 3))
    damaged = writer.directory / "shard-00001.lmdb"
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again = RawWriter(tmp_path, {"query": "q", "columns": None})
    assert (again.num_records, again.last_id) == (2, "id1")
    assert RawWriter(tmp_path, {"query": "another"}).num_records == 0


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_damage_of_raw_records_is_an_error(tmp_path, where):
    writer, _ = raw(tmp_path)
    writer.publish()
    for path, error in (
        (writer.directory / "shard-00000.lmdb", CorruptShardError),
        (tmp_path / "raw" / "manifest.json", CorruptManifestError),
    ):
        good = path.read_bytes()
        at = int(where * len(good))
        path.chmod(0o644)
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        with pytest.raises(error):
            list(RawRecords.open(tmp_path))
        path.write_bytes(good)


def test_the_command_line_opens_what_is_stored(tmp_path, capsys, monkeypatch):
    for name in ("NEO4J_URI", "NEO4J_USER", "NEO4J_USERNAME", "NEO4J_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "genes.txt").write_text("YAL001C\nYAL002W\n")
    (tmp_path / "net.tsv").write_text("YAL001C\tYAL002W\n")
    (tmp_path / "query.cql").write_text("MATCH (e:Experiment) RETURN e")
    command = [
        "preprocess", f"root={tmp_path / 'store'}", "source=neo4j", f"source.genes={tmp_path / 'genes.txt'}",
        f"source.graphs={{net:{tmp_path / 'net.tsv'}}}", "source.duplicates=mean", "progress=false",
    ]  # fmt: skip
    assert main(command) == 2
    assert "NEO4J_URI, NEO4J_USER, NEO4J_PASSWORD not set" in capsys.readouterr().err
    writer = RawWriter(tmp_path / "store", {"query": "MATCH ...", "parameters": {}, "columns": None})
    writer.append([json.dumps([name, json.dumps(EXPERIMENT), None]).encode() for name in ("a", "b")], "b")
    writer.publish()
    assert main(command) == 0
    dataset = tc.PreprocessedDataset(tmp_path / "store")
    assert dataset.columns["fitness_count"].tolist() == [2]
    assert dataset[0]["gene"].ids_pert == ["YAL001C"]
    assert main([*command, f"source.query_file={tmp_path / 'query.cql'}"]) == 65
    assert "holds the rows of another query" in capsys.readouterr().err
    for wrong, message in (
        ("source.password=x", "no key 'source.password'"),
        ("source.duplicates=median", "keep, group, mean"),
        ("source.query_file=no.cql", "no such file"),
    ):
        key = wrong.partition("=")[0]
        assert main([*(one for one in command if not one.startswith(f"{key}=")), wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(["preprocess", f"root={tmp_path / 'store'}", "source=neo4j"]) == 2
    assert "source.base_graph=" in capsys.readouterr().err
