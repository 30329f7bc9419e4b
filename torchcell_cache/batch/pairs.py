"""``PairedBatch``: cells, each with controls, read as one batch of samples; no pair is stored anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, Self

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from torchcell_cache.batch.batch import SharedGraphBatch
from torchcell_cache.batch.node_sampling import expression_field
from torchcell_cache.batch.pyg import Field, Fields, collate, collated, listed, no_increments, steps
from torchcell_cache.core.checks import names_or_none
from torchcell_cache.core.lazy import cached_property
from torchcell_cache.core.markup import Markup, table
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.lasting import lasting


class PairedBatch:
    """Cells and the controls they are compared with: expression of both on the batch's device, from one read.

    Made by ``PairedCells.read_batch`` and by a ``CacheLoader`` over :class:`~torchcell_cache.PairedCells`. What belongs to a
    cell's category (``per_category``) is an attribute of its own: a list with one value per cell, the values shared by all
    batches.

    Attributes:
        samples: Cells and controls as one :class:`~torchcell_cache.SharedGraphBatch`: cells first, then the controls of
            the first cell, of the second, ...
        num_controls: Controls per cell.
        fields: Per name one value per cell.
        is_padding: Which cells only fill up an even number of steps, ``[batch] bool``, if a loader says so.
    """

    def __init__(self, samples: SharedGraphBatch, num_controls: int, fields: dict[str, list[Any]]) -> None:
        self.samples, self.num_controls, self.fields = samples, num_controls, fields
        self.is_padding: Tensor | None = None

    def __len__(self) -> int:
        return len(self.samples) // (1 + self.num_controls)

    @property
    def num_graphs(self) -> int:
        """Graphs of :meth:`to_pyg`: one per cell and control."""
        return len(self) * self.num_controls

    @property
    def device(self) -> torch.device:
        """Where :attr:`x` and :attr:`y` are made."""
        return self.samples.device

    @cached_property
    @lasting
    def _expression(self) -> Tensor:
        """Of all samples, ``[batch * (1 + num_controls), num_genes]``."""
        field, column = expression_field(self.samples.generation)
        found: Tensor = self.samples.features(None, field)  # type: ignore[attr-defined]
        if found.dim() == 2:
            return found
        return found[..., -1 if column is None else column].contiguous()

    @property
    def x(self) -> Tensor:
        """Expression of the controls, ``[batch, num_genes]``, or ``[batch, num_controls, num_genes]`` of several."""
        found = self._expression[len(self) :]
        return found if self.num_controls == 1 else found.view(len(self), self.num_controls, -1)

    @property
    def y(self) -> Tensor:
        """Expression of the cells, ``[batch, num_genes]``; clone it before you change it, and :attr:`x` likewise."""
        return self._expression[: len(self)]

    @property
    def indices(self) -> Tensor:
        """Store positions of the cells, ``[batch] int64``."""
        return self.samples.indices[: len(self)]

    @property
    def controls(self) -> Tensor:
        """Store positions of the controls, ``[batch, num_controls] int64``."""
        return self.samples.indices[len(self) :].view(-1, self.num_controls)

    def labels(self, name: str) -> Tensor:
        """A numeric label of the cells, ``[batch] float32``; see :meth:`SharedGraphBatch.labels`."""
        return self.samples.labels(name)[: len(self)]

    def names(self, column: str) -> list[str | None]:
        """A column of names of the cells as text; see :meth:`SharedGraphBatch.names`."""
        return self.samples.names(column)[: len(self)]

    @property
    def base_graph(self) -> Any:
        """The store's base graph on this device; one copy per process and device."""
        return self.samples.base_graph

    def __getattr__(self, name: str) -> Any:
        """Called for names that a batch does not have itself."""
        fields = self.__dict__.get("fields", {})
        if name in fields:
            return fields[name]
        known = ", ".join(("x", "y", *fields))
        raise AttributeError(
            f"a batch of paired cells has no {name!r}; it has {known}; to_pyg() is PyG's batch"
        )

    def __iter__(self) -> Iterator[Data]:
        """The pairs one by one, as :meth:`to_pyg` joins them."""
        return iter(self.graphs())

    def __getitem__(self, index: Any) -> NoReturn:
        raise SettingError(
            f"PairedBatch[{index!r:.80}]: a batch gives x and y of all its pairs",
            fix="batch.graphs() for single pairs, batch.to_pyg() for PyG's batch",
        )

    def __repr__(self) -> str:
        return (
            f"PairedBatch({len(self)} cells, {self.num_controls} controls each, device={str(self.device)!r})"
        )

    def _repr_html_(self) -> str:
        rows = [
            ("per cell", ", ".join(self.fields) or "nothing"),
            ("all", Markup(self.samples._repr_html_())),
        ]
        return table(rows, title=repr(self))

    def _per_pair(self) -> tuple[Tensor, Tensor, dict[str, list[Any]]]:
        """``x`` and ``y`` with a row per pair, and the other fields with a value per pair."""
        several, x, y = self.num_controls, self._expression[len(self) :], self.y
        if several == 1:
            return x, y, self.fields
        fields = {name: [v for v in values for _ in range(several)] for name, values in self.fields.items()}
        return x, y.repeat_interleave(several, 0), fields

    @lasting
    def graphs(self) -> list[Data]:
        """One graph per cell and control: ``x [num_genes, 1]`` of the control, ``y [1, num_genes]`` of the cell, its fields.

        The controls of a cell come one after the other. Tensors are the graph's own, other values are shared.
        """
        x, y, fields = self._per_pair()
        x, y = x.clone().unsqueeze(2), y.clone().unsqueeze(1)
        return [
            Data(x=x[k], y=y[k], **{name: values[k] for name, values in fields.items()})
            for k in range(len(x))
        ]

    @lasting
    def to_pyg(
        self,
        follow_batch: Iterable[str] | None = None,
        exclude_keys: Iterable[str] | None = None,
        *,
        drop_removed: bool = False,
    ) -> Any:
        """Exactly ``Batch.from_data_list(batch.graphs())``, made on the batch's device.

        Args:
            follow_batch: Fields that get a ``_batch`` and a ``_ptr`` vector, as in PyG.
            exclude_keys: Fields to leave out, as in PyG.
            drop_removed: As of other batches; pairs have no edges.

        Raises:
            SettingError: If one of them is a single text.
        """
        follow = frozenset(names_or_none("follow_batch", follow_batch) or ())
        exclude = frozenset(names_or_none("exclude_keys", exclude_keys) or ())
        x, y, fields = self._per_pair()
        # PyG keeps texts, arrays of numpy and lists that hold no tensors as a list.
        first = [values[0] for values in fields.values()]
        nested = any(isinstance(v, list | tuple) and len(v) and isinstance(v[0], Tensor) for v in first)
        if nested or not all(isinstance(v, list | tuple | str | np.ndarray) for v in first):
            return collated(self.graphs(), self.device, follow, exclude, False)
        return collate(_PairFields(x, y, fields), follow, exclude)

    # On its way

    def _with(self, samples: SharedGraphBatch) -> Self:
        out = type(self)(samples, self.num_controls, self.fields)
        out.is_padding = None if self.is_padding is None else self.is_padding.to(samples.device)
        return out

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> Self:
        """This batch on another device: one copy of one buffer, in which expression is as sparse as in the store."""
        moved = self.samples.to(device, non_blocking=non_blocking)
        return self if moved is self.samples else self._with(moved)

    def cpu(self) -> Self:
        """This batch on the CPU."""
        return self.to("cpu")

    def cuda(self, device: int | None = None, *, non_blocking: bool = False) -> Self:
        """This batch on a CUDA device, the current one by default."""
        return self.to("cuda" if device is None else f"cuda:{device}", non_blocking=non_blocking)

    def pin_memory(self) -> Self:
        """This batch in page-locked memory; itself where there is no CUDA."""
        pinned = self.samples.pin_memory()
        return self if pinned is self.samples else self._with(pinned)

    def record_stream(self, stream: Any) -> None:
        """Keep the buffer's memory until the work queued on ``stream`` is done."""
        self.samples.record_stream(stream)


class _PairFields(Fields):
    """The fields of a batch of pairs; tensors are copies, since those of the batch are used again."""

    def __init__(self, x: Tensor, y: Tensor, fields: dict[str, list[Any]]) -> None:
        self.x, self.y, self.fields, self.count, self.device = x, y, fields, len(x), x.device
        self.template = Data(x=x[0].unsqueeze(1), y=y[:1], **dict.fromkeys(fields, 0))

    def num_nodes(self, key: Any) -> list[int]:
        """Genes of each pair."""
        return [self.x.size(1)] * self.count

    def field(self, key: Any, name: str, value: Any) -> Field:
        """A field of all pairs."""
        if name not in ("x", "y"):
            return listed(list(self.fields[name]))
        rows = self.x.clone().view(-1, 1) if name == "x" else self.y.clone()
        return Field(rows, steps(self.count, len(rows) // self.count), no_increments(self.count))
