"""The yeast experiment: base graph, labels, database, three ways of training, in small and on the real folder."""

import csv
import functools
import gzip
import hashlib
import http.server
import importlib
import itertools
import math
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fresh
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from services import require
from yeast_folder import NETWORKS, graph_by_hand, write_folder

import torchcell_cache as tc
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources import YeastKnockouts, yeast_base_graph, yeast_knockouts
from torchcell_cache.sources.interactions import interaction_scores
from torchcell_cache.testing import assert_same_graph

REPOSITORY = Path(__file__).resolve().parents[2]
EXPERIMENT = REPOSITORY / "experiments" / "006-kuzmin-tmi"
sys.path.insert(0, str(REPOSITORY))
MODES = ("on_the_fly", "preprocessed", "shared")
STEPS = 50
LOGIN = ("uri", "username", "password", "database")
HELPERS = {"arguments.py", "graph_database.py"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("yeast"))


@pytest.fixture(scope="module")
def real() -> Path:
    named = os.environ.get("TORCHCELL_CACHE_YEAST")
    if not named or not Path(named).is_dir():
        pytest.skip("TORCHCELL_CACHE_YEAST does not name the yeast data folder")
    return Path(named)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import a script of the experiment by name, and leave no module of that name behind."""
    monkeypatch.syspath_prepend(str(EXPERIMENT / "scripts"))
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for path in (EXPERIMENT / "scripts").glob("*.py"):
        if path.stem not in before:
            sys.modules.pop(path.stem, None)


def run(name: str, *arguments: object, folder: Path, cwd: Path) -> str:
    """A script in a process of its own; its output, or a failure with it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHCELL_CACHE_YEAST": str(folder)}
    environment.pop("NEO4J_URI", None)
    command = [sys.executable, str(EXPERIMENT / "scripts" / name), *map(str, arguments)]
    done = fresh.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def configured(mode: str, base: Path, folder: Path, **more: Any) -> DictConfig:
    fixed = {
        "data": "yeast",
        "data.source.folder": folder,
        "root": base / "store",
        "run_dir": base / mode,
        "stop_after": STEPS,
        "device": "cpu",
        "progress": "false",
    }
    if "data" not in more:
        fixed["data.source.num_samples"] = "null"
    given = [f"{key}={value}" for key, value in {**fixed, **more}.items()]
    search = f"hydra.searchpath=[file://{EXPERIMENT / 'conf'}]"
    with initialize_config_dir(str(REPOSITORY / "experiments/train/conf"), version_base="1.3"):
        return compose("config", [search, f"+experiment={mode}", *given])


def losses(directory: Path) -> torch.Tensor:
    with (directory / "steps.csv").open(newline="") as file:
        return torch.tensor([float(row["loss"]) for row in csv.DictReader(file)], dtype=torch.float64)


def plain_scores(table: dict[frozenset[str], float], knockout: frozenset[str]) -> tuple[float, float]:
    """Epsilon and tau as the definitions are written, NaN for what is missing."""

    def f(*genes: str) -> float:
        return table.get(frozenset(genes), math.nan)

    def epsilon(x: str, y: str) -> float:
        return f(x, y) - f(x) * f(y)

    if len(knockout) == 2:
        return epsilon(*knockout), math.nan
    if len(knockout) != 3:
        return math.nan, math.nan
    a, b, c = knockout
    tau = f(a, b, c) - f(a) * f(b) * f(c) - epsilon(a, b) * f(c) - epsilon(a, c) * f(b) - epsilon(b, c) * f(a)
    return math.nan, tau


def check_scores(folder: Path) -> dict[str, int]:
    """Every score of a folder against the definitions; how many there are of each."""
    with gzip.open(folder / "fba_knockouts.tsv.gz", "rt") as file:
        rows = [
            (frozenset(r["genes"].split("|")), float(r["fitness"]))
            for r in csv.DictReader(file, delimiter="\t")
        ]
    knockouts, labels = yeast_knockouts(folder)
    assert [frozenset(knockout) for knockout in knockouts] == [knockout for knockout, _ in rows]
    assert labels["fitness"].tolist() == np.array([f for _, f in rows], dtype=np.float32).tolist()
    table = dict(rows)
    wanted = np.array([plain_scores(table, knockout) for knockout, _ in rows])
    for column, name in enumerate(("epsilon", "tau")):
        np.testing.assert_allclose(labels[name], wanted[:, column], rtol=0, atol=1e-6, equal_nan=True)
    return {name: int(np.isfinite(values).sum()) for name, values in labels.items()}


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.frozensets(st.integers(0, 5), max_size=4), st.floats(0, 2) | st.just(math.nan), max_size=40
    )
)
def test_scores_follow_their_definitions(table: dict[frozenset[int], float]) -> None:
    named = {frozenset(map(str, knockout)): value for knockout, value in table.items()}
    # Descending within a knock-out: the order of its genes must not matter.
    ids = [gene for knockout in table for gene in sorted(knockout, reverse=True)]
    ptr = np.cumsum([0, *map(len, table)])
    found = np.stack(interaction_scores(ids, ptr, list(table.values())), axis=1)
    wanted = np.array([plain_scores(named, knockout) for knockout in named]).reshape(-1, 2)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5, equal_nan=True)


def test_labels_of_a_folder_and_what_is_not_defined(folder: Path) -> None:
    count = check_scores(folder)
    knockouts, labels = yeast_knockouts(folder)
    triples = sum(len(knockout) == 3 for knockout in knockouts)
    assert count["fitness"] == len(knockouts)
    assert count["epsilon"] == sum(len(knockout) == 2 for knockout in knockouts)
    assert 0 < count["tau"] < triples, "some sub-knock-outs are not in the table"
    source = YeastKnockouts(folder)
    assert source.phenotype_info == ["fitness", "epsilon", "tau"]
    part = YeastKnockouts(folder, num_samples=20, seed=3)
    names = source.base_graph["gene"].node_ids
    whole = {frozenset(knockout): labels["tau"][k] for k, knockout in enumerate(knockouts)}
    for k in range(20):
        sample = part[k]
        value = whole[frozenset(names[gene] for gene in sample.perturbed)]
        np.testing.assert_array_equal(sample.values[0, 2], value)


@pytest.mark.parametrize("more", [False, True], ids=["plain", "self loops and scores"])
def test_base_graph_is_the_one_put_together_by_hand(folder: Path, more: bool) -> None:
    pytest.importorskip("cobra.io")
    wanted = graph_by_hand(folder, scores=more)
    if more:
        loops = torch.arange(wanted["gene"].num_nodes)
        for channel in NETWORKS:
            store = wanted["gene", channel, "gene"]
            store.edge_index = torch.cat([store.edge_index, torch.stack([loops, loops])], dim=1)
            store.score = torch.cat([store.score, torch.ones(len(loops))])
            store.num_edges = store.edge_index.size(1)
    check_graph(yeast_base_graph(folder, more, scores=more), wanted)


def check_graph(found: Any, wanted: Any) -> None:
    assert found.node_types == wanted.node_types
    assert found.edge_types == wanted.edge_types
    for store in [*wanted.node_stores, *wanted.edge_stores]:
        mine = found[store._key]
        assert set(mine.keys()) == set(store.keys())
        for key, value in store.items():
            if isinstance(value, torch.Tensor):
                assert mine[key].dtype == value.dtype
                torch.testing.assert_close(mine[key], value, rtol=0, atol=0)
            else:
                assert mine[key] == value
    assert found["reaction"].w_growth.sum() == 1


def _append(name: str, line: str, folder: Path) -> None:
    with gzip.open(folder / name, "at") as file:
        file.write(line)


def _replace(name: str, text: str, folder: Path) -> None:
    with gzip.open(folder / name, "wt") as file:
        file.write(text)


DAMAGE = {
    "unknown gene": (functools.partial(_append, "string_v9_1_fusion.tsv.gz", "Y00\tYXX\t0.5\n"), "row 48: 'YXX' is not"),
    "no score": (functools.partial(_append, "string_v9_1_fusion.tsv.gz", "Y00\tY01\n"), "row 48: 2 cells, expected 3"),
    "pair with itself": (functools.partial(_append, "string_v9_1_fusion.tsv.gz", "Y00\tY00\t0.5\n"), "row 48: pairs"),
    "other columns": (functools.partial(_replace, "string_v9_1_fusion.tsv.gz", "a\tb\n"), "expected gene_a, gene_b, score"),
    "no YAML": (functools.partial(_replace, "yeast-GEM-9.0.2.yml.gz", "- {"), "is not a metabolic model"),
    "executable YAML": (
        functools.partial(_replace, "yeast-GEM-9.0.2.yml.gz", "!!python/object/apply:os.system ['false']"),
        "is not a metabolic model",
    ),
    "no model": (lambda folder: (folder / "yeast-GEM-9.0.2.yml.gz").unlink(), "holds no yeast-GEM"),
    "two models": (lambda folder: (folder / "yeast-GEM.yml").write_text("x"), "expected one yeast-GEM"),
    "no networks": (lambda folder: [path.unlink() for path in folder.glob("string_*")], "holds no network"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_folders_are_explained(name: str, tmp_path: Path) -> None:
    damage, text = DAMAGE[name]
    damage(write_folder(tmp_path))
    with pytest.raises((SettingError, SourceContractError), match=text):
        yeast_base_graph(tmp_path)


def test_a_pair_in_both_orders_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with gzip.open(tmp_path / "string_v9_1_fusion.tsv.gz", "rt") as file:
        first = file.read().splitlines()[1].split("\t")
    _append("string_v9_1_fusion.tsv.gz", f"{first[1]}\t{first[0]}\t0.5\n", tmp_path)
    with pytest.raises(SourceContractError, match="row 48: repeats a pair"):
        yeast_base_graph(tmp_path)


def test_mistaken_settings_are_explained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHCELL_CACHE_YEAST", raising=False)
    with pytest.raises(SettingError, match=r"TORCHCELL_CACHE_YEAST is not set[\s\S]*download.py"):
        yeast_base_graph()
    with pytest.raises(SettingError, match="no folder of yeast data at"):
        yeast_knockouts(tmp_path / "none")
    with pytest.raises(SettingError, match="expected a whole number from 1 to"):
        YeastKnockouts(folder, num_samples=10_000)
    write_folder(tmp_path)
    _append("fba_knockouts.tsv.gz", "Y03\t0.5\n", tmp_path)
    with pytest.raises(SourceContractError, match=r"rows 3 and .* are the same knock-out"):
        yeast_knockouts(tmp_path)


def test_the_command_line_builds_the_same_store(folder: Path, tmp_path: Path, capsys: Any) -> None:
    from torchcell_cache.cli import main

    given = [
        "preprocess",
        f"root={tmp_path}/cli",
        "source=yeast",
        f"source.folder={folder}",
        "progress=false",
    ]
    assert main([*given, "storage=delta", "num_workers=0"]) == 0
    source = YeastKnockouts(folder)
    ds = tc.build(
        tmp_path / "api",
        source=source,
        processor=tc.LazySubgraphRepresentation(),
        storage="delta",
        progress=False,
    )
    assert ds.content_digest in capsys.readouterr().out
    for k in range(0, len(ds), 17):
        assert_same_graph(ds[k], tc.LazySubgraphRepresentation()(source[k]))


def train_all(base: Path, folder: Path, **more: Any) -> dict[str, torch.Tensor]:
    from experiments.train.train import run as train

    cfg = configured("preprocessed", base, folder, **more)
    tc.build(
        cfg.root,
        source=instantiate(cfg.data.source),
        processor=tc.LazySubgraphRepresentation(),
        storage=cfg.storage,
        progress=False,
    )
    for mode in MODES:
        train(configured(mode, base, folder, **more))
    return {mode: losses(base / mode) for mode in MODES}


@pytest.mark.parametrize("label", ["fitness", "tau"])
def test_fifty_steps_are_the_same_in_all_modes(folder: Path, tmp_path: Path, label: str) -> None:
    found = train_all(tmp_path, folder, **{"data.label": label, "batch_size": 4, "epochs": 10})
    assert len(found["on_the_fly"]) == STEPS
    assert torch.equal(found["preprocessed"], found["on_the_fly"])
    torch.testing.assert_close(found["shared"], found["on_the_fly"], rtol=1e-3, atol=1e-5)


def test_configurations_differ_in_a_few_lines() -> None:
    texts = {
        mode: (EXPERIMENT / "conf/experiment" / f"{mode}.yaml").read_text().splitlines() for mode in MODES
    }
    for one, other in itertools.combinations(MODES, 2):
        settings_of = [{line for line in texts[m] if line and line[0] != "#"} for m in (one, other)]
        assert len(settings_of[0] ^ settings_of[1]) <= 3


def test_documented_commands_preprocess_and_train(folder: Path, tmp_path: Path) -> None:
    part = "data.source.num_samples=60"
    said = run("preprocess_lazy_dataset.py", part, "progress=false", folder=folder, cwd=tmp_path)
    assert "60 samples as 'perturbation'" in said
    said = run("train.py", "shared", part, "batch_size=6", "progress=false", folder=folder, cwd=tmp_path)
    assert "epoch 0: train" in said
    assert len(losses(tmp_path / "outputs/006-kuzmin-tmi/runs/yeast-60-fitness-shared")) == 9


def test_a_misspelt_experiment_is_answered_with_those_there_are(script: Any) -> None:
    for typed in (["sharde"], ["mode=shared"]):
        with pytest.raises(SystemExit, match="one of on_the_fly, preprocessed, shared"):
            script("arguments").hydra_arguments(typed)


def test_from_the_table_through_the_database(
    folder: Path, tmp_path: Path, script: Any, monkeypatch: Any
) -> None:
    """Loaded, queried and preprocessed, the database gives the store that the table gives."""
    require(importlib.util.find_spec("arcadedb_embedded"), "the extra graphdb is not installed")
    for name in ("NEO4J_URI", "NEO4J_USER", "NEO4J_PASSWORD", "NEO4J_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    load, folder = (
        script("load_database").main,
        write_folder(tmp_path / "yeast", num_genes=12, num_triples=15),
    )
    where = {"data": "yeast_database", "data.source.directory": tmp_path / "database"}
    cfg = configured("shared", tmp_path, folder, **where)
    with script("graph_database").login(tmp_path / "database") as server:
        for name, value in zip(("URI", "USER", "PASSWORD", "DATABASE"), map(server.get, LOGIN), strict=True):
            monkeypatch.setenv(f"NEO4J_{name}", value)  # one server for all that follows
        assert load([f"folder={folder}"]) == 0
        source = instantiate(cfg.data.source)
        cfg.data.source.update(query="trigenic.cql", raw=str(tmp_path / "trigenic"))
        triples = instantiate(cfg.data.source)
    stores = [
        tc.build(
            tmp_path / name,
            source=given,
            processor=tc.LazySubgraphRepresentation(),
            storage="perturbation",
            progress=False,
        )
        for name, given in (("database", source), ("table", YeastKnockouts(folder)))
    ]
    assert stores[0].content_digest == stores[1].content_digest
    knockouts, labels = yeast_knockouts(folder)
    assert len(stores[0]) == len(knockouts)
    wanted = [labels["tau"][k] for k, knockout in enumerate(knockouts) if len(knockout) == 3]
    np.testing.assert_array_equal(triples.table.values[:, triples.table.phenotypes.index("tau")], wanted)
    # The server is gone, and no longer needed.
    assert len(instantiate(cfg.data.source)) == len(triples)


def test_commands_of_the_page_have_settings_that_exist(monkeypatch: pytest.MonkeyPatch, script: Any) -> None:
    from torchcell_cache.cli.settings import read_settings

    monkeypatch.setenv("TORCHCELL_CACHE_YEAST", "data/yeast")
    text = (EXPERIMENT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line.split("#")[0].split() for block in blocks for line in block.splitlines()]
    seen = []
    for words in lines:
        found = [word for word in words if "006-kuzmin-tmi/scripts/" in word]
        if words[0] == "torchcell-cache":
            assert read_settings(words[1], words[2:]).command == words[1]
        elif found:
            assert (REPOSITORY / found[0]).is_file()
            seen.append(Path(found[0]).name)
            if seen[-1] in ("train.py", "preprocess_lazy_dataset.py"):
                check_overrides(
                    script("arguments").hydra_arguments(words[words.index(found[0]) + 1 :], "shared")
                )
        elif "experiments.train" in words:
            check_overrides(words[words.index("experiments.train") + 1 :])
    assert set(seen) >= {path.name for path in (EXPERIMENT / "scripts").glob("*.py")} - HELPERS


def check_overrides(arguments: list[str]) -> None:
    """Compose what a command line says; fails for a key that is not there."""
    assert arguments[0] == "--config-dir"
    search = f"hydra.searchpath=[file://{(REPOSITORY / arguments[1]).resolve()}]"
    with initialize_config_dir(str(REPOSITORY / "experiments/train/conf"), version_base="1.3"):
        assert compose("config", [search, *arguments[2:]]).mode in MODES


class _Files(http.server.BaseHTTPRequestHandler):
    files: dict[str, tuple[bytes, int]]

    def do_GET(self) -> None:
        content, length = self.files.get(self.path, (b"", -1))
        self.send_response(200 if length >= 0 else 404)
        self.send_header("Content-Length", str(max(length, 0)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served() -> Iterator[tuple[str, dict[str, tuple[bytes, int]]]]:
    """Address of a server, and its files with the length it claims."""
    files: dict[str, tuple[bytes, int]] = {}
    server = http.server.HTTPServer(("127.0.0.1", 0), type("Files", (_Files,), {"files": files}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()
    thread.join()
    server.server_close()


LINKS = """protein1 protein2 neighborhood fusion cooccurence coexpression experimental database textmining combined_score
4932.Y01 4932.Y00 150 0 0 12 0 900 0 900
4932.Y00 4932.Y01 150 0 0 12 0 900 0 900
4932.Y02 4932.Y01 0 3 0 0 0 0 0 150
4932.Y02 4932.YZZ 0 3 0 0 0 0 0 150
"""


def test_originals_are_fetched_checked_and_cut(
    tmp_path: Path, script: Any, served: Any, folder: Path
) -> None:
    address, files = served
    download = script("download")
    with gzip.open(folder / "yeast-GEM-9.0.2.yml.gz") as file:
        contents = {"model": file.read(), "genes": b"Y00\nY01\nY02", "string": gzip.compress(LINKS.encode())}
    originals = {}
    for name, content in contents.items():
        files[f"/{name}"] = (content, len(content))
        digest = None if name == "string" else hashlib.sha256(content).hexdigest()
        originals[name] = download.Original(f"{address}/{name}", digest)
    get = functools.partial(download.fetch, say=False)
    download.download(tmp_path, ("neighborhood", "fusion", "database"), get, originals)
    graph = yeast_base_graph(tmp_path, scores=True)
    number = {name: k for k, name in enumerate(graph["gene"].node_ids)}
    found = {
        t[1]: graph[t].edge_index[:, : graph[t].num_edges // 2].t().tolist() for t in graph.edge_types[:3]
    }
    y0, y1, y2 = number["Y00"], number["Y01"], number["Y02"]
    assert found == {"neighborhood": [[y0, y1]], "fusion": [[y1, y2]], "database": [[y0, y1]]}
    torch.testing.assert_close(graph["gene", "database", "gene"].score, torch.tensor([0.9, 0.9]))

    files.clear()
    download.download(tmp_path, ("neighborhood",), get, originals)  # all there: nothing is asked for
    files["/string"] = (gzip.compress(LINKS.replace("900", "800").encode()), 0)
    with pytest.raises(download.DownloadError, match="another file than expected"):
        download.download(tmp_path, ("coexpression",), get, originals)
    files["/genes"] = (b"Y0", 11)
    with pytest.raises(download.DownloadError, match=r"2 of 11 bytes|IncompleteRead"):
        get(originals["genes"])
    files["/genes"] = (b"Y00\nY01\nY03", 11)
    with pytest.raises(download.DownloadError, match="another file"):
        get(originals["genes"])
    with pytest.raises(download.DownloadError, match=r"404[\s\S]*where there is a network"):
        get(originals["model"])


def test_without_a_network_the_download_says_so(tmp_path: Path, script: Any) -> None:
    download = script("download")
    nobody = download.Original("http://127.0.0.1:9/file", None)
    with pytest.raises(download.DownloadError, match=r"cannot be fetched[\s\S]*where there is a network"):
        download.fetch(nobody, say=False)
    assert download.main([]) == 2
    assert download.main([str(tmp_path), "channels=textmining"]) == 2


def test_simulated_knockouts_define_every_score(tmp_path: Path, script: Any, capsys: Any) -> None:
    pytest.importorskip("cobra.io")
    write_folder(tmp_path)
    simulate = script("simulate_knockouts")
    given = [str(tmp_path), "query_pairs=3", "array=5"]
    assert simulate.main(given) == 2, "a table is there"
    (tmp_path / "fba_knockouts.tsv.gz").unlink()
    assert simulate.main(given) == 0
    knockouts, _ = yeast_knockouts(tmp_path)
    count = check_scores(tmp_path)
    sizes = [len(knockout) for knockout in knockouts]
    assert (count["epsilon"], count["tau"]) == (sizes.count(2), sizes.count(3))
    assert sizes.count(3) > 0
    fitness = dict(zip(map(tuple, knockouts), yeast_knockouts(tmp_path)[1]["fitness"], strict=True))
    assert fitness["Y08",] == 0, "the only enzyme of a step of the chain"
    assert fitness["Y01",] == 1, "an isozyme takes over"


@pytest.mark.real_data
def test_real_labels_and_base_graph(real: Path) -> None:
    pytest.importorskip("cobra.io")
    assert check_scores(real) == {"fitness": 146_207, "epsilon": 85_193, "tau": 59_853}
    check_graph(yeast_base_graph(real, scores=True), graph_by_hand(real, scores=True))


@pytest.mark.real_data
def test_real_fifty_steps_are_the_same_in_all_modes(real: Path, tmp_path: Path) -> None:
    found = train_all(tmp_path, real, batch_size=2)
    assert len(found["on_the_fly"]) == STEPS
    assert torch.equal(found["preprocessed"], found["on_the_fly"])
    torch.testing.assert_close(found["shared"], found["on_the_fly"], rtol=1e-2, atol=1e-4)
