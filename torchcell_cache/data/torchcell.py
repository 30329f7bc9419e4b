"""What code written for torchcell asks of a dataset: its indices by name, its gene set, its phenotype classes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np

from torchcell_cache.core.package import optional
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SettingError
from torchcell_cache.graph.topology import perturbable_type
from torchcell_cache.processors.deletion import node_names
from torchcell_cache.store.facts import StoredFacts

if TYPE_CHECKING:
    import pandas as pd

    from torchcell_cache.core.samples import SampleTable


def perturbable_store(generation: Any) -> Any:
    """The nodes of the base graph that samples perturb, ``None`` without a base graph."""
    graph, topology = generation.base_graph, generation.topology
    if graph is None:
        return None
    node_type = perturbable_type(graph) if topology is None else topology.node_type
    return graph._store if node_type is None else graph[node_type]


class GeneSet(Set[str], Sequence[str]):
    """Names of genes, sorted; a set that also has positions and slices.

    Args:
        names: The names, in any order, repeats counting once.

    Example:
        >>> GeneSet(["YBR001C", "YAL001C"])[0]
        'YAL001C'
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = tuple(sorted(set(names)))
        self._known = frozenset(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        return self._names[index]

    def __hash__(self) -> int:
        return hash(self._known)

    def __repr__(self) -> str:
        names = ", ".join(map(repr, self._names[:3])) + (", ..." if len(self) > 3 else "")
        return f"GeneSet({len(self)}: {names})"


class TorchcellNames(StoredFacts):
    """The part of :class:`~torchcell_cache.PreprocessedDataset` that answers as torchcell's datasets do.

    Indices are dicts of a key to the ascending positions, in this view, of the samples that have it. Keys come in the order in
    which torchcell meets them, which walks samples in the order of their numbers as text: 0, 1, 10, 100, ..., 2, ...: its data
    modules draw their split in the order of keys.
    """

    _source_dataset: Any
    _indices: Any

    @property
    def phenotype_info(self) -> list[Any]:
        """Phenotype classes of torchcell, in the order of the store's labels; names, where there are none.

        Classes are those of the source that was given, or of torchcell if this process has imported it.
        """
        labels = list(self.generation.schema["phenotypes"])
        table = self.generation.table
        known = getattr(self._source_dataset, "phenotype_info", None)
        if known is None and table is not None and table.origins is not None:
            schema = sys.modules.get("torchcell.datamodels.schema")
            known = [getattr(schema, name, None) for name in table.origins.texts("classes")]
        by_label: dict[Any, Any] = {}
        for cls in known or ():
            field = getattr(cls, "model_fields", {}).get("label_name")
            if field is not None:
                by_label.setdefault(field.default, cls)
        return [by_label[label] for label in labels] if by_label.keys() >= set(labels) else labels

    @property
    def phenotype_label_index(self) -> dict[str, list[int]]:
        """Samples by the name of a label that was measured."""
        return self._made("label")

    @property
    def dataset_name_index(self) -> dict[str, list[int]]:
        """Samples by the name of a dataset that measured them.

        Raises:
            SettingError: If the source did not say.
        """
        return self._made("dataset")

    @property
    def perturbation_count_index(self) -> dict[int, list[int]]:
        """Samples by number of perturbations, as each measurement counts them, repeats and names of no node too."""
        return self._made("count")

    @property
    def is_any_perturbed_gene_index(self) -> dict[str, list[int]]:
        """Samples by perturbed gene, names of no node too."""
        return self._made("gene")

    @property
    def is_any_deletion_gene_index(self) -> dict[str, list[int]]:
        """Samples by deleted gene: those of a type that ends in ``deletion``, all of them where the source has no types."""
        return self._made("deletion")

    @property
    def gene_set(self) -> GeneSet:
        """All genes that were asked for; those of the base graph, if the source did not say."""
        table = self.generation.table
        if table is not None and table.origins is not None:
            return GeneSet(table.origins.texts("gene_set"))
        return GeneSet(map(str, self._node_names()))

    @property
    def label_df(self) -> pd.DataFrame:
        """Labels as torchcell's table: ``index`` (position in the store), and a float64 column per label.

        Of several measurements the last one that is a number; NaN where there is none. ``columns`` has means and statistics.
        Rows of torchcell's records come in torchcell's order, of the numbers as text; ``index`` says which is which.

        Raises:
            SettingError: If pandas is not installed; ``columns`` needs none.
        """
        pd = optional("pandas", "label_df", "table", "or dataset.columns, which gives numpy arrays")
        rows, table = self.positions(), self.generation.table
        if table is not None and table.origins is not None and self._indices is None:
            # Torchcell's own order: sums in it are torchcell's to the bit.
            rows = np.argsort(_as_text(len(table)))
        last = np.empty((len(self.generation), 0)) if table is None else _last(table)
        names = list(self.label_columns.values())[: last.shape[1]]
        return pd.DataFrame({"index": rows, **{name: last[rows, k] for k, name in enumerate(names)}})

    @property
    def raw_file_names(self) -> list[str]:
        """None: a store needs nothing of what it was made from."""
        return []

    @property
    def processed_file_names(self) -> list[str]:
        """The file that makes the store exist."""
        return ["manifest.json"]

    def _node_names(self) -> list[Any]:
        store = perturbable_store(self.generation)
        return [] if store is None else node_names(store) or list(range(store.num_nodes))

    def _made(self, name: str) -> dict[Any, list[int]]:
        """An index of this view, made once; views and pickles leave it behind."""
        table = self.generation.table
        if table is None:
            raise SettingError(
                "this store's samples are graphs: it does not know what they perturb", fix="dataset.columns"
            )
        made: dict[str, Any] = self.__dict__.setdefault("_made_indices", {})
        kept = made.get(name)
        if kept is None or kept[0] is not table or kept[1] is not self._indices:
            mine = table if self._indices is None else table.take(self.positions())
            found = _grouped(*_said(mine, name, self._node_names()), len(mine))
            kept = made[name] = (table, self._indices, found)
        out: dict[Any, list[int]] = kept[2]
        return out


def _last(table: SampleTable) -> np.ndarray[Any, Any]:
    """The last number of each sample and phenotype, ``[num_samples, num_phenotypes] float64``."""
    if table.origins is not None:
        return table.origins.last
    out = np.full((len(table), len(table.phenotypes)), np.nan)
    owner = _owners(table.value_ptr)
    for k in range(out.shape[1]):
        known = ~np.isnan(table.values[:, k])
        out[owner[known], k] = table.values[known, k]
    return out


def _owners(ptr: Int64Array) -> Int64Array:
    return np.repeat(np.arange(len(ptr) - 1, dtype=np.int64), np.diff(ptr))


def named_ids(table: SampleTable, nodes: Sequence[Any]) -> tuple[Int64Array, Int64Array, Sequence[Any]]:
    """What samples perturb, where each sample's begin, and the names: of ``nodes``, behind them those that no node has."""
    ids = table.ids.astype(np.int64)
    if table.unknown is None:
        return ids, table.ptr, nodes
    return *table.unknown.with_ids(ids, table.ptr, len(nodes)), [*nodes, *table.unknown.names]


def _said(table: SampleTable, key: str, nodes: Sequence[Any]) -> tuple[Any, Int64Array, Sequence[Any]]:
    """What is said of samples: codes, of which sample each is, and the word of each code."""
    measured, origins = _owners(table.value_ptr), table.origins
    if origins is not None and key in ("label", "dataset"):
        return getattr(origins, key), measured, origins.words
    if key == "dataset":
        raise SettingError("the source of this store did not say which dataset a sample is of")
    if key == "label":
        row, column = np.nonzero(~np.isnan(table.values[:, : len(table.phenotypes)]))
        return column, measured[row], table.phenotypes
    if origins is not None:
        codes, ptr, words = origins.gene, origins.ptr, origins.words
    else:
        codes, ptr, words = named_ids(table, nodes)
        measured = np.arange(len(table))
    if key == "count":
        return np.diff(ptr), measured, range(len(codes) + 1)
    owner = measured[_owners(ptr)]
    if key == "gene" or origins is None:
        return codes, owner, words
    deleted = np.array([word.endswith("deletion") for word in words], dtype=bool)[origins.kind]
    return codes[deleted], owner[deleted], words


def _grouped(codes: Any, owner: Int64Array, words: Sequence[Any], count: int) -> dict[Any, list[int]]:
    """Ascending samples by word, words in the order in which the samples' numbers as text meet them."""
    codes = np.asarray(codes, dtype=np.int64)
    walk = codes[np.argsort(_as_text(count)[owner], kind="stable")]
    _, first = np.unique(walk, return_index=True)
    pairs = np.unique(codes * count + owner)
    met = walk[np.sort(first)]
    spans = np.searchsorted(pairs, np.stack([met * count, (met + 1) * count]))
    return {
        words[code]: (pairs[a:b] - code * count).tolist()
        for code, a, b in zip(met.tolist(), *spans.tolist(), strict=True)
    }


def _as_text(count: int) -> Int64Array:
    """Where each of ``0..count - 1`` stands among them in the order of text, ``[count] int64``."""
    rank = np.empty(count, dtype=np.int64)
    rank[np.argsort(np.arange(count).astype(f"S{len(str(count))}"), kind="stable")] = np.arange(count)
    return rank
