"""What is asked of cells beyond columns: some rows of ``obs``, side tables of ``uns``; and whose gene was not measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from torchcell_cache.core.checks import suggestion, whole_number
from torchcell_cache.core.indexing import as_positions
from torchcell_cache.core.ragged import Int64Array
from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.cells.categories import Coded, merged, texts_of
from torchcell_cache.sources.cells.failures import reading
from torchcell_cache.sources.cells.files import CellFile
from torchcell_cache.sources.cells.genes import Alignment, some
from torchcell_cache.sources.cells.labels import Labels
from torchcell_cache.sources.names import NodeNames
from torchcell_cache.store.expression import Expression

_FIX = "an expression over columns of obs, a mask with a bool per cell, or numbers of cells, each once"


def chosen_rows(given: Any, files: Sequence[CellFile], lengths: Sequence[int]) -> list[Int64Array] | None:
    """Per file the rows that ``rows=`` keeps, ascending; ``None`` for all.

    Raises:
        SettingError: If it names no rows, or rows that there are not.
    """
    total = sum(lengths)
    if given is None:
        return None
    if isinstance(given, str):
        given = _fulfilled(Expression(given), files, total)
    elif hasattr(given, "index") and hasattr(given, "to_numpy"):
        # pandas would go by the names of cells, not by their order
        cells = [name for file in files for name in texts_of(file.table("obs", ())[""])]
        named = texts_of(given.index) if len(given) == total else cells
        if named != cells and {*named} == {*cells}:
            raise SettingError("rows= is in another order than the cells", fix="rows=mask[adata.obs_names]")
    try:
        found = as_positions(given, total)
    except IndexError as error:
        raise SettingError(f"rows=: {error}", fix=_FIX) from None
    kept = np.unique(found)
    if len(kept) < len(found) or not len(kept):
        what = "names a cell twice" if len(kept) else f"holds for none of {total:,} cells"
        raise SettingError(f"rows= {what}", fix=_FIX)
    if len(kept) == total:
        return None
    starts = np.cumsum([0, *lengths[:-1]])
    parts = np.split(kept, np.searchsorted(kept, starts[1:]))
    return [part - start for part, start in zip(parts, starts, strict=True)]


def _fulfilled(where: Expression, files: Sequence[CellFile], total: int) -> Any:
    """Cells of all files that fulfil an expression, ``[total] bool``."""
    tables = [file.table("obs", tuple(where.names)) for file in files]
    columns, categories = {}, {}
    for name in where.names:
        parts = [table[name] for table in tables]
        kinds = {str(getattr(part, "dtype", "O")) for part in parts}
        if all(getattr(part.dtype, "kind", "O") in "fiub" for part in parts) and "category" not in kinds:
            columns[name] = np.concatenate([_plain(part) for part in parts])
            continue
        coded = [Coded.from_column(part, f"obs column {name!r} ({', '.join(kinds)})") for part in parts]
        codes, categories[name] = merged(coded, [file.url for file in files], name)
        columns[name] = np.concatenate(codes).astype(np.float64)
        columns[name][columns[name] < 0] = np.nan
    return where.mask(columns, total, categories)


def _plain(column: Any) -> Any:
    """A column of numbers as numpy's, NaN where nullable ones of pandas have none."""
    if not hasattr(column.dtype, "numpy_dtype"):
        return np.asarray(column)
    if column.isna().any():
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return column.to_numpy(column.dtype.numpy_dtype)


def read_vocabulary(given: Any, columns: Sequence[str]) -> NodeNames | None:
    """The names that perturbed genes are numbered by; a ``SettingError`` if nothing says where those stand."""
    if given is None:
        return None
    if not columns:
        raise SettingError(
            "vocabulary= numbers perturbed genes", fix="perturbation=... says where they stand"
        )
    counts = Counter(names := in_order("vocabulary", given))
    if again := next((name for name, count in counts.items() if count > 1), None):
        raise SettingError(f"vocabulary= has {again!r} twice, so it does not say which number it has")
    return NodeNames(names, what="name of the vocabulary")


def in_order(name: str, value: Any) -> tuple[str, ...]:
    """Names in their order; none for ``None``."""
    found = [value] if isinstance(value, str) else () if value is None else value
    ordered = isinstance(found, Sequence) or hasattr(found, "tolist")
    if not ordered or not all(isinstance(each, str) for each in found):
        raise SettingError(
            f"{name} is {value!r:.200}, expected text or a list of texts", fix=f'{name}=["..."]'
        )
    return tuple(map(str, found))


def side_tables(given: Any, files: Sequence[CellFile]) -> dict[str, dict[str, list[Any]]]:
    """Per table the names or numbers of each category.

    Args:
        given: A key of ``uns``, several, or a mapping of own name to key, or to key and how many of each to keep.
        files: The files; what several say of a category must be the same.

    Raises:
        SettingError: If it is none of these, or no file has such a key.
        SourceContractError: If it is no such table, or files contradict each other.
    """
    if not isinstance(given, Mapping):
        given = {key: key for key in in_order("uns", given)}
    out: dict[str, dict[str, list[Any]]] = {}
    for name, key in given.items():
        pair = (key, None) if isinstance(key, str) else key
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
            expected = "a key of uns, or a key and how many of each category"
            raise SettingError(
                f"uns[{name!r}] is {key!r:.80}, expected {expected}", fix=f'uns={{"{name}": "..."}}'
            )
        key, most = pair
        most = None if most is None else whole_number(f"uns[{name!r}]", most, 1)
        tables = [(file, *file.side_table(key)) for file in files]
        if all(found is None for _, found, _ in tables):
            there = sorted({each for _, _, keys in tables for each in keys})
            raise SettingError(f"uns has no {key!r}{suggestion(key, there)}")
        mine = out[str(name)] = {}
        for file, found, _ in tables:
            with reading(file.url):
                for category, values in _lists(found, f"uns[{key!r}]") if found is not None else ():
                    if mine.setdefault(category, values[:most]) != values[:most]:
                        raise SourceContractError(
                            f"uns[{key!r}] has other values for {category!r} than the files before it"
                        )
    return out


def _lists(found: Any, where: str) -> Iterator[tuple[str, list[Any]]]:
    """Category and its values, of a mapping, a table with a column for each, or what ``scanpy.tl.rank_genes_groups`` leaves."""
    if isinstance(found, Mapping) and getattr(getattr(found.get("names"), "dtype", None), "names", None):
        found = found["names"]
    fields = getattr(getattr(found, "dtype", None), "names", None)
    names = fields or list(getattr(found, "columns", found if isinstance(found, Mapping) else ()))
    if not names:
        raise SourceContractError(
            f"{where} is a {type(found).__name__}, expected a list of genes for each category"
        )
    for name in names:
        values = np.asarray(found[name])
        if values.ndim != 1 or values.dtype.kind not in "fiubOSU":
            raise SourceContractError(
                f"{where}[{name!r}] is {values.dtype}{list(values.shape)}, expected a list of genes or numbers"
            )
        plain = [value.decode() if isinstance(value, bytes) else value for value in values.tolist()]
        if odd := next((v for v in plain if not isinstance(v, str | int | float)), None):
            raise SourceContractError(f"{where}[{name!r}] holds {odd!r:.80}, expected genes or numbers")
        yield str(name), plain


def unmeasured(found: Labels, alignments: Sequence[Alignment], names: Sequence[str]) -> Iterator[str]:
    """A line for each file with cells that are perturbed in a gene which the file does not measure."""
    first = 0
    for file, part in zip(alignments, found.rows, strict=True):
        cells = np.bincount(found.of[first : first + len(part)], minlength=len(found.conditions))
        first += len(part)
        variables, counts, without = {*file.unused}, Counter[str](), 0
        for k in np.flatnonzero(cells).tolist():
            ids, foreign = found.conditions[k].ids, found.conditions[k].foreign
            lost = [names[node] for node in ids[~np.isin(ids, file.node_of)].tolist()]
            lost += [name for name in foreign if name not in variables]
            counts.update(dict.fromkeys(lost, int(cells[k])))
            without += int(cells[k]) * bool(lost)
        if counts:
            shown = tuple(f"{name} in {count:,}" for name, count in counts.most_common())
            yield (
                f"{file.url}: {without:,} of {len(part):,} cells are perturbed in a gene that is not "
                f"measured{some(shown, f'{len(counts):,} genes')}"
            )


def check(
    layer: str | None, raw: bool, columns: tuple[str, ...], y: Any, field: str, separator: str, version: Any
) -> None:
    """Refuse settings that do not fit together: a ``SettingError``."""
    if layer is not None and raw:
        raise SettingError(f"layer={layer!r} and raw=True are two matrices", fix="pass one of them")
    for name, text in (("field", field), ("separator", separator)):
        if not isinstance(text, str) or not text:
            raise SettingError(
                f"{name} is {'empty' if text == '' else repr(text)}, expected text", fix="leave it out"
            )
    if isinstance(version, str) and not version.strip():
        raise SettingError(f"{version=} names no content", fix="leave it out, then the files are digested")
    if len(set(columns)) != len(columns):
        raise SettingError(
            f"obs columns {columns} name one twice", fix="name each as phenotype or as category"
        )
    if y is not None and y not in columns:
        raise SettingError(f"y={y!r} is neither among phenotypes nor categories: {columns}")
