"""Labels, batch columns, perturbations and barcodes of all cells, from ``obs``: some bytes per cell, held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from torchcell_cache.core.fingerprint import array_digest, sha256_json
from torchcell_cache.core.ragged import Float32Array, Int64Array
from torchcell_cache.core.samples import SampleTable, UnknownNames
from torchcell_cache.errors import SourceContractError, StaleCacheError
from torchcell_cache.sources.cells.asked import taken
from torchcell_cache.sources.cells.categories import Coded, merged, texts_of, whole
from torchcell_cache.sources.cells.expression import lost_in_float32
from torchcell_cache.sources.cells.files import CellFile
from torchcell_cache.sources.cells.genes import Perturbations, Perturbed, read_perturbed
from torchcell_cache.sources.names import NodeNames
from torchcell_cache.store.columns import Names


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """What ``obs`` says of all cells that are samples.

    Attributes:
        values: Numeric columns, ``[num_cells, num_phenotypes] float32``.
        codes: Categorical columns, -1 where a cell has none, ``[num_cells, num_categorical] int64``.
        categories: Per categorical column the names behind the codes.
        perturbed: Perturbed nodes.
        barcodes: The cells' own names, as the files have them; files may share some.
        rows: Per file the rows that are samples, ascending, ``[k] int64``.
        numeric: Categorical columns that some file holds as numbers.
        notes: What was left out, and what is missing, line by line.
    """

    values: Float32Array
    codes: Int64Array
    categories: dict[str, list[str]]
    perturbed: Perturbed
    barcodes: Names
    rows: list[Int64Array]
    numeric: frozenset[str]
    notes: tuple[str, ...] = ()

    def table(self, phenotypes: tuple[str, ...]) -> SampleTable:
        """All columns as labels; codes as numbers, NaN where a cell has none."""
        codes = self.codes.astype(np.float32)
        codes[self.codes < 0] = np.nan
        names = (*phenotypes, *self.categories)
        values = np.ascontiguousarray(np.concatenate([self.values, codes], axis=1))
        once = np.arange(len(values) + 1, dtype=np.int64)
        found, cells = self.perturbed, range(len(values))
        unknown = UnknownNames.from_rows([found.foreign.get(k, ()) for k in cells]) if found.foreign else None
        return SampleTable(
            found.ids, found.ptr, values, once, names, source_ids=self.barcodes, unknown=unknown
        )

    def digest(self, nodes: Sequence[Int64Array]) -> str:
        """Of all labels, and of the node of each variable; for cells that are in no file."""
        found = self.perturbed
        arrays: list[npt.NDArray[Any]] = [self.values, self.codes, found.ids, found.ptr, *self.rows, *nodes]
        arrays += [self.barcodes.data, self.barcodes.ptr]
        foreign = [[cell, *names] for cell, names in sorted(found.foreign.items())]
        return sha256_json([[array_digest(part) for part in arrays], self.categories, foreign])

    def recoded(self, categories: dict[str, list[str]]) -> Labels:
        """The same cells with the codes of a store's names, which must hold all of ours.

        Raises:
            StaleCacheError: If a column has names that the store does not know.
        """
        codes = self.codes.copy()
        for k, (name, ours) in enumerate(self.categories.items()):
            known = {text: code for code, text in enumerate(categories[name])}
            if name in self.numeric:  # 1 here may be 1.0 there
                known = {**{whole(text): code for text, code in known.items()}, **known}
            if new := [text for text in ours if not {text, whole(text)} & known.keys()]:
                raise StaleCacheError(
                    f"{name} of the samples to append has names that the store does not have: {', '.join(new[:8])}",
                    fix="update with a source of all files",
                )
            found = [known[text] if text in known else known[whole(text)] for text in ours]
            codes[:, k] = np.array([*found, -1], dtype=np.int64)[self.codes[:, k]]
        return replace(self, codes=codes, categories=categories)


def read_labels(
    files: Sequence[CellFile],
    lengths: Sequence[int],
    nodes: NodeNames,
    phenotypes: tuple[str, ...],
    categorical: tuple[str, ...],
    how: Perturbations,
    chosen: list[Int64Array] | None = None,
) -> Labels:
    """Read the columns of all files, of the ``chosen`` rows of each.

    Raises:
        SourceContractError: Naming the file, the column and the value that do not fit.
    """
    numbers, coded, barcodes, perturbed = [], [], [], []
    read = [np.arange(length, dtype=np.int64) for length in lengths] if chosen is None else chosen
    for file, length, at in zip(files, lengths, read, strict=True):
        wanted = tuple(dict.fromkeys((*phenotypes, *categorical, *how.columns)))
        table = file.table("obs", wanted)
        if other := next((len(column) for column in table.values() if len(column) != length), None):
            raise SourceContractError(
                f"{file.url}: the matrix has {length} cells, obs {other}", path=file.url
            )
        if chosen is not None:
            table = {name: taken(column, at) for name, column in table.items()}
        names = texts_of(table[""]).tolist()
        barcodes.append(names)
        found = [_numbers(file.url, name, table[name], names, at) for name in phenotypes]
        numbers.append(np.stack(found, axis=1) if found else np.empty((len(at), 0), dtype=np.float32))
        coded.append([Coded.of(table[name], f"{file.url}: obs column {name!r}") for name in categorical])
        perturbed.append(read_perturbed(file.url, table, how, nodes, at))
    urls = [file.url for file in files]
    codes, categories = [np.empty((len(at), 0), dtype=np.int64) for at in read], {}
    for k, name in enumerate(categorical):
        new, categories[name] = merged([parts[k] for parts in coded], urls, name)
        codes = [np.column_stack([before, more]) for before, more in zip(codes, new, strict=True)]
    rows = [part.rows for part in perturbed]
    kept = [names[row] for names, part in zip(barcodes, rows, strict=True) for row in part.tolist()]
    out = Labels(
        np.concatenate([part[at] for part, at in zip(numbers, rows, strict=True)]),
        np.concatenate([part[at] for part, at in zip(codes, rows, strict=True)]),
        categories,
        Perturbed.joined(perturbed),
        _block(kept),
        [at[part] for at, part in zip(read, rows, strict=True)],
        frozenset(
            name for k, name in enumerate(categorical) if any(parts[k].kinds() - {"text"} for parts in coded)
        ),
    )
    notes = [n for part in perturbed for n in part.notes]
    if chosen is not None:
        notes = [f"rows=: {sum(map(len, chosen)):,} of {sum(lengths):,} cells", *notes]
    return replace(out, notes=(*notes, *_missing(out, phenotypes)))


def _block(names: list[str]) -> Names:
    encoded = [name.encode() for name in names]
    return Names(
        np.frombuffer(b"".join(encoded), dtype=np.uint8), np.array([len(n) for n in encoded], dtype=np.uint32)
    )


def _missing(labels: Labels, phenotypes: tuple[str, ...]) -> list[str]:
    """A line for each label that some cells do not have."""
    count = len(labels.values)
    lost = dict(zip(phenotypes, (~np.isfinite(labels.values)).sum(axis=0).tolist(), strict=True))
    lost |= dict(zip(labels.categories, (labels.codes < 0).sum(axis=0).tolist(), strict=True))
    return [f"{name}: {n:,} of {count:,} cells have no value" for name, n in lost.items() if n]


def _numbers(url: str, name: str, column: Any, cells: Sequence[str], numbers: Int64Array) -> Float32Array:
    """A numeric column; ``cells`` and their ``numbers`` are for messages.

    Raises:
        SourceContractError: If it holds no numbers, or one that float32 cannot hold.
    """
    dtype: Any = getattr(column, "dtype", None)
    kind = getattr(dtype, "kind", "O")
    if kind not in "fiub" or str(dtype) == "category":
        raise SourceContractError(
            f"{url}: obs column {name!r} holds {dtype}, expected numbers",
            path=url,
            fix=f"categories=[{name!r}] for a column of names",
        )
    missing = np.zeros(len(column), dtype=np.bool_)
    if hasattr(dtype, "numpy_dtype"):  # nullable integers and bools of pandas
        missing = np.asarray(column.isna())
        column = column[~missing].to_numpy(dtype=dtype.numpy_dtype)
    given = np.asarray(column)
    with np.errstate(over="ignore", invalid="ignore"):
        short = given.astype(np.float32)
    lost = np.flatnonzero(~missing)[lost_in_float32(given, short)]
    if len(lost):
        row = int(lost[0])
        value = given[int((~missing[:row]).sum())]
        raise SourceContractError(
            f"{url}: obs column {name!r} of cell {numbers[row]} ({cells[row]}) is {value!s}, which float32 cannot hold",
            path=url,
            fix=f"scale the column, or categories=[{name!r}] for numbers that are names",
        )
    out = np.full(len(missing), np.nan, dtype=np.float32)
    out[~missing] = short
    return out
