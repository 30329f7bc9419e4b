"""What databases, servers and tables of today hold: kinds of deletion, numpy numbers, ids twice, transactions that end."""

import os
import sys
from pathlib import Path

import fresh
import numpy as np
import pytest
import torch
from graphdb import Embedded, Named, Table
from neo4j.exceptions import Neo4jError

from torchcell_cache.errors import SettingError, SourceContractError, SourceUnavailableError
from torchcell_cache.sources import Neo4jCellDataset, load_experiments
from torchcell_cache.sources.neo4j.driver import Login, _explain
from torchcell_cache.sources.neo4j.fetch import _Fetch

pytestmark = pytest.mark.xdist_group("neo4j")
QUERIES = Path(__file__).resolve().parents[2] / "experiments/006-kuzmin-tmi/queries"
KINDS = {
    "deletion": True,
    "sga_kanmx_deletion": True,
    "sga_natmx_deletion": True,
    "mean_deletion": True,
    "sga_temperature_sensitive_allele": False,
    "deletion_rescue": False,
    "damp": False,
}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    server = Named() if os.environ.get("NEO4J_URI") else Embedded(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def mixed(database):
    """Experiments of every kind with one to three perturbations, each kind with genes of its own."""
    table = Table(0, num_genes=3 * len(KINDS))
    for k, kind in enumerate(KINDS):
        genes = table.genes[3 * k : 3 * k + 3]
        table.rows += [
            {
                "id": f"{table.name}-{kind}-{count}",
                "genes": genes[:count],
                "labels": {"fitness": count / 4},
                "perturbation_type": kind,
            }
            for count in (1, 2, 3)
        ]
    table.load(database.login)
    yield table
    if isinstance(database, Named):
        table.remove(database.login)


@pytest.mark.parametrize("query", [None, "knockouts.cql", "trigenic.cql"])
def test_every_kind_of_deletion_is_found_and_nothing_else(tmp_path, database, mixed, query):
    source = Neo4jCellDataset(
        tmp_path,
        query=None if query is None else QUERIES / query,
        gene_set=mixed.genes,
        progress=False,
        **database.login,
    )
    wanted = {
        row["id"]
        for row in mixed.rows
        if KINDS[row["perturbation_type"]] and (query != "trigenic.cql" or len(row["genes"]) == 3)
    }
    assert set(source.table.source_ids) == wanted


NUMBERS = {
    "float32": np.float32(0.25),
    "float64": np.float64(0.25),
    "float16": np.float16(0.25),
    "int64": np.int64(3),
    "bool": np.bool_(True),
    "array of none": np.array(0.25),
    "tensor": torch.tensor(0.25),
    "nothing": None,
    "plain": 0.25,
}


def test_numbers_of_any_library_are_labels(tmp_path, database):
    table = Table(0, num_genes=len(NUMBERS))
    table.rows = [
        {
            "id": f"{table.name}-{k}",
            "genes": np.array([gene]),
            "labels": {"fitness": value},
            "statistics": {"fitness_se": value},
            "temperature": np.float32(30.0),
        }
        for k, (gene, value) in enumerate(zip(table.genes, NUMBERS.values(), strict=True))
    ]
    table.load(database.login)
    source = Neo4jCellDataset(tmp_path, gene_set=table.genes, progress=False, **database.login)
    found = [source[k].values[0].tolist() for k in range(len(NUMBERS))]
    wanted = [np.nan if value is None else float(value) for value in NUMBERS.values()]
    np.testing.assert_array_equal(found, np.repeat(np.array(wanted)[:, None], 2, axis=1))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": {"fitness": "0.5"}}, "row 0: .*label 'fitness' is '0.5'"),
        ({"labels": {"fitness": np.array([0.5, 1.0])}}, "row 0"),
        ({"labels": {"fitness": 1j}}, "label 'fitness' is 1j"),
        ({"statistics": {"fitness_se": np.datetime64("2020-01-01")}}, "statistic 'fitness_se'"),
        ({"genes": ["a", 7]}, "gene 7 is no text"),
        ({"genes": [np.nan]}, "gene nan is no text"),
        ({"id": 7}, "id is 7"),
    ],
)
def test_rows_that_no_experiment_can_be_made_of(database, change, match):
    row = {"id": "x", "genes": ["a"], "labels": {"fitness": 0.5}, **change}
    with pytest.raises(SourceContractError, match=match):
        load_experiments(rows=[row], progress=False, **database.login)


@pytest.mark.parametrize("batch_size", [2, 500])
def test_one_id_for_two_rows_of_a_call_is_refused(database, batch_size):
    name = Table(0).name
    rows = [{"id": f"{name}-{k % 3}", "genes": ["a"], "labels": {"fitness": k}} for k in range(4)]
    with pytest.raises(
        SourceContractError, match=rf"row 3: id '{name}-0' is that of row 0\n.*an id of its own"
    ):
        load_experiments(rows=iter(rows), batch_size=batch_size, progress=False, **database.login)


PARAMETERS = {
    "whole": np.int64(3),
    "array": np.arange(3),
    "tuple": (0, 1, 2),
    "tensor": torch.arange(3),
    "weird name": [0, 1, 2],
    "0": [0, 1, 2],
    "é": [0, 1, 2],
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_any_library_and_name(tmp_path, database, name):
    listed = "range(0, $whole - 1)" if name == "whole" else f"$`{name}`" if " " in name else f"${name}"
    query = f"UNWIND {listed} AS k RETURN k AS id, ['A'] AS genes, k * 0.5 AS y ORDER BY k"
    columns = {"id": "id", "perturbed": "genes", "phenotypes": "y"}
    settings = {"query": query, "columns": columns, "parameters": {name: PARAMETERS[name]}, "gene_set": ["A"]}
    source = Neo4jCellDataset(tmp_path, progress=False, **settings, **database.login)
    assert source.table.values[:, 0].tolist() == [0.0, 0.5, 1.0]
    assert Neo4jCellDataset(tmp_path, progress=False, **settings).identity() == source.identity()


def test_a_limit_of_ones_own_and_a_file_with_a_mark(tmp_path, database):
    """``$limit`` without ``$after`` is the caller's; a byte order mark is no part of the query."""
    path = tmp_path / "q.cql"
    path.write_bytes(
        b"\xef\xbb\xbfUNWIND range(1, 10) AS k RETURN k AS id, 'A' AS genes, k AS y ORDER BY k LIMIT $limit"
    )
    settings = {"columns": {"id": "id", "perturbed": "genes", "phenotypes": "y"}, "gene_set": ["A"]}
    settings |= {"query": path, "parameters": {"limit": 4}, "page_size": 2, "progress": False}
    source = Neo4jCellDataset(tmp_path / "root", **settings, **database.login)
    assert source.table.source_ids == ["1", "2", "3", "4"]


def test_values_that_are_no_numbers_are_shown_as_they_are_written(tmp_path, database):
    columns = {"id": "id", "perturbed": "genes", "phenotypes": "y"}
    for k, (value, shown) in enumerate(
        (("duration('P1DT2H')", "P1DT2H"), ("date('2020-01-02')", "2020-01-02"))
    ):
        with pytest.raises(SourceContractError, match=f"column 'y' is '{shown}', expected a number"):
            Neo4jCellDataset(
                tmp_path / str(k), query=f"RETURN 1 AS id, 'A' AS genes, {value} AS y", columns=columns,
                gene_set=["A"], progress=False, **database.login,
            )  # fmt: skip


def test_ids_that_are_numbers_are_pointed_to(tmp_path, database):
    query = "UNWIND range(1, 3) AS k WITH k WHERE k > $after RETURN k AS id, 'A' AS genes ORDER BY k"
    settings = {
        "query": query,
        "columns": {"id": "id", "perturbed": "genes"},
        "gene_set": ["A"],
        "progress": False,
    }
    with pytest.raises(SourceContractError, match=r"no rows\n.*parameters=\{'after': -1\}"):
        Neo4jCellDataset(tmp_path, **settings, **database.login)
    assert len(Neo4jCellDataset(tmp_path, parameters={"after": 0}, **settings, **database.login)) == 3


LOGIN = Login("bolt://db.lab:7687", "neo4j", "secret-word", "neo4j")
ENDED = [
    "Neo.ClientError.Transaction.TransactionTimedOut",
    "Neo.ClientError.Transaction.TransactionTimedOutClientConfiguration",
    "Neo.TransientError.Transaction.Terminated",
    "Neo.ClientError.Transaction.Terminated",
    "Neo.ClientError.Transaction.LockClientStopped",
]
UNABLE = [
    "Neo.TransientError.General.MemoryPoolOutOfMemoryError",
    "Neo.TransientError.Database.DatabaseUnavailable",
    "Neo.DatabaseError.General.UnknownError",
]
WRONG = {
    "Neo.ClientError.Statement.SyntaxError": "correct the query",
    "Neo.ClientError.Security.Unauthorized": "NEO4J_PASSWORD",
    "Neo.ClientError.Security.CredentialsExpired": "has expired",
    "Neo.ClientError.Security.AuthenticationRateLimit": "locked out",
}


def said_by_a_server(code):
    return Neo4jError._hydrate_neo4j(code=code, message="The transaction was ended; secret-word")


@pytest.mark.parametrize("code", [*ENDED, *UNABLE])
def test_what_the_server_ends_is_no_wrong_query(code):
    error = _explain(said_by_a_server(code), LOGIN)
    assert isinstance(error, SourceUnavailableError)
    assert ("ended the query" if code in ENDED else "could not finish") in str(error)
    assert "goes on where it stopped" in error.fix
    assert "secret-word" not in str(error)
    assert "wrong" not in str(error)


@pytest.mark.parametrize("code", WRONG)
def test_what_is_wrong_stays_wrong(code):
    error = _explain(said_by_a_server(code), LOGIN)
    assert isinstance(error, SettingError)
    assert WRONG[code] in str(error)


class Shards:
    """As much of a writer as a fetch needs."""

    def __init__(self):
        self.records, self.last_id, self.entries = [], None, []

    @property
    def num_records(self):
        return len(self.records)

    def append(self, bodies, last_id):
        self.records += bodies
        self.last_id = last_id


def test_a_fetch_goes_on_after_each_timeout(monkeypatch, capsys):
    """A server that ends every transaction after 7 rows still gives all 30."""
    monkeypatch.setattr("torchcell_cache.sources.neo4j.fetch.time.sleep", lambda seconds: None)

    def rows(given):
        ids = [f"{k:02d}" for k in range(30) if f"{k:02d}" > given["after"]]
        yield from ({"e": {"id": row_id, "serialized_data": "{}"}} for row_id in ids[:7])
        if len(ids) > 7:
            raise _explain(said_by_a_server(ENDED[0]), LOGIN)

    shards = Shards()
    work = _Fetch(shards, rows, {"after": ""}, None, None, True)
    work.run(retries=1)
    assert [body.split(b'"')[1].decode() for body in shards.records] == [f"{k:02d}" for k in range(30)]
    assert "ended the query before its last row" in capsys.readouterr().err


CROWDED = """
import os, resource, subprocess, sys
from torchcell_cache.sources.neo4j.bolt import _says_ready
resource.setrlimit(resource.RLIMIT_NOFILE, (2000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
for line, wanted in (("ready", True), ("other", False), ("", False)):
    child = subprocess.Popen([sys.executable, "-c", f"print({line!r})"], stdout=subprocess.PIPE)
    assert child.stdout.fileno() > 1024
    assert _says_ready(child, 30) is wanted
    child.wait()
slow = subprocess.Popen(["sleep", "30"], stdout=subprocess.PIPE)
assert _says_ready(slow, 0.1) is False
slow.kill()
"""


def test_a_process_with_many_open_files_hears_its_server():
    done = fresh.run([sys.executable, "-c", CROWDED], text=True)
    assert done.returncode == 0, done.stderr
