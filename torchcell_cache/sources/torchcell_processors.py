"""torchcell's processors on its own dataset: this package's own where they give the same, else as they are.

Proof is a comparison, field by field, of samples of every kind there is in the dataset. Every other processor of three
arguments gets torchcell's objects and runs as it is.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from torchcell_cache.core.ragged import offsets
from torchcell_cache.errors import SourceContractError
from torchcell_cache.graph.compare import stores_of, value_difference
from torchcell_cache.processors import (
    NAMED,
    DCellGraphProcessor,
    LazySubgraphRepresentation,
    Perturbation,
    SubgraphRepresentation,
    Unperturbed,
)
from torchcell_cache.sources.torchcell import TorchcellSource, records_of

_THEIRS = "torchcell.data.graph_processor"
_OURS: dict[str, type[Any]] = {
    "LazySubgraphRepresentation": LazySubgraphRepresentation,
    "SubgraphRepresentation": SubgraphRepresentation,
    "IncidenceSubgraphRepresentation": SubgraphRepresentation,
    "Perturbation": Perturbation,
    "Unperturbed": Unperturbed,
    "DCellGraphProcessor": DCellGraphProcessor,
}
_PROBES = 24
_NAMES = ("ids_pert", "perturbed_genes")


def paired(source: Any, processor: Any) -> tuple[Any, Any, tuple[str, ...]]:
    """What a build takes of a source and a processor: torchcell's processors as this package's own where they give the same.

    Returns:
        Source, processor, and a line to print where a processor of torchcell's runs as it is.

    Raises:
        SourceContractError: If the processor takes one number per label and records have something else.
    """
    if not isinstance(source, TorchcellSource) or isinstance(processor, RecordProcessor):
        return source, processor, ()
    name, theirs = type(processor).__name__, sys.modules.get(_THEIRS)
    if source.unlike is not None and type(processor) in NAMED.values():
        if not hasattr(theirs, name) or processor.settings() != type(processor)().settings():
            raise SourceContractError(
                f"{source.unlike}, and {name} takes one number per label",
                fix="torchcell's processor of that name, or phenotype_labels=[...] for torchcell's dataset",
            )
        processor = getattr(theirs, name)()  # what they make of such a label is their own
    if not takes_records(processor):
        return source, processor, ()
    notes: tuple[str, ...] = ()
    if type(processor).__module__ == _THEIRS and name in _OURS:
        ours = _OURS[name]()
        why = source.unlike or _difference(source, processor, ours)
        if why is None:
            return source, ours, ()
        notes = (f"torchcell's {name} runs as it is, which takes more space: {why}",)
    return RecordSource(source), RecordProcessor(processor, source.phenotype_info), notes


def takes_records(processor: Any) -> bool:
    """Whether a processor is ``process(cell_graph, phenotype_info, data)``."""
    method = getattr(processor, "process", None)
    if not callable(method):
        return False
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters) == 3


def _difference(source: TorchcellSource, processor: Any, ours: Any) -> str | None:
    """Where two processors differ on samples of every kind there is, or ``None``."""
    table, records = source.table, RecordSource(source)
    outside = np.zeros(len(table), dtype=np.int64) if table.unknown is None else np.diff(table.unknown.ptr)
    statistics = ~np.isnan(table.values[:, len(table.phenotypes) :])
    known = offsets(statistics.sum(axis=1))[table.value_ptr]
    kinds = np.stack([np.diff(table.value_ptr), np.diff(table.ptr), outside, np.diff(known) > 0], axis=1)
    _, first = np.unique(kinds, axis=0, return_index=True)
    spread = np.linspace(0, max(len(table) - 1, 0), _PROBES // 3).astype(np.int64)
    try:
        for index in dict.fromkeys([*first[:_PROBES].tolist(), *spread.tolist()]) if len(table) else ():
            theirs = processor.process(source.base_graph, source.phenotype_info, records[index])
            want, got = _plain(theirs), _plain(ours.process(source.base_graph, source[index]))
            parts = ((key, value_difference(got[key], value)) for key, value in want.items() if key in got)
            differs = next((f"{key}: {text}" for key, text in parts if text is not None), None)
            if (odd := want.keys() ^ got.keys()) or differs:
                why = sorted(map(str, odd)) or differs
                return f"sample {index} is another one with this package's own: {why}"
    except Exception as error:
        return f"{type(error).__name__} on a sample: {error}"
    finally:
        source.dataset.close_lmdb()
    return None


def _plain(graph: Any) -> dict[tuple[Any, str], Any]:
    """Fields of a sample, but for the order of stores, fields and names."""
    out = {(key, name): value for key, fields in stores_of(graph) for name, value in fields.items()}
    for key, name in [place for place in out if place[1] in _NAMES]:
        order = sorted(range(len(out[key, name])), key=out[key, name].__getitem__)
        out[key, name] = [out[key, name][k] for k in order]
        indices = out[key, "perturbation_indices"]
        if len(indices) == len(order):  # in the order of the names, which is another one in each process
            out[key, "perturbation_indices"] = indices.sort().values
    return out


class RecordSource:
    """The records of a torchcell dataset as torchcell's processors get them."""

    def __init__(self, source: TorchcellSource) -> None:
        self.source, self.table, self.notes = source, source.table, source.notes
        self.base_graph, self.node_type = source.base_graph, source.node_type

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        dataset = self.source.dataset
        records: list[dict[str, Any]] = dataset._reconstruct_experiments(records_of(dataset, index))
        return records

    def items(self, start: int, stop: int) -> Iterator[list[dict[str, Any]]]:
        """Records of consecutive samples."""
        try:
            yield from (self[index] for index in range(start, stop))
        finally:
            self.source.dataset.close_lmdb()

    def identity(self) -> dict[str, Any]:
        """That of the dataset."""
        return self.source.identity()


class RecordProcessor:
    """A processor of three arguments as one of two.

    Attributes:
        runs: torchcell's or a user's processor.
    """

    def __init__(self, runs: Any, phenotype_info: list[Any]) -> None:
        self.runs, self.phenotype_info = runs, phenotype_info

    @property
    def stands_for(self) -> Any:
        """What a fingerprint says: torchcell's own by name and version, without what they keep from call to call."""
        kind = type(self.runs)
        if kind.__module__ != _THEIRS:
            return self.runs
        version = getattr(sys.modules.get("torchcell"), "__version__", "")
        return {"class": f"{kind.__module__}.{kind.__qualname__}", "version": str(version)}

    def process(self, base_graph: Any, records: Any) -> Any:
        """What the processor makes of a sample."""
        return self.runs.process(base_graph, self.phenotype_info, records)
