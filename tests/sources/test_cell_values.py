"""Values of cells are right or refused: expression, labels, names of categories over several files, genes by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import INSTALLED, REASON, gene_graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from services import require

import torchcell_cache as tc

if INSTALLED:
    from cells import anndata, pd, scanpy, sparse

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)
GENES = ["Q0", "Q1", "Q2"]


@pytest.fixture(autouse=True)
def _libraries() -> None:
    require(INSTALLED, REASON)


def cells_of(matrix: Any, obs: dict[str, Any] | None = None, names: list[str] = GENES, start: int = 0) -> Any:
    count = matrix.shape[0]
    index = [f"c{k + start}" for k in range(count)]
    return anndata.AnnData(matrix, pd.DataFrame(obs or {}, index=index), pd.DataFrame(index=names))


def file_of(path: Path, *args: Any, **kwargs: Any) -> Path:
    cells_of(*args, **kwargs).write_h5ad(path)
    return path


def stored(source: Any, root: Path) -> Any:
    return tc.build(root, source=source, processor=None, storage="delta", progress=False)


def dense(source: Any) -> np.ndarray:
    return np.stack([graph["gene"].x[:, 0].numpy() for graph in source.items(0, len(source))])


# Expression


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u2", "i4", "u8", "?"])
@pytest.mark.parametrize("form", ["dense", "csr", "csc"])
@pytest.mark.parametrize(
    "how", [{}, {"target_sum": 1e4}, {"target_sum": 3.0, "log1p": True}, {"log1p": True}]
)
def test_every_dtype_is_normalised_as_float32_is(tmp_path: Path, dtype: str, form: str, how: dict) -> None:
    random = np.random.default_rng(1)
    counts = random.integers(0, 2 if dtype == "?" else 100, (6, 3)).astype(dtype)
    counts[3] = 0
    if dtype == "f2":
        counts[1] = [30000, 60000, 20]  # whose sum float16 does not hold
    forms = {"dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix}
    if dtype == "f2":  # scipy has no sparse float16
        form = "dense"
    path = file_of(tmp_path / "c.h5ad", forms[form](counts))
    wanted = cells_of(counts.astype(np.float32))
    if "target_sum" in how:
        scanpy.pp.normalize_total(wanted, target_sum=how["target_sum"])
    if "log1p" in how:
        scanpy.pp.log1p(wanted)
    found = dense(tc.AnnDataSource(path, gene_graph(GENES), **how))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted.X, rtol=2e-7 if dtype != "f8" else 1e-6)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        *((v, "f8") for v in (1e300, -1e39, 3.5e38)),
        *((v, "i8") for v in (2**24 + 1, -(2**24) - 1, 2**53 + 1, 2**62 + 1)),
        *((v, "u4") for v in (2**24 + 1, 2**32 - 1)),
        (2**64 - 1, "u8"),
    ],
)
def test_what_float32_does_not_hold_is_refused_by_cell_and_gene(
    tmp_path: Path, value: float, dtype: str
) -> None:
    matrix = np.zeros((5, 3), dtype=dtype)
    matrix[3, 1] = value
    for found in (matrix, sparse.csr_matrix(matrix), sparse.csc_matrix(matrix)):
        path = file_of(tmp_path / "c.h5ad", found)
        source = tc.AnnDataSource(path, gene_graph(GENES))
        with pytest.raises(
            tc.errors.SourceContractError, match=r"c\.h5ad: cell 3 has .* of Q1, which float32"
        ):
            dense(source)
        with pytest.raises(tc.errors.CacheError, match=r"c\.h5ad: cell 3 has .* of Q1, which float32"):
            stored(source, tmp_path / f"s{type(found).__name__}")
    other = tc.AnnDataSource(path, gene_graph(["Q0", "Q2"]))  # nobody asked for the gene
    assert not dense(other).any()


@pytest.mark.parametrize(
    ("value", "dtype"), [(2**24, "i8"), (2**24 + 2, "i4"), (2**62, "u8"), (3.4e38, "f8")]
)
def test_what_float32_does_hold_is_kept(tmp_path: Path, value: float, dtype: str) -> None:
    matrix = np.zeros((2, 3), dtype=dtype)
    matrix[1, 2] = value
    found = dense(tc.AnnDataSource(file_of(tmp_path / "c.h5ad", matrix), gene_graph(GENES)))
    assert found[1, 2] == np.float32(value)


def test_long_doubles_and_negative_zeros(tmp_path: Path) -> None:
    matrix = np.array([[-0.0, 0.0, 1.5]], dtype=np.longdouble)
    found = dense(tc.AnnDataSource(file_of(tmp_path / "c.h5ad", matrix), gene_graph(GENES)))
    assert np.array_equal(found, matrix)
    assert np.signbit(found).tolist() == [[True, False, False]]
    with pytest.raises(tc.errors.SourceContractError, match=r"cell 0 has .* of Q2"):
        dense(tc.AnnDataSource(file_of(tmp_path / "d.h5ad", matrix * 1e40), gene_graph(GENES)))


def test_infinity_and_nan_of_the_file_are_kept(tmp_path: Path) -> None:
    matrix = np.array([[np.inf, np.nan, -np.inf]])
    assert np.array_equal(
        dense(tc.AnnDataSource(file_of(tmp_path / "c.h5ad", matrix), gene_graph(GENES))), matrix, True
    )


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_total_beyond_the_dtype_is_refused(tmp_path: Path, dtype: str) -> None:
    matrix = np.ones((3, 3), dtype=dtype)
    matrix[2] = np.finfo(dtype).max
    source = tc.AnnDataSource(file_of(tmp_path / "c.h5ad", matrix), gene_graph(GENES), target_sum=1e4)
    with pytest.raises(tc.errors.SourceContractError, match="cell 2 sum to more than"):
        dense(source)


# Labels


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1.0, 1e300], r"cell 1 \(c1\) is 1e\+300"),
        ([1, 2**24 + 1], r"cell 1 \(c1\) is 16777217"),
        (["Int64", 2**40 + 1, None], r"cell 0 \(c0\) is 1099511627777"),
        (["Int64", None, 2**40 + 1], r"cell 1 \(c1\) is 1099511627777"),
        (["complex128", 1 + 2j, 0], "expected numbers"),
    ],
)
def test_labels_that_float32_does_not_hold(tmp_path: Path, column: list, message: str) -> None:
    typed = isinstance(column[0], str)
    values = pd.array(column[1:], dtype=column[0]) if typed else column
    path = file_of(tmp_path / "c.h5ad", np.ones((2, 3), np.float32), {"n": values})
    with pytest.raises(tc.errors.SourceContractError, match=rf"c\.h5ad: obs column 'n' .*{message}"):
        tc.AnnDataSource(path, gene_graph(GENES), phenotypes=["n"])


def test_missing_labels_are_counted(tmp_path: Path) -> None:
    obs = {"n": [1.0, np.nan, np.inf], "kind": pd.Categorical(["a", None, None])}
    path = file_of(tmp_path / "c.h5ad", np.ones((3, 3), np.float32), obs)
    source = tc.AnnDataSource(path, gene_graph(GENES), phenotypes=["n"], categories=["kind"])
    assert source.notes[1:] == ("n: 2 of 3 cells have no value", "kind: 2 of 3 cells have no value")
    assert source.report().splitlines() == list(source.notes)


# Categories


NUMBERS = st.lists(st.sampled_from([0, 1, 2, 3, -5, 2**40]), min_size=1, max_size=6)


def as_kind(values: list[int], kind: str, gap: bool) -> Any:
    if kind == "text":
        return [str(v) for v in values]
    if kind == "category of int":
        return pd.Categorical(values)
    if kind == "category of float":
        return pd.Categorical([float(v) for v in values])
    if kind == "Int64":
        return pd.array([None if gap and k == 0 else v for k, v in enumerate(values)], dtype="Int64")
    if kind.startswith("float"):
        return np.array([np.nan if gap and k == 0 else v for k, v in enumerate(values)], dtype=kind)
    return np.array(values, dtype=kind)


KINDS = ["int64", "int64", "float64", "float32", "Int64", "category of int", "category of float", "text"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(NUMBERS, st.sampled_from(KINDS), st.booleans()), min_size=2, max_size=4))
def test_one_value_is_one_name_whatever_its_type(tmp_path: Path, parts: list) -> None:
    frames = [pd.DataFrame({"plate": as_kind(*part)}) for part in parts]
    given = [
        anndata.AnnData(
            np.ones((len(f), 3), np.float32), f.set_axis(f.index.astype(str)), var=pd.DataFrame(index=GENES)
        )
        for f in frames
    ]
    source = tc.AnnDataSource(given, gene_graph(GENES), categories=["plate"], y="plate")
    names = source.categories["plate"]
    found = [names[int(code)] if code >= 0 else None for code in source._labels.codes[:, 0]]
    wanted = [None if pd.isna(v) else int(v) for frame in frames for v in frame["plate"]]
    assert [None if name is None else int(float(name)) for name in found] == wanted
    assert len({float(name) for name in names}) == len(names)  # no value under two names


@pytest.mark.parametrize(
    ("one", "two", "names"),
    [
        ([1, 2], [np.nan, 2.0], ["1", "2"]),
        ([1.0, np.nan], [1, 2], ["1", "2"]),
        ([1.0, np.nan], [2.0, 1.0], ["1.0", "2.0"]),  # floats everywhere: as they always were
        ([1.5, 1.0], ["1", "x"], ["1", "1.5", "x"]),
        ([True, False], [1.0, np.nan], ["False", "True"]),
        ([True, False], ["True", "maybe"], ["False", "True", "maybe"]),
        ([np.nan, np.nan], ["a", "b"], ["a", "b"]),
        ([np.nan, np.nan], [3, 4], ["3", "4"]),
        (["007", "7"], [7, 8], ["007", "7", "8"]),
        (np.array([0.5, 0.1], np.float32), [7, 0.5], ["0.1", "0.5", "7.0"]),
        (np.array([0.1, 2.0], np.float32), [0.1, 2.0], ["0.1", "2.0"]),
    ],
)
def test_names_over_two_files(tmp_path: Path, one: list, two: list, names: list[str]) -> None:
    files = [
        file_of(tmp_path / f"{k}.h5ad", np.ones((2, 3), np.float32), {"a": v})
        for k, v in enumerate((one, two))
    ]
    assert tc.AnnDataSource(files, gene_graph(GENES), categories=["a"]).categories["a"] == names


def test_bools_and_other_numbers_are_no_one_column(tmp_path: Path) -> None:
    files = [
        file_of(tmp_path / f"{k}.h5ad", np.ones((2, 3), np.float32), {"a": v})
        for k, v in enumerate(([True, False], [3, 1]))
    ]
    with pytest.raises(tc.errors.SourceContractError, match=r"1\.h5ad: obs column 'a' holds \[.*bools"):
        tc.AnnDataSource(files, gene_graph(GENES), categories=["a"])


@pytest.mark.parametrize(
    ("orders", "wanted"),
    [
        ([["early", "late"], ["early", "mid", "late"]], ["early", "mid", "late"]),
        ([["b"], ["a", "b", "c"], ["c", "d"]], ["a", "b", "c", "d"]),
        ([["a", "c"], ["b", "c"]], ["a", "b", "c"]),
        ([["a", "b"], ["b", "a"]], None),
        ([["a", "b", "c"], ["c", "x", "a"]], None),
    ],
)
def test_an_order_that_means_something_is_kept(tmp_path: Path, orders: list, wanted: Any) -> None:
    given = [
        cells_of(np.ones((len(o), 3), np.float32), {"stage": pd.Categorical(o, categories=o, ordered=True)})
        for o in orders
    ]
    if wanted is None:
        with pytest.raises(tc.errors.SourceContractError, match="ordered names of obs column 'stage'"):
            tc.AnnDataSource(given, gene_graph(GENES), categories=["stage"])
    else:
        assert tc.AnnDataSource(given, gene_graph(GENES), categories=["stage"]).categories["stage"] == wanted


# Genes by name


def test_numbers_and_blanks_as_names_of_genes(tmp_path: Path) -> None:
    cells = cells_of(np.eye(3, dtype=np.float32), names=[" Q0", "Q1 ", "Q2"])
    cells.var["entrez"] = [7157, 672, 1]
    cells.var["gaps"] = [7157.0, np.nan, 1.0]
    cells.write_h5ad(tmp_path / "c.h5ad")
    assert dense(tc.AnnDataSource(tmp_path / "c.h5ad", gene_graph(GENES))).tolist() == np.eye(3).tolist()
    for nodes in (["7157", "672"], [7157, 672]):
        found = dense(tc.AnnDataSource(tmp_path / "c.h5ad", gene_graph(nodes), gene_column="entrez"))
        assert found.tolist() == [[1, 0], [0, 1], [0, 0]]
    found = tc.AnnDataSource(tmp_path / "c.h5ad", gene_graph(["7157", "672"]), gene_column="gaps")
    assert found.base_graph["gene"].measured.tolist() == [True, False]


def test_aliases_of_genes(tmp_path: Path) -> None:
    path = file_of(
        tmp_path / "c.h5ad",
        np.eye(3, dtype=np.float32),
        {"guide": ["OLD", "ctrl", "Q2"]},
        ["OLD", "Q1", "Q2"],
    )
    table = tmp_path / "aliases.tsv"
    table.write_text("OLD\tQ0\n")
    for aliases in ({"OLD": "Q0"}, table):
        source = tc.AnnDataSource(path, gene_graph(GENES), perturbation="guide", aliases=aliases)
        assert dense(source).tolist() == np.eye(3).tolist()
        assert [list(cell["gene"].ids_pert) for cell in source.items(0, 3)] == [["Q0"], [], ["Q2"]]
        assert source.identity()["aliases"] == {"OLD": "Q0"}
    assert "aliases" not in tc.AnnDataSource(path, gene_graph(["Q1", "Q2"])).identity()
    with pytest.raises(
        tc.errors.SourceContractError, match="'OLD' and 'Q1' in the index of var are both the node 'Q1'"
    ):
        tc.AnnDataSource(path, gene_graph(GENES), aliases={"OLD": "Q1"})
    with pytest.raises(tc.errors.SourceContractError, match="differ in letter case"):
        tc.AnnDataSource(path, gene_graph(["q1", "q2"]))


# Unknown genes


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_policies_for_unknown_genes(tmp_path: Path, form: str) -> None:
    guides = ["ctrl", "Q0+XX", "Q1", "XX", "Q2+Q1", "ctrl", "YY+ctrl"]
    matrix = np.arange(21, dtype=np.float32).reshape(7, 3)
    forms = {"dense": np.asarray, "csr": sparse.csr_matrix, "csc": sparse.csc_matrix}
    path = file_of(tmp_path / "c.h5ad", forms[form](matrix), {"guide": guides, "kind": list("abcabca")})
    second = file_of(
        tmp_path / "d.h5ad", forms[form](matrix[:2]), {"guide": ["Q0", "ZZ"], "kind": ["d", "a"]}, start=7
    )
    kwargs = {"perturbation": "guide", "categories": ["kind"]}
    with pytest.raises(tc.errors.SourceContractError, match=r"'XX' is neither.*\n  fix: .*unknown=\"skip\""):
        tc.AnnDataSource(path, gene_graph(GENES), **kwargs)

    skip = tc.AnnDataSource([path, second], gene_graph(GENES), unknown="skip", **kwargs)
    ds = stored(skip, tmp_path / "skip")
    rows = [0, 2, 4, 5]
    assert ds.source_ids == [*(f"c{k}" for k in rows), "c7"]
    assert [list(cell["gene"].ids_pert) for cell in ds] == [[], ["Q1"], ["Q1", "Q2"], [], ["Q0"]]
    assert np.array_equal(ds.read_batch(range(5)).features("gene")[..., 0], matrix[[*rows, 0]])
    assert list(ds.names("kind")) == ["a", "c", "b", "c", "d"]
    assert np.array_equal(skip[2]["gene"].x[:, 0], matrix[4])
    assert (
        "c.h5ad: 3 of 7 cells name 2 genes that the base graph does not have (XX, YY): left out"
        in skip.report()
    )
    assert tc.verify(tmp_path / "skip", source=skip, progress=False).ok

    drop = tc.AnnDataSource(path, gene_graph(GENES), unknown="drop", **kwargs)
    assert [list(cell["gene"].ids_pert) for cell in drop.items(0, 4)] == [[], ["Q0"], ["Q1"], []]
    assert "3 of 7 cells name 2 genes" in drop.report()
    assert "2 cells now look unperturbed" in drop.report()

    keep = stored(tc.AnnDataSource(path, gene_graph(GENES), unknown="keep", **kwargs), tmp_path / "keep")
    assert [list(cell["gene"].ids_pert) for cell in keep][:4] == [[], ["Q0", "XX"], ["Q1"], ["XX"]]
    assert keep[1]["gene"].perturbation_indices.tolist() == [0]
    assert (
        len(
            {
                str(tc.AnnDataSource(path, gene_graph(GENES), unknown=u, **kwargs).identity())
                for u in ("skip", "drop", "keep")
            }
        )
        == 3
    )


def test_cells_without_an_entry_and_nothing_left(tmp_path: Path) -> None:
    path = file_of(
        tmp_path / "c.h5ad", np.ones((3, 3), np.float32), {"g": pd.Categorical(["Q1", None, "ctrl"])}
    )
    with pytest.raises(tc.errors.SourceContractError, match=r"no value for 1 cells, the first is cell 1"):
        tc.AnnDataSource(path, gene_graph(GENES), perturbation="g", unknown="drop")
    assert len(tc.AnnDataSource(path, gene_graph(GENES), perturbation="g", unknown="skip")) == 2
    with pytest.raises(tc.errors.SourceContractError, match=r"no cell of 1 files is left.*genes .*Q1"):
        tc.AnnDataSource(path, gene_graph(["Q0", "Q2"]), perturbation="g", unknown="skip", control="none")


def test_the_choice_of_genes_looks_at_the_cells_that_are_left(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    matrix = random.poisson(2, (40, 12)).astype(np.float32)
    names = [f"Q{k}" for k in range(12)]
    guides = np.where(np.arange(40) % 4, "Q1", "XX")
    path = file_of(tmp_path / "c.h5ad", sparse.csr_matrix(matrix), {"g": guides}, names)
    kwargs = {"log1p": True, "n_top_genes": 4}
    source = tc.AnnDataSource(path, gene_graph(names), perturbation="g", unknown="skip", **kwargs)
    kept = cells_of(sparse.csr_matrix(matrix[guides == "Q1"]), names=names)
    assert len(source) == 30
    assert (
        source.identity()["highly_variable"]["chosen"]
        == (tc.AnnDataSource(kept, gene_graph(names), **kwargs).identity()["highly_variable"]["chosen"])
    )
