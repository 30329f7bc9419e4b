"""What users pass by mistake: answered in a sentence before the server is asked, and never taken for something else."""

import copy
import json
import math

import numpy as np
import pandas as pd
import pytest
from torch_geometric.data import HeteroData

from torchcell_cache.errors import CacheError, SettingError, SourceContractError, StorageError
from torchcell_cache.sources import Neo4jCellDataset, load_experiments
from torchcell_cache.sources.neo4j.driver import Login, parameters_of
from torchcell_cache.sources.neo4j.experiment_loader import experiment_json
from torchcell_cache.sources.neo4j.raw import RawWriter

NOWHERE = {"uri": "bolt://127.0.0.1:9", "username": "u", "password": "a-password"}
GENES = ["A", "B", "C"]
COLUMNS = {"id": "id", "perturbed": "genes", "phenotypes": ["y"]}


def asked(root, **settings):
    """A source whose server does not answer: whatever is refused before is refused without it."""
    return Neo4jCellDataset(root, **{"gene_set": GENES, "progress": False, **NOWHERE, **settings})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"uri": 5}, "uri is int, expected text"),
        ({"username": 5}, "username is int"),
        ({"password": 12345678}, "password is int"),
        ({"password": b"12345678"}, "password is bytes"),
        ({"database": 7}, "database is int"),
        ({"database": "../x"}, r"database='../x' is no name of a database"),
        ({"uri": "bolt://host:7687/torchcell"}, r"'/torchcell'.*\n.*database='torchcell'"),
        ({"page_size": "10"}, "page_size='10': expected a whole number from 1 on"),
        ({"page_size": True}, "page_size=True"),
        ({"page_size": 10.5}, "page_size=10.5"),
        ({"retries": None}, "retries=None"),
        ({"refresh": "false"}, "refresh='false': expected True or False"),
        ({"self_loops": "yes"}, "self_loops='yes'"),
        ({"duplicates": "mean", "replicates": "group"}, "duplicates='mean' and replicates='group'"),
        ({"parameters": [1]}, "parameters is list, expected a mapping"),
        ({"query": ""}, "query is empty"),
        ({"query": "  \n"}, "query is empty"),
        ({"query": "screen.cql"}, r"query='screen.cql' .*\n.*Path\('screen.cql'\)"),
        ({"query": "RETURN $n AS e", "parameters": {"n": 2**70}}, r"\$n.* 1180591620717411303424"),
        ({"query": "RETURN $n AS e", "parameters": {"n": [[-(2**63) - 1]]}}, r"\$n"),
        ({"query": "RETURN $n AS e", "parameters": {"n": {1, 2}}}, r"parameters.*set"),
        ({"query": "RETURN 1 AS e LIMIT $limit"}, r"\$limit and not \$after"),
        ({"query": "MATCH (e) WHERE e.id > $after RETURN e LIMIT $limit", "parameters": {"limit": 3}}, "page_size=3"),
        ({"columns": ["id", "genes"]}, "columns is list, expected a mapping"),
        ({"columns": {**COLUMNS, "phenotypes": 3}}, "columns: phenotypes is 3"),
        ({"columns": {**COLUMNS, "phenotypes": {"y", "z"}}}, "phenotypes is .* order"),
        ({"columns": {**COLUMNS, "id": ["id"]}}, r"columns: id is \['id'\]"),
        ({"columns": {**COLUMNS, "phenotypes": ["y", 1]}}, "columns: phenotypes is"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_asked(tmp_path, settings, match):
    with pytest.raises(SettingError, match=match) as caught:
        asked(tmp_path, **settings)
    assert "a-password" not in str(caught.value)
    assert "12345678" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("RETURN 'é' AS e".encode("latin-1"), "is not UTF-8"),
        (b"", "is empty"),
        (b"\xef\xbb\xbf \n", "is empty"),
    ],
)
def test_files_that_hold_no_query(tmp_path, content, match):
    path = tmp_path / "q.cql"
    path.write_bytes(content)
    with pytest.raises(SettingError, match=match):
        asked(tmp_path / "root", query=path)


def test_parameters_by_any_name():
    query = "WITH '$no' AS a, `$no` AS b RETURN $`weird name`, $0, $é, $plain // $no"
    assert parameters_of(query) == {"weird name", "0", "é", "plain"}


def test_a_base_graph_with_other_nodes_than_names(tmp_path):
    graph = HeteroData()
    graph["gene"].node_ids, graph["gene"].num_nodes = GENES, 7
    with pytest.raises(SourceContractError, match="3 names for 7 nodes"):
        asked(tmp_path, gene_set=None, base_graph=graph)


def test_what_is_in_the_way_of_a_refresh(tmp_path):
    (tmp_path / "raw" / "manifest.json").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"manifest.json"):
        asked(tmp_path, refresh=True)


EXPERIMENT = {
    "genotype": {"perturbations": [{"systematic_gene_name": "A"}]},
    "phenotype": {"label_name": "y", "label_statistic_name": "y_se", "y": 0.5, "y_se": 0.1},
}


def stored(root, *documents, **settings):
    writer = RawWriter(root, {"query": "q", "parameters": {}, "columns": None})
    bodies = [json.dumps([f"e{k}", json.dumps(given), None]).encode() for k, given in enumerate(documents)]
    writer.append(bodies, "last")
    writer.publish()
    return Neo4jCellDataset(root, gene_set=GENES, progress=False, **settings)


def measured(**phenotype):
    return {**EXPERIMENT, "phenotype": {**EXPERIMENT["phenotype"], **phenotype}}


def without(*genes):
    return {**EXPERIMENT, "genotype": {"perturbations": [{"systematic_gene_name": gene} for gene in genes]}}


@pytest.mark.parametrize(
    ("document", "match"),
    [
        (measured(label_statistic_name="y"), "'y' is named as label and as statistic"),
        (measured(label_names=["y", "y.a"], y={"a": 1}, **{"y.a": 2}), "'y.a' twice"),
        (measured(label_name="\ud800", **{"\ud800": 1}), r"'\\ud800' is not valid Unicode"),
        (without("\ud800"), r"'\\ud800' is not valid Unicode"),
        (without("A", None), "systematic_gene_name is NoneType"),
    ],
)
def test_records_that_contradict_themselves(tmp_path, document, match):
    with pytest.raises(SourceContractError, match=rf"experiment 'e1': .*{match}"):
        stored(tmp_path, EXPERIMENT, document)
    source = Neo4jCellDataset(tmp_path, gene_set=GENES, malformed="skip", progress=False)
    assert source.table.source_ids == ["e0"]
    assert source.skipped["malformed"] == 1


def test_a_label_that_others_call_a_statistic(tmp_path):
    other = measured(label_name="y_se", label_statistic_name=None)
    with pytest.raises(
        SourceContractError, match=r"'y_se' is a label of experiment 'e1', a statistic of 'e0'"
    ):
        stored(tmp_path, EXPERIMENT, other)


def test_nothing_left_says_why(tmp_path):
    with pytest.raises(SourceContractError, match=r"no experiment is left: 2 experiments .*'Z'"):
        stored(tmp_path, without("Z"), without("A", "Z"), unknown="skip")


ROW = {"id": "x", "genes": ["A"], "labels": {"y": 0.5}}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"id": ""}, "id is ''"),
        ({"id": "\ud800"}, "not valid Unicode"),
        ({"genes": ["A", "\ud800"]}, "not valid Unicode"),
        ({"genes": [""]}, "gene '' is no name"),
        ({"genes": None}, "genes is None"),
        ({"labels": None}, "labels is None"),
        ({"labels": [0.5]}, r"labels is \[0.5\]"),
        ({"labels": {"y": math.inf}}, "label 'y' is inf"),
        ({"labels": {"graph_level": 1.0}}, "'graph_level'"),
        ({"labels": {"label_name": 1.0}}, "'label_name'"),
        ({"statistics": {"y": 1.0}}, "'y' is a label and a statistic"),
        ({"temperature": None}, "temperature is None"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"media": 5}, "media is 5"),
        ({"dataset": None}, "dataset is None"),
        ({"perturbation_type": ["deletion"]}, "perturbation_type is"),
    ],
)
def test_rows_to_load(change, match):
    with pytest.raises(SourceContractError, match=f"row 0: .*{match}"):
        load_experiments(rows=[{**ROW, **change}], progress=False, **NOWHERE)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (None, "rows is NoneType"),
        (ROW, r"rows is dict.*\n.*rows=\[row\]"),
        ("abc", "rows is str"),
        (pd.DataFrame([ROW]), r"rows is DataFrame.*\n.*to_dict\('records'\)"),
        ([5], "row 0: .*int"),
        ([None], "row 0: .*NoneType"),
    ],
)
def test_what_is_no_list_of_rows(rows, match):
    with pytest.raises(CacheError, match=match):
        load_experiments(rows=rows, progress=False, **NOWHERE)


@pytest.mark.parametrize("size", [0, -1, "5", 2.5])
def test_a_batch_that_would_load_nothing(size):
    with pytest.raises(SettingError, match="batch_size"):
        load_experiments(rows=[ROW], batch_size=size, progress=False, **NOWHERE)


def test_missing_values_are_json():
    row = {**ROW, "labels": {"y": math.nan, "z": None, "w": np.float32(0.5)}, "statistics": {"y_se": np.nan}}
    phenotype = json.loads(json.dumps(experiment_json(copy.deepcopy(row), "D")["phenotype"], allow_nan=False))
    assert [phenotype[name] for name in ("y", "z", "w", "y_se")] == [None, None, 0.5, None]


def test_a_login_takes_a_plain_address():
    for uri in ("bolt://h", "BOLT://h:7687/", "neo4j+s://[::1]:7687", "neo4j://h:1?policy=eu"):
        assert Login.from_settings(uri, "u", "p", "my.db-1").uri == uri


@pytest.mark.parametrize(("one", "other", "joined"), [
    ({"temperature": {"value": 30}}, {"temperature": {"value": 30.0}}, True),
    ({"t": [1, {"a": 2}], "m": "x"}, {"m": "x", "t": [1.0, {"a": 2.0}]}, True),
    ({"t": 30}, {"t": "30"}, False),
    ({"t": 30}, {"t": 30.5}, False),
    ({"t": 1}, {"t": True}, False),
])  # fmt: skip
def test_whole_numbers_of_environments_are_one_however_written(tmp_path, one, other, joined):
    records = [{**measured(y=value), "environment": given} for value, given in ((1.0, one), (3.0, other))]
    source = stored(tmp_path, *records, replicates="mean")
    assert source.table.values[:, 0].tolist() == ([2.0] if joined else [1.0, 3.0])


@pytest.mark.parametrize("name", ["", "  "])
def test_a_label_without_a_name_is_malformed(tmp_path, name):
    record = {**EXPERIMENT, "phenotype": {"label_name": name, name: 0.5}}
    with pytest.raises(SourceContractError, match=r"phenotype\.label_name is"):
        stored(tmp_path, record)
