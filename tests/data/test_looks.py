"""What a notebook, a browser and a picture show of a store: all of it there, nothing of what it is called ever runs."""

import html.parser
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fresh
import numpy as np
import pytest
import torch
from torch_geometric.data import Data

import torchcell_cache as tc
from torchcell_cache.cli import main
from torchcell_cache.core.markup import bars, shares, table
from torchcell_cache.errors import SettingError
from torchcell_cache.store.summary import histogram

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = (
    "</title><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&amp;'\""
)


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    """A store whose folder, labels, networks and genes have names that a browser would run."""
    root = tmp_path_factory.mktemp("stores") / HOSTILE.replace("/", "")
    graph = tc.testing.tiny_graph()
    graph["gene"].node_ids = [f"{HOSTILE}{k}" for k in range(8)]
    graph["gene", HOSTILE, "gene"].edge_index = graph["gene", "physical", "gene"].edge_index
    fitness = np.random.default_rng(0).random(60)
    fitness[:4] = np.nan
    rows = [[k % 8, (k + k // 8) % 8] if k % 3 else [k % 8] for k in range(1, 61)]
    rows = [sorted(set(row)) for row in rows]
    source = tc.PerturbationTable(graph, rows, phenotypes={HOSTILE: fitness, "tau": fitness * 2}, nan="keep")
    return tc.build(root, source=source, processor=tc.LazySubgraphRepresentation(), progress=False)


class Balanced(html.parser.HTMLParser):
    """Every tag that is opened is closed, in order; no scripts, no addresses, no handlers."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.seen: list[str] = []
        self.said: list[str] = []
        self.feed(page)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes) -> None:
        names = {name for name, _ in attributes}
        assert tag not in ("script", "img", "link", "iframe")
        assert not {name for name in names if name.startswith("on") or name in ("src", "href")}
        self.seen.append(tag)
        if tag not in ("meta", "br"):
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        assert tag == "path"

    def handle_endtag(self, tag) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data) -> None:
        self.said.append(data)


def shown(thing) -> str:
    page = Balanced(thing if isinstance(thing, str) else thing._repr_html_())
    return " ".join(page.said)


def test_a_notebook_shows_what_a_dataset_is(ds) -> None:
    text = shown(ds)
    for part in (
        "60",
        HOSTILE,
        "tau",
        ds.content_digest,
        "LazySubgraphRepresentation",
        "PerturbationTable",
        ds.storage,
    ):
        assert part in text, part
    assert "4 without" in text
    assert text.count("median") == 4
    assert "10 of 60" in shown(ds[:10])


def test_a_notebook_shows_batches_splits_and_reports(ds, tmp_path: Path) -> None:
    batch = ds.read_batch(range(9))
    assert "9 samples" in shown(batch)
    assert f"{batch.labels('tau').nanmean():.4g}"[:4] in shown(batch)
    splits = tc.split_by_perturbation(ds, progress=False)
    for name in splits.names:
        assert name in shown(splits)
    assert str(len(splits.train)) in shown(splits)
    report = tc.verify(ds.root, progress=False)
    assert "no problem" not in shown(report)
    assert "problems none" in re.sub(r"\s+", " ", shown(report))
    report.add(HOSTILE, "is <b>wrong</b>")
    assert f"{HOSTILE}: is <b>wrong</b>" in shown(report)
    assert "nothing is damaged" in shown(tc.repair(ds.root, progress=False))


def results(ds: tc.PreprocessedDataset, place: Path) -> dict[str, Any]:
    """One of each thing that ends a cell of a notebook, with something it must say."""
    from torchcell_cache.cli.bench.store import bench_store

    own = {"source": tc.testing.tiny_source(6), "processor": tc.LazySubgraphRepresentation()}
    table = own["source"]
    tc.build(place / "a", **own, progress=False)
    graphs = [Data(x=torch.rand(3, 1)) for _ in range(4)]
    plain = tc.build(place / "g", source=graphs, progress=False)
    pairs = tc.PairedCells(plain, control=[0, 1])
    batch = [f"GraphBatch({len(plain)} samples"]
    return {
        "append": (tc.append(place / "a", table, progress=False), ["6 of 12 samples computed", "num_shards"]),
        "build_part": (
            tc.build_part(place / "p", **own, storage="delta", task=0, tasks=1, progress=False),
            ["Part", "tasks"],
        ),
        "bench": (
            bench_store(ds.root, seconds=0.5, workers=(0,), num_batches=5, hidden=4, step_ms=1.0),
            ["BenchReport", "p50_ms", "pyg collate", "batch_size: 28", "num_workers", "layer 1", "shared"],
        ),
        "stream": (
            tc.StreamingCacheDataset(ds).shuffle_quality(),
            ["ShuffleQuality", "mean_displacement", "0."],
        ),
        "table": (table, [repr(table), *table.report().splitlines()]),
        "dataset without labels": (plain, ["samples", "4"]),
        "pairs": (pairs, ["PairedCells", "4"]),
        "pairs of a batch": (
            pairs.read_batch(range(4)),
            ["PairedBatch(4 cells, 1 controls", "per cell nothing"],
        ),
        "batch of graphs": (plain.read_batch(range(4)), [*batch, "to_pyg()"]),
        "split of graphs": (tc.split_random(plain, progress=False), ["train", "share"]),
        "batch of nodes": (
            ds.read_batch([0, 1]).select_nodes("gene", 3, values=torch.arange(8.0)),
            ["2 samples"],
        ),
    }


def test_whatever_ends_a_cell_shows_itself(ds, tmp_path: Path) -> None:
    for name, (thing, parts) in results(ds, tmp_path).items():
        said = re.sub(r"\s+", " ", shown(thing))
        assert [part for part in parts if part not in said] == [], (name, said)


def test_every_class_called_a_report_shows_itself() -> None:
    folder = Path(tc.__file__).parent
    found = 0
    for path in folder.rglob("*.py"):
        for name in re.findall(
            r"^class ([A-Z]\w*Report|Report|Growth|Splits)\b", path.read_text(), re.MULTILINE
        ):
            module = importlib.import_module(".".join(path.relative_to(folder.parent).with_suffix("").parts))
            assert hasattr(getattr(module, name), "_repr_html_"), name
            found += 1
    assert found >= 6


def test_a_store_that_is_gone_still_shows(tmp_path: Path) -> None:
    unbuilt = tc.Neo4jPreprocessedCellDataset(tmp_path / "none", source_dataset=tc.testing.tiny_source())
    assert "cannot be shown" in shown(unbuilt)


def test_info_says_what_the_command_says(ds, capsys) -> None:
    assert main(["info", f"root='{ds.root}'"]) in (0, 2)  # a name that the shell's grammar may refuse
    capsys.readouterr()
    ds[:7].info(bins=3)
    said = capsys.readouterr().out
    assert "samples         7 of 60 as" in said
    assert ds.content_digest in said
    with pytest.raises(SettingError, match="bins"):
        ds.info(bins=0)


def test_the_card_is_one_whole_page(ds, tmp_path: Path) -> None:
    splits = tc.split_by_perturbation(ds, progress=False)
    page = ds.card(tmp_path / "new" / "card.html", splits=splits)
    assert (tmp_path / "new" / "card.html").read_text() == page
    text = shown(page)
    for part in (
        HOSTILE.replace("/", ""),
        ds.content_digest,
        "PreprocessedDataset(",
        "@misc{dataset",
        "train and test",
    ):
        assert part in text, part
    assert str(ds.root.parent if isinstance(ds.root, Path) else Path(ds.root).parent) not in text
    assert "http" not in page.replace("http-equiv", "")
    with pytest.raises(SettingError, match="splits= divides 60 samples, this dataset has 5"):
        ds[:5].card(splits=splits)


def test_the_card_counts_what_parts_have_in_common(ds) -> None:
    splits = tc.split_random(ds, (0.5, 0.2, 0.3), progress=False)
    text = re.sub(r"\s+", " ", shown(ds.card(splits=splits)))
    sets = {
        name: {tuple(ds.perturbed[k].tolist()) for k in rows.tolist()} for name, rows in splits.parts.items()
    }
    nodes = {name: {node for row in rows for node in row} for name, rows in sets.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert f"{one} and {other} {len(sets[one] & sets[other])} {len(nodes[one] & nodes[other])}" in text


def test_the_card_has_the_degrees_of_every_network(ds) -> None:
    text = shown(ds.card())
    for key in ds.base_graph.edge_types:
        index = ds.base_graph[key].get("edge_index", ds.base_graph[key].get("hyperedge_index"))
        assert (f"degree, {'|'.join(key)}"[:38] in text) == bool(index.numel())
    ends = ds.base_graph["gene", "regulatory", "gene"].edge_index.numpy().ravel()
    assert f"median {np.median(np.bincount(ends, minlength=8)):.4g}" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium")
def test_a_browser_shows_the_card_and_runs_nothing_of_it(ds, tmp_path: Path) -> None:
    card, picture = tmp_path / "card.html", tmp_path / "card.png"
    ds.card(card, splits=tc.split_random(ds, progress=False))
    call = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    dom = subprocess.run(
        [*call, "--dump-dom", card.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    title = re.search("<title>(.*?)</title>", dom.stdout)
    assert title is not None
    assert "owned" not in title[1].replace("document.title='owned'", "")
    assert "<script" not in dom.stdout
    assert dom.stdout.count("<svg") == 4 + sum(1 for _ in re.finditer("degree, ", dom.stdout)) // 2
    subprocess.run(
        [*call, "--window-size=900,1400", f"--screenshot={picture}", card.as_uri()],
        capture_output=True,
        check=True,
        timeout=120,
    )
    image = pytest.importorskip("matplotlib.image").imread(picture)
    assert image.shape[:2] == (1400, 900)
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 20  # text and bars, not an empty page


def test_the_command_writes_the_card(tmp_path: Path, capsys) -> None:
    ds = tc.build(
        tmp_path / "s", source=tc.testing.tiny_source(30), processor=tc.Perturbation(), progress=False
    )
    tc.split_random(ds, progress=False).save(tmp_path / "split")
    assert main(["info", f"root={tmp_path}/s", f"html={tmp_path}/c.html", f"splits={tmp_path}/split"]) == 0
    assert f"card written to {tmp_path}/c.html" in capsys.readouterr().out
    assert "train and val" in shown((tmp_path / "c.html").read_text())


def test_pictures_have_whole_ticks_medians_and_names_without_paths(ds, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = ds.plot(tmp_path / "p.png")
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert str(tmp_path) not in figure.get_suptitle()
    counts = next(axes for axes in figure.axes if axes.get_xlabel() == "perturbed_count")
    assert all(float(tick).is_integer() for tick in counts.get_xticks())
    assert all("median" in axes.get_title() for axes in figure.axes)


WHOLE = [
    np.arange(3),
    np.array([0, 1000]),
    np.array([-5, 7, 7]),
    np.array([4]),
    np.array([True, False]),
    np.arange(997),
]


@pytest.mark.parametrize("values", WHOLE, ids=range(len(WHOLE)))
@pytest.mark.parametrize("bins", [1, 4, 10])
def test_whole_numbers_stand_amid_bins_of_one_width(values, bins) -> None:
    facts = histogram(values, bins)
    edges = np.array(facts["edges"])
    assert len(facts["counts"]) <= bins
    assert sum(facts["counts"]) == len(values)
    assert ((edges - 0.5) % 1 == 0).all()
    assert len(set(np.diff(edges))) == 1
    where = np.searchsorted(edges, values.astype(float), side="right") - 1
    assert np.bincount(where, minlength=len(facts["counts"])).tolist() == facts["counts"]
    shown(bars("x", facts))


def test_small_bars_beside_large_ones_are_seen() -> None:
    facts = histogram(np.repeat([0, 1, 2], [10_000, 1, 100]), 10)
    heights = [float(each) for each in re.findall(r'height="([\d.]+)" fill="#', bars("x", facts))]
    assert "logarithmic" in bars("x", facts)
    assert 2 < heights[1] < heights[2] < heights[0]
    assert "no values" in bars("x", histogram(np.full(3, np.nan), 4))
    assert shown(shares({HOSTILE: 3, "b": 1}))
    assert HOSTILE in shown(table([(HOSTILE, 1)], (HOSTILE, "n"), HOSTILE))


NOTEBOOK = """
import sys, types
if sys.argv[1] == "kernel":  # what IPython's kernel leaves for others to see; the bar itself is tqdm's
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: shell, version_info=(9, 0))
import torchcell_cache as tc
tc.build(sys.argv[2], source=tc.testing.tiny_source(40), processor=tc.Perturbation(), storage="delta")
"""


@pytest.mark.parametrize(("where", "bar"), [("kernel", True), ("batch log", False)])
def test_a_build_in_a_notebook_has_a_bar(tmp_path: Path, where, bar) -> None:
    call = [sys.executable, "-c", NOTEBOOK, where, str(tmp_path / "s")]
    done = fresh.run(call, capture_output=True, text=True, check=True)
    assert bool(re.search(r"preprocess: +\d+%\|", done.stderr)) is bar
    assert "40 samples as 'delta'" in done.stderr
    assert "Warning" not in done.stderr, "that there are no widgets is nobody's concern"
