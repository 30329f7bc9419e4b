"""A store of torchcell's own ``Neo4jPreprocessedCellDataset`` as a source: its ids and labels; all else is made anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.checks import truth, whole_number
from torchcell_cache.core.progress import Progress
from torchcell_cache.core.ragged import Int64Array, offsets
from torchcell_cache.core.samples import SampleTable
from torchcell_cache.core.urls import local_path
from torchcell_cache.errors import CacheNotFoundError, SourceContractError, UnsafeContentError
from torchcell_cache.processors.deletion import node_names
from torchcell_cache.processors.lazy import LazySubgraphRepresentation
from torchcell_cache.sources.pickled_records import COLUMNS, LABELS, OUTCOME, STATISTICS
from torchcell_cache.sources.table import PerturbationTable
from torchcell_cache.sources.torchcell import placed

_MOST_MEASUREMENTS = 10_000
_ANEW = "build it anew from torchcell's dataset: preprocess_from_source"
_GRAPH = (
    "the cell graph that the store was made with: tc.save_base_graph(dataset.cell_graph, directory) writes it"
)


def torchcell_store(
    store: str | os.PathLike[str],
    base_graph: Any,
    *,
    trust: bool = False,
    num_samples: int = 100,
    progress: bool = True,
) -> PerturbationTable:
    """Read ids and labels of torchcell's store, and compare random samples with what the processor makes of them.

    Raises:
        UnsafeContentError: If it is not trusted, or a record names something else than torchcell's records do.
        CacheNotFoundError: If there is no such store.
        SourceContractError: If a record is no record, or the base graph is another one.
    """
    if not truth("trust", trust):
        raise UnsafeContentError(
            "torchcell's store is pickles. They are read in a process of its own, in which nothing they name is called; "
            "its files may still make that process crash",
            path=local_path(store, "store"),
            fix="trust=True, if you know who made it",
        )
    whole_number("num_samples", num_samples, 1)
    place = local_path(store, "store") / "processed"
    file = place / "lmdb" / "data.mdb"
    try:
        file.stat()
        count = json.loads((place / "metadata.json").read_text(encoding="utf-8"))["length"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CacheNotFoundError(
            f"no store of torchcell's at {store}: {error}",
            path=place,
            fix="store=<root of torchcell's Neo4jPreprocessedCellDataset>",
        ) from None
    whole_number("length in metadata.json", count, 0)
    checked = np.sort(np.random.default_rng(0).permutation(count)[:num_samples])
    with tempfile.TemporaryDirectory() as directory:
        with Progress(count, 0, None, enabled=progress, what="read pickles") as meter:
            _read_elsewhere(file, checked, Path(directory), meter)
        return Records(file, checked, Path(directory)).source(base_graph)


def _read_elsewhere(file: Path, checked: Int64Array, directory: Path, meter: Progress) -> None:
    """Let another process make columns of pickles."""
    script, root = Path(__file__).with_name("pickled_records.py"), Path(__file__).resolve().parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    arguments = [str(file), str(meter.total), str(directory), json.dumps(checked.tolist())]
    at, stderr = 0, directory / "stderr"
    with (
        stderr.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-P", str(script), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                at = int(line)
                meter(at + 1 - meter.done)
        except BaseException:
            process.kill()
            raise
    code, outcome = process.returncode, directory / OUTCOME
    found: dict[str, Any] = {} if code or not outcome.exists() else json.loads(outcome.read_text())
    where = f"{file}: sample {found.get('sample', at)}"
    if "refused" in found:
        raise UnsafeContentError(
            f"{where}: {found['refused']}, which is none of torchcell's records; nothing of it was run",
            path=file,
            fix="ask who made it; a store of another form is built anew: preprocess_from_source",
        )
    if "words" not in found:
        name = signal.Signals(-code).name if code < 0 else f"code {code}"
        said = stderr.read_text().strip()[-300:]
        ended = f"the process that reads it ended with {name}: {said}".rstrip(": ")
        raise SourceContractError(f"{where}: {found.get('failed', ended)}", path=file, fix=_ANEW)


class Records:
    """What the process that reads pickles left in a directory."""

    def __init__(self, file: Path, checked: Int64Array, directory: Path) -> None:
        self.file, self.checked = file, checked
        self.said = json.loads((directory / OUTCOME).read_text())
        with np.load(directory / COLUMNS, allow_pickle=False) as arrays:
            self.arrays: dict[str, npt.NDArray[Any]] = dict(arrays)
        self.ptr = {
            name: offsets(self.arrays[f"{name}.count"])
            for name in self.arrays
            if f"{name}.count" in self.arrays
        }
        self.count = len(self.arrays["ids_pert.count"])
        keys = [key[0] if len(key) == 1 else tuple(key) for key in self.said.get("keys", [])]
        self.sizes = dict(zip(keys, self.said.get("sizes", []), strict=True))

    def source(self, base_graph: Any) -> PerturbationTable:
        """Its ids and labels on the base graph, compared with what the processor makes of random samples."""
        source = PerturbationTable.of_table(base_graph, self.table(base_graph), "gene")
        source.notes = self.compared(source)
        return source

    def row(self, name: str, index: int) -> npt.NDArray[Any]:
        """A field of a sample."""
        return self.arrays[name][self.ptr[name][index] : self.ptr[name][index + 1]]

    def refuse(self, index: int, why: str, fix: str = _GRAPH) -> SourceContractError:
        """The error about a sample."""
        return SourceContractError(f"sample {index} of {self.file}: {why}", path=self.file, fix=fix)

    def table(self, base_graph: Any) -> SampleTable:
        """Ids by name, and labels; names that no node has are kept."""
        if "gene" not in getattr(base_graph, "node_types", ()) or node_names(base_graph["gene"]) is None:
            raise SourceContractError("the base graph has no gene.node_ids", fix=f"base_graph=..., {_GRAPH}")
        words, codes = self.said.get("words", []), self.arrays["ids_pert"]
        owner = np.repeat(np.arange(self.count), np.diff(self.ptr["ids_pert"]))
        ids, ptr, unknown = placed(words, codes, owner, self.count, base_graph)
        fields = self.arrays["perturbation_indices"], self.ptr["perturbation_indices"]
        if not (np.array_equal(ids, fields[0]) and np.array_equal(ptr, fields[1])):
            rows = ((k, self.row("perturbation_indices", k)) for k in range(self.count))
            at, got = next((k, row) for k, row in rows if not np.array_equal(ids[ptr[k] : ptr[k + 1]], row))
            named = [words[code] for code in self.row("ids_pert", at).tolist()]
            why = f"it perturbs {named}, stored as nodes {got.tolist()}, which the base graph calls otherwise"
            raise self.refuse(at, why)
        return SampleTable(ids=ids, ptr=ptr, **self._measurements(), unknown=unknown)

    def _measurements(self) -> Mapping[str, Any]:
        """A row per measurement: labels, then statistics; NaN where there is none."""
        phenotypes, statistics = (tuple(self.said.get(kind, ())) for kind in ("phenotypes", "statistics"))
        parts = (LABELS, 0, phenotypes), (STATISTICS, len(phenotypes), statistics)
        rows = np.ones(self.count, dtype=np.int64)
        owners = [self._owners(fields, len(names)) for fields, _, names in parts]
        for owner, (fields, _, _) in zip(owners, parts, strict=True):
            np.maximum.at(rows, owner, self.arrays[fields[2]] + 1)
        value_ptr = offsets(rows)
        values = np.full((value_ptr[-1], len(phenotypes) + len(statistics)), np.nan, dtype=np.float32)
        for owner, (fields, first, _) in zip(owners, parts, strict=True):
            numbers, types, positions = (self.arrays[name] for name in fields)
            values[value_ptr[owner] + positions, first + types] = numbers
        return {"values": values, "value_ptr": value_ptr, "phenotypes": phenotypes, "statistics": statistics}

    def _owners(self, fields: Sequence[str], width: int) -> Int64Array:
        """Sample of each number, if a table can say the same: no NaN but for "nothing", one number per label and measurement."""
        counts = [np.diff(self.ptr[name]) for name in fields]
        owner = np.repeat(np.arange(self.count), counts[0])
        uneven = np.flatnonzero((counts[0] != counts[1]) | (counts[0] != counts[2]))
        if len(uneven):
            raise self.refuse(int(uneven[0]), f"{' and '.join(fields)} differ in length", _ANEW)
        numbers, types, rows = (self.arrays[name] for name in fields)
        bad = (types < 0) | (types >= width) | (rows < 0) | (rows >= _MOST_MEASUREMENTS)
        nothing = (counts[0][owner] == 1) & (types == 0) & (rows == 0) & (fields is LABELS)
        bad |= np.isnan(numbers) & ~nothing
        follows = (owner[1:] == owner[:-1]) & ~bad[1:]
        bad[1:] |= follows & (rows[1:] * width + types[1:] <= rows[:-1] * width + types[:-1])
        if bad.any():
            at = int(owner[bad.argmax()])
            said = {name: self.row(name, at).tolist() for name in fields}
            raise self.refuse(at, f"it is none that a table of labels can hold: {said}", _ANEW)
        return owner

    def compared(self, source: PerturbationTable) -> tuple[str, ...]:
        """What random samples have in the store, and what the processor makes of them now."""
        processor, moved = LazySubgraphRepresentation(), dict.fromkeys(self.sizes, 0)
        removed = iter(np.split(self.arrays["removed"], self.ptr["removed"][1:-1]))
        for index in self.checked.tolist():
            graph = processor.process(source.base_graph, source[index])
            masks = {store._key: ~store.mask.numpy() for store in graph.stores if "mask" in store}
            sizes = {key: len(mask) for key, mask in masks.items()}
            if sizes != self.sizes:
                raise self.refuse(index, f"its masks are {self.sizes}, the base graph gives {sizes}")
            for name in (*LABELS, *STATISTICS):
                if not np.array_equal(graph["gene"].get(name, []), self.row(name, index), equal_nan=True):
                    raise self.refuse(index, f"its {name} would be another one", _ANEW)
            for key in self.sizes:
                stored, made = next(removed), np.flatnonzero(masks[key])
                if len(stored) != len(made):
                    raise self.refuse(index, f"{key} lacks {len(stored)}, with the base graph {len(made)}")
                moved[key] += not np.array_equal(np.sort(stored), made)
        return tuple(
            f"{' '.join(key)}: {count} of {len(self.checked)} compared samples lack others than in torchcell's store, which "
            "has positions of a graph in another order; masks are made anew"
            for key, count in moved.items()
            if count
        )
