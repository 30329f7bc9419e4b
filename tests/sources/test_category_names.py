"""Columns of names are selected by name, in datasets, batches and expressions; oracle: pandas on the same cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cells import INSTALLED, REASON, gene_graph, made_up, write
from services import require

import torchcell_cache as tc

if INSTALLED:
    from cells import pd

GENES = [f"G{k}" for k in range(8)]
NAMES = ["NK", "B cell", "CD4+/CD25 T Reg", "it's", "µ-cell", 'say "x"']

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    """A store of 60 cells and its obs."""
    require(INSTALLED, REASON)
    root: Path = tmp_path_factory.mktemp("names")
    random = np.random.default_rng(0)
    cells = made_up(60, GENES)
    kind = random.choice(NAMES, 60).astype(object)
    kind[[3, 17]] = np.nan
    cells.obs["kind"] = pd.Categorical(kind)
    cells.obs["plate"] = random.integers(1, 4, 60)
    cells.obs["cell type"] = [f"t{k % 3}" for k in range(60)]
    source = tc.AnnDataSource(
        write(cells, root / "c.h5ad"),
        gene_graph(GENES),
        categories=["kind", "plate", "cell type"],
        phenotypes=["score"],
    )
    return tc.build(root / "s", source=source, processor=None, progress=False), cells.obs


def test_names_of_a_dataset_and_of_a_batch(store) -> None:
    ds, obs = store
    wanted = [None if pd.isna(name) else name for name in obs["kind"]]
    assert list(ds.names("kind")) == wanted
    assert list(ds[5:20].names("kind")) == wanted[5:20]
    assert list(ds.names("plate")) == list(obs["plate"].astype(str))
    assert ds.read_batch([3, 9, 0, 9]).names("kind") == [wanted[k] for k in (3, 9, 0, 9)]
    nk = ds[ds.names("kind") == "NK"]
    assert nk.positions().tolist() == np.flatnonzero(obs["kind"] == "NK").tolist()
    assert ds.categories["kind"] == list(obs["kind"].cat.categories)
    assert ds.read_batch([0]).labels("kind").dtype.is_floating_point
    for asked in (ds.names, ds.read_batch([0]).names):
        with pytest.raises(
            tc.errors.SettingError, match="'score' is no column of names; this store has kind, plate"
        ):
            asked("score")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_found_by_an_expression(store, name: str) -> None:
    ds, obs = store
    for where, wanted in (
        (f"kind == {name!r}", obs["kind"] == name),
        (f"{name!r} != kind", obs["kind"].astype(object) != name),
        (f"kind in ({name!r}, 'NK') and score > 0", obs["kind"].isin([name, "NK"]) & (obs["score"] > 0)),
        (f"not kind in [{name!r}]", ~obs["kind"].isin([name])),
        (f"`cell type` == 't1' or kind == {name!r}", (obs["cell type"] == "t1") | (obs["kind"] == name)),
    ):
        assert tc.select(ds, where).tolist() == np.flatnonzero(wanted).tolist(), where


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("kind == 'NKT'", "'NKT', which is no kind; did you mean 'NK'"),
        ("kind > 'NK'", "orders the names"),
        ("plate == 2", r"with a number\n  fix: plate == '2'"),
        ("plate in (2, 3)", r"with a number\n  fix: plate == '2'"),
        ("score == 'NK'", "columns are numbers"),
        ("kind == `cell type`or kind == 'NK' < score", "columns are numbers"),
    ],
)
def test_what_cannot_be_meant_is_refused(store, where: str, message: str) -> None:
    ds, _ = store
    with pytest.raises(tc.errors.SettingError, match=message):
        tc.select(ds, where)


def test_a_number_of_the_range_of_codes_is_still_a_code(store) -> None:
    ds, obs = store
    assert tc.select(ds, "kind == 0").tolist() == np.flatnonzero(obs["kind"].cat.codes == 0).tolist()
    assert tc.select(ds, "isnan(kind)").tolist() == [3, 17]


def test_a_store_without_names_says_so(tmp_path: Path) -> None:
    graph = tc.testing.tiny_graph()
    source = tc.PerturbationTable(graph, [["G0"]], phenotypes={"fitness": [1.0]})
    ds = tc.build(tmp_path, source=source, processor=tc.LazySubgraphRepresentation(), progress=False)
    assert ds.categories == {}
    with pytest.raises(tc.errors.SettingError, match="this store has none"):
        ds.names("fitness")
