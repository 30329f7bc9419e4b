"""Lists of gene names: from Python, a column of a table, or a file with one name per line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torchcell_cache.errors import SettingError, SourceContractError
from torchcell_cache.sources.columns import column_list, frame_parts
from torchcell_cache.sources.delimited import errors_of, plain_text, unquoted
from torchcell_cache.sources.name_lists import date_note
from torchcell_cache.sources.names import as_texts
from torchcell_cache.sources.network_columns import is_nameless, looks_like_header

_LOOK_AT = 100
_ENOUGH = 3
_NO_NAME = "correct or remove it; a gene called so can have an alias"
_BETWEEN_NAMES = re.compile(r"[\s,;]")


def gene_names(genes: Any, what: str = "gene_set") -> list[str]:
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
            fix = f'{what}=["YAL001C", ...] for names, or the path of a file with one name per line'
            raise SettingError(f"{what}={str(genes)!r} is text, but no file of that name is there", fix=fix)
        return sorted(set(read_gene_list(genes)))
    if (frame := frame_parts(genes)) is not None:
        names = frame[0]
        if len(names) != 1:
            raise SourceContractError(
                f"{what} is a table with the columns {', '.join(map(repr, names))}, expected one column of names",
                fix=f"{what}=frame[{str(next(iter(names), 'gene'))!r}]",
            )
        genes = column_list(genes, what)
    if isinstance(genes, bytes) or not (isinstance(genes, Iterable) or hasattr(genes, "tolist")):
        said = f"{what} is {type(genes).__name__}, expected names of genes"
        raise SettingError(said, fix=f'{what}=["YAL001C", ...]')
    names = [name.strip() for name in as_texts(genes, f"{what}: gene")]
    for k, name in enumerate(names):
        if why := _why_no_name(name):
            raise SourceContractError(f"{what}: gene {k} has no name, it is {why}", fix=_NO_NAME)
    return sorted(set(names))


def _why_no_name(name: str) -> str:
    """What a name is that is none, or nothing."""
    return repr(name) if is_nameless(name) else date_note(name)


def read_gene_list(path: str | Path) -> list[str]:
    """Names of a file with one name per line, in its order.

    Empty lines and lines that start with ``#`` are passed over, and so is a first line that is the name of a column.

    Args:
        path: The file, plain or gzipped.

    Raises:
        SourceContractError: If the file cannot be read, holds no name, or holds a table; names the line.
    """
    rows = enumerate(plain_text(path).splitlines(), start=1)
    lines = [(number, unquoted(line)) for number, line in rows if line.strip()]
    lines = [(number, name) for number, name in lines if not name.startswith("#")]
    with errors_of(path):
        for number, name in lines:
            if _BETWEEN_NAMES.search(name):
                raise SourceContractError(
                    f"{path}, line {number} holds {name[:80]!r}, which looks like a row of a table; expected one gene name "
                    "per line",
                    fix="keep the column of names only",
                )
            if why := _why_no_name(name):
                raise SourceContractError(f"{path}, line {number} holds no name, but {why}", fix=_NO_NAME)
        names = [name for _, name in lines]
        is_header = looks_like_header(names[:1], [[name] for name in names[1:_LOOK_AT]])
        if is_header is None and len(names) > _ENOUGH:
            raise SourceContractError(
                f"the first line, {names[0]!r}, may be the name of a column or of a gene",
                fix="remove it, or write # in front of it; or pass the names as a list",
            )
        names = names[bool(is_header) :]
        if not names:
            raise SourceContractError(f"{path} holds no gene name", fix="one gene name per line")
    return names
