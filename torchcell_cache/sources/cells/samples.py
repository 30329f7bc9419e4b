"""What a cell looks like as a graph, one by one and in chunks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
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


class CellSamples:
    """Makes the graphs of cells.

    Args:
        graph: The base graph as the user gave it.
        node_type: Node type of the genes, ``None`` for ``Data``.
        names: Node names.
        settings: ``field`` and ``column`` of the expression, ``phenotypes`` and which label is ``y``.
        measured: Which nodes can have expression, ``[num_nodes] bool``.
        labels: Labels of all cells.
        how: Where perturbations stand.
        tables: Side tables, which the base graph has of its own.

    Raises:
        SourceContractError: If the base graph's field cannot take the expression, or has a name of ours.
        SettingError: If ``column`` is out of range.
    """

    def __init__(
        self,
        graph: Any,
        node_type: str | None,
        names: list[str],
        settings: Mapping[str, Any],
        measured: npt.NDArray[np.bool_],
        labels: Labels,
        how: Perturbations,
        tables: dict[str, Any],
    ) -> None:
        self.node_type, self.names, self.field = node_type, names, settings["field"]
        self.labels, self.measured = labels, measured
        self._cell = copy.copy(graph)
        store = self._store(self._cell, node_type)
        column = settings["column"]
        self.base_field, self.column = _with_column(store.get(self.field), self.field, column, len(names))
        self.width = int(self.base_field.size(1))
        if "num_nodes" not in store:
            store["num_nodes"] = len(names)
        store[self.field] = self.base_field
        # What a sample has of its own: a column over all cells, or an attribute of the cell's condition.
        self._own: dict[FieldKey, npt.NDArray[Any] | str] = {}
        if how.columns:
            self._own |= {(node_type, "ids_pert"): "names", (node_type, "perturbation_indices"): "ids"}
        beside: dict[str, Any] = {"obs_tables": tables} if tables else {}
        if how.vocabulary is not None:
            self._own[None, "vocabulary_indices"] = "numbers"
            beside["perturbation_vocabulary"] = list(how.vocabulary.names)
        if labels.categories:
            beside["obs_categories"] = {name: list(found) for name, found in labels.categories.items()}
        for name, source in (("obs_values", labels.values), ("obs_codes", labels.codes)):
            if source.shape[1]:
                self._own[None, name] = source[:, None, :]
        if (y := settings["y"]) is not None:
            number = y in settings["phenotypes"]
            columns, at = (
                (labels.values, settings["phenotypes"]) if number else (labels.codes, [*labels.categories])
            )
            self._own[None, "y"] = columns[:, [at.index(y)]]
        names_beside = sorted({"obs_categories", *beside})  # which an earlier source may have left
        ours = [*self._own, (node_type, "measured"), *((None, name) for name in names_beside)]
        for key, name in ours:
            if name in self._store(self._cell, key):
                raise SourceContractError(
                    f"the base graph has a field {name!r} already, which is the cell's own here",
                    fix="pass the graph that an earlier AnnDataSource was given, not the one it made of it; or rename the field",
                )
        self.base_graph = copy.copy(self._cell)
        self._store(self.base_graph, node_type)["measured"] = torch.from_numpy(measured)
        for name, found in beside.items():
            self._store(self.base_graph, None)[name] = found
        self._texts: dict[tuple[str, ...], Payload] = {}

    def _store(self, graph: Any, key: Any) -> Any:
        """Where fields of a node type are, and those of the whole graph (``None``)."""
        if self.node_type is None:
            return graph._store
        return graph._global_store if key is None else graph[key]

    def _value(self, key: FieldKey, index: int) -> Any:
        """A cell's own field, as an array or as names; of perturbed genes those last that are no nodes."""
        column = self._own[key]
        if not isinstance(column, str):
            return column[index]
        condition = self.labels.conditions[self.labels.of[index]]
        if column == "names":
            return (*(self.names[k] for k in condition.ids.tolist()), *condition.foreign)
        return getattr(condition, column)

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
        self._store(out, self.node_type)[self.field] = feature
        for key in self._own:
            found = self._value(key, index)
            own = list(found) if isinstance(found, tuple) else torch.from_numpy(found.copy())
            self._store(out, key[0])[key[1]] = own
        return out

    def chunk(self, start: int, changes: ChangedRows) -> FieldChunk:
        """Cells ``start``, ``start + 1``, ... whose expression is ``changes``."""
        count = len(changes.ptr) - 1
        nothing = np.empty(0, dtype=np.int64)
        layout = flatten(self.graph(start, nothing, np.empty(0, dtype=np.float32)))[0]
        fields: list[Field] = []
        for key in layout.keys:
            if key == (self.node_type, self.field):
                fields.append(changes)
            else:
                cells = range(start, start + count)
                fields.append([self._payload(key, k) for k in cells] if key in self._own else None)
        return FieldChunk(count, layout, fields)

    def _payload(self, key: FieldKey, index: int) -> Payload:
        """A field as stored; most cells share the names of perturbed genes with others."""
        found = self._value(key, index)
        if not isinstance(found, tuple):
            return TensorValue(_FLOAT32 if found.dtype == np.float32 else _INT64, found)
        if found not in self._texts:
            self._texts[found] = payload_of(list(found), field_label(key))
        return self._texts[found]


def _with_column(given: Any, field: str, column: int | None, num_nodes: int) -> tuple[torch.Tensor, int]:
    """The base graph's field with a zero column for the expression, and that column's number."""
    zeros = torch.zeros(num_nodes, 1, dtype=torch.float32, device="cpu")
    if given is None:
        if column not in (None, 0):
            raise SettingError(
                f"column={column}, but the base graph has no node field {field!r}", fix="leave it out"
            )
        return zeros, 0
    is_tensor = isinstance(given, torch.Tensor)
    if not is_tensor or given.dim() != 2 or given.dtype != torch.float32 or given.layout != torch.strided:
        layout = "" if is_tensor and given.layout == torch.strided else f" {getattr(given, 'layout', '')}"
        got = f"{given.dtype} {list(given.shape)}{layout}" if is_tensor else type(given).__name__
        raise SourceContractError(
            f"the base graph's {field!r} is {got}, expected float32 [{num_nodes}, k]",
            fix='convert it, or pass field="expression" for a field of its own',
        )
    if column is None:
        return torch.cat([given, zeros], dim=1), int(given.size(1))
    if not 0 <= column < given.size(1):
        raise SettingError(f"column={column} is not one of the {given.size(1)} columns of {field!r}")
    out = given.clone()
    out[:, column] = 0
    return out, column
