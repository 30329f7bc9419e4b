"""Stores that grow: the result of ``append`` and ``update`` is that of a full build, and only what can differ is made again."""

import copy
import os
import signal
import sys
from pathlib import Path

import fresh
import numpy as np
import pytest
import torch
from graphs import cell_graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data, HeteroData

import torchcell_cache as tc
from torchcell_cache.cli import main
from torchcell_cache.errors import SettingError, SourceContractError, StaleCacheError
from torchcell_cache.testing import assert_same_graph

GENES = 9
GPR = ("gene", "gpr", "reaction")


def knockouts(count: int, seed: int = 0) -> tuple[list[list[int]], list[float]]:
    random = np.random.default_rng(seed)
    genes = [sorted(random.choice(GENES, 1 + k % 3, replace=False).tolist()) for k in range(count)]
    return genes, random.random(count).tolist()


def table(base, genes, labels, **more) -> tc.PerturbationTable:
    return tc.PerturbationTable(base, genes, phenotypes={"fitness": labels}, **more)


def build(root: Path, source, storage: str, processor=None) -> tc.PreprocessedDataset:
    processor = tc.LazySubgraphRepresentation() if processor is None else processor
    return tc.build(root, source=source, processor=processor, storage=storage, shard_size=8, progress=False)


def assert_like_full_build(root: Path, grown, source, storage: str, processor=None) -> None:
    """The same content, sample by sample, clean files, and a store that a full build finds up to date."""
    full = build(root / "full", source, storage, processor)
    assert grown.content_digest == full.content_digest
    assert len(grown) == len(full)
    for k in range(len(full)):
        assert_same_graph(grown[k], full[k])
    assert tc.verify(grown.root, level="full", progress=False).ok
    again = build(grown.root, source, storage, processor)
    assert again.generation.manifest.generation == grown.generation.manifest.generation


@pytest.mark.parametrize("storage", ["perturbation", "delta", "full"])
@pytest.mark.parametrize("first", [16, 21, 5])
def test_appended_samples(tmp_path: Path, storage: str, first: int) -> None:
    base, (genes, labels) = cell_graph(), knockouts(37)
    old = build(tmp_path / "store", table(base, genes[:first], labels[:first]), storage)
    before = [old[k] for k in range(first)]
    tail = table(old.base_graph, genes[first:], labels[first:])
    growth = tc.append(tmp_path / "store", tail, progress=False)
    assert growth.recomputed == 37 - first
    assert growth.linked_shards == first // 8
    assert_like_full_build(tmp_path, growth.dataset, table(base, genes, labels), storage)
    for shard in range(first // 8):
        name = f"shard-{shard:05d}.lmdb"
        assert (old.generation.directory / name).samefile(growth.dataset.generation.directory / name)
    for k in range(first):  # the reader of the old generation goes on
        assert_same_graph(old[k], before[k])
    assert len(old) == first


def test_appending_twice_and_naming_samples(tmp_path: Path) -> None:
    base, (genes, labels) = cell_graph(), knockouts(30)
    names = [f"exp-{k}" for k in range(30)]

    def part(a: int, b: int) -> tc.PerturbationTable:
        return table(base, genes[a:b], labels[a:b], source_ids=names[a:b])

    build(tmp_path / "store", part(0, 10), "delta")
    tc.append(tmp_path / "store", part(10, 19), progress=False)
    grown = tc.append(tmp_path / "store", part(19, 30), progress=False).dataset
    assert list(grown.generation.table.source_ids) == names
    assert_like_full_build(tmp_path, grown, part(0, 30), "delta")
    with pytest.raises(SourceContractError, match="'exp-3' already"):
        tc.append(tmp_path / "store", part(3, 4), progress=False)
    with pytest.raises(SourceContractError, match="have none"):
        tc.append(tmp_path / "store", table(base, [[1]], [0.5]), progress=False)


def test_what_cannot_be_appended_says_why(tmp_path: Path) -> None:
    base, (genes, labels) = cell_graph(), knockouts(12)
    build(tmp_path / "store", table(base, genes, labels), "delta")
    other = cell_graph(seed=4)
    with pytest.raises(StaleCacheError, match="another base graph"):
        tc.append(tmp_path / "store", table(other, [[1]], [0.1]), progress=False)
    with pytest.raises(StaleCacheError, match="another processor"):
        tc.append(tmp_path / "store", table(base, [[1]], [0.1]), tc.SubgraphRepresentation(), progress=False)
    wrong = tc.PerturbationTable(base, [[1]], phenotypes={"growth": [0.2]})
    with pytest.raises(
        SourceContractError, match=r"phenotypes are \['fitness'\], those to append \['growth'\]"
    ):
        tc.append(tmp_path / "store", wrong, progress=False)
    assert tc.PreprocessedDataset(tmp_path / "store").content_digest


def graphs(count: int, seed: int = 0) -> list[Data]:
    generator = torch.Generator().manual_seed(seed)
    mesh = torch.randint(20, (2, 50), generator=generator)
    return [
        Data(x=torch.rand(20, 3, generator=generator), edge_index=mesh, y=torch.tensor([k % 3]))
        for k in range(count)
    ]


def test_graphs_without_a_table_are_appended(tmp_path: Path) -> None:
    items = graphs(29)
    tc.build(tmp_path / "store", source=items[:19], storage="delta", shard_size=8, progress=False)
    growth = tc.append(tmp_path / "store", items[19:], progress=False)
    full = tc.build(tmp_path / "full", source=items, storage="delta", shard_size=8, progress=False)
    assert growth.recomputed == 10
    assert growth.linked_shards == 2
    assert growth.dataset.content_digest == full.content_digest
    assert growth.dataset.columns["y"].tolist() == [k % 3 for k in range(29)]
    for k, item in enumerate(items):
        assert_same_graph(growth.dataset[k], item)
    assert tc.verify(growth.dataset.root, level="full", progress=False).ok


class Cells:
    """Graphs with labels beside them, as cells have: what a sample is shows in its graph, not in the table alone."""

    gives_graphs = True

    def __init__(self, items: list[Data], name: str) -> None:
        self.items_, self.name, self.base_graph = items, name, None
        genes, labels = [[]] * len(items), [float(item.y) for item in items]
        self.table = tc.PerturbationTable(cell_graph(), genes, phenotypes={"label": labels}).table

    def __len__(self) -> int:
        return len(self.items_)

    def __getitem__(self, index: int) -> Data:
        return self.items_[index]

    def identity(self) -> dict:
        return {"class": "Cells", "name": self.name}


def test_graphs_with_a_table_are_compared_by_nothing_but_their_graphs(tmp_path: Path) -> None:
    items = graphs(29)
    kept = {"storage": "delta", "shard_size": 8, "progress": False}
    tc.build(tmp_path / "store", source=Cells(items[:19], "first"), **kept)
    grown = tc.append(tmp_path / "store", Cells(items[19:], "second"), progress=False)
    assert grown.recomputed == 10
    for k, item in enumerate(items):
        assert_same_graph(grown.dataset[k], item)
    assert grown.dataset.columns["label"].tolist() == [k % 3 for k in range(29)]
    assert tc.verify(tmp_path / "store", level="full", progress=False).ok

    changed = copy.copy(items[4])
    changed.x = changed.x + 1  # its label stays
    items = [*items[:4], changed, *items[5:]]
    growth = tc.update(tmp_path / "store", Cells(items, "third"), progress=False)
    for k, item in enumerate(items):
        assert_same_graph(growth.dataset[k], item)
    full = tc.build(tmp_path / "full", source=Cells(items, "third"), **kept)
    assert growth.dataset.content_digest == full.content_digest


def named(sample) -> Data:
    return Data(y=torch.tensor([len(sample.perturbed)]), name=sample.source_id)


def test_names_that_a_processor_reads(tmp_path: Path) -> None:
    base, (genes, labels) = cell_graph(), knockouts(12)
    names = [f"exp-{k}" for k in range(12)]
    build(tmp_path / "store", table(base, genes, labels, source_ids=names), "delta", named)
    names[3] = "renamed"
    source = table(base, genes, labels, source_ids=names)
    growth = tc.update(tmp_path / "store", source, named, progress=False)
    assert (growth.recomputed, growth.linked_shards) == (8, 1)  # the shard with that sample, and no other
    assert [graph.name for graph in growth.dataset] == names


# What can differ


def changed_labels(draw, genes, labels):
    at = draw(st.lists(st.integers(0, len(labels) - 1), max_size=5))
    return genes, [x + 1 if k in at else x for k, x in enumerate(labels)], set(at)


def changed_base(draw) -> HeteroData:
    """The base graph with edges and nodes added and removed."""
    base = cell_graph()
    for name in ("physical", "regulatory", "empty"):
        store = base["gene", name, "gene"]
        edges = store.edge_index
        keep = torch.tensor(draw(st.lists(st.booleans(), min_size=edges.size(1), max_size=edges.size(1))))
        if draw(st.booleans()) and edges.size(1):
            edges = edges[:, keep]
        pairs = draw(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=3))
        if pairs:
            edges = torch.cat([edges, torch.tensor(pairs).t()], dim=1)
        store.edge_index, store.num_edges = edges.contiguous(), edges.size(1)
    if draw(st.booleans()):
        rules = list(base["reaction"].gene_rules)
        rules[draw(st.integers(0, 5))] = draw(st.sampled_from(["", "Y001", "Y003 or Y004"]))
        base["reaction"].gene_rules = rules
    if draw(st.booleans()):
        drop_gene(base, draw(st.integers(0, GENES - 1)))
    if draw(st.booleans()):
        base["gene"].node_ids = [*base["gene"].node_ids, "YNEW"]
        base["gene"].num_nodes += 1
        base["gene"].x = torch.cat([base["gene"].x, torch.ones(1, 3)])
    return base


def drop_gene(base: HeteroData, gene: int) -> None:
    """Remove a gene, its edges and what the model says of it; the genes behind it move up."""
    gone = base["gene"].node_ids[gene]
    base["gene"].node_ids = [name for name in base["gene"].node_ids if name != gone]
    base["gene"].num_nodes -= 1
    base["gene"].x = torch.cat([base["gene"].x[:gene], base["gene"].x[gene + 1 :]])
    base["reaction"].gene_rules = ["" if gone in rule else rule for rule in base["reaction"].gene_rules]
    for edge_type, ends in (*((t, (0, 1)) for t in base.edge_types if t[2] == "gene"), (GPR, (0,))):
        store = base[edge_type]
        name = "edge_index" if "edge_index" in store else "hyperedge_index"
        index = store[name]
        index = index[:, (index[list(ends)] != gene).all(dim=0)].clone()
        for row in ends:
            index[row] -= (index[row] > gene).long()
        store[name], store.num_edges = index, index.size(1)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_changes_of_every_kind(tmp_path_factory, data) -> None:
    storage = data.draw(st.sampled_from(("perturbation", "delta", "full")))
    processor = tc.LazySubgraphRepresentation(gpr=data.draw(st.sampled_from(("any", "rule"))))
    genes, labels = knockouts(21)
    root = tmp_path_factory.mktemp("changed")
    old = build(root / "store", table(cell_graph(), genes, labels), storage, processor)
    before = [old[k] for k in range(len(old))]
    base = changed_base(data.draw) if data.draw(st.booleans()) else cell_graph()
    count = data.draw(st.sampled_from((15, 16, 21, 30)))
    genes, labels = [*genes, *knockouts(9, 1)[0]][:count], [*labels, *knockouts(9, 1)[1]][:count]
    genes, labels, _ = changed_labels(data.draw, genes, labels)
    if data.draw(st.booleans()):
        genes[data.draw(st.integers(0, count - 1))] = [0, 8]
    names = cell_graph()["gene"].node_ids
    known = set(base["gene"].node_ids)
    named = [([names[k] for k in row], label) for row, label in zip(genes, labels, strict=True)]
    named = [(row, label) for row, label in named if known.issuperset(row)]
    source = table(base, [row for row, _ in named], [label for _, label in named])
    growth = tc.update(root / "store", source, progress=False)
    assert_like_full_build(root, growth.dataset, source, storage, processor)
    for k, graph in enumerate(before):
        assert_same_graph(old[k], graph)


def edited(change) -> HeteroData:
    base = cell_graph()
    change(base)
    return base


def test_only_samples_of_changed_nodes_are_computed(tmp_path: Path) -> None:
    genes, labels = [[k % GENES] for k in range(45)], [0.5] * 45
    build(tmp_path / "store", table(cell_graph(), genes, labels), "delta")

    def turn(base: HeteroData) -> None:  # the first edge of gene a now ends at gene b
        edges = base["gene", "physical", "gene"].edge_index
        touched.update({int(edges[0, 0]), int(edges[1, 0])})
        edges[1, 0] = (int(edges[1, 0]) + 1) % GENES
        touched.add(int(edges[1, 0]))

    touched: set[int] = set()
    growth = tc.update(tmp_path / "store", table(edited(turn), genes, labels), progress=False)
    assert growth.recomputed <= 5 * len(touched) < 45
    assert growth.recomputed > 0
    assert "computed" in str(growth)


def test_labels_alone(tmp_path: Path) -> None:
    base, (genes, labels) = cell_graph(), knockouts(40)
    build(tmp_path / "store", table(base, genes, labels), "delta")
    labels = [*labels[:10], 9.0, *labels[11:]]
    growth = tc.update(tmp_path / "store", table(base, genes, labels), progress=False)
    assert growth.recomputed == 1
    assert growth.linked_shards == 4
    assert tc.update(tmp_path / "store", table(base, genes, labels), progress=False).recomputed == 0


def test_a_base_graph_alone_changes_no_perturbation_record(tmp_path: Path) -> None:
    genes, labels = knockouts(40)
    build(tmp_path / "store", table(cell_graph(), genes, labels), "perturbation")
    source = table(cell_graph(seed=5), genes, labels)
    growth = tc.update(tmp_path / "store", source, progress=False)
    assert growth.recomputed == 0
    assert_like_full_build(tmp_path, growth.dataset, source, "perturbation")


def test_another_processor_is_a_rebuild(tmp_path: Path) -> None:
    base, (genes, labels) = cell_graph(), knockouts(20)
    build(tmp_path / "store", table(base, genes, labels), "delta")
    growth = tc.update(
        tmp_path / "store", table(base, genes, labels), tc.SubgraphRepresentation(), progress=False
    )
    assert growth.recomputed == 20
    assert_like_full_build(
        tmp_path, growth.dataset, table(base, genes, labels), "delta", tc.SubgraphRepresentation()
    )


def test_neighbourhoods_grow_and_are_mended_without_naming_their_processor(tmp_path: Path) -> None:
    base, (genes, labels) = cell_graph(), knockouts(24)
    khop = tc.KHopSubgraph(1, ["physical", ("gene", "regulatory", "gene")], perturbed="delete")
    old = build(tmp_path / "store", table(base, genes[:19], labels[:19]), "delta", khop)
    tail = table(old.base_graph, genes[19:], labels[19:])
    growth = tc.append(tmp_path / "store", tail, progress=False)
    assert growth.linked_shards == 2
    assert_like_full_build(tmp_path, growth.dataset, table(base, genes, labels), "delta", khop)
    changed = table(base, genes, [*labels[:-1], 9.0])
    assert tc.update(tmp_path / "store", changed, progress=False).linked_shards == 2
    grown = tc.PreprocessedDataset(tmp_path / "store")
    wanted = [grown[k] for k in range(24)]
    (grown.generation.directory / "shard-00001.lmdb").unlink()
    tc.repair(tmp_path / "store", progress=False)
    mended = tc.PreprocessedDataset(tmp_path / "store")
    for k, graph in enumerate(wanted):
        assert_same_graph(mended[k], graph)
    assert tc.verify(tmp_path / "store", level="full", source=changed, progress=False).ok


def test_a_processor_of_ones_own_must_be_passed(tmp_path: Path) -> None:
    items = graphs(9)
    tc.build(tmp_path / "store", source=items, processor=strip, storage="delta", shard_size=4, progress=False)
    with pytest.raises(SettingError, match="only its owner has"):
        tc.append(tmp_path / "store", graphs(3, 1), progress=False)
    grown = tc.append(tmp_path / "store", graphs(3, 1), strip, progress=False).dataset
    assert "x" not in grown[11]


def strip(data: Data) -> Data:
    out = copy.copy(data)
    del out.x
    return out


# Damage, repair, gc, kills


def test_a_damaged_old_shard_is_not_taken_over(tmp_path: Path) -> None:
    base, (genes, labels) = cell_graph(), knockouts(30)
    old = build(tmp_path / "store", table(base, genes[:24], labels[:24]), "delta")
    path = old.generation.directory / "shard-00001.lmdb"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[9000] ^= 1
    path.write_bytes(data)
    grown = tc.append(tmp_path / "store", table(base, genes[24:], labels[24:]), progress=False).dataset
    assert_like_full_build(tmp_path, grown, table(base, genes, labels), "delta")


def test_gc_and_repair_of_a_grown_store(tmp_path: Path) -> None:
    base, (genes, labels) = cell_graph(), knockouts(30)
    build(tmp_path / "store", table(base, genes[:20], labels[:20]), "delta")
    grown = tc.append(tmp_path / "store", table(base, genes[20:], labels[20:]), progress=False).dataset
    tc.gc(tmp_path / "store")
    whole = [grown[k] for k in range(30)]
    for shard in (0, 2, 3):
        path = grown.generation.directory / f"shard-{shard:05d}.lmdb"
        path.unlink()
    assert not tc.verify(tmp_path / "store", progress=False).ok
    tc.repair(tmp_path / "store", progress=False)
    mended = tc.PreprocessedDataset(tmp_path / "store")
    assert mended.content_digest == grown.content_digest
    for k, graph in enumerate(whole):
        assert_same_graph(mended[k], graph)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
import torch, os
torch.set_num_threads(1)
import torchcell_cache as tc
from torchcell_cache.builder import reuse
from test_growing import cell_graph, knockouts, table
genes, labels = knockouts(60)
calls = [0]
name = "write_sidecar" if sys.argv[3] == "link" else "build_shard"
original = getattr(reuse, name)
def killing(*args, **kwargs):
    out = original(*args, **kwargs)
    calls[0] += 1
    if calls[0] == 2 or sys.argv[3] == "mix":
        os.kill(os.getpid(), int(sys.argv[4]))
    return out
setattr(reuse, name, killing)
tc.append(sys.argv[1], table(cell_graph(), genes[44:], labels[44:]), progress=False)
"""


@pytest.mark.parametrize(
    ("where", "number"), [("link", signal.SIGKILL), ("mix", signal.SIGKILL), ("link", signal.SIGTERM)]
)
def test_killed_and_started_again(tmp_path: Path, where: str, number: int) -> None:
    base, (genes, labels) = cell_graph(), knockouts(60)
    old = build(tmp_path / "store", table(base, genes[:44], labels[:44]), "delta")
    here = Path(__file__).parent
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "store"), str(here), where, str(int(number))]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{here.parent / 'support'}:{here.parents[1]}",
    }
    done = fresh.run(command, check=False, env=environment, capture_output=True, text=True)
    if number == signal.SIGKILL:
        assert done.returncode == -signal.SIGKILL
    else:  # heard before the next shard
        assert "BuildInterruptedError" in done.stderr
        assert len(list((tmp_path / "store").glob("processed/*/shard-0000[0-9].json"))) == 6 + 2
    assert tc.PreprocessedDataset(tmp_path / "store").content_digest == old.content_digest
    growth = tc.append(tmp_path / "store", table(base, genes[44:], labels[44:]), progress=False)
    assert growth.recomputed == 16
    assert_like_full_build(tmp_path, growth.dataset, table(base, genes, labels), "delta")


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, (genes, labels) = cell_graph(), knockouts(20)
    root = tmp_path / "store"
    build(root, table(base, genes, labels), "delta")
    names = base["gene"].node_ids
    rows = [f"{'|'.join(names[g] for g in row)},{value!r}" for row, value in zip(genes, labels, strict=True)]
    (tmp_path / "tail.csv").write_text("\n".join(["genes,fitness", *rows[:5]]) + "\n")
    options = ["source.phenotypes=[fitness]", f"source.base_graph={root}", "progress=false"]
    tail = ["source=table", f"source.path={tmp_path / 'tail.csv'}", *options]
    assert main(["append", f"root={root}", *tail]) == 0
    assert capsys.readouterr().out.startswith("5 of 25 samples computed (20.0%), 2 of 4 shards shared")
    rows[7] = rows[7].partition(",")[0] + ",0.125"
    (tmp_path / "tail.csv").write_text("\n".join(["genes,fitness", *rows, *rows[:5]]) + "\n")
    assert main(["update", f"root={root}", *tail]) == 0
    assert capsys.readouterr().out.startswith("1 of 25 samples computed (4.0%), 3 of 4 shards shared")
    assert main(["append", f"root={root}"]) == 2
    assert "append needs a source" in capsys.readouterr().err
    assert main(["append", f"root={tmp_path / 'none'}", *options[2:], *tail[:2], *options[:2]]) == 65
