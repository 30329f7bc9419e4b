"""What a cell looks like as a graph, one by one and in chunks."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from torchcell_cache.codec.chunks import ChangedRows, Field, FieldChunk
from torchcell_cache.codec.layout import FieldKey, Payload, TensorValue, field_label
from torchcell_cache.core.ragged import Float32Array, Int64Array
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.graph.fields import flatten, payload_of
from torchcell_cache.sources.cells.genes import Perturbations
from torchcell_cache.sources.cells.labels import Labels

_INT64, _FLOAT32 = 6, 11
_NUMBERS = "vocabulary_indices"


class CellSamples:
    """Makes the graphs of cells.

    Args:
        graph: The base graph as the user gave it.
        node_type: Node type of the genes, ``None`` for ``Data``.
        names: Node names.
        field: Node field of the expression.
        column: Its column, ``None`` to append one.
        measured: Which nodes can have expression, ``[num_nodes] bool``.
        labels: Labels of all cells.
        phenotypes: Names of the numeric labels.
        y: The label that is ``y``, or ``None``.
        how: Where perturbations stand.
        beside: What the base graph has of its own besides: side tables.

    Raises:
        SourceContractError: If the base graph's field cannot take the expression, or has a name of ours.
        SettingError: If ``column`` is out of range.
    """

    def __init__(
        self,
        graph: Any,
        node_type: str | None,
        names: list[str],
        field: str,
        column: int | None,
        measured: npt.NDArray[np.bool_],
        labels: Labels,
        phenotypes: tuple[str, ...],
        y: str | None,
        how: Perturbations,
        beside: dict[str, Any],
    ) -> None:
        self.node_type, self.names, self.field = node_type, names, field
        self.labels, self.measured = labels, measured
        self._cell = copy.copy(graph)
        store = self._nodes(self._cell)
        self.base_field, self.column = _with_column(store.get(field), field, column, len(names))
        self.width = int(self.base_field.size(1))
        if "num_nodes" not in store:
            store["num_nodes"] = len(names)
        store[field] = self.base_field
        self._sample_fields: dict[FieldKey, Any] = {}
        if how.columns:
            self._sample_fields[node_type, "ids_pert"] = None
            self._sample_fields[node_type, "perturbation_indices"] = None
        if how.vocabulary is not None:
            self._sample_fields[None, _NUMBERS] = None
            beside = {**beside, "perturbation_vocabulary": list(how.vocabulary.names)}
        if labels.categories:
            categories = {name: list(found) for name, found in labels.categories.items()}
            beside = {**beside, "obs_categories": categories}
        for name, source in (("obs_values", labels.values), ("obs_codes", labels.codes)):
            if source.shape[1]:
                self._sample_fields[None, name] = source[:, None, :]
        if y is not None:
            number = y in phenotypes
            columns, at = (labels.values, phenotypes) if number else (labels.codes, tuple(labels.categories))
            self._sample_fields[None, "y"] = columns[:, [at.index(y)]]
        self._refuse_taken(beside)
        self.base_graph = copy.copy(self._cell)
        self._nodes(self.base_graph)["measured"] = torch.from_numpy(measured)
        for name, found in beside.items():
            self._global(self.base_graph)[name] = found
        self._texts: dict[tuple[str, ...], bytes] = {}

    def _nodes(self, graph: Any) -> Any:
        return graph._store if self.node_type is None else graph[self.node_type]

    def _global(self, graph: Any) -> Any:
        return graph._store if self.node_type is None else graph._global_store

    def _refuse_taken(self, beside: dict[str, Any]) -> None:
        names = {"obs_categories", *beside}  # which an earlier source may have left
        ours = [*self._sample_fields, (self.node_type, "measured"), *((None, name) for name in sorted(names))]
        for store, name in ours:
            taken = self._global(self._cell) if store is None else self._nodes(self._cell)
            if name in taken:
                raise SourceContractError(
                    f"the base graph has a field {name!r} already, which is the cell's own here",
                    fix="pass the graph that an earlier AnnDataSource was given, not the one it made of it; or rename the field",
                )

    def _perturbed(self, index: int) -> Int64Array:
        found = self.labels.perturbed
        return found.ids[found.ptr[index] : found.ptr[index + 1]]

    def _places(self, index: int) -> Int64Array:
        found = self.labels.perturbed
        return found.numbers[found.number_ptr[index] : found.number_ptr[index + 1]]

    def _perturbed_names(self, index: int) -> tuple[str, ...]:
        """Names of a cell's perturbed genes, those last that are no nodes."""
        own = self.labels.perturbed.foreign.get(index, ())
        return (*(self.names[k] for k in self._perturbed(index).tolist()), *own)

    def graph(self, index: int, nodes: Int64Array, values: Float32Array) -> Any:
        """The graph of one cell.

        Args:
            index: Its number among all cells.
            nodes: Nodes with expression, ``[k] int64``.
            values: Their expression, ``[k] float32``.
        """
        out = copy.copy(self._cell)
        feature = self.base_field.clone()
        feature[torch.from_numpy(nodes), self.column] = torch.from_numpy(values)
        store = self._nodes(out)
        store[self.field] = feature
        for (key, name), column in self._sample_fields.items():
            if name == "ids_pert":
                store[name] = list(self._perturbed_names(index))
            elif name == "perturbation_indices":
                store[name] = torch.from_numpy(self._perturbed(index).copy())
            elif name == _NUMBERS:
                self._global(out)[name] = torch.from_numpy(self._places(index).copy())
            else:
                assert key is None
                self._global(out)[name] = torch.from_numpy(column[index].copy())
        return out

    def chunk(self, start: int, changes: ChangedRows) -> FieldChunk:
        """Cells ``start``, ``start + 1``, ... whose expression is ``changes``."""
        count = len(changes.ptr) - 1
        nothing = np.empty(0, dtype=np.int64)
        layout = flatten(self.graph(start, nothing, np.empty(0, dtype=np.float32))).layout
        fields: list[Field] = []
        for key, name in layout.keys:
            if name == self.field and key == self.node_type:
                fields.append(changes)
            elif (key, name) in self._sample_fields:
                fields.append(self._own((key, name), start, count))
            else:
                fields.append(None)
        return FieldChunk(count, layout, fields)

    def _own(self, key: FieldKey, start: int, count: int) -> Field:
        column = self._sample_fields[key]
        if column is not None:
            part = column[start : start + count]
            code = _FLOAT32 if part.dtype == np.float32 else _INT64
            return [TensorValue(code, row) for row in np.ascontiguousarray(part)]
        cells = range(start, start + count)
        if key[1] == "perturbation_indices":
            return [TensorValue(_INT64, self._perturbed(k)) for k in cells]
        if key[1] == _NUMBERS:
            return [TensorValue(_INT64, self._places(k)) for k in cells]
        return [self._text(self._perturbed_names(k), key) for k in cells]

    def _text(self, names: tuple[str, ...], key: FieldKey) -> Payload:
        """Names of perturbed genes as stored; most cells share them with others."""
        if names not in self._texts:
            payload = payload_of(list(names), field_label(key))
            assert isinstance(payload, bytes)
            self._texts[names] = payload
        return self._texts[names]


def _with_column(given: Any, field: str, column: int | None, num_nodes: int) -> tuple[torch.Tensor, int]:
    """The base graph's field with a zero column for the expression, and that column's number."""
    if given is None:
        if column not in (None, 0):
            raise SettingError(
                f"column={column}, but the base graph has no node field {field!r}", fix="leave it out"
            )
        return torch.zeros(num_nodes, 1, dtype=torch.float32, device="cpu"), 0
    is_tensor = isinstance(given, torch.Tensor)
    if not is_tensor or given.dim() != 2 or given.dtype != torch.float32 or given.layout != torch.strided:
        layout = "" if is_tensor and given.layout == torch.strided else f" {getattr(given, 'layout', '')}"
        got = f"{given.dtype} {list(given.shape)}{layout}" if is_tensor else type(given).__name__
        raise SourceContractError(
            f"the base graph's {field!r} is {got}, expected float32 [{num_nodes}, k]",
            fix='convert it, or pass field="expression" for a field of its own',
        )
    if column is None:
        return torch.cat([given, torch.zeros(num_nodes, 1, dtype=torch.float32, device="cpu")], dim=1), int(
            given.size(1)
        )
    if not 0 <= column < given.size(1):
        raise SettingError(f"column={column} is not one of the {given.size(1)} columns of {field!r}")
    out = given.clone()
    out[:, column] = 0
    return out, column
