"""Cells that come later: plates that lack a type, that share barcodes, that were stored before barcodes were kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import INSTALLED, REASON, dense_on, gene_graph, made_up, read, write
from services import require

import torchcell_cache as tc

if INSTALLED:
    from cells import pd

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
GENES = [f"Q{k}" for k in range(10)]
KEPT = {"categories": ["kind", "plate"], "y": "kind"}


@pytest.fixture(autouse=True)
def _libraries() -> None:
    require(INSTALLED, REASON)


def plate(path: Path, kinds: list[Any], number: Any, genes: list[str] = GENES, seed: int = 0) -> Path:
    cells = made_up(len(kinds), genes, seed=seed)
    cells.obs["kind"] = pd.Categorical(kinds)
    cells.obs["plate"] = number
    return write(cells, path)


def first_store(tmp_path: Path, **kwargs: Any) -> Any:
    path = plate(tmp_path / "1.h5ad", ["NK", "T", "B", None, "T"], [1, 2, 3, 3, 3], **kwargs)
    source = tc.AnnDataSource(path, gene_graph(GENES), **KEPT)
    return tc.build(tmp_path / "s", source=source, processor=None, storage="delta", progress=False)


@pytest.mark.parametrize(
    ("kinds", "number"),
    [
        (["T", "T"], [2, 3]),
        (["T", "NK", None], [3.0, np.nan, 1.0]),
        ([None, None], [np.nan, np.nan]),
        (["B", "NK"], ["3", "1"]),
    ],
)
def test_a_plate_that_lacks_types_is_appended(tmp_path: Path, kinds: list[Any], number: list[Any]) -> None:
    first_store(tmp_path)
    path = plate(tmp_path / "2.h5ad", kinds, number, seed=3)
    ds = tc.append(tmp_path / "s", tc.AnnDataSource(path, gene_graph(GENES), **KEPT), progress=False).dataset
    assert list(ds.names("kind")) == ["NK", "T", "B", None, "T", *kinds]
    wanted = [None if pd.isna(n) else str(int(n)) for n in number]
    assert list(ds.names("plate")) == ["1", "2", "3", "3", "3", *wanted]
    codes = {name: code for code, name in enumerate(ds.base_graph.obs_categories["kind"])}
    assert [int(cell.y) for cell in ds[5:]] == [codes.get(name, -1) for name in kinds]
    features = ds.read_batch(range(5, len(ds))).features("gene")[..., 0].numpy()
    assert np.array_equal(features, dense_on(read(path), GENES))
    assert tc.verify(tmp_path / "s", level="full", progress=False).ok
    assert ds.source_ids == [f"cell{k}" for k in range(5)] + [f"cell{k}" for k in range(len(kinds))]


def test_a_plate_that_measures_fewer_genes_and_one_with_more(tmp_path: Path) -> None:
    path = plate(tmp_path / "1.h5ad", ["NK", "T"], [1, 2], genes=GENES[:8])
    source = tc.AnnDataSource(path, gene_graph(GENES), **KEPT)
    tc.build(tmp_path / "s", source=source, processor=None, storage="delta", progress=False)
    fewer = plate(tmp_path / "2.h5ad", ["T", "T"], [1, 1], genes=GENES[2:6])
    tail = tc.AnnDataSource(fewer, gene_graph(GENES), **KEPT)
    assert tail.base_graph["gene"].measured.sum() == 4
    ds = tc.append(tmp_path / "s", tail, progress=False).dataset
    assert ds.base_graph["gene"].measured.sum() == 8
    assert np.array_equal(ds.read_batch([2, 3]).features("gene")[..., 0], dense_on(read(fewer), GENES))
    more = plate(tmp_path / "3.h5ad", ["T", "T"], [1, 1])
    with pytest.raises(tc.errors.StaleCacheError, match=r"measured(.|\n)*fix: .*no other genes"):
        tc.append(tmp_path / "s", tc.AnnDataSource(more, gene_graph(GENES), **KEPT), progress=False)


def test_new_types_are_named(tmp_path: Path) -> None:
    first_store(tmp_path)
    path = plate(tmp_path / "2.h5ad", ["T", "mast"], [1, 9])
    tail = tc.AnnDataSource(path, gene_graph(GENES), **KEPT)
    with pytest.raises(tc.errors.StaleCacheError, match=r"kind of the samples .*: mast\n  fix: update"):
        tc.append(tmp_path / "s", tail, progress=False)
    both = tc.AnnDataSource([tmp_path / "1.h5ad", path], gene_graph(GENES), **KEPT)
    ds = tc.update(tmp_path / "s", both, progress=False).dataset
    assert list(ds.names("kind")) == ["NK", "T", "B", None, "T", "T", "mast"]


def test_cells_are_listed_by_barcode(tmp_path: Path) -> None:
    ds = first_store(tmp_path)
    assert tc.select(ds, listed=["cell4", "cell0"]).tolist() == [4, 0]
    path = plate(tmp_path / "2.h5ad", ["T", "NK"], [1, 1])
    grown = tc.append(
        tmp_path / "s", tc.AnnDataSource(path, gene_graph(GENES), **KEPT), progress=False
    ).dataset
    assert tc.select(grown, listed=["cell4"]).tolist() == [4]
    with pytest.raises(tc.errors.SettingError, match="samples 0 and 5 are both called 'cell0'"):
        tc.select(grown, listed=["cell0"])
    assert tc.select(grown[[6, 5]], listed=["cell0"]).tolist() == [1]
    assert tc.select(grown[[0, 3]], listed=["cell0"]).tolist() == [0]


class Nameless(tc.AnnDataSource if INSTALLED else object):
    """As stores were made before barcodes were kept."""

    @property
    def table(self) -> Any:
        return replace(super().table, source_ids=None)


def test_stores_without_barcodes_grow_and_are_repaired(tmp_path: Path) -> None:
    path = plate(tmp_path / "1.h5ad", ["NK", "T", "B"], [1, 2, 3])
    Nameless.__name__ = "AnnDataSource"
    old = Nameless(path, gene_graph(GENES), **KEPT)
    tc.build(tmp_path / "s", source=old, processor=None, storage="delta", progress=False)
    now = tc.AnnDataSource(path, gene_graph(GENES), **KEPT)
    ds = tc.build(tmp_path / "s", source=now, processor=None, storage="delta", progress=False)  # not stale
    assert ds.source_ids is None
    columns = next((tmp_path / "s/processed").glob("gen-*/columns.safetensors"))
    columns.chmod(0o644)
    columns.write_bytes(b"damaged")
    assert not tc.verify(tmp_path / "s", progress=False).ok
    tc.repair(tmp_path / "s", source=now, progress=False)
    assert tc.verify(tmp_path / "s", source=now, progress=False).ok
    tail = tc.AnnDataSource(plate(tmp_path / "2.h5ad", ["T", "B"], [1, 1]), gene_graph(GENES), **KEPT)
    grown = tc.append(tmp_path / "s", tail, progress=False).dataset
    assert (len(grown), grown.source_ids) == (5, None)
