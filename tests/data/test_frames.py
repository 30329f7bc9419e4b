"""Columns in other people's tools say what the samples say, one by one; PyG's in-memory dataset holds the same graphs."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData

import torchcell_cache as tc
from torchcell_cache.core.origins import Origins
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.errors import SettingError

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

MEASURED = [1, 2, 1, 3, 1]
DATASETS = ["Costanzo", "Costanzo", "Kuzmin", "Kuzmin", "Kuzmin", "Costanzo", "Kuzmin", "Costanzo"]
GENES = [["G0"], ["G1", "G2"], ["G2", "G1"], ["G3"], ["G0", "G4"], ["G0", "G4"], ["G4"], []]
FLAT = [name for names in GENES for name in names]
SETS = [["G0"], ["G1", "G2"], ["G3"], ["G0", "G4"], []]


class Lab:
    """A source that says which dataset and which perturbations each measurement is of."""

    def __init__(self) -> None:
        self.base_graph = tc.testing.tiny_graph()
        words = sorted({*DATASETS, *FLAT, "fitness", "deletion"})
        values = np.arange(16, dtype=np.float32).reshape(8, 2)
        values[2, 0] = np.nan
        codes = {
            "dataset": [words.index(name) for name in DATASETS],
            "label": [words.index("fitness")] * 8,
            "gene": [words.index(name) for name in FLAT],
            "kind": [words.index("deletion")] * len(FLAT),
            "classes": [words.index("fitness")],
            "gene_set": [words.index(name) for name in words if name.startswith("G")],
        }
        ends = np.cumsum([0, *map(len, GENES)])
        said = Origins.from_words(words, codes, ends, np.zeros((5, 1)))
        ids = [np.array([int(name[1:]) for name in names], dtype=np.int64) for names in SETS]
        self.table = SampleTable(
            np.concatenate(ids),
            np.cumsum([0, *map(len, ids)]),
            values,
            np.cumsum([0, *MEASURED]),
            ("fitness",),
            ("fitness_se",),
            tuple(f"id {k}" for k in range(5)),
            None,
            said,
        )

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int):
        return self.table.sample(index, self.base_graph)

    def identity(self):
        return {"lab": 1}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    root = tmp_path_factory.mktemp("lab")
    return tc.build(root, source=Lab(), processor=tc.LazySubgraphRepresentation(), progress=False)


@pytest.fixture(scope="module")
def molecules():
    torch.manual_seed(0)
    edges = torch.randint(0, 4, (2, 6))
    return [Data(x=torch.rand(4, 2), edge_index=edges, y=torch.rand(1, 5)) for k in range(12)]


@pytest.fixture(scope="module")
def mol(molecules, tmp_path_factory):
    return tc.build(tmp_path_factory.mktemp("mol"), source=molecules, progress=False)


def test_a_row_per_sample(lab) -> None:
    frame = lab.to_pandas()
    assert frame["perturbed"].tolist() == [tuple(names) for names in SETS]
    assert frame["source_id"].tolist() == [f"id {k}" for k in range(5)]
    assert frame["dataset"].tolist() == [
        "Costanzo",
        "Costanzo | Kuzmin",
        "Kuzmin",
        "Costanzo | Kuzmin",
        "Costanzo",
    ]
    assert frame["dataset"].dtype == "category"
    assert frame["perturbed_count"].tolist() == [1, 2, 1, 2, 0]
    np.testing.assert_allclose(
        frame["fitness"], [0, 2, 6, 10, 14]
    )  # means; one of the second sample's is missing


def test_a_row_per_measurement(lab) -> None:
    frame = lab.to_pandas(measurements=True)
    assert frame["index"].tolist() == np.repeat(range(5), MEASURED).tolist()
    assert frame["dataset"].tolist() == DATASETS
    assert frame["perturbed"].tolist() == [tuple(names) for names in GENES]
    assert frame["perturbation_type"].tolist() == [("deletion",) * len(names) for names in GENES]
    assert set(frame["measured"]) == {"fitness"}
    np.testing.assert_array_equal(frame["fitness_se"], np.arange(16).reshape(8, 2)[:, 1])
    np.testing.assert_array_equal(frame["fitness"].isna(), [k == 2 for k in range(8)])


@pytest.mark.parametrize("rows", [[3, 0], slice(1, 4), [], [2, 2]], ids=["list", "slice", "none", "twice"])
@pytest.mark.parametrize("measurements", [False, True])
def test_views_are_rows_of_the_whole(lab, rows, measurements) -> None:
    whole, view = (d.to_pandas(measurements=measurements) for d in (lab, lab[rows]))
    order = np.arange(5)[rows]
    want = [whole[whole["index"] == k] for k in order]
    assert view.columns.tolist() == whole.columns.tolist()
    if want:
        pd.testing.assert_frame_equal(
            pd.concat(want, ignore_index=True), view, check_categorical=False, check_dtype=False
        )


def test_every_tool_has_the_same_table(lab, tmp_path: Path) -> None:
    table = lab.to_arrow()
    assert pq.read_table(lab.to_parquet(tmp_path / "new" / "a.parquet")).to_pylist() == table.to_pylist()
    polars = pytest.importorskip("polars")
    frame = lab.to_polars()
    assert isinstance(frame, polars.DataFrame)
    assert frame.to_dicts() == table.to_pylist()


def test_columns_of_names_are_categories(tmp_path: Path) -> None:
    graph = tc.testing.tiny_graph()
    graph.obs_categories = {"plate": ["A", "B", "never"]}
    source = tc.PerturbationTable(
        graph, [["G0"], [], ["G1"]], phenotypes={"plate": [1, 0, np.nan]}, nan="keep"
    )
    ds = tc.build(tmp_path, source=source, processor=tc.LazySubgraphRepresentation(), progress=False)
    plate = ds.to_pandas()["plate"]
    assert plate.cat.categories.tolist() == ["A", "B", "never"]
    assert (
        [None if text != text else text for text in plate] == ["B", "A", None] == ds.names("plate").tolist()
    )


@pytest.mark.parametrize("unknown", ["keep", "drop"])
def test_names_that_no_node_has_stand_with_the_others(tmp_path: Path, unknown) -> None:
    source = tc.PerturbationTable(
        tc.testing.tiny_graph(), [["G0", "strange"], ["G2"]], phenotypes={"fitness": [1, 2]}, unknown=unknown
    )
    ds = tc.build(tmp_path, source=source, processor=tc.LazySubgraphRepresentation(), progress=False)
    want = [("G0", "strange"), ("G2",)] if unknown == "keep" else [("G0",), ("G2",)]
    assert ds.to_pandas()["perturbed"].tolist() == want


def test_a_label_keeps_its_name_where_ours_is_the_same(tmp_path: Path) -> None:
    labels = {"perturbed": [1.0, 2.0], "index": [3.0, 4.0]}
    source = tc.PerturbationTable(tc.testing.tiny_graph(), [["G0"], ["G2"]], phenotypes=labels)
    ds = tc.build(tmp_path, source=source, processor=tc.LazySubgraphRepresentation(), progress=False)
    frame = ds.to_pandas()
    assert frame["perturbed"].tolist() == ds.columns["perturbed"].tolist() == [1.0, 2.0]
    assert frame["sample.perturbed"].tolist() == [("G0",), ("G2",)]
    assert (frame["index"].tolist(), frame["label.index"].tolist()) == ([0, 1], [3.0, 4.0])


def test_labels_of_several_values_are_columns_and_can_be_asked_for(mol, molecules) -> None:
    y = torch.cat([graph.y for graph in molecules]).numpy()
    frame = mol.to_pandas()
    np.testing.assert_array_equal(frame[[f"y[{k}]" for k in range(5)]].to_numpy(), y)
    assert (
        tc.select(mol, "y[3] > 0.5 and y[0] < y[1]").tolist()
        == np.flatnonzero((y[:, 3] > 0.5) & (y[:, 0] < y[:, 1])).tolist()
    )
    assert tc.select(mol[4:], "y[2] > 0.5").tolist() == np.flatnonzero(y[4:, 2] > 0.5).tolist()
    assert len(tc.split_random(mol, stratify="y[1]", progress=False).train)
    assert "y[1]" in tc.split_by_group(mol, "y[1]", progress=False).made_by.values()
    assert len(list(tc.WeightedCacheSampler(mol, 4, by="y[4]", bins=3)))
    for wrong in ("y[5] > 0", "y[-1] > 0", "y['a'] > 0", "y[1:2] > 0", "y[True] > 0", "y > 0", "x[0] > 0"):
        with pytest.raises(SettingError, match="y"):
            tc.select(mol, wrong)


LABELS = {
    "number": lambda k: torch.tensor(float(k)),
    "one": lambda k: torch.tensor([k]),
    "row": lambda k: torch.arange(3)[None] + k,
    "vector": lambda k: torch.arange(3) + k,
    "matrix": lambda k: torch.arange(6).reshape(2, 3) + k,
    "truth": lambda k: torch.tensor([k % 2 == 0]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_y_is_that_of_pyg(kind, tmp_path: Path) -> None:
    graphs = [Data(x=torch.rand(2, 1), y=LABELS[kind](k)) for k in range(5)]
    ds = tc.build(tmp_path, source=graphs, progress=False)
    for view, part in ((ds, graphs), (ds[[3, 1]], [graphs[3], graphs[1]])):
        want = Batch.from_data_list(part).y
        for found in (view.y, view.data.y, view.to_in_memory().y):
            assert found.dtype == want.dtype
            assert torch.equal(found, want)


def test_in_memory_holds_the_same_graphs(lab, mol, molecules) -> None:
    memory = mol[2:].to_in_memory()
    assert len(memory) == 10
    for found, want in zip(memory, molecules[2:], strict=True):
        tc.testing.assert_same_graph(found, want)
    whole = lab.to_in_memory()
    assert isinstance(whole[0], HeteroData)
    for k in range(5):
        found, want = whole[k].to_dict(), lab[k].to_dict()  # PyG moves num_nodes behind the tensors
        assert {name: set(part) for name, part in found.items()} == {
            name: set(part) for name, part in want.items()
        }
        for name, part in want.items():
            for key, value in part.items():
                if torch.is_tensor(value):
                    torch.testing.assert_close(found[name][key], value, rtol=0, atol=0, equal_nan=True)
                else:
                    assert found[name][key] == value
    with pytest.raises(SettingError, match="no samples"):
        lab[[]].to_in_memory()


def test_too_much_for_memory_is_said_before_it_is_made(mol, monkeypatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 32)  # a machine of 1,024 bytes
    with pytest.raises(
        SettingError, match=r"12 whole samples(.|\n)*this machine has 1\.0 KB(.|\n)*CacheLoader"
    ):
        mol.to_in_memory()


def test_what_a_store_has_not_is_answered_with_what_it_has(lab, mol) -> None:
    with pytest.raises(AttributeError, match=r"dataset\.columns\['fitness'\]"):
        _ = lab.y
    assert not hasattr(lab, "y")
    with pytest.raises(AttributeError, match=r"dataset\.base_graph(.|\n)*to_in_memory\(\)\.data\.x"):
        _ = mol.data.x
    with pytest.raises(SettingError, match="no measurements"):
        mol.to_arrow(measurements=True)
    for name in ("download", "process"):
        with pytest.raises(SettingError, match=rf"{name}\(\) does nothing(.|\n)*tc\.build"):
            getattr(lab, name)()
    root = Path(lab.raw_dir).parent
    assert Path(lab.processed_dir) == root / "processed"
    assert (lab.raw_paths, lab.raw_file_names) == ([], [])
    assert [Path(path).is_file() for path in lab.processed_paths] == [True]
    assert not lab.has_download
    assert not lab.has_process


@pytest.mark.parametrize(
    ("call", "missing", "line"),
    [
        (lambda ds: ds.label_df, "pandas", "pip install pandas pyarrow, or dataset.columns"),
        (lambda ds: ds.to_pandas(), "pandas", "pip install pandas pyarrow"),
        (lambda ds: ds.to_arrow(), "pyarrow", "pip install pandas pyarrow"),
        (lambda ds: ds.to_parquet("x.parquet"), "pyarrow", "pip install pandas pyarrow"),
        (lambda ds: ds.to_polars(), "polars", "pip install polars pyarrow"),
        (lambda ds: ds.plot(), "matplotlib.backends.backend_agg", "pip install matplotlib"),
    ],
)
def test_a_package_that_is_not_there_is_a_line_to_type(lab, monkeypatch, call, missing, line) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SettingError, match=line):
        call(lab)


def test_what_a_database_said_selects_and_splits(lab) -> None:
    """By dataset and by type of perturbation, in views too; the answer is made by hand."""
    datasets = ["Costanzo", "Costanzo | Kuzmin", "Kuzmin", "Costanzo | Kuzmin", "Costanzo"]
    assert lab.names("dataset").tolist() == datasets
    assert lab[[3, 0]].names("dataset").tolist() == [datasets[3], datasets[0]]
    assert lab.names("perturbation_type").tolist() == ["deletion"] * 4 + [None]
    assert lab.categories["dataset"] == sorted(set(datasets))
    assert tc.select(lab, "dataset == 'Kuzmin'").tolist() == [2]
    assert tc.select(lab, "dataset in ('Kuzmin', 'Costanzo') and fitness > 1").tolist() == [2, 4]
    assert tc.select(lab, "perturbation_type != 'deletion'").tolist() == [4]
    assert tc.select(lab[1:4], "dataset == 'Kuzmin'").tolist() == [1]
    split = tc.split_by_group(lab, "dataset", train=["Costanzo"], test=["Kuzmin"], val=["Costanzo | Kuzmin"])
    assert [split[part].tolist() for part in ("train", "val", "test")] == [[0, 4], [1, 3], [2]]


def test_several_types_of_a_sample_stand_together() -> None:
    """Against sets made in plain Python, with samples that have none, many or repeated ones."""
    draw = np.random.default_rng(0)
    words = [f"type {k}" for k in range(12)]
    for _ in range(20):
        measured = draw.integers(0, 4, 30)
        counts = draw.integers(0, 5, measured.sum())
        kinds = draw.integers(0, 12, counts.sum())
        codes = {name: np.zeros(len(counts), dtype=int) for name in ("dataset", "label")}
        codes |= {"gene": kinds, "kind": kinds, "classes": [], "gene_set": []}
        said = Origins.from_words(words, codes, np.cumsum([0, *counts]), np.zeros((30, 0)))
        value_ptr = np.cumsum([0, *measured])
        found, names = said.by_sample("kind", value_ptr)
        assert names == sorted(set(names))
        for k, code in enumerate(found.tolist()):
            span = slice(said.ptr[value_ptr[k]], said.ptr[value_ptr[k + 1]])
            want = " | ".join(sorted({words[kind] for kind in kinds[span]}))
            assert (names[code] if code >= 0 else "") == want


def test_no_label_takes_the_place_of_what_is_known_of_samples(tmp_path: Path) -> None:
    labels = {
        "perturbed": [1.0, 2.0],
        "sample.perturbed": [3.0, 4.0],
        "sample.source_id": [5.0, 6.0],
        "source_id": [7.0, 8.0],
    }
    source = tc.PerturbationTable(
        tc.testing.tiny_graph(), [["G0"], ["G2"]], phenotypes=labels, source_ids=["a", "b"]
    )
    ds = tc.build(tmp_path, source=source, processor=tc.LazySubgraphRepresentation(), progress=False)
    for frame in (ds.to_pandas(), ds.to_pandas(measurements=True)):
        assert {name: frame[name].tolist() for name in labels} == labels
        assert frame["sample.sample.perturbed"].tolist() == [("G0",), ("G2",)]
        assert frame["sample.sample.source_id"].tolist() == ["a", "b"]
