"""Labels that are called like what a store knows of its samples: both are there, apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import cell_graph
from hypothesis import given
from hypothesis import strategies as st

import torchcell_cache as tc
from torchcell_cache.cli.contents import info
from torchcell_cache.store.columns import names_apart

ROWS = [["Y001"], ["Y002"], ["Y003", "Y004"], ["Y005"]]
VALUES = [40.0, 30.0, 20.0, 10.0]
OWN = ["index", "perturbed_count", "removed_edges"]
NO_CONFLICT = [
    "perturbed",
    "values",
    "value_count",
    "source_ids",
    "source_id",
    "source_id_length",
    "y",
    "label",
]


def build(root: Path, phenotypes: dict[str, Any], **more: Any) -> tc.PreprocessedDataset:
    source = tc.PerturbationTable(cell_graph(), ROWS, phenotypes=phenotypes, source_ids=list("abcd"), **more)
    processor = tc.LazySubgraphRepresentation()
    return tc.build(root, source=source, processor=processor, storage="delta", progress=False)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tc.PreprocessedDataset:
    return build(tmp_path_factory.mktemp("plain"), {"other": VALUES})


@pytest.mark.parametrize("as_statistic", [False, True])
@pytest.mark.parametrize("name", OWN)
def test_what_the_store_knows_stays_what_it_is(
    tmp_path: Path, plain: tc.PreprocessedDataset, name: str, as_statistic: bool
) -> None:
    labels = {"other": VALUES} if as_statistic else {name: VALUES}
    ds = build(tmp_path, labels, statistics={name: VALUES} if as_statistic else None)
    assert ds.label_columns[name] == f"label.{name}"
    for own in OWN[1:]:
        assert np.array_equal(ds.columns[own], plain.columns[own])
    assert ds.columns[f"label.{name}"].tolist() == VALUES
    assert ds.label_df["index"].tolist() == [0, 1, 2, 3]
    if not as_statistic:
        assert ds.label_df[f"label.{name}"].tolist() == VALUES
    assert ds.read_batch([2, 0]).labels(name).tolist() == [20.0, 40.0]
    assert tc.select(ds, f"`label.{name}` > 15 and index > 0").tolist() == [1, 2]
    for where in ("index < 2", "perturbed_count == 2", "removed_edges > 3"):
        assert tc.select(ds, where).tolist() == tc.select(plain, where).tolist()
    for by in OWN[1:]:
        costs = [tc.BalancedCostBatchSampler(s, 2, by=by).costs.tolist() for s in (ds, plain)]
        assert costs[0] == costs[1]
    assert f"label.{name}" in info(root=str(ds.root), bins=3)[1]["histograms"]
    if not as_statistic:
        assert f"mean label.{name}" in tc.split_random(ds, (0.5, 0.5), seed=1).summary()


@pytest.mark.parametrize("name", NO_CONFLICT)
def test_other_names_keep_their_column(tmp_path: Path, name: str) -> None:
    ds = build(tmp_path, {name: VALUES})
    assert ds.columns[name].tolist() == ds.label_df[name].tolist() == VALUES
    assert tc.select(ds, f"{name} > 25").tolist() == [0, 1]
    assert ds.generation.table.source_ids[2] == "c"


NAMES = st.lists(st.sampled_from(["index", "a", "label.a", "label.index", "label.label.a", "b"]), unique=True)


@given(NAMES, st.sets(st.sampled_from(["a", "b", "label.a"])))
def test_no_two_columns_share_a_name(labels: list[str], own: set[str]) -> None:
    found = names_apart(labels, own)
    assert list(found) == labels
    assert len(set(found.values())) == len(labels)
    assert not set(found.values()) & {"index", *own}
    assert all(found[label].endswith(label) for label in labels)


def test_names_of_a_column_that_is_kept_apart(tmp_path: Path) -> None:
    """Codes of names under a name of the store's own: asked by either name, compared under the column's."""
    graph = cell_graph()
    graph.obs_categories = {"perturbed_count": ["none", "some"]}
    source = tc.PerturbationTable(graph, ROWS, phenotypes={"perturbed_count": [1.0, 0.0, 1.0, 0.0]})
    ds = tc.build(tmp_path, source=source, processor=tc.Perturbation(), progress=False)
    assert list(ds.categories) == ["label.perturbed_count"]
    for name in ("perturbed_count", "label.perturbed_count"):
        assert list(ds.names(name)) == ["some", "none", "some", "none"]
    assert tc.select(ds, "`label.perturbed_count` == 'some'").tolist() == [0, 2]
    assert tc.select(ds, "perturbed_count == 2").tolist() == [2]
