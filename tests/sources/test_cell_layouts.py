"""Files of every layout that anndata has written since 0.7, and before: read as anndata itself reads them."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import INSTALLED, REASON, dense_on, gene_graph, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from services import require

import torchcell_cache as tc

if INSTALLED:
    import h5py
    from cells import anndata, pd, sparse

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)
GENES = ["Q0", "Q1", "Q2", "Q3"]
COUNTS = np.array([[0, 2, 0, 5], [1, 0, 0, 0], [0, 0, 0, 0], [7, 1, 3, 0], [0, 9, 0, 1]], np.float32)


@pytest.fixture(autouse=True)
def _libraries() -> None:
    require(INSTALLED, REASON)


# Writers of layouts that anndata no longer writes


def put_texts(group: Any, name: str, texts: list[str], fixed: bool) -> Any:
    if fixed:
        encoded = [t.encode() for t in texts]
        dtype = h5py.string_dtype("utf-8", max(map(len, encoded)))
        return group.create_dataset(name, data=np.array(encoded, dtype=dtype))
    return group.create_dataset(name, data=np.array(texts, dtype=object), dtype=h5py.string_dtype())


def put_matrix(file: Any, name: str, matrix: np.ndarray, form: str) -> None:
    """``dense``, or ``csr``/``csc`` with the attributes of 0.7, or of h5sparse before it."""
    kind, _, age = form.partition("-")
    if kind == "dense":
        file.create_dataset(name, data=matrix)
        return
    found = sparse.csr_matrix(matrix) if kind == "csr" else sparse.csc_matrix(matrix)
    group = file.create_group(name)
    for part in ("data", "indices", "indptr"):
        group[part] = getattr(found, part)
    if age == "h5sparse":
        group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = np.bytes_(kind), matrix.shape
    else:
        group.attrs.update(
            {"encoding-type": f"{kind}_matrix", "encoding-version": "0.1.0", "shape": matrix.shape}
        )


def put_frame(file: Any, name: str, index: list[str], columns: dict[str, Any], how: dict[str, bool]) -> None:
    """A table of 0.7; categorical columns are ``pandas.Categorical``."""
    group = file.create_group(name)
    group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0"})
    key = "cell_id" if how["named_index"] else "_index"
    group.attrs["_index"] = key
    order = [c.encode() for c in columns] if how["bytes"] else np.array(list(columns), dtype=object)
    group.attrs["column-order"] = order if columns else np.zeros(0)
    put_texts(group, key, index, how["bytes"])
    for column, value in columns.items():
        if isinstance(value, pd.Categorical):
            known = group.require_group("__categories")
            names = list(value.categories)
            if isinstance(names[0], str):
                put_texts(known, column, names, how["bytes"])
            else:
                known[column] = np.array(names)
            known[column].attrs["ordered"] = bool(value.ordered)
            group[column] = value.codes
            if how["reference"]:
                group[column].attrs["categories"] = known[column].ref
            else:
                group[column].attrs["categories"] = f"__categories/{column}"
        elif isinstance(value, list):
            put_texts(group, column, value, how["bytes"])
        else:
            group[column] = value


def put_records(
    file: Any, name: str, index: list[str], columns: dict[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """A table before 0.7: one structured array, the names of categories in ``uns``."""
    plain = {c: v.codes if isinstance(v, pd.Categorical) else v for c, v in columns.items()}
    fields = [("index", "S8"), *((c, np.asarray(v).dtype.str.replace("U", "S")) for c, v in plain.items())]
    out = np.zeros(len(index), dtype=fields)
    out["index"] = [t.encode() for t in index]
    for column, value in plain.items():
        out[column] = np.char.encode(value) if np.asarray(value).dtype.kind == "U" else value
    file[name] = out
    return {
        f"{c}_categories": list(v.categories) for c, v in columns.items() if isinstance(v, pd.Categorical)
    }


def obs_columns() -> dict[str, Any]:
    return {
        "kind": pd.Categorical(["T", "B", None, "T", "µ"], categories=["B", "T", "unused", "µ"]),
        "plate": pd.Categorical([3, 1, 1, 2, 3]),
        "stage": pd.Categorical(
            ["mid", "late", "mid", "early", None], ["early", "mid", "late"], ordered=True
        ),
        "batch": ["x", "y", "x", "x", "y"],
        "guide": pd.Categorical(["ctrl", "Q1", "Q2+Q0", "ctrl", "Q3+ctrl"]),
        "n": np.array([1.5, np.nan, 3, 4, 5]),
        "flag": np.array([True, False, True, True, False]),
        "count": np.array([3, 1, 4, 1, 5], dtype=np.int32),
    }


def check(path: Path, tmp_path: Path, matrix: Any = None, **kwargs: Any) -> Any:
    """Everything a source makes of a file, against anndata's own reading of it."""
    cells = read(path)
    columns = [name for name in ("kind", "plate", "stage", "batch", "flag") if name in cells.obs]
    numbers = [name for name in ("n", "flag2", "count") if name in cells.obs]
    source = tc.AnnDataSource(
        path,
        gene_graph(["Q3", "NONE", *GENES[:3]]),
        categories=columns,
        phenotypes=numbers,
        perturbation="guide" if "guide" in cells.obs else (),
        **kwargs,
    )
    ds = tc.build(
        tmp_path / f"store{next(STORES)}", source=source, processor=None, storage="delta", progress=False
    )
    for name in columns:
        wanted = [None if pd.isna(v) else str(v) for v in cells.obs[name]]
        assert list(ds.names(name)) == wanted, name
    for name in numbers:
        assert np.array_equal(ds.columns[name], cells.obs[name].to_numpy(np.float32), equal_nan=True), name
    if "guide" in cells.obs:
        wanted = [sorted(set(text.split("+")) - {"ctrl"}) for text in cells.obs["guide"]]
        assert [sorted(cell["gene"].ids_pert) for cell in ds] == wanted
    found = cells.X if matrix is None else matrix(cells)
    assert np.array_equal(
        ds.read_batch(range(len(ds))).features("gene")[..., 0].numpy(),
        dense_on(cells, ["Q3", "NONE", *GENES[:3]], found),
    )
    assert ds.source_ids == list(cells.obs_names)
    return ds


STORES = itertools.count()
BARCODES = ["AA-1", "AC-1", "AG-1", "AT-1", "CC-1"]


@settings(max_examples=24, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(["dense", "csr", "csc", "csr-h5sparse", "csc-h5sparse"]),
    how=st.fixed_dictionaries({name: st.booleans() for name in ("bytes", "reference", "named_index")}),
    columns=st.sets(st.sampled_from(["kind", "plate", "stage", "batch", "guide", "n", "flag", "count"])),
)
def test_files_of_anndata_07(tmp_path: Path, form: str, how: dict[str, bool], columns: set[str]) -> None:
    path = tmp_path / f"f{next(STORES)}.h5ad"
    with h5py.File(path, "w") as file:
        put_matrix(file, "X", COUNTS, form)
        put_frame(file, "obs", BARCODES, {k: v for k, v in obs_columns().items() if k in columns}, how)
        put_frame(file, "var", GENES, {}, how)
    if how["bytes"]:  # anndata itself compares bytes with str there; what is right is known
        with h5py.File(path) as file:
            assert file["obs"].attrs["_index"]
        source = tc.AnnDataSource(path, gene_graph(GENES), categories=sorted(columns & {"kind", "stage"}))
        assert {
            k: list(obs_columns()[k].categories) for k in columns & {"kind", "stage"}
        } == source.categories
        return
    check(path, tmp_path)


@pytest.mark.parametrize("form", ["dense", "csr-h5sparse", "csc-h5sparse"])
def test_files_before_07(tmp_path: Path, form: str) -> None:
    path = tmp_path / "old.h5ad"
    columns = {k: v for k, v in obs_columns().items() if k in ("kind", "guide", "n", "count")}
    with h5py.File(path, "w") as file:
        put_matrix(file, "X", COUNTS, form)
        uns = put_records(file, "obs", BARCODES, columns)
        put_records(file, "var", GENES, {})
        for name, texts in uns.items():
            put_texts(file, f"uns/{name}", texts, fixed=False)
    check(path, tmp_path)


def test_raw_of_an_old_file(tmp_path: Path) -> None:
    path = tmp_path / "raw.h5ad"
    how = {"bytes": False, "reference": True, "named_index": False}
    with h5py.File(path, "w") as file:
        put_matrix(file, "X", COUNTS[:, :2], "dense")
        put_matrix(file, "raw/X", COUNTS, "csr")
        put_frame(file, "obs", BARCODES, {"kind": obs_columns()["kind"]}, how)
        put_frame(file, "var", GENES[:2], {}, how)
        put_frame(file, "raw/var", GENES, {"part": pd.Categorical(["a", "b", "b", "a"])}, how)
        put_matrix(file, "layers/spliced", COUNTS[:, :2] * 2, "csc")
    source = tc.AnnDataSource(path, gene_graph(GENES), raw=True, categories=["kind"])
    assert np.array_equal(torch.stack([cell["gene"].x[:, 0] for cell in source.items(0, 5)]), COUNTS)
    check(path, tmp_path, lambda cells: cells.layers["spliced"], layer="spliced")


def test_a_gene_column_of_categories(tmp_path: Path) -> None:
    path = tmp_path / "symbols.h5ad"
    how = {"bytes": False, "reference": True, "named_index": False}
    with h5py.File(path, "w") as file:
        put_matrix(file, "X", COUNTS, "csr")
        put_frame(file, "obs", BARCODES, {}, how)
        put_frame(file, "var", ["1", "2", "3", "4"], {"symbol": pd.Categorical(GENES[::-1])}, how)
    source = tc.AnnDataSource(path, gene_graph(GENES), gene_column="symbol")
    assert np.array_equal(source[3]["gene"].x[:, 0], COUNTS[3, ::-1])


@pytest.mark.parametrize("form", ["dense", "csr", "csc", "array"])
@pytest.mark.parametrize("nullable", [False, True])
def test_files_of_the_installed_anndata(tmp_path: Path, form: str, nullable: bool) -> None:
    obs = pd.DataFrame(obs_columns(), index=BARCODES)
    if nullable:
        obs["count"] = pd.array([1, None, 3, 4, 5], dtype="Int32")
        obs["flag"] = pd.array([True, None, False, True, True], dtype="boolean")
        obs["flag2"] = pd.array([True, None, False, True, True], dtype="boolean")
        obs["batch"] = pd.array(["x", "y", "x", None, "y"], dtype="string")
        obs["plate"] = pd.array([1, None, 3, 3, 1], dtype="UInt8")
    matrices = {"dense": COUNTS, "csr": sparse.csr_matrix(COUNTS), "csc": sparse.csc_matrix(COUNTS)}
    cells = anndata.AnnData(matrices.get(form, COUNTS.astype(np.int16)), obs, pd.DataFrame(index=GENES))
    path = tmp_path / "new.h5ad"
    with warnings.catch_warnings(), anndata.settings.override(allow_write_nullable_strings=True):
        warnings.simplefilter("ignore")
        cells.write_h5ad(path, convert_strings_to_categoricals=not nullable)
    check(path, tmp_path)


def test_a_file_in_part_of_the_old_layout(tmp_path: Path) -> None:
    """A column that was added by hand to a new file: codes, and names in ``__categories``."""
    path = tmp_path / "mixed.h5ad"
    cells = anndata.AnnData(
        COUNTS, pd.DataFrame({"kind": list("abcab")}, BARCODES), pd.DataFrame(index=GENES)
    )
    cells.write_h5ad(path)
    with h5py.File(path, "a") as file:
        put_texts(file, "obs/__categories/plate", ["p", "q"], fixed=False)
        file["obs/plate"] = np.array([1, 0, -1, 1, 0], dtype=np.int8)
        file["obs"].attrs["column-order"] = np.array(["kind", "plate"], dtype=object)
    source = tc.AnnDataSource(path, gene_graph(GENES), categories=["kind", "plate"])
    assert source.categories == {"kind": ["a", "b", "c"], "plate": ["p", "q"]}
    assert [int(cell.obs_codes[0, 1]) for cell in source.items(0, 5)] == [1, 0, -1, 1, 0]


def test_no_matrix(tmp_path: Path) -> None:
    cells = anndata.AnnData(obs=pd.DataFrame(index=BARCODES), var=pd.DataFrame(index=GENES))
    cells.layers["counts"] = COUNTS
    cells.write_h5ad(tmp_path / "c.h5ad")
    with pytest.raises(tc.errors.SourceContractError, match=r"has no X; .*layers \['counts'\]"):
        tc.AnnDataSource(tmp_path / "c.h5ad", gene_graph(GENES))
    assert len(tc.AnnDataSource(tmp_path / "c.h5ad", gene_graph(GENES), layer="counts")) == 5
