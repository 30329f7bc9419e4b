"""``unknown="keep"``: a name that no node has stays with its sample, and nothing is removed for it."""

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import fresh
import numpy as np
import pytest
from graphs import cell_graph, plain_graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch

import torchcell_cache as tc
from torchcell_cache.cli import main
from torchcell_cache.core.samples import UnknownNames
from torchcell_cache.errors import CorruptManifestError, FormatError, SourceContractError, StaleCacheError
from torchcell_cache.sources.names import NodeNames
from torchcell_cache.sources.neo4j.experiments import Parsed, TableBuilder
from torchcell_cache.store.columns import arrays_to_table, table_to_arrays
from torchcell_cache.store.manifest import VERSIONS, manifest_path, read_manifest
from torchcell_cache.store.shard_entry import parse_document
from torchcell_cache.testing import assert_same_graph

GRAPH = cell_graph()  # genes Y000 to Y008
GENES = GRAPH["gene"].node_ids
ROWS = [["Y003", "X2", "Y000"], ["X1"], ["Y001"], ["X2", "X1"], [], ["Y000", "Y003", "X1"], ["Y003", "Y000"]]
PROCESSORS = {
    "lazy": tc.LazySubgraphRepresentation(),
    "rule": tc.LazySubgraphRepresentation(gpr="rule"),
    "subgraph": tc.SubgraphRepresentation(),
    "ids": tc.Perturbation(),
    "khop": tc.KHopSubgraph(1),
}
KINDS = [(name, storage) for name in PROCESSORS for storage in ("perturbation", "delta", "full")]
KINDS.remove(("khop", "perturbation"))


def table(rows: Any = ROWS, unknown: str = "keep", **more: Any) -> tc.PerturbationTable:
    labels = {"fitness": [k / 8 for k in range(len(rows))]}
    return tc.PerturbationTable(GRAPH, rows, phenotypes=labels, unknown=unknown, **more)


def build(root: Path, source: Any, name: str = "lazy", storage: str = "perturbation", **more: Any) -> Any:
    settings = {"processor": PROCESSORS[name], "storage": storage, "shard_size": 3, "progress": False}
    return tc.build(root, source=source, **{**settings, **more})


def named(row: list[str]) -> list[str]:
    """Names of nodes in their order, then the others in theirs."""
    out = [gene for gene in GENES if gene in row]
    for name in sorted(row):
        if name not in GENES and name not in out:
            out.append(name)
    return out


def ids_pert(graphs: Any) -> list[list[str]]:
    return [graph["gene"][key(graph)] for graph in graphs]


def key(graph: Any) -> str:
    """torchcell's name of the names, which is another one for ``Perturbation``."""
    return "perturbed_genes" if "perturbed_genes" in graph["gene"] else "ids_pert"


@pytest.mark.parametrize(("name", "storage"), KINDS)
def test_the_name_stays_and_removes_nothing(name: str, storage: str, tmp_path: Path) -> None:
    """All but the names is what ``drop`` gives; batches are PyG's of the samples."""
    source, processor = table(), PROCESSORS[name]
    kept = build(tmp_path / "keep", source, name, storage)
    dropped = build(tmp_path / "drop", table(unknown="drop"), name, storage)
    wanted = [named(row) for row in ROWS]
    assert ids_pert(kept) == ids_pert(kept.__getitems__(list(range(7)))) == wanted
    assert ids_pert(processor.process(GRAPH, source[k]) for k in range(7)) == wanted
    assert ids_pert(tc.StreamingCacheDataset.from_source(source, processor, shuffle=False)) == wanted
    for got, bare, names in zip(kept, dropped, wanted, strict=True):
        bare["gene"][key(bare)] = names
        assert_same_graph(got, bare)
    order = [5, 3, 3, 0, 2]
    view = kept[order]
    assert ids_pert(view) == [wanted[k] for k in order]
    for dataset, rows in ((kept, range(7)), (view, range(5))):
        (batch,) = tc.CacheLoader(dataset, batch_size=len(dataset))
        mine, pyg = batch.to_pyg(), Batch.from_data_list([dataset[k] for k in rows])
        assert mine["gene"][key(mine)] == pyg["gene"][key(pyg)] == ids_pert(list(batch))
        assert mine["gene"].perturbation_indices.equal(pyg["gene"].perturbation_indices)
        (expanded,) = tc.CacheLoader(
            dataset, batch_size=len(dataset), expand=True, num_workers=int(name == "rule")
        )
        assert expanded["gene"][key(pyg)] == pyg["gene"][key(pyg)]
    for level in ("quick", "full"):
        assert tc.verify(tmp_path / "keep", level, source=source, progress=False).ok
    assert kept.generation.manifest.format_version == 2
    assert dropped.generation.manifest.format_version == without_names(dropped.generation.manifest)


NAMES = st.sampled_from(["Y000", "Y003", "Y008", "X1", " X1 ", "X2", "gène", "Y9"])
TABLES = st.lists(st.lists(NAMES, max_size=4), min_size=1, max_size=8)


@given(TABLES)
@settings(max_examples=40, deadline=None)
def test_tables_by_loops(rows: list[list[str]]) -> None:
    source = table(rows, duplicate="unique")
    rows = [[name.strip() for name in row] for row in rows]
    foreign = [sorted({name for name in row if name not in GENES}) for row in rows]
    found = source.table
    assert [list(source[k].unknown) for k in range(len(rows))] == foreign
    assert [[GENES[n] for n in source[k].perturbed] for k in range(len(rows))] == [
        sorted({name for name in row if name in GENES}) for row in rows
    ]
    assert (found.unknown is None) == (not any(foreign))
    again = arrays_to_table(table_to_arrays(found, 9), found.phenotypes, found.statistics)
    order = np.array([k for k in reversed(range(len(rows))) for _ in range(2)])
    for part, picked in ((found.take(order), order), (again.slice(1, len(rows)), range(1, len(rows)))):
        assert [list(part.sample(k).unknown) for k in range(len(part))] == [foreign[k] for k in picked]
        if part.unknown is not None:
            assert list(part.unknown.names) == sorted({name for k in picked for name in foreign[k]})
    if not any(foreign):
        assert source.identity() == table(rows, "drop", duplicate="unique").identity()
        return
    count, bare = (
        sum(map(bool, foreign)),
        sum(len(f) == len({*r}) for f, r in zip(foreign, rows, strict=True) if f),
    )
    assert f"{count} of {len(rows)} samples perturb a name that is no node" in source.report()
    assert f"{bare} of them perturb no node at all" in source.report()
    joined = UnknownNames.joined([(found.unknown, len(found)), (None, 2), (again.unknown, len(found))])
    assert joined is not None
    assert [list(row) for row in joined] == [*foreign, [], [], *foreign]


@given(TABLES.filter(lambda rows: any(name in "X1X2" for row in rows for name in row)))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_selecting_and_splitting_by_loops(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    dataset = build(tmp_path_factory.mktemp("store"), table(rows, duplicate="unique"), "ids")
    sets = [frozenset(name.strip() for name in row) for row in rows]
    there = sorted({name for one in sets for name in one} - {*GENES})
    for wanted in ([there[0]], [there[-1], "Y003"]):
        for match, holds in {
            "any": lambda one, wanted=wanted: any(name in one for name in wanted),
            "all": lambda one, wanted=wanted: all(name in one for name in wanted),
            "only": lambda one, wanted=wanted: len(one) > 0 and all(name in wanted for name in one),
        }.items():
            found = tc.select(dataset, genes=wanted, match=match).tolist()
            assert found == [k for k, one in enumerate(sets) if holds(one)], (wanted, match)
        found = tc.select(dataset, without=wanted).tolist()
        assert found == [k for k, one in enumerate(sets) if not any(name in one for name in wanted)]
    splits = tc.split_by_perturbation(dataset, (0.5, 0.5), controls="train", progress=False)
    part = {k: name for name, indices in splits.parts.items() for k in indices.tolist()}
    seen = {name for k, one in enumerate(sets) if part[k] == "train" for name in one}
    for a, one in enumerate(sets):
        assert all(part[a] == part[b] for b, other in enumerate(sets) if one == other)
        if part[a] == "test":
            assert a in splits[f"test_unseen{len(one - seen)}"]
    random = tc.split_random(dataset, (0.5, 0.5), progress=False)
    part = {k: name for name, indices in random.parts.items() for k in indices.tolist()}
    divided = sum(
        len({part[k] for k, other in enumerate(sets) if other == one}) > 1 for one in {*sets} if one
    )
    assert (f"{divided:,} perturbed set" in random.report()) == (divided > 0)


def test_a_name_that_no_sample_has_is_no_name(tmp_path: Path) -> None:
    dataset = build(tmp_path, table())
    with pytest.raises(tc.errors.SettingError, match="no node 'X3'"):
        tc.select(dataset, genes=["X3"])
    assert dataset.columns["unknown_count"].tolist() == [1, 1, 0, 2, 0, 1, 0]
    assert tc.select(dataset, "perturbed_count + unknown_count == 2").tolist() == [3, 6]


# Samples that differ in such a name only


def test_policies_on_equal_sets_count_the_names() -> None:
    rows = [["Y000", "X1"], ["Y000"], ["X1", "Y000"], ["X1"], ["X2"]]
    means = table(rows, replicates="mean").table
    assert [list(means.sample(k).unknown) for k in range(4)] == [["X1"], [], ["X1"], ["X2"]]
    assert means.values[:, 0].tolist() == [1 / 8, 1 / 8, 3 / 8, 4 / 8]
    assert len(table(rows, replicates="group").table) == 4
    with pytest.raises(SourceContractError, match="rows 0 and 2 perturb the same nodes"):
        table(rows, replicates="error")
    with pytest.raises(SourceContractError, match="row 1: 'X1' is given twice"):
        table([["Y000"], ["X1", "X1"]])
    assert len(table([["X1"]], empty="error")) == 1
    # A double with a gene outside the graph is no single: its score takes the singles' fitness.
    scores = table([["Y000"], ["X1"], ["X1", "Y000"]], interactions=True).table.values
    assert scores[2, 1] == np.float32(2 / 8 - 0 * 1 / 8)
    assert np.isnan(scores[:2, 1]).all()


def test_experiments(tmp_path: Path) -> None:
    builder = TableBuilder(NodeNames(["A", "B"]), unknown="keep", replicates="mean")
    for k, genes in enumerate([["A", "X"], ["B"], ["X", "A"], ["A"], ["Z", "X"]]):
        builder.add(f"e{k}", lambda genes=genes, k=k: Parsed(genes, {"fitness": float(k)}))
    made = builder.table()
    got = [(made.sample(k).perturbed.tolist(), made.sample(k).unknown) for k in range(len(made))]
    assert got == [([0], ("X",)), ([1], ()), ([0], ()), ([], ("X", "Z"))]
    assert made.values[:, 0].tolist() == [1.0, 1.0, 3.0, 4.0]
    assert builder.notes()[0] == "3 experiments delete a gene that removes nothing: the graph has no 'X', 'Z'"


def test_from_a_file_and_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "screen.csv"
    path.write_text("genes,fitness\n" + "".join(f"{'|'.join(row)},0.5\n" for row in ROWS if row))
    source = tc.PerturbationTable.from_csv(path, GRAPH, unknown="keep")
    wanted = [named(row) for row in ROWS if row]
    dataset = build(tmp_path / "store", source, "ids", progress=True)
    assert ids_pert(dataset) == wanted
    assert "4 of 6 samples perturb a name that is no node" in capsys.readouterr().err
    tc.save_base_graph(GRAPH, tmp_path / "cell")
    words = [f"source.path={path}", f"source.base_graph={tmp_path / 'cell'}", "source.unknown=keep"]
    root = f"root={tmp_path / 'cli'}"
    assert main(["preprocess", root, "source=table", *words, "processor=perturbation"]) == 0
    assert ids_pert(tc.PreprocessedDataset(tmp_path / "cli")) == wanted
    assert main(["info", root]) == 0
    assert "format 2" in capsys.readouterr().out


# Stores that grow, are copied, damaged, read elsewhere


def without_names(manifest) -> int:
    """The format of a store that keeps no such name: records in groups are format 2 by themselves."""
    return 2 if "group_bytes" in manifest.schema else 1


@pytest.mark.parametrize(("name", "storage"), [("lazy", "delta"), ("subgraph", "full"), ("khop", "delta")])
def test_growing(name: str, storage: str, tmp_path: Path) -> None:
    """A store takes format 2 with the first such name and gives it back with the last; either way it is the full build."""
    plain, extended = [row for row in ROWS if row in (["Y001"], [])], [*ROWS, ["Y002"]]
    build(tmp_path / "s", table(plain), name, storage)
    assert read_manifest(tmp_path / "s").format_version == without_names(read_manifest(tmp_path / "s"))
    tc.append(tmp_path / "s", table(extended), progress=False)
    whole = [*plain, *extended]
    grown = tc.PreprocessedDataset(tmp_path / "s")
    assert read_manifest(tmp_path / "s").format_version == 2
    assert ids_pert(grown) == [named(row) for row in whole]
    changed = [*whole[:-1], ["Y002", "X7"]]
    labels = {"fitness": [*(k / 8 for k in range(len(plain))), *(k / 8 for k in range(len(extended)))]}
    source = tc.PerturbationTable(GRAPH, changed, phenotypes=labels, unknown="keep")
    growth = tc.update(tmp_path / "s", source, progress=False)
    full = build(tmp_path / "full", source, name, storage)
    assert growth.generation.manifest.content_digest == full.content_digest != grown.content_digest
    assert growth.recomputed == (name != "lazy")  # whose records do not hold the names
    assert ids_pert(tc.PreprocessedDataset(tmp_path / "s")) == [named(row) for row in changed]
    assert tc.verify(tmp_path / "s", "full", source=source, progress=False).ok
    tc.update(tmp_path / "s", table(plain), progress=False)
    assert read_manifest(tmp_path / "s").format_version == without_names(read_manifest(tmp_path / "s"))


@pytest.mark.parametrize(("name", "storage"), [("lazy", "perturbation"), ("ids", "delta"), ("lazy", "full")])
def test_copies_and_repair(name: str, storage: str, tmp_path: Path) -> None:
    source = table()
    dataset = build(tmp_path / "s", source, name, storage)
    some = tc.save_subset(dataset[[3, 0, 2]], tmp_path / "some", progress=False)
    assert ids_pert(some) == [named(ROWS[k]) for k in (3, 0, 2)]
    assert tc.verify(tmp_path / "some", "full", progress=False).ok
    bare = tc.save_subset(dataset[[2, 4]], tmp_path / "bare", progress=False)
    assert some.generation.manifest.format_version == 2
    assert bare.generation.manifest.format_version == without_names(bare.generation.manifest)
    tc.push(tmp_path / "s", f"file://{tmp_path / 'bucket'}", progress=False)
    tc.pull(f"file://{tmp_path / 'bucket'}", tmp_path / "pulled", progress=False)
    assert ids_pert(tc.PreprocessedDataset(tmp_path / "pulled")) == [named(row) for row in ROWS]
    before = {path.name: path.read_bytes() for path in dataset.generation.directory.iterdir()}
    for damaged in ("columns.safetensors", "shard-00001.lmdb"):
        path = tc.PreprocessedDataset(tmp_path / "s").generation.directory / damaged
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
        assert not tc.verify(tmp_path / "s", "full", progress=False).ok
        tc.repair(tmp_path / "s", source=source if damaged.startswith("columns") else None, progress=False)
        whole = tc.PreprocessedDataset(tmp_path / "s")
        assert (whole.generation.directory / damaged).read_bytes() == before[damaged]
        assert ids_pert(whole) == [named(row) for row in ROWS]


def test_another_name_is_another_store(tmp_path: Path) -> None:
    first = build(tmp_path, table())
    assert build(tmp_path, table()).generation.directory == first.generation.directory
    renamed = [["X3" if name == "X2" else name for name in row] for row in ROWS]
    for other in (table(renamed), table(unknown="drop")):
        with pytest.raises(StaleCacheError, match="unknown"):
            build(tmp_path, other)
    assert build(tmp_path, table(renamed), on_stale="rebuild").content_digest != first.content_digest


READ = """
import json, sys
import torchcell_cache as tc
dataset = tc.PreprocessedDataset(sys.argv[1])
(batch,) = tc.CacheLoader(dataset, batch_size=7)
assert "torchcell_cache.sources" not in sys.modules and "torchcell_cache.builder" not in sys.modules
print(json.dumps([[g["gene"].ids_pert for g in dataset], batch.to_pyg()["gene"].ids_pert]))
"""


def test_another_process_reads_it(tmp_path: Path) -> None:
    build(tmp_path, table(), "subgraph", "delta", num_workers=2)
    done = fresh.run([sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True, check=True)
    wanted = [named(row) for row in ROWS]
    assert json.loads(done.stdout) == [wanted, wanted]


def test_batches_restricted_to_some_nodes_and_other_graphs(tmp_path: Path) -> None:
    dataset = build(tmp_path / "s", table(), "subgraph")
    (batch,) = tc.CacheLoader(dataset, batch_size=7)
    part = batch.restrict("gene", [0, 1, 3, 5])
    assert part.to_pyg()["gene"].ids_pert == ids_pert(list(part)) == [named(row) for row in ROWS]
    plain = plain_graph()
    plain.node_ids = [f"n{k}" for k in range(8)]
    source = tc.PerturbationTable(plain, [["n1", "?"], ["n2"]], unknown="keep")
    for name in PROCESSORS:
        small = build(tmp_path / name, source, name, "delta")
        (batch,) = tc.CacheLoader(small, batch_size=2)
        key = "perturbed_genes" if name == "ids" else "ids_pert"
        assert [graph[key] for graph in small] == batch.to_pyg()[key] == [["n1", "?"], ["n2"]]


class CountsNames:
    """A user's own processor."""

    def process(self, base_graph: Any, sample: Any) -> Any:
        graph = tc.Perturbation().process(base_graph, sample)
        graph["gene"].counts = sorted(Counter(sample.unknown).items())
        return graph

    def settings(self) -> dict[str, Any]:
        return {}


def test_own_processors_get_the_names(tmp_path: Path) -> None:
    dataset = build(tmp_path, table(), processor=CountsNames(), storage="delta")
    assert [graph["gene"].counts for graph in dataset][:2] == [[("X2", 1)], [("X1", 1)]]
    (batch,) = tc.CacheLoader(dataset, batch_size=7)
    assert batch.to_pyg()["gene"].perturbed_genes == [named(row) for row in ROWS]
    assert tc.testing.check_processor(CountsNames(), table()) == tc.testing.check_source(table()) == []


# The format


def test_golden_arrays() -> None:
    arrays = table_to_arrays(table([["Z", "Y001"], [], ["é", "Z"]]).table, 9)
    got = {name: array.tolist() for name, array in arrays.items() if name.startswith("unknown")}
    assert got == {
        "unknown": [0, 0, 1],
        "unknown_count": [1, 0, 2],
        "unknown_names": [0x5A, 0xC3, 0xA9],
        "unknown_name_length": [1, 2],
    }
    assert [str(arrays[name].dtype) for name in got] == ["uint8", "uint8", "uint8", "uint32"]
    found = table([["Z", "Y001"], [], ["é", "Z"]]).table.unknown.digest()
    assert found == "2983ab7259c2724ce31301882f4d5acc598327db70cc4d3ae6fe1d60149cd9ef"


def test_versions_of_the_manifest(tmp_path: Path) -> None:
    build(tmp_path, table())
    path = manifest_path(tmp_path)
    manifest = read_manifest(tmp_path)
    assert manifest.fingerprint["format"] == 1
    document = json.loads(path.read_text())
    with pytest.raises(FormatError, match="by format 2; this version reads 1") as caught:
        parse_document(document, path, "", dict)  # as a version does that knows only the first format
    assert "upgrade torchcell_cache" in str(caught.value)
    document["format_version"] = 3
    with pytest.raises(FormatError, match="by format 3; this version reads 1 and 2") as caught:
        parse_document(document, path, "", type(manifest).from_json, VERSIONS)
    assert "upgrade torchcell_cache" in str(caught.value)
    document["format_version"] = 1
    del document["digest"]
    with pytest.raises(CorruptManifestError, match="format version 1, expected 2"):
        parse_document(document, path, "", type(manifest).from_json, VERSIONS)
    with pytest.raises(ValueError, match="format version 2, expected 1"):
        dataclasses.replace(manifest, schema={})


@pytest.mark.parametrize(
    ("name", "value"),
    [("unknown", [9, 0, 0, 0, 0]), ("unknown_count", [1, 1]), ("unknown_names", [0xFF] * 4)],
)
def test_columns_that_do_not_fit_are_refused(name: str, value: list[int]) -> None:
    arrays = table_to_arrays(table().table, 9)
    arrays[name] = np.array(value, dtype=arrays[name].dtype)
    with pytest.raises(tc.errors.CorruptShardError):
        arrays_to_table(arrays, ("fitness",), ())
