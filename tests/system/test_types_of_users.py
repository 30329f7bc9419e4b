"""What mypy and pyright say of a user's script: nothing where it is right, the line where a word is misspelt."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import torchcell_cache as tc

ROOT = Path(__file__).resolve().parents[2]

RIGHT = '''
"""A user's script, every type said by hand: a checker compares them with the package's."""

import numpy as np
import torch

import torchcell_cache as tc

cell = tc.testing.tiny_graph()
table = tc.PerturbationTable(cell, [["G0"], ["G1"]], phenotypes={"fitness": [0.1, 0.2]}, nan="keep", unknown="drop")
ds = tc.build("stores/cell", source=table, processor=tc.LazySubgraphRepresentation(gpr="rule"), storage="delta")
graphs = tc.build("stores/graphs", source=[ds[0], ds[1]], processor=lambda graph: graph, on_stale="rebuild")
opened: tc.PreprocessedDataset = tc.PreprocessedDataset("stores/cell", download="lazy")
part: tc.PreprocessedDataset = ds[:0] if len(ds) else ds[[0, 1]]
masked: tc.PreprocessedDataset = ds[torch.arange(2)][np.array([True, False])]
ids: list[int] = ds[0]["gene"].ids_pert
splits: tc.Splits = tc.split_by_perturbation(ds, names="gears", controls="train")
train: tc.PreprocessedDataset = splits.view("train")
loader: tc.CacheLoader[tc.SharedGraphBatch] = tc.CacheLoader(train, batch_size=2, shuffle=True, uneven="pad", seed=3)
for batch in loader:
    fitness: torch.Tensor = batch.labels("fitness")
    mask: torch.Tensor = batch.edge_mask(("gene", "physical", "gene"))
for expanded in tc.CacheLoader(ds, expand=True):
    x: torch.Tensor = expanded["gene"].x
for size in tc.CacheLoader(ds, collate_fn=len):
    doubled: int = 2 * size
rows = tc.select(ds, "fitness > 0", match="all", genes=["G0"])
report = tc.verify("stores/cell", "full")
good: bool = report.ok
growth = tc.append("stores/cell", table)
frame = ds.to_pandas()
memory = ds.to_in_memory()
page: str = ds.card(splits=splits)
pairs: torch.Tensor
for pair in tc.CacheLoader(tc.PairedCells(ds)):
    pairs = pair.y
everything = EVERYTHING
'''

WRONG = {
    'tc.build("s", source=table, storage="detla")': "choice",
    'tc.build("s", source=table, on_stale="rebiuld")': "choice",
    'tc.build("s", source=table, num_worker=2)': "argument",
    'tc.build("s", source=3)': "kind of source",
    'tc.build("s", processor=tc.Perturbation())': "no source",
    'tc.PerturbationTable(cell, [], nan="kepe")': "choice",
    "tc.PerturbationTable(cell, [], phenotype={})": "argument",
    'tc.LazySubgraphRepresentation(gpr="rules")': "choice",
    'tc.KHopSubgraph(2, flow="up")': "choice",
    'tc.CacheLoader(ds, uneven="padded")': "choice",
    "tc.CacheLoader(ds, batchsize=3)": "argument",
    "tc.CacheLoader(ds, prefetch=3)": "argument",
    "tc.CacheLoader([1, 2])": "kind of dataset",
    'next(iter(tc.CacheLoader(ds))).label("fitness")': "method of a batch",
    "size += next(iter(tc.CacheLoader(ds, collate_fn=str)))": "kind of item",
    'tc.select(ds, match="some")': "choice",
    "tc.split_by_perturbation(ds, fraction=(1, 0))": "argument",
    'tc.split_by_perturbation(ds, names="gaers")': "choice",
    'tc.verify("s", "fast")': "choice",
    'tc.PreprocessedDataset("s", download="later")': "choice",
    "tc.DistributedCacheSampler(ds, 3, unevenn='pad')": "argument",
    'ds.read_batch([0]).restrict(8, strategy="most")': "choice",
    "tc.bild": "name",
    "ds[:3].columns.keyss()": "method",
}


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[int]]:
    """A right script with wrong lines behind it, and their numbers."""
    path = tmp_path_factory.mktemp("user") / "script.py"
    names = ", ".join(f"tc.{name}" for name in tc.__all__ if name != "__version__")
    lines = RIGHT.lstrip("\n").replace("EVERYTHING", f"[{names}]").splitlines()
    path.write_text("\n".join([*lines, *WRONG]) + "\n")
    return path, set(range(len(lines) + 1, len(lines) + len(WRONG) + 1))


def compare(found: dict[int, str], wanted: set[int], path: Path) -> None:
    lines = path.read_text().splitlines()
    assert {lines[k - 1]: text for k, text in found.items() if k not in wanted} == {}
    assert [lines[k - 1] for k in sorted(wanted - set(found))] == []


def test_mypy_finds_what_is_misspelt(script: tuple[Path, set[int]]) -> None:
    path, wanted = script
    # With every option of `make types`: what it left in the cache holds, and torch's types need not be read again.
    call = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")]
    call += ["--cache-dir", str(ROOT / ".mypy_cache"), str(path)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = re.findall(r"script\.py:(\d+): error: (.*(?<!\[unreachable\]))$", done.stdout, re.M)
    compare({int(number): text for number, text in lines}, wanted, path)


@pytest.mark.skipif(
    find_spec("pyright") is None, reason="pyright is not installed; pip install 'pyright[nodejs]'"
)
def test_pyright_finds_what_is_misspelt(script: tuple[Path, set[int]]) -> None:
    path, wanted = script
    (path.parent / "pyrightconfig.json").write_text(
        json.dumps({"extraPaths": [str(ROOT)], "typeCheckingMode": "standard"})
    )
    call = [
        sys.executable,
        "-m",
        "pyright",
        "--outputjson",
        "--pythonpath",
        sys.executable,
        "-p",
        str(path.parent),
    ]
    done = subprocess.run(call, cwd=path.parent, capture_output=True, text=True, check=False)
    if not done.stdout.lstrip().startswith("{"):
        pytest.skip(f"pyright cannot run here: {(done.stdout + done.stderr)[-300:]}")
    said = json.loads(done.stdout[done.stdout.index("{") :])["generalDiagnostics"]
    found = {
        each["range"]["start"]["line"] + 1: each["message"] for each in said if each["severity"] == "error"
    }
    compare(found, wanted, path)
