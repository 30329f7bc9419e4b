"""PyG's collation rules, applied to a batch whose samples share one base graph.

Mirrors ``torch_geometric.data.collate`` field by field - order, ``slices``, ``incs``, ``batch``, ``ptr`` - without making
the samples first. Where a base graph holds something whose rule depends on its name or type in an unusual way,
:func:`is_plain` says so and the batch goes through PyG itself.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch, HeteroData
from torch_geometric.data.storage import EdgeStorage, NodeStorage

from torchcell_cache.core.checks import names_or_none
from torchcell_cache.core.ragged import offsets
from torchcell_cache.errors import SettingError

MASKS = ("mask", "edge_mask")

INDEX_FIELDS = ("edge_index", "hyperedge_index")
OWN_FIELDS = ("perturbation_indices", "phenotype_type_indices", "phenotype_sample_indices")


class Field(NamedTuple):
    """One collated attribute.

    Attributes:
        value: What the batch holds.
        slices: Where each sample's part starts, ``[batch + 1] int64`` on the CPU.
        incs: What was added to each sample's part, ``[batch, ...] int64`` on the CPU, or ``None``.
    """

    value: Any
    slices: Tensor
    incs: Tensor | None


class Fields(Protocol):
    """What a representation knows about the fields of a batch: like those of a template, of so many samples."""

    template: Any
    count: int
    device: torch.device

    def names(self, key: Any, names: Iterable[str]) -> list[str]:
        """Those of the template's fields that the batch has."""
        return list(names)

    def num_nodes(self, key: Any) -> list[int]:
        """Number of nodes of a type in each sample."""

    def field(self, key: Any, name: str, value: Any) -> Field:
        """A field of a store; ``value`` is the template's."""


def collate(fields: Fields, follow_batch: frozenset[str], exclude_keys: frozenset[str]) -> Any:
    """A PyG batch, built store by store in the template's order."""
    template, device = fields.template, fields.device
    out = Batch(_base_cls=type(template))
    out.stores_as(template)
    slices: dict[Any, Any] = {}
    incs: dict[Any, Any] = {}
    for store, model in zip(out.stores, template.stores, strict=True):
        key = store._key
        # Hetero stores keep theirs under their own key; homogeneous data has one flat dictionary.
        for name in fields.names(key, model._mapping):
            if name in exclude_keys:
                continue
            if name == "num_nodes":
                store._num_nodes = fields.num_nodes(key)
                store.num_nodes = sum(store._num_nodes)
                continue
            field = fields.field(key, name, model._mapping[name])
            store[name] = field.value
            place = (slices, incs) if key is None else (slices.setdefault(key, {}), incs.setdefault(key, {}))
            place[0][name], place[1][name] = field.slices, field.incs
            if name in follow_batch:
                store[f"{name}_batch"], store[f"{name}_ptr"] = _follow(field.slices, device)
        if isinstance(model, NodeStorage) and model.can_infer_num_nodes:
            ptr = torch.from_numpy(offsets(np.array(fields.num_nodes(key))))
            store.batch, store.ptr = _follow(ptr, device)
    out._num_graphs, out._slice_dict, out._inc_dict = fields.count, slices, incs
    return out


def _follow(slices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    counts = slices.diff()
    if device.type == "cpu":  # numpy takes a tenth of the time
        owner = torch.from_numpy(np.repeat(np.arange(len(counts)), counts.numpy()))
    else:
        samples = torch.arange(len(counts), device=device)
        owner = torch.repeat_interleave(samples, counts.to(device), output_size=int(slices[-1]))
    return owner, slices.to(device, copy=True)


def steps(batch_size: int, size: int) -> Tensor:
    """Slices of a field of the same size in every sample, ``[batch_size + 1] int64``."""
    return torch.arange(batch_size + 1, device="cpu") * size


def no_increments(batch_size: int) -> Tensor:
    """Increments of a field that is not shifted, ``[batch_size] int64``."""
    return torch.zeros(batch_size, dtype=torch.int64, device="cpu")


def listed(values: list[Any]) -> Field:
    """A field that PyG keeps as a list with one item per sample."""
    return Field(values, torch.arange(len(values) + 1, device="cpu"), None)


def numbers(values: list[int], device: torch.device) -> Field:
    """An integer per sample, which PyG collates to a tensor ``[batch] int64``."""
    return Field(
        torch.tensor(values, device=device),
        torch.arange(len(values) + 1, device="cpu"),
        no_increments(len(values)),
    )


def without_removed(graph: Any) -> Any:
    """A sample's graph with the edges its masks keep, and what belongs to them; nodes and all else stay."""
    out, hetero = copy.copy(graph), isinstance(graph, HeteroData)
    for store in out.edge_stores:
        mask = store._mapping.get("mask" if hetero else "edge_mask")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() != 1:
            continue
        kept = mask.nonzero().squeeze(1)
        for name, value in list(store._mapping.items()):
            dim = -1 if "index" in name else 0
            if name == "num_edges":
                store._mapping[name] = len(kept)
            of_each = isinstance(value, Tensor) and value.dim() and value.size(dim) == len(mask)
            if of_each and (hetero or of_edges(name, value, graph.num_nodes)):
                store._mapping[name] = value.index_select(dim, kept)
    return out


def of_edges(name: str, value: Any, num_nodes: int) -> bool:
    """Whether a homogeneous sample's field speaks of its edges; where there are as many, its name decides, as in PyG."""
    return "edge" in name or (name not in ("mask", "x") and fits_edges(name, value, num_nodes))


def fits_edges(name: str, value: Any, num_nodes: int) -> bool:
    """Whether a homogeneous sample's field is a tensor of other rows than nodes, and none of those that say what a sample is."""
    sized = isinstance(value, Tensor) and name not in ("pert_mask", "x_pert", *OWN_FIELDS)
    return sized and not name.startswith("phenotype_") and value.size(0) != num_nodes


def is_plain(template: Any) -> bool:
    """Whether every field of a sample follows the rules written down here."""
    hetero = isinstance(template, HeteroData)
    return all(
        _plain_field(name, value, not hetero or isinstance(store, EdgeStorage))
        for store in template.stores
        for name, value in store._mapping.items()
    )


def _plain_field(name: str, value: Any, shifting: bool) -> bool:
    if name in ("num_nodes", "num_edges"):
        return type(value) is int
    if name in OWN_FIELDS:
        return True
    if name in ("batch", "ptr") or "batch" in name or (name == "face" and shifting):
        return False
    if "index" in name and shifting and name not in INDEX_FIELDS:
        return False
    if isinstance(value, Tensor):
        strided = type(value) is Tensor and value.layout == torch.strided and not value.is_nested
        return strided and value.dim() > 0 and (name not in INDEX_FIELDS or value.dim() == 2)
    if isinstance(value, list | tuple):
        return not (len(value) and not isinstance(value[0], str | int))
    return not isinstance(value, Mapping | int | float)


def as_pyg(
    batch: Any, follow_batch: Any, exclude_keys: Any, allow_wild_type: bool, drop_removed: bool
) -> Any:
    """See ``SharedGraphBatch.to_pyg``."""
    follow = frozenset(names_or_none("follow_batch", follow_batch) or ())
    exclude = frozenset(names_or_none("exclude_keys", exclude_keys) or ())
    lost = sorted(exclude.intersection(batch._mask_names()))
    if lost and not allow_wild_type:
        raise SettingError(
            f"exclude_keys={lost} leaves out what says which nodes and edges a sample lacks: every sample would "
            "be the unperturbed base graph",
            fix="keep the masks, use SubgraphRepresentation, or pass allow_wild_type=True",
        )
    out = batch._to_pyg(follow, exclude, drop_removed)
    known = {name for store in out.stores for name in store._mapping} | exclude
    for name in sorted(follow - known):
        warnings.warn(f"follow_batch: no field is called {name!r}, nothing was added for it", stacklevel=3)
    return out


def collated(
    graphs: list[Any], device: torch.device, follow: frozenset[str], exclude: frozenset[str], drop: bool
) -> Any:
    """PyG's own batch of graphs on the CPU, whatever the default device; moved to ``device``."""
    graphs = [without_removed(graph) for graph in graphs] if drop else graphs
    try:
        with torch.device("cpu"):
            out = Batch.from_data_list(graphs, sorted(follow), sorted(exclude))
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate" in str(error):
            raise
        raise SettingError(
            f"PyG cannot make one batch of these samples: {' '.join(str(error).split())}",
            fix="give fields that differ in shape from sample to sample in exclude_keys=[...], or take samples one by "
            "one; where their shapes should be equal, torchcell-cache verify level=full tells whether a record is damaged",
        ) from error
    # PyG's ``to`` makes lists of tuples even where nothing moves.
    return out if device.type == "cpu" else out.to(device)


def unlike_pyg(batch: object, what: str) -> SettingError:
    """The error that says where the fields are; ``what`` continues the batch's name."""
    return SettingError(
        f"{type(batch).__name__}{what}: a shared batch gives samples by number, masks and labels, and keeps no fields of "
        "node and edge types",
        fix="batch.to_pyg(), the PyG batch that has them, or CacheLoader(..., expand=True)",
    )
