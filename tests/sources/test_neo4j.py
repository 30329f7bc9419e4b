"""Experiments from a real server: all of them, whatever interrupts, and nothing of the login anywhere."""

import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fresh
import pytest
from graphdb import PASSWORD, Embedded, Named, Table, assert_holds

import torchcell_cache as tc
from torchcell_cache.errors import SettingError, SourceContractError, SourceUnavailableError, StaleCacheError
from torchcell_cache.sources import Neo4jCellDataset, load_experiments
from torchcell_cache.sources.neo4j import fetch as neo4j_fetch
from torchcell_cache.sources.neo4j.driver import Login, writing
from torchcell_cache.sources.neo4j.raw import RawRecords, RawWriter

pytestmark = pytest.mark.xdist_group("neo4j")  # one server for all of them

SMALL, MANY = 1_000, 20_000


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    server = Embedded(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def database(request):
    return Named() if os.environ.get("NEO4J_URI") else request.getfixturevalue("embedded")


@pytest.fixture(scope="module")
def table(database):
    rows = Table(SMALL)
    rows.load(database.login)
    yield rows
    if isinstance(database, Named):
        rows.remove(database.login)


def dataset_of(root, table, login=None, **settings):
    settings = {"gene_set": table.genes, "graphs": table.networks(), "progress": False, **settings}
    return Neo4jCellDataset(root, **settings, **(login or {}))


def small_shards(monkeypatch, rows=200):
    monkeypatch.setattr(neo4j_fetch, "SHARD_ROWS", rows)


@pytest.mark.parametrize(
    "count", [SMALL, pytest.param(MANY, marks=pytest.mark.campaign)], ids=["small", "many"]
)
def test_every_sample_is_the_row_it_was_loaded_from(tmp_path, database, table, count):
    if count != SMALL:
        table = Table(count, num_genes=900)
        table.load(database.login)
    source = dataset_of(tmp_path, table, database.login, self_loops=True)
    assert_holds_in_store(tmp_path, source, table)
    # From here on there is no server: no address, no password.
    again = dataset_of(tmp_path, table, self_loops=True)
    assert again.identity() == source.identity()
    assert len(tc.Neo4jPreprocessedCellDataset(tmp_path)) == count


def assert_holds_in_store(root, source, table):
    dataset = tc.Neo4jPreprocessedCellDataset(root)
    dataset.preprocess_from_source(source, tc.LazySubgraphRepresentation(), progress=False)
    assert dataset.phenotype_info == ["fitness"]
    assert_holds(dataset, table)


def test_a_server_killed_in_the_middle_and_started_again(tmp_path, embedded, table, monkeypatch):
    """One call waits for the server and goes on by id; another gives up, and the next one goes on behind its rows."""
    if os.environ.get("NEO4J_URI"):
        table.load(embedded.login)
    small_shards(monkeypatch, 50)
    paused, killed = threading.Semaphore(0), threading.Event()
    append = RawWriter.append

    def pausing(self, bodies, last_id):
        append(self, bodies, last_id)
        if len(self.entries) == 3:
            paused.release()
            assert killed.wait(60)

    monkeypatch.setattr(RawWriter, "append", pausing)
    free = {"query": table.everything, "parameters": {"dataset": table.name}, "page_size": 20}
    with ThreadPoolExecutor(2) as pool:
        waits = pool.submit(dataset_of, tmp_path / "waits", table, embedded.login, page_size=20, retries=20)
        gives_up = pool.submit(dataset_of, tmp_path / "gives up", table, embedded.login, retries=1, **free)
        assert all(paused.acquire(timeout=60) for _ in range(2))
        embedded.kill()
        killed.set()
        with pytest.raises(SourceUnavailableError, match="rows are kept") as caught:
            gives_up.result()
        assert caught.value.code == 75
        assert RawRecords.open(tmp_path / "gives up") is None
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "gives up").rglob("*.lmdb")}
        assert 3 <= len(kept) < SMALL // 50
        embedded.start()
        assert same_samples(waits.result(), table)
    source = dataset_of(tmp_path / "gives up", table, embedded.login, **free)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert same_samples(source, table)


def same_samples(source, table):
    """Whether a source has the samples of a table that never saw a database."""
    return source.identity() == from_table(table, source).identity() | {"class": "Neo4jCellDataset"}


def from_table(table, source):
    """The same samples without any database."""
    return tc.PerturbationTable(
        source.base_graph,
        [row["genes"] for row in table.rows],
        phenotypes={"fitness": [row["labels"]["fitness"] for row in table.rows]},
        statistics={"fitness_se": [row["statistics"].get("fitness_se", float("nan")) for row in table.rows]},
        source_ids=[row["id"] for row in table.rows],
    )


def test_a_killed_client_goes_on(tmp_path, database, table):
    script = (
        "import json, os, sys\n"
        "from torchcell_cache.sources.neo4j.raw import RawWriter\n"
        "from torchcell_cache.sources import Neo4jCellDataset\n"
        "from torchcell_cache.sources.neo4j import fetch as neo4j_fetch\n"
        "neo4j_fetch.SHARD_ROWS, append = 100, RawWriter.append\n"
        "def last(self, bodies, last_id):\n"
        "    append(self, bodies, last_id)\n"
        "    if len(self.entries) == 3: os.kill(os.getpid(), 9)\n"
        "RawWriter.append = last\n"
        "root, genes, login = json.loads(sys.stdin.read())\n"
        "Neo4jCellDataset(root, gene_set=genes, progress=False, **login)\n"
    )
    told = json.dumps([str(tmp_path), table.genes, database.login])
    done = fresh.run([sys.executable, "-c", script], input=told)
    assert done.returncode == -9
    assert RawRecords.open(tmp_path) is None
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        take = neo4j_fetch._Fetch._take
        patch.setattr(neo4j_fetch._Fetch, "_take", lambda self, row: (seen.append(row), take(self, row)))
        source = dataset_of(tmp_path, table, database.login)
    assert len(seen) == SMALL - 300
    assert same_samples(source, table)


def test_an_interrupted_query_that_changes_is_refused(tmp_path, database, table, monkeypatch):
    small_shards(monkeypatch)
    settings = {"query": table.everything, "parameters": {"dataset": table.name}, "graphs": None}
    stop_after(monkeypatch, 500)
    with pytest.raises(KeyboardInterrupt):
        dataset_of(tmp_path, table, database.login, **settings)
    monkeypatch.undo()
    reverse = table.everything.replace("ORDER BY e.id", "ORDER BY e.id DESC")
    plan = next((tmp_path / "raw").glob("gen-*"))
    with pytest.raises(SourceContractError, match="no rows"):
        dataset_of(tmp_path, table, database.login, **{**settings, "parameters": {"dataset": "no such"}})
    assert plan.is_dir()  # another query does not touch what is there
    with writing(Login.from_settings(**database.login)) as run:
        run("MATCH (e:Experiment {id: $id}) SET e.serialized_data = 'changed'", {"id": table.rows[7]["id"]})
        try:
            with pytest.raises(StaleCacheError, match=r"other rows at 0 to 200.*\n.*refresh=True"):
                dataset_of(tmp_path, table, database.login, **settings)
        finally:
            text = original_text(table, 7)
            run(
                "MATCH (e:Experiment {id: $id}) SET e.serialized_data = $text",
                {"id": table.rows[7]["id"], "text": text},
            )
    assert len(dataset_of(tmp_path, table, database.login, **settings)) == SMALL
    with pytest.raises(StaleCacheError, match="query: "):
        dataset_of(tmp_path, table, **{**settings, "query": reverse})
    turned = dataset_of(tmp_path, table, database.login, refresh=True, **{**settings, "query": reverse})
    assert turned.table.source_ids[0] == table.rows[-1]["id"]


def stop_after(monkeypatch, rows):
    take, taken = neo4j_fetch._Fetch._take, []

    def interrupted(self, row):
        taken.append(take(self, row))
        if len(taken) == rows:
            raise KeyboardInterrupt

    monkeypatch.setattr(neo4j_fetch._Fetch, "_take", interrupted)


def original_text(table, k):
    from torchcell_cache.sources.neo4j.experiment_loader import _text, experiment_json

    return _text(experiment_json(table.rows[k], table.name))


def test_an_interrupt_keeps_every_row_that_has_arrived(tmp_path, database, table, monkeypatch):
    stop_after(monkeypatch, 321)
    with pytest.raises(KeyboardInterrupt):
        dataset_of(tmp_path, table, database.login)
    monkeypatch.undo()
    seen = []
    stream = neo4j_fetch._Fetch._take
    monkeypatch.setattr(neo4j_fetch._Fetch, "_take", lambda self, row: (seen.append(row), stream(self, row)))
    assert len(dataset_of(tmp_path, table, database.login)) == SMALL
    assert len(seen) == SMALL - 321


def test_pages_of_a_query_with_a_limit(tmp_path, database, table):
    query = "MATCH (e:Experiment) WHERE e.id > $after AND e.id STARTS WITH $name RETURN e ORDER BY e.id LIMIT $limit"
    for page in (150, SMALL // 2, SMALL):
        settings = {"query": query, "parameters": {"name": table.name}, "page_size": page}
        source = dataset_of(tmp_path / str(page), table, database.login, **settings)
        assert source.table.source_ids == [row["id"] for row in table.rows]


def test_columns_of_another_query(tmp_path, database, table):
    query = tmp_path / "screen.cql"
    query.write_text(
        "// what $this comment names is no parameter, nor is '$that'\n"
        "UNWIND range(1, $count) AS k RETURN k AS number, [$genes[k % 7]] AS gone, k * 0.5 AS size, "
        "CASE WHEN k = 2 THEN null ELSE 0.25 END AS error ORDER BY number",
        encoding="utf-8",
    )
    columns = {"id": "number", "perturbed": "gone", "phenotypes": ["size"], "statistics": ["error"]}
    settings = {"query": query, "columns": columns, "parameters": {"count": 20, "genes": table.genes[:7]}}
    got = dataset_of(tmp_path / "root", table, database.login, **settings).table
    assert (got.phenotypes, got.statistics) == (("size",), ("error",))
    assert got.ids.tolist() == [k % 7 for k in range(1, 21)]
    assert got.values[:3].tolist()[0] == [0.5, 0.25]
    assert got.source_ids[:2] == ["1", "2"]


HOSTILE = [
    "a'b\"c", "`x`", "$gene_set", "x'}) DETACH DELETE n //", "\\' OR 1=1 --", "YAL001C\n// two lines", "日本 🧬", "é\u0301",
    "{'a': 1}", "", "{{x}}", "%s", "\u202egnp",
]  # fmt: skip


def test_a_hostile_gene_name_is_data(tmp_path, database):
    table = Table(0)
    table.genes = sorted(f"{table.name}{name}" for name in HOSTILE)
    table.rows = [
        {"id": f"{table.name}-{k:03d}", "genes": [gene], "labels": {"fitness": 0.5}, "statistics": {}}
        for k, gene in enumerate(table.genes)
    ]
    count = "MATCH (n) RETURN count(n) AS count"
    with writing(Login.from_settings(**database.login)) as run:
        table.load(database.login)
        before = run(count)
        source = dataset_of(tmp_path, table, database.login, graphs=None)
        assert_holds_in_store(tmp_path, source, table)
        assert run(count) == before


def test_nothing_of_the_login_is_kept(tmp_path, database, table, caplog, monkeypatch, capfd):
    password = database.login["password"]
    caplog.set_level(logging.DEBUG)
    source = dataset_of(tmp_path, table, database.login, progress=True)
    tc.build(tmp_path, source=source, processor=tc.LazySubgraphRepresentation(), num_workers=1)
    shown = [repr(source), str(vars(source)), caplog.text, *capfd.readouterr()]
    shown += [repr(Login.from_settings(**database.login)), pickle.dumps(source).decode("latin-1")]
    wrong = {**database.login, "password": password + "-wrong"}
    for settings in (
        wrong,
        {**database.login, "query": "RETURN $nothing"},
        {**database.login, "query": "RETURN ("},
    ):
        with pytest.raises(SettingError) as caught:
            dataset_of(tmp_path / "other", table, **settings)
        shown += [
            "".join(traceback.format_exception(caught.value)),
            pickle.dumps(caught.value).decode("latin-1"),
        ]
    within = {**database.login, "uri": database.login["uri"].replace("//", f"//neo4j:{password}@")}
    with pytest.raises(SettingError, match="NEO4J_USER and NEO4J_PASSWORD") as caught:
        dataset_of(tmp_path / "other", table, **within)
    shown.append("".join(traceback.format_exception(caught.value)))
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Login.from_settings(**database.login))
    assert all(password not in text for text in shown)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if password.encode() in path.read_bytes()]


def test_credentials_from_the_environment(tmp_path, database, table, monkeypatch):
    for name in ("NEO4J_URI", "NEO4J_USER", "NEO4J_USERNAME", "NEO4J_PASSWORD", "NEO4J_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingError, match="NEO4J_URI, NEO4J_USER, NEO4J_PASSWORD not set"):
        dataset_of(tmp_path, table)
    for name, key in (
        ("URI", "uri"),
        ("USER", "username"),
        ("PASSWORD", "password"),
        ("DATABASE", "database"),
    ):
        if database.login[key]:
            monkeypatch.setenv(f"NEO4J_{name}", database.login[key])
    assert len(dataset_of(tmp_path, table)) == SMALL


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"password": "not the password"}, SettingError, "refused user .*\n.*NEO4J_USER and NEO4J_PASSWORD"),
        ({"database": "nosuchdatabase"}, SettingError, "no database 'nosuchdatabase'\n.*NEO4J_DATABASE"),
        ({"uri": "bolt://127.0.0.1:9"}, SourceUnavailableError, "127.0.0.1:9 does not answer.*\n.*NEO4J_URI"),
        ({"uri": "http://127.0.0.1:7474"}, SettingError, "expected an address such as bolt://"),
        ({"query": "MATCH (e RETURN e"}, SettingError, "refused the query"),
        ({"query": "MATCH (e) WHERE e.x = $this RETURN e"}, SettingError, r"takes \$this.*\n.*parameters=.'this'"),
        ({"gene_set": ["no such gene"]}, SourceContractError, "no rows\n.*gene_set"),
        ({"query": "RETURN 1 AS x"}, SettingError, r"returns the columns \['x'\], not \['e'\]\n.*columns="),
        ({"query": "RETURN 1 AS e"}, SettingError, "column 'e' holds int"),
        ({"query": "RETURN {x: 1} AS e"}, SourceContractError, "has id None"),
        ({"columns": {"id": "a"}}, SettingError, r"missing \['perturbed'\]"),
        ({"query": Path("no/such.cql")}, SettingError, "cannot be read"),
        ({"duplicates": "median"}, SettingError, "'keep', 'group', 'mean'"),
        ({"query": "UNWIND ['b', 'a'] AS k RETURN {id: k, x: $after} AS e"}, SettingError, "ORDER BY e.id"),
    ],
)  # fmt: skip
def test_errors_name_the_fix(tmp_path, database, table, change, error, match):
    login = {key: change.pop(key, value) for key, value in database.login.items()} if change else {}
    with pytest.raises(error, match=match):
        dataset_of(tmp_path, table, login, **{"graphs": None, **change})


def test_malformed_records_and_unknown_genes(tmp_path, database):
    table = Table(5)
    good = original_text(table, 0)
    texts = {
        "1-fine": good,
        "2-none": None,
        "3-json": "{not json",
        "4-genotype": good.replace('"genotype"', '"genotypes"'),
        "5-label": good.replace('"fitness": 0', '"fitness": "high", "x": 0'),
        "6-gene": good.replace(table.rows[0]["genes"][0], "unknown gene"),
        "7-fine": good,
    }
    rows = [{"id": f"{table.name}-{name}", "text": text} for name, text in texts.items()]
    query = "MATCH (e:Experiment) WHERE e.id STARTS WITH $name RETURN e ORDER BY e.id"
    settings = {"query": query, "parameters": {"name": table.name}, "graphs": None}
    with writing(Login.from_settings(**database.login)) as run:
        run(
            "UNWIND $rows AS r CREATE (e:Experiment {id: r.id}) SET e.serialized_data = r.text",
            {"rows": rows},
        )
    try:
        with pytest.raises(
            SourceContractError, match=r"'.*2-none': it has no serialized_data\n.*malformed=\"skip\""
        ):
            dataset_of(tmp_path, table, database.login, **settings)
    finally:
        table.remove(database.login)
    # The rows are stored: what to do with them is decided without the server.
    with pytest.raises(
        SourceContractError, match=r"6-gene.*'unknown gene' is not a node.*\n.*unknown=\"skip\""
    ):
        dataset_of(tmp_path, table, malformed="skip", **settings)
    source = dataset_of(tmp_path, table, malformed="skip", unknown="skip", **settings)
    assert source.skipped == {"unknown": 1, "malformed": 4}
    assert source.table.source_ids == [f"{table.name}-1-fine", f"{table.name}-7-fine"]


MEMORY = """
import json, sys
from pathlib import Path
from torchcell_cache.sources.neo4j import fetch as neo4j_fetch
from torchcell_cache.sources.neo4j.raw import Columns
from torchcell_cache.sources.neo4j.driver import Login
root, login, query, parameters, columns = json.loads(sys.stdin.read())
neo4j_fetch.SHARD_ROWS = 1000
columns = Columns.from_given(columns)
# What importing took must not hide what fetching takes: the peak is counted from here.
Path("/proc/self/clear_refs").write_text("5")
raw = neo4j_fetch.fetch(Path(root), {"query": query, "columns": None}, Login.from_settings(**login), query, parameters, columns,
                        page_size=100, retries=1, progress=False)
print(len(raw), Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def peak_of(root, login, query, parameters, columns=None):
    """Rows stored and peak memory in bytes of a process that does nothing but fetch."""
    told = json.dumps([str(root), login, query, parameters, columns])
    done = fresh.run([sys.executable, "-c", MEMORY], input=told, text=True)
    assert done.returncode == 0, done.stderr
    rows, peak = map(int, done.stdout.split())
    return rows, peak * 1024


def stored_bytes(root):
    return sum(path.stat().st_size for path in (root / "raw").rglob("*.lmdb"))


def test_memory_does_not_grow_with_the_result(tmp_path, database):
    query = "UNWIND range(1, $count) AS k RETURN k AS number, $genes AS genes ORDER BY number"
    columns = {"id": "number", "perturbed": "genes"}
    genes = [f"gene {k} {'x' * 1000}" for k in range(3)]
    peaks = []
    for count in (1_000, 10_000):
        rows, peak = peak_of(
            tmp_path / str(count), database.login, query, {"count": count, "genes": genes}, columns
        )
        assert rows == count
        peaks.append(peak)
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] - peaks[0] < stored_bytes(tmp_path / "10000") / 3


@pytest.mark.campaign
def test_memory_does_not_grow_with_the_nodes_of_the_result(tmp_path, database):
    """Nodes are what the driver itself would keep until the end of a result."""
    table = Table(MANY, num_genes=900)
    table.load(database.login)
    query = "MATCH (e:Experiment) WHERE e.id STARTS WITH $name AND e.id < $until RETURN e ORDER BY e.id"
    peaks = []
    for count in (MANY // 10, MANY):
        parameters = {"name": table.name, "until": f"{table.name}-{count:07d}"}
        rows, peak = peak_of(tmp_path / str(count), database.login, query, parameters)
        assert rows == count
        peaks.append(peak)
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] - peaks[0] < stored_bytes(tmp_path / str(MANY)) / 3


def test_loading_twice_changes_nothing(database, table):
    count = "MATCH (e:Experiment) WHERE e.id STARTS WITH $name RETURN count(e) AS count"
    relations = "MATCH (e:Experiment)-[r]-() WHERE e.id STARTS WITH $name RETURN count(r) AS count"
    with writing(Login.from_settings(**database.login)) as run:
        before = [run(query, {"name": table.name}) for query in (count, relations)]
        assert before[0] == [{"count": SMALL}]
        load_experiments(rows=iter(table.rows[:50]), dataset=table.name, progress=False, **database.login)
        assert [run(query, {"name": table.name}) for query in (count, relations)] == before
    with pytest.raises(SourceContractError, match=r"row 0: KeyError.*\n.*'labels'"):
        load_experiments(rows=[{"id": "x", "genes": ["a"]}], progress=False, **database.login)


@pytest.mark.campaign
def test_embedded_server_dies_with_its_parent(tmp_path):
    pytest.importorskip("arcadedb_embedded")
    script = (
        "import os, sys\n"
        "from torchcell_cache.sources import embedded_bolt\n"
        "with embedded_bolt(sys.argv[1]) as server:\n"
        "    print(server.pid, server.password, repr(server), flush=True)\n"
        "    os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True
    )
    pid, password, shown = done.stdout.split(maxsplit=2)
    assert password not in shown
    assert (tmp_path / "password").stat().st_mode & 0o077 == 0
    until = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    assert password != PASSWORD
