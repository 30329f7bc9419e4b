"""Texts and single numbers of graphs are columns: pandas on the same values is the oracle, whatever made the store."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import cell_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data, HeteroData

import torchcell_cache as tc
from torchcell_cache.builder.generic import attributes_of
from torchcell_cache.core.files import file_digest
from torchcell_cache.errors import SettingError
from torchcell_cache.store.attributes import BYTES_PER_SAMPLE, FREE_BYTES, Attributes
from torchcell_cache.store.columns import columns_bytes, load_columns
from torchcell_cache.store.manifest import MANIFEST_NAME, write_manifest
from torchcell_cache.store.shard_entry import FileEntry, read_sidecar, write_sidecar
from torchcell_cache.store.summary import facts_of, lines_of
from torchcell_cache.testing import assert_same_graph

pd = pytest.importorskip("pandas")

PERTS = ["ctrl", "G1+ctrl", "it's", "µ-cell", ""]


def graph(k: int, **more) -> Data:
    fields = {
        "x": torch.full((3, 2), float(k)),
        "edge_index": torch.tensor([[0, 1], [1, k % 3]]),
        "pert": PERTS[k * 7 % 5],
        "date": f"2024-0{k % 4 + 1}-10",
        "donor": k * 3 % 4 - 1,
        "dose": torch.tensor([0.1 * (k % 3)]),
        "weight": 0.1 * k,
        "is_control": k * 7 % 5 == 0,
        "de_idx": [k, k + 1],
    }
    return Data(**{**fields, **more})


def graphs(count: int = 40, start: int = 0) -> list[Data]:
    found = [graph(k) for k in range(start, start + count)]
    for k, each in enumerate(found, start):
        if k % 6 == 5:
            del each.date
        if k % 8 == 3:
            each.donor = None
    return found


def frame(of: list[Data]):
    """What pandas makes of the same attributes."""
    names = ("pert", "date", "donor", "dose", "weight", "is_control")
    rows = [{n: v.item() if torch.is_tensor(v := g.get(n)) else v for n in names} for g in of]
    return pd.DataFrame(rows)


def assert_columns(ds, of: list[Data]) -> None:
    """Columns, names and categories are those of the graphs, which are served to the bit."""
    wanted = frame(of)
    for k in range(len(of)):
        assert_same_graph(ds[k], of[k])
    for name in ("pert", "date"):
        assert list(ds.names(name)) == [None if pd.isna(v) else v for v in wanted[name]]
        codes = np.nan_to_num(ds.columns[name], nan=-1)
        assert codes.astype(int).tolist() == pd.factorize(wanted[name])[0].tolist()
        assert ds.categories[name] == pd.factorize(wanted[name])[1].tolist()
    for name in ("donor", "dose", "weight", "is_control"):
        want = wanted[name].to_numpy(dtype=np.float32 if name == "dose" else None)
        found = ds.columns[name]
        assert np.array_equal(found, want.astype(found.dtype), equal_nan=found.dtype.kind == "f"), name
    assert ds.columns["is_control"].dtype == bool
    assert ds.columns["dose"].dtype == np.float32
    assert not {"x", "edge_index", "de_idx"} & set(ds.columns)


def republished(root: Path, ds, arrays, schema=None):
    """The same store with other columns, sealed as if they had been built so."""
    directory, manifest = ds.generation.directory, ds.generation.manifest
    path = directory / "columns.safetensors"
    for each in (path, directory / MANIFEST_NAME):
        each.chmod(0o644)
    path.write_bytes(columns_bytes(arrays))
    files = [FileEntry(path.name, *file_digest(path)) if f.name == path.name else f for f in manifest.files]
    new = replace(manifest, files=tuple(files), schema=manifest.schema if schema is None else schema)
    (directory / MANIFEST_NAME).write_bytes(new.to_bytes())
    write_manifest(root, new, expect_generation=manifest.generation)
    return new


def build(root: Path, source, **more):
    return tc.build(root, source=source, **{"shard_size": 8, "progress": False, **more})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    return build(tmp_path_factory.mktemp("attributes") / "s", graphs()), frame(graphs())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("storage", ["delta", "full"])
def test_columns_are_what_pandas_makes_of_the_attributes(tmp_path: Path, storage: str, workers: int) -> None:
    ds = build(tmp_path, graphs(), storage=storage, num_workers=workers)
    assert_columns(ds, graphs())
    assert tc.verify(tmp_path, "full", progress=False).ok
    again = build(tmp_path, graphs(), storage=storage)
    assert again.generation.manifest.generation == ds.generation.manifest.generation


def test_selected_grouped_weighed_and_split(store) -> None:
    ds, obs = store
    for where, mask in (
        ("pert == 'ctrl'", obs.pert == "ctrl"),
        ("pert in ('µ-cell', '') and donor > 0", obs.pert.isin(["µ-cell", ""]) & (obs.donor > 0)),
        ("date != '2024-01-10'", obs.date != "2024-01-10"),
        ("isnan(donor) or weight >= 3", obs.donor.isna() | (obs.weight >= 3)),
        ("is_control and dose == 0.1", obs.is_control & (obs.dose == np.float32(0.1))),
        ("not is_control", ~obs.is_control),
    ):
        assert tc.select(ds, where).tolist() == np.flatnonzero(mask).tolist(), where
    splits = tc.split_by_group(ds, "pert", (0.5, 0.5), test=["ctrl"], progress=False)
    assert set(obs.pert[splits.test]) == {"ctrl"}
    sampler = tc.WeightedCacheSampler(ds, 8, by=("pert", "is_control"))
    wanted = 1 / obs.groupby(["pert", "is_control"])["pert"].transform("size")
    assert np.allclose(sampler.weights_of(9), wanted / wanted.sum())
    with pytest.raises(SettingError, match=r"did you mean 'G1.ctrl'"):
        tc.select(ds, "pert == 'G1+ctr'")
    with pytest.raises(SettingError, match="'dose' is no column of names; this store has date, pert"):
        ds.names("dose")


def test_in_tables_info_and_batches(store) -> None:
    ds, obs = store
    table = ds[3:30].to_pandas()
    for name in ("pert", "date"):
        assert table[name].dtype == "category"
        assert [None if pd.isna(v) else v for v in table[name]] == [
            None if pd.isna(v) else v for v in obs[name][3:30]
        ]
    counts = ds.to_pandas().groupby("pert", observed=True)["weight"].mean()
    assert counts.to_dict() == pytest.approx(obs.groupby("pert")["weight"].mean().to_dict())
    facts = facts_of(ds, 10)
    assert facts["columns"]["pert"] == "text[40], 5 different"
    assert facts["columns"]["donor"] == "float64[40]"
    assert facts["histograms"]["pert"]["names"]["ctrl"] == int((obs.pert == "ctrl").sum())
    assert any("2024-01-10" in line for line in lines_of(facts))
    rows = [7, 3, 5, 7]
    batch = ds.read_batch(rows)
    assert batch.names("date") == [None if pd.isna(v) else v for v in obs.date[rows]]
    assert np.array_equal(batch.labels("donor").numpy(), obs.donor[rows].to_numpy(np.float32), equal_nan=True)
    view = ds[ds.names("pert") == "it's"]
    assert list(view.names("pert")) == ["it's"] * len(view)
    whole = [k for k in range(40) if k % 6 != 5 and k % 8 != 3][:4]
    assert ds.read_batch(whole).to_pyg().pert == Batch.from_data_list([ds[k] for k in whole]).pert


def test_pairs_of_plain_graphs(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    of = [Data(x=torch.rand(5, 1), pert=("ctrl", "A", "B")[draw.integers(3)], donor=k % 2) for k in range(30)]
    ds = build(tmp_path, of)
    pairs = tc.PairedCells(ds, "pert == 'ctrl'", within="donor", per_category={"pert": str})
    for k in range(30):
        control = int(pairs.controls([k])[0, 0])
        assert of[control].pert == "ctrl"
        assert of[control].donor == of[k].donor
        assert pairs[k].pert == of[k].pert
        assert torch.equal(pairs[k].x, of[control].x)


@pytest.mark.parametrize("first", [16, 21])
def test_growing_joins_texts_by_value(tmp_path: Path, first: int) -> None:
    old = build(tmp_path / "s", graphs(first), storage="delta")
    tail = graphs(19, first)
    for each in tail[::4]:
        each.pert = "new"
        each.batch_name = f"b{each.donor}"  # an attribute that no sample of the store has
    ds = tc.append(tmp_path / "s", tail, progress=False).dataset
    whole = [*graphs(first), *tail]
    assert_columns(ds, whole)
    assert [name is not None for name in ds.names("batch_name")] == ["batch_name" in g for g in whole]
    assert tc.verify(ds.root, "full", progress=False).ok
    full = build(tmp_path / "full", whole, storage="delta")
    assert ds.content_digest == full.content_digest
    assert ds.generation.schema["attributes"] == full.generation.schema["attributes"]
    for name, column in full.columns.items():
        assert np.array_equal(ds.columns[name], column, equal_nan=column.dtype.kind == "f")
    assert list(old.names("pert")) == [g.pert for g in graphs(first)]
    changed = [graph(k, pert="same") for k in range(9)]
    assert list(tc.update(tmp_path / "s", changed, progress=False).dataset.names("pert")) == ["same"] * 9


def test_tasks_of_an_array_and_a_copy_without_side_files(tmp_path: Path) -> None:
    setup = {"source": graphs(), "tasks": 3, "storage": "delta", "shard_size": 8, "progress": False}
    for task in (2, 0, 1):
        tc.build_part(tmp_path / "s", **setup, task=task)
    ds = tc.finalize(tmp_path / "s", **setup)
    assert_columns(ds, graphs())
    tc.push(tmp_path / "s", f"file://{tmp_path}/bucket", progress=False)
    tc.pull(f"file://{tmp_path}/bucket", tmp_path / "copy", progress=False)
    grown = tc.append(tmp_path / "copy", graphs(9, 40), progress=False)
    assert grown.linked_shards == 5
    assert_columns(grown.dataset, graphs(49))
    assert tc.verify(tmp_path / "copy", "full", progress=False).ok


def test_a_subset_keeps_them_and_columns_are_repaired_from_records(tmp_path: Path) -> None:
    ds = build(tmp_path / "s", graphs())
    rows = np.array([3, 11, 12, 13, 39, 4])
    part = tc.save_subset(ds[rows], tmp_path / "part", shard_size=2, progress=False)
    assert list(part.names("date")) == [ds.names("date")[k] for k in rows]
    assert part.categories["pert"] == list(dict.fromkeys(ds.names("pert")[rows]))
    for name in ("donor", "dose", "weight", "is_control"):
        found, want = part.columns[name], ds.columns[name][rows]
        assert found.dtype == want.dtype
        assert np.array_equal(found, want, equal_nan=want.dtype.kind == "f")
    none = tc.save_subset(ds[[5, 11]], tmp_path / "none", progress=False)
    assert list(none.names("date")) == [None, None]
    for root in ("s", "part", "none", "part"):
        each = tc.PreprocessedDataset(tmp_path / root)
        before = {name: column.copy() for name, column in each.columns.items()}
        path = each.generation.directory / "columns.safetensors"
        data = bytearray(path.read_bytes())
        path.chmod(0o644)
        data[-3] ^= 1
        path.write_bytes(data)
        assert not tc.verify(each.root, "full", progress=False).ok
        tc.repair(each.root, progress=False)
        again = tc.PreprocessedDataset(each.root)
        assert tc.verify(each.root, "full", progress=False).ok
        for name, column in before.items():
            assert np.array_equal(again.columns[name], column, equal_nan=column.dtype.kind == "f")
        tc.append(again.root, graphs(3), progress=False)


def test_columns_that_differ_from_the_records_are_found(tmp_path: Path) -> None:

    ds = build(tmp_path, graphs())
    path = ds.generation.directory / "columns.safetensors"
    arrays = {name: array.copy() for name, array in load_columns(path).items()}
    arrays["attribute.pert"][3] = arrays["attribute.pert"][2]
    arrays["attribute.weight"][7] = 5
    republished(tmp_path, ds, arrays)
    found = [(p.sample, p.text) for p in tc.verify(tmp_path, "full", progress=False).problems]
    assert [sample for sample, _ in found] == [3, 7]
    assert "its weight is 0.7" in found[1][1]


def test_what_is_no_column(tmp_path: Path) -> None:
    of = [
        Data(
            x=torch.zeros(1, 2),
            index=k,
            y=torch.tensor([k % 2]),
            mixed="a" if k % 2 else 1,
            odd="\ud800",
            huge=1 << (k + 60),
            holes=(1 << 60) if k else None,
            raw=b"x",
            note=f"{k} " + "long unique text " * 40,
            values=torch.tensor(k * 1.5, dtype=torch.bfloat16),
            perturbed=np.int16(k),
            source_ids=np.str_(f"s{k}"),
            pair=torch.tensor([1.0, 2.0]),
            complicated=1j if False else torch.tensor(1j),
        )
        for k in range(60)
    ]
    ds = build(tmp_path, of)
    assert set(ds.columns) == {"y", "label.index", "values", "perturbed", "source_ids"}
    assert ds.columns["label.index"].tolist() == list(range(60))
    assert ds.columns["values"].tolist() == [float(g["values"]) for g in of]
    assert list(ds.names("source_ids")) == [f"s{k}" for k in range(60)]
    assert tc.select(ds, "index == 3 and `label.index` == 3").tolist() == [3]
    notes = "\n".join(ds.generation.manifest.created["notes"])
    for name, why in (
        ("mixed", "text in some samples and numbers in others"),
        ("odd", "text that is no Unicode"),
        ("huge", "whole numbers of more than 64 bits"),
        ("holes", "whole numbers of more than 53 bits"),
        ("note", r"60 different texts of"),
    ):
        assert f"{name} is no column: {why}" in notes
    assert "raw" not in notes
    assert "pair" not in notes
    for k in (0, 59):
        assert_same_graph(ds[k], of[k])
    assert tc.verify(tmp_path, "full", progress=False).ok


def test_a_label_that_is_a_number_or_a_text(tmp_path: Path) -> None:
    ds = build(tmp_path / "a", [Data(x=torch.zeros(2, 1), y=k / 4) for k in range(5)])
    assert ds.columns["y"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    ds = build(tmp_path / "b", [Data(x=torch.zeros(2, 1), y=f"t{k % 2}") for k in range(5)])
    assert list(ds.names("y")) == ["t0", "t1", "t0", "t1", "t0"]
    for root in "ab":
        assert tc.verify(tmp_path / root, "full", progress=False).ok


def test_graphs_of_several_types_and_of_a_base_graph(tmp_path: Path) -> None:
    def hetero(k: int) -> HeteroData:
        out = HeteroData()
        out["gene"].x = torch.full((2, 1), float(k))
        out["gene"].note = f"of its nodes {k}"
        out.condition, out.rank = f"c{k % 3}", k
        return out

    ds = build(tmp_path / "h", [hetero(k) for k in range(20)])
    assert set(ds.columns) == {"condition", "rank"}
    assert list(ds.names("condition")) == [f"c{k % 3}" for k in range(20)]
    base = cell_graph()
    of = []
    for k in range(20):
        each = base.clone()
        each.condition = f"c{k % 3}"
        of.append(each)
    ds = build(tmp_path / "b", tc.sources.PygSource(of, base))
    assert list(ds.names("condition")) == [f"c{k % 3}" for k in range(20)]
    assert tc.verify(tmp_path / "b", "full", progress=False).ok


@pytest.mark.parametrize("length", [6, 40, 400])
def test_unique_texts_do_not_bloat_a_store(tmp_path: Path, length: int) -> None:
    of = [Data(x=torch.zeros(2, 2), name=f"{k:05d}".ljust(length, "x")) for k in range(1500)]
    ds = build(tmp_path / "s", of, shard_size=500)
    for each in of:
        del each.name
    plain = build(tmp_path / "p", of, shard_size=500)
    sizes = [s.generation.file("columns.safetensors").stat().st_size for s in (ds, plain)]
    most = FREE_BYTES + (BYTES_PER_SAMPLE + 8) * 1500 + 1000
    assert sizes[0] - sizes[1] < most
    assert ("name" in ds.columns) == (length * 1500 <= FREE_BYTES + BYTES_PER_SAMPLE * 1500)


def test_a_store_without_attributes_in_its_schema_stays_as_it_is(tmp_path: Path) -> None:
    """As one that was built before there were any: neither stale nor changed by growing."""
    ds = build(tmp_path, graphs(9), storage="delta")
    directory = ds.generation.directory

    manifest = ds.generation.manifest
    for shard in manifest.shards:
        entry = read_sidecar(directory, shard.index)
        stats = {k: v for k, v in entry.stats.items() if k != "attributes"}
        write_sidecar(directory, replace(entry, stats=stats))
    new = republished(tmp_path, ds, {}, {k: v for k, v in manifest.schema.items() if k != "attributes"})
    old = tc.PreprocessedDataset(tmp_path)
    assert old.columns == {}
    assert old.content_digest == ds.content_digest
    assert build(tmp_path, graphs(9), storage="delta").generation.manifest == new
    assert tc.verify(tmp_path, "full", progress=False).ok
    part = tc.save_subset(old[2:5], tmp_path.parent / f"{tmp_path.name}-part", progress=False)
    grown = tc.append(tmp_path, graphs(9, 9), progress=False).dataset
    for each in (part, grown):
        assert "attributes" not in each.generation.schema
        assert each.columns == {}
        assert tc.verify(each.root, "full", progress=False).ok
    shutil.rmtree(part.root)


value = (
    st.none()
    | st.sampled_from(["a", "b", "", "µ"])
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.integers(-3, 300)
    | st.floats()
    | st.floats(width=32).map(lambda v: torch.tensor([v], dtype=torch.float32))
    | st.integers(-5, 5).map(lambda v: torch.tensor(v, dtype=torch.int16))
    | st.just([1])
)


@settings(max_examples=150, deadline=None)
@given(st.lists(value, max_size=14), st.data())
def test_one_column_however_samples_are_divided(values, data) -> None:
    rows = [attributes_of(Data(a=v)) for v in values]
    whole = Attributes.from_rows(rows)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    parts = [Attributes.from_rows(rows[a:b]) for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    stored = [Attributes.from_json(json.loads(json.dumps(part.to_json()))) for part in parts]
    joined = Attributes.joined(stored)
    assert joined.count == len(rows)
    assert joined.shown().keys() == whole.shown().keys()
    for name, column in whole.shown().items():
        other = joined.shown()[name]
        assert (other.kind, other.names) == (column.kind, column.names)
        assert np.array_equal(other.at(slice(None)), column.at(slice(None)), equal_nan=other.kind != "bool")
        read = Attributes.from_arrays(joined.arrays(), joined.schema(), len(rows)).shown()[name]
        for k, row in enumerate(rows):
            got, want = read.one(k), row.get(name)
            missing = want is None or want != want
            assert (got is None or math.isnan(got)) if missing else got == want
        some = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=5)), dtype=np.int64)
        taken = read.take(some)
        assert [taken.one(k) for k in range(len(some))] == pytest.approx(
            [read.one(k) for k in some], nan_ok=True
        )
