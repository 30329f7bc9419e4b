"""Lists of gene names: from Python, a column of a table, or a file with one name per line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.delimited import read_text
from torchcell_cache.sources.names import as_texts
from torchcell_cache.sources.table_headers import looks_like_header

_LOOK_AT = 100
_BETWEEN_NAMES = re.compile(r"[\s,;]")


def gene_names(genes: Iterable[Any] | str | Path, what: str = "gene_set") -> list[str]:
    """Names of genes, each once, in ascending order.

    Args:
        genes: Names (whole numbers count as their digits), a pandas column or frame of one column, or the path of a
            file, see :func:`read_gene_list`.
        what: What the names are called in messages.

    Raises:
        SettingError: If it is text that is no path, or no list at all.
        SourceContractError: If a name is empty or no text, or a table has several columns.
    """
    if isinstance(genes, str | Path):
        if not Path(genes).expanduser().is_file():
            raise SettingError(
                f"{what}={str(genes)!r} is text, but no file of that name is there",
                fix=f'{what}=["YAL001C", ...] for names, or the path of a file with one name per line',
            )
        return sorted(set(read_gene_list(genes)))
    columns = getattr(genes, "columns", None)
    if columns is not None:
        if len(columns) != 1:
            raise SourceContractError(
                f"{what} is a table with the columns {', '.join(map(repr, columns))}, expected one column of names",
                fix=f"{what}=frame[{str(next(iter(columns), 'gene'))!r}]",
            )
        genes = genes[columns[0]]  # type: ignore[index]
    if isinstance(genes, bytes) or not (isinstance(genes, Iterable) or hasattr(genes, "tolist")):
        raise SettingError(f"{what} is {type(genes).__name__}, expected names of genes")
    names = [name.strip() for name in as_texts(genes, f"{what}: gene")]
    if "" in names:
        raise SourceContractError(f"{what}: gene {names.index('')} has no name", fix="remove it")
    return sorted(set(names))


def read_gene_list(path: str | Path) -> list[str]:
    """Names of a file with one name per line, in its order.

    Empty lines and lines that start with ``#`` are passed over, and so is a first line that is the name of a column.

    Args:
        path: The file, plain or gzipped.

    Raises:
        SourceContractError: If the file cannot be read, holds no name, or holds a table; names the line.
    """
    names: list[str] = []
    for number, line in enumerate(read_text(path).decode("utf-8", "surrogatepass").splitlines(), start=1):
        name = line.strip()
        if len(name) > 1 and name[0] == name[-1] == '"':
            name = name[1:-1].strip()
        if not name or name.startswith("#"):
            continue
        if _BETWEEN_NAMES.search(name):
            raise SourceContractError(
                f"{path}, line {number} holds {name[:80]!r}, which looks like a row of a table; expected one gene name "
                "per line",
                path=path,
                fix="keep the column of names only",
            )
        names.append(name)
    if looks_like_header(names[:1], [[name] for name in names[1:_LOOK_AT]]):
        del names[0]
    if not names:
        raise SourceContractError(f"{path} holds no gene name", path=path, fix="one gene name per line")
    return names
