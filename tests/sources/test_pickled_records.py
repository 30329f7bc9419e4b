"""Stores of torchcell's own become stores of ours; pickles of other things are refused before anything of them runs."""

from __future__ import annotations

import copy
import copyreg
import functools
import io
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fresh
import lmdb
import numpy as np
import pytest
import torch
from graphs import cell_graph, random_case

import torchcell_cache as tc
from torchcell_cache.cli import main
from torchcell_cache.errors import (
    CacheNotFoundError,
    SettingError,
    SourceContractError,
    UnsafeContentError,
)
from torchcell_cache.graph.compare import first_difference
from torchcell_cache.sources import pickled_records as reader
from torchcell_cache.sources import torchcell_store
from torchcell_cache.sources.torchcell_store import Records

COUNT = 30
pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # the process ignores it too
GPR = ("gene", "gpr", "reaction")


class Forked:
    """As much of ``subprocess.Popen`` as an import needs, from the process that has torch; one test starts Python itself."""

    def __init__(self, command: list[str], env: dict[str, str], stderr: Any, **streams: Any) -> None:
        assert command[1] == "-P"
        read, write = os.pipe()
        none = os.open(os.devnull, os.O_RDONLY)
        streams = (none, write, stderr.fileno())
        self.process = fresh.Process([command[0], *command[2:]], streams, env=env)
        os.close(write)
        os.close(none)
        self.stdout, self.kill = os.fdopen(read), self.process.kill

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *error: object) -> None:
        self.stdout.close()
        self.returncode = None if error[0] else self.process.wait(60)


@pytest.fixture(autouse=True)
def _quickly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.function is not test_every_sample_is_what_the_processor_makes:
        names = {**vars(subprocess), "Popen": Forked}
        monkeypatch.setattr(torchcell_store, "subprocess", SimpleNamespace(**names))


def record(graph: Any) -> dict[str, Any]:
    """A lazy sample as torchcell keeps it."""
    fields = {key: value for key, value in graph["gene"].items() if key.startswith("phenotype_")}
    kept = {"ids_pert": graph["gene"].ids_pert, "perturbation_indices": graph["gene"].perturbation_indices}
    masks = [
        {
            key: {"false_indices": (~store.mask).nonzero(as_tuple=True)[0], "mask_size": len(store.mask)}
            for key, store in stores
            if "mask" in store
        }
        for stores in (graph.node_items(), graph.edge_items())
    ]
    return {"gene": {**kept, **fields}, "node_masks": masks[0], "edge_masks": masks[1]}


def write(root: Path, records: list[bytes]) -> Path:
    """A torchcell store of these records."""
    (root / "processed").mkdir(parents=True)
    place = str(root / "processed" / "lmdb")
    with lmdb.open(place, map_size=1 << 26) as env, env.begin(write=True) as txn:
        for k, data in enumerate(records):
            txn.put(str(k).encode(), data)
    (root / "processed" / "metadata.json").write_text(json.dumps({"length": len(records)}))
    return root


@pytest.fixture(scope="module")
def source() -> tc.PerturbationTable:
    return random_case(cell_graph(), COUNT, seed=3).source()


@pytest.fixture(scope="module")
def records(source: tc.PerturbationTable) -> list[dict[str, Any]]:
    processor = tc.LazySubgraphRepresentation()
    return [record(processor.process(source.base_graph, source[k])) for k in range(COUNT)]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]) -> Path:
    return write(tmp_path_factory.mktemp("torchcell") / "old", list(map(pickle.dumps, records)))


def imported(root: Path, store: Path, graph: Any, **settings: Any) -> Any:
    return tc.import_torchcell(
        root, store=store, base_graph=graph, **{"trust": True, "progress": False} | settings
    )


def test_every_sample_is_what_the_processor_makes(tmp_path: Path, old: Path, source: Any) -> None:
    dataset = imported(tmp_path / "new", old, source.base_graph, num_samples=7)
    assert len(dataset) == COUNT
    assert dataset.storage != "full"
    processor = tc.LazySubgraphRepresentation()
    for k in range(COUNT):
        want = processor.process(source.base_graph, source[k])
        assert first_difference(dataset[k], want) is None
        assert [sorted(store) for store in dataset[k].stores] == [sorted(store) for store in want.stores]
    assert tc.verify(dataset.root, "full", progress=False).ok
    again = imported(tmp_path / "new", old, source.base_graph)
    assert again.generation.directory == dataset.generation.directory


def test_the_command_reads_pickles_only_if_asked(
    tmp_path: Path, old: Path, source: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tc.save_base_graph(source.base_graph, tmp_path / "cell")
    command = [
        "import-torchcell",
        f"root={tmp_path / 'new'}",
        f"store={old}",
        f"base_graph={tmp_path / 'cell'}",
    ]
    assert main(command) == 65
    assert "fix: trust=true" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main([*command, "trust=true", "num_workers=0", "storage=delta"]) == 0
    assert f"{COUNT} samples as 'delta'" in capsys.readouterr().out
    assert main(["verify", f"root={tmp_path / 'new'}", "level=full"]) == 0
    other = random_case(source.base_graph, 5, seed=4).source()
    tc.build(tmp_path / "other", source=other, processor=tc.LazySubgraphRepresentation(), progress=False)
    command[1] = f"root={tmp_path / 'other'}"
    assert main([*command, "trust=true", "num_workers=0"]) == 65
    assert main([*command, "trust=true", "on_stale=rebuild", "num_workers=0"]) == 0
    assert len(tc.PreprocessedDataset(tmp_path / "other")) == COUNT


def test_where_no_store_of_torchcells_is(tmp_path: Path, old: Path, source: Any) -> None:
    with pytest.raises(UnsafeContentError, match="pickles"):
        imported(tmp_path / "new", old, source.base_graph, trust=False)
    with pytest.raises(CacheNotFoundError, match="no store of torchcell's"):
        imported(tmp_path / "new", tmp_path / "nowhere", source.base_graph)
    with pytest.raises(SettingError, match="is the old store"):
        imported(old, old, source.base_graph)
    with pytest.raises(SettingError, match="num_samples"):
        imported(tmp_path / "new", old, source.base_graph, num_samples=0)


def renamed(graph: Any) -> None:
    graph["gene"].node_ids = [*reversed(graph["gene"].node_ids)]


def without_a_network(graph: Any) -> None:
    del graph["gene", "physical", "gene"]


def one_edge_less(graph: Any) -> None:
    graph["gene", "physical", "gene"].edge_index = graph["gene", "physical", "gene"].edge_index[:, :-1]


def other_edges(graph: Any) -> None:
    graph["gene", "physical", "gene"].edge_index = torch.full_like(
        graph["gene", "physical", "gene"].edge_index, 8
    )


def without_names(graph: Any) -> None:
    del graph["gene"].node_ids


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]) -> Records:
    return read_here(tmp_path_factory.mktemp("found"), list(map(pickle.dumps, records)))


def read_here(directory: Path, pickles: list[bytes]) -> Records:
    """What the other process does, without its limits."""
    columns = reader.Columns(set(range(len(pickles))))
    for k, data in enumerate(pickles):
        columns.add(k, reader.record_of(data))
    columns.write(directory)
    return Records(Path("data.mdb"), np.arange(len(pickles)), directory)


@pytest.mark.parametrize("change", [renamed, without_a_network, one_edge_less, other_edges, without_names])
def test_another_base_graph_is_refused(found: Records, source: Any, change: Any) -> None:
    graph = copy.deepcopy(source.base_graph)
    assert len(found.source(graph)) == COUNT
    change(graph)
    with pytest.raises(SourceContractError, match="save_base_graph"):
        found.source(graph)


def test_hyperedges_in_another_order_are_counted(
    tmp_path: Path, old: Path, source: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """As torchcell makes them from Python sets: positions move, what goes does not."""
    graph = copy.deepcopy(source.base_graph)
    columns = graph[GPR].hyperedge_index
    graph[GPR].hyperedge_index = columns[:, torch.arange(columns.size(1) - 1, -1, -1)]
    dataset = imported(tmp_path / "new", old, graph, progress=True)
    assert "gene gpr reaction: " in capsys.readouterr().err
    for k in range(COUNT):
        want = tc.LazySubgraphRepresentation().process(graph, source[k])
        assert dataset[k][GPR].mask.equal(want[GPR].mask)


def test_names_that_no_node_has_and_labels_of_several_measurements(tmp_path: Path) -> None:
    graph = cell_graph()
    lists = [["Y001", "zzz"], ["aaa", "Y003", "zzz"], ["Y004"]]
    labels = {
        "fitness": [[0.5, np.nan, 0.25], [np.nan], [1.0]],
        "size": [[np.nan, 3.0, 4.0], [np.nan], [2.0]],
    }
    table = tc.PerturbationTable(
        graph,
        lists,
        phenotypes=labels,
        statistics={"se": [[0.1, 0.2, np.nan], [0.3], [np.nan]]},
        unknown="keep",
    )
    graphs = [tc.LazySubgraphRepresentation().process(graph, sample) for sample in table]
    kept = [record(g) for g in graphs]
    kept[1]["gene"]["ids_pert"] = ["zzz", "Y003", "aaa"]  # torchcell's are those of a set
    dataset = imported(tmp_path / "new", write(tmp_path / "old", list(map(pickle.dumps, kept))), graph)
    for k, want in enumerate(graphs):
        assert first_difference(dataset[k], want) is None
    assert dataset.is_any_perturbed_gene_index["zzz"] == [0, 1]
    assert list(dataset.label_df["fitness"][:1]) == [0.25]


def changed(records: list[dict[str, Any]], **fields: Any) -> bytes:
    found = copy.deepcopy(records[0])
    found["gene"].update(fields)
    return pickle.dumps(found)


LONG, FLOAT = torch.int64, torch.float32
NO_TABLE = {
    "a measured NaN": {
        "phenotype_values": torch.tensor([1.0, float("nan")]),
        "phenotype_type_indices": torch.tensor([0, 1]),
        "phenotype_sample_indices": torch.tensor([0, 0]),
    },
    "two values of one label": {
        "phenotype_values": torch.tensor([1.0, 2.0]),
        "phenotype_type_indices": torch.tensor([0, 0]),
        "phenotype_sample_indices": torch.tensor([0, 0]),
    },
    "a type that has no name": {
        "phenotype_values": torch.tensor([1.0]),
        "phenotype_type_indices": torch.tensor([7]),
        "phenotype_sample_indices": torch.tensor([0]),
    },
    "a measurement far away": {
        "phenotype_values": torch.tensor([1.0]),
        "phenotype_type_indices": torch.tensor([0]),
        "phenotype_sample_indices": torch.tensor([1 << 40]),
    },
    "lengths that differ": {"phenotype_sample_indices": torch.tensor([0, 0, 0, 0, 0, 0, 0])},
    "other labels than before": {"phenotype_types": ["growth"]},
    "a matrix": {"phenotype_values": torch.zeros(2, 2)},
    "a list for a tensor": {"perturbation_indices": [1]},
    "names that are no names": {"ids_pert": [1, 2]},
}


@pytest.mark.parametrize("fields", NO_TABLE.values(), ids=NO_TABLE)
def test_what_a_table_cannot_hold_is_refused(
    tmp_path: Path, source: Any, records: list[dict[str, Any]], fields: dict[str, Any]
) -> None:
    pickles = [pickle.dumps(records[1]), changed(records, **fields)]
    with pytest.raises(ValueError, match=r"sample 1 of|names|tensor|values to unpack|its phenotypes are"):
        read_here(tmp_path, pickles).source(source.base_graph)


# Pickles that want to do something


class Runs:
    """Makes a directory wherever it is unpickled."""

    def __init__(self, path: Path, call: Any = os.mkdir) -> None:
        self.path, self.call = path, call

    def __reduce__(self) -> Any:
        return self.call, (str(self.path),)


class Stored:
    """Pickled as a tensor whose bytes are these."""

    def __init__(self, data: Any, *, size: Any = (1,), stride: Any = (1,), offset: Any = 0) -> None:
        self.arguments = data, offset, size, stride, False, {}

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.arguments


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        return torch.storage._load_from_bytes, (self.data,)


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def raw(text: bytes) -> bytes:
    return b"\x80\x04" + text


DOTTED = b"_rebuild_tensor_v2.__globals__.get.__call__"


def hostile(place: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles, and what the refusal says; each would make ``place`` a directory, or ask for more than there is."""
    runs, good = Runs(place), saved(torch.zeros(3)._typed_storage())
    empty: dict[str, Any] = {"gene": {}, "node_masks": {}, "edge_masks": {}}
    command = f"mkdir {place}".encode()
    tensors = {name: torch.zeros(1) for name in reader.TENSORS}
    genes = {**tensors, "ids_pert": ["Y001"], "phenotype_types": ["fitness"]}

    def within(**fields: Any) -> bytes:
        return pickle.dumps({**empty, "gene": {**genes, **fields}})

    copyreg.add_extension("os", "mkdir", 200)
    extension = pickle.dumps(runs, 2)
    copyreg.remove_extension("os", "mkdir", 200)
    return {
        "alone": (pickle.dumps(runs), "names posix.mkdir"),
        "of old protocol": (pickle.dumps(runs, 0), "names posix.mkdir"),
        "by an extension code": (extension, "names posix.mkdir"),
        "in a field": (within(ids_pert=[runs]), "names posix.mkdir"),
        "as a key": (pickle.dumps({runs: 1, **empty}), "names posix.mkdir"),
        "system": (b"cos\nsystem\n(V" + command + b"\ntR.", "names os.system"),
        "by INST": (b"(V" + command + b"\nios\nsystem\n.", "names os.system"),
        "by OBJ": (b"(cos\nsystem\nV" + command + b"\no.", "names os.system"),
        "eval": (
            b"cbuiltins\neval\n(V__import__('os').mkdir('" + str(place).encode() + b"')\ntR.",
            "names builtins.eval",
        ),
        "getattr": (raw(b"\x8c\x08builtins\x8c\x07getattr\x93."), "names builtins.getattr"),
        "through a known name": (
            raw(b"\x8c\x0ctorch._utils\x8c" + bytes([len(DOTTED)]) + DOTTED + b"\x93."),
            "names torch._utils._rebuild_tensor_v2.__globals__",
        ),
        "of torchcell": (
            b"ctorchcell.data.hetero_data\nHeteroData\n.",
            "names torchcell.data.hetero_data.HeteroData",
        ),
        "partial": (pickle.dumps(functools.partial(os.mkdir, str(place))), "names functools.partial"),
        "torch.load": (b"ctorch\nload\n.", "names torch.load"),
        "bytes of a tensor": (
            within(phenotype_values=Stored(Bytes(saved(runs)))),
            "a tensor in it names posix.mkdir",
        ),
        "bytes of a tensor, plain": (
            within(phenotype_values=Stored(Bytes(pickle.dumps(runs)))),
            "weights_only|tensor",
        ),
        "bytes of a tensor, a whole tensor": (
            within(phenotype_values=Stored(Bytes(saved(torch.zeros(3))))),
            "are a Tensor",
        ),
        "bytes of a tensor, cut": (within(phenotype_values=Stored(Bytes(good[:-9]))), "."),
        "beyond its bytes": (within(phenotype_values=Stored(Bytes(good), size=(9,))), "does not fit"),
        "before its bytes": (within(phenotype_values=Stored(Bytes(good), offset=-2)), "does not fit"),
        "the same for ever": (
            within(phenotype_values=Stored(Bytes(good), size=(1 << 50,), stride=(0,))),
            "does not fit",
        ),
        "a tensor of a tensor": (within(phenotype_values=Stored(Stored(Bytes(good)))), "no bytes"),
        "a persistent id": (b"Vos\nP0\n.", "persistent"),
        "by BUILD": (b"ctorch._utils\n_rebuild_tensor_v2\n}Vx\nNsb.", "none of torchcell's"),
        "none of its records": (pickle.dumps([1, 2]), "none of torchcell's"),
        "half a record": (pickle.dumps({"gene": {}}), "none of torchcell's"),
        "no pickle": (b"\x99\x99", "invalid load key"),
        "nothing": (b"", "Ran out of input"),
        "cut": (pickle.dumps(empty)[:-7], "truncated|Ran out"),
        "too large": (bytes(reader.MAX_RECORD_BYTES + 1), "bytes, expected"),
    }


KINDS = list(hostile(Path("x")))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_hostile_pickle_runs(tmp_path: Path, kind: str) -> None:
    data, said = hostile(tmp_path / "made")[kind]
    columns = reader.Columns({0})
    with pytest.raises(Exception, match=said) as raised:
        columns.add(0, reader.record_of(data))
    assert isinstance(raised.value, reader.RefusedError) == ("names" in said)
    assert not (tmp_path / "made").exists()


def test_the_canary_sings(tmp_path: Path) -> None:
    pickle.loads(hostile(tmp_path / "made")["in a field"][0])
    assert (tmp_path / "made").is_dir()


MUCH = {
    "a place in the memo": b"\x80\x04Nr\xff\xff\xff\x7f.",
    "bytes that are not there": b"\x80\x04\x8e" + (1 << 44).to_bytes(8, "little") + b".",
    "a tensor that is not there": None,
    "pages of LMDB that make no sense": None,
    "a record that is not there": None,
}


@pytest.mark.parametrize("kind", ["system", *MUCH])
def test_an_import_ends_with_a_sentence(
    tmp_path: Path, source: Any, records: list[dict[str, Any]], kind: str
) -> None:
    data = MUCH.get(kind) or hostile(tmp_path / "made")["system"][0]
    if kind == "a tensor that is not there":
        numbers = saved(torch.zeros(3)._typed_storage()).replace(
            b"K\x03N", b"\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"N"
        )
        data = changed(records, phenotype_values=Stored(Bytes(numbers)))
    rows = [pickle.dumps(item) for item in records[:6]]
    store = write(tmp_path / "old", [*rows, data] if kind != "a record that is not there" else rows)
    if kind == "pages of LMDB that make no sense":
        file = store / "processed" / "lmdb" / "data.mdb"
        whole = bytearray(file.read_bytes())
        whole[8192:] = b"\xff" * len(whole[8192:])
        file.write_bytes(whole)
    if kind == "a record that is not there":
        (store / "processed" / "metadata.json").write_text('{"length": 9}')
    error = UnsafeContentError if kind == "system" else SourceContractError
    with pytest.raises(error, match=r"data\.mdb: sample \d") as raised:
        imported(tmp_path / "new", store, source.base_graph)
    if kind == "system":
        assert "sample 6: its pickle names os.system" in str(raised.value)
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "new").exists()


def test_a_record_that_takes_for_ever_ends_the_process(tmp_path: Path) -> None:
    """Pairs of pairs, sixty deep, as the key of a dictionary: hashing it would take 2 ** 60 steps."""
    data = b"\x80\x04}N" + b"2\x86" * 60 + b"Ns."
    store = write(tmp_path / "old", [data]) / "processed" / "lmdb" / "data.mdb"
    code = "from torchcell_cache.sources import pickled_records as r; import sys; r._CPU_SECONDS = 0.3; r.main(*sys.argv[1:])"
    arguments = [str(store), "1", str(tmp_path), "[]"]
    done = fresh.run([sys.executable, "-c", code, *arguments], timeout=60)
    assert done.returncode == -signal.SIGPROF
    assert done.stdout == b"0\n"
