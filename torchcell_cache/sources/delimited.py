"""Delimited text: the one place that opens, decodes and takes apart CSV, TSV and the like.

The standard library's ``csv`` defines what a file means: CSV is quoted by its rules (and refused where a quote is not
closed or stands in the middle of a quoted cell), TSV and files of blanks have no quotes at all.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import re
import zlib
from collections.abc import Iterator
from io import BytesIO, TextIOWrapper
from pathlib import Path

from torchcell_cache.errors import SettingError, SourceContractError

MISSING = frozenset({"", "NA", "N/A", "#N/A", "NaN", "nan", "null", "NULL", "None"})
"""Cells that stand for "no value", without the blanks around them."""

BLANKS = "blanks"
"""The separator of files whose cells are separated by runs of blanks."""

_AGAIN = "copy or download it again"
_CELL_LIMIT = 2**31 - 1
_GZIP = b"\x1f\x8b"
_PACKED = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"PAR1": "a Parquet file",
    b"\x89HDF": "an HDF5 file",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"\x04\x22\x4d\x18": "packed by lz4",
    _GZIP: "packed by gzip twice",
    b"ARROW1": "an Arrow file (Feather)",
    b"RDX": "a workspace of R",
    b"X\n\0": "an object of R",
    b"SQLite": "a database of SQLite",
    b"%PDF": "a PDF",
}
_MARKS = {
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_EXCELS_LINE = re.compile(rb"""\A"?sep=[^\r\n]"?(?=[\r\n])""")
"""Says what separates cells; it is no row."""


@contextlib.contextmanager
def errors_of(path: str | Path, fix: str | None = None) -> Iterator[None]:
    """Name the file in errors on what it holds, and advise what can be done about it."""
    try:
        yield
    except SourceContractError as error:
        if error.path is not None:
            raise
        said = str(error).removesuffix(f"\n  fix: {error.fix}")
        said = said if said.startswith(str(path)) else f"{path}: {said}"
        raise SourceContractError(said, path=path, fix=fix or error.fix) from None


def separator_of(path: str | Path, otherwise: str = "\t") -> str:
    """The separator that a file's name tells: comma for ``.csv``, tab for ``.tsv`` and ``.tab``, or ``otherwise``."""
    suffix = Path(Path(path).name.lower().removesuffix(".gz")).suffix
    return {".csv": ",", ".tsv": "\t", ".tab": "\t"}.get(suffix, otherwise)


def read_text(path: str | Path, encoding: str | None = None) -> bytes:
    """Content of a text file, plain or gzipped whatever its name says, as UTF-8 without a byte order mark.

    Args:
        path: The file.
        encoding: As Python names it; UTF-8 if ``None``.

    Raises:
        SourceContractError: If the file is missing, cut, or not text in that encoding; names it.
        SettingError: If there is no such encoding.
    """
    path = Path(path).expanduser()
    try:
        known = codecs.lookup(encoding or "utf-8")
        bytes(4).decode(known.name)  # fails for codecs that give no text, such as hex
    except (LookupError, TypeError, ValueError):
        fix = "utf-8, latin-1, cp1252, utf-16"
        raise SettingError(f"encoding={encoding!r} is unknown", fix=fix) from None
    with errors_of(path):
        data = _unpacked(path)
        said = next((what for magic, what in _PACKED.items() if data.startswith(magic)), None)
        said = "a tar archive" if data[257:262] == b"ustar" else said
        if said is not None:
            raise SourceContractError(f"{path} is {said}, expected text", fix="save it as CSV or TSV")
        if not (data.isascii() and known.name == "utf-8"):  # most tables are: no second copy of them
            data = _as_utf8(path, data, known.name)
        if b"\0" in data:
            raise SourceContractError(
                f"{path}, line {_line(data, data.index(0))} holds a zero byte: it is no text, or not in {known.name}",
                fix=f'pass encoding="{_wide(data)}" if another program wrote it as Unicode, else fetch it again',
            )
    return _EXCELS_LINE.sub(b"", data.removeprefix(codecs.BOM_UTF8))


def plain_text(path: str | Path) -> str:
    """Text of a file that is read where there is no setting for its encoding."""
    try:
        return read_text(path).decode()
    except SourceContractError as error:
        if "encoding=" not in str(error.fix):
            raise
        said = str(error).removesuffix(f"\n  fix: {error.fix}")
        raise SourceContractError(said, path=path, fix="save it as UTF-8") from None


def _as_utf8(path: Path, data: bytes, encoding: str) -> bytes:
    try:
        text = data.decode(encoding)
        return data if encoding == "utf-8" else text.encode()
    except UnicodeError as error:
        start = error.start if isinstance(error, UnicodeDecodeError) else 0
    if path.suffix.lower() == ".gz" and not path.read_bytes().startswith(_GZIP):
        raise SourceContractError(f"{path} is neither a gzip file nor text in {encoding}", fix=_AGAIN)
    other = _wide(data) or ("latin-1" if encoding == "utf-8" else "utf-8")
    raise SourceContractError(
        f"{path}, line {_line(data, start)} is not text in {encoding}: {data[start : start + 4]!r}",
        fix=f'save it as UTF-8, or pass encoding="{other}"',
    )


def _line(data: bytes, at: int) -> int:
    return data.count(b"\n", 0, at) + 1


def read_rows(
    path: str | Path, *, separator: str | None = None, encoding: str | None = None
) -> Iterator[list[str]]:
    """Rows of a file as lists of cells, as they stand; empty lines are passed over.

    Args:
        path: The file, plain or gzipped.
        separator: One character, ``"blanks"`` for runs of blanks, or ``None``: from the name, see :func:`separator_of`.
        encoding: As Python names it; UTF-8 if ``None``.

    Raises:
        SourceContractError: If the file is no such text; names it and the line.
        SettingError: If separator or encoding are none.

    Example:
        ``for a, b, *rest in read_rows("physical.tsv.gz"): ...``
    """
    path = Path(path).expanduser()
    separator = separator_of(path) if separator is None else checked_separator(separator)
    return rows_of(path, read_text(path, encoding) if encoding else plain_text(path).encode(), separator)


def rows_of(path: Path, data: bytes, separator: str) -> Iterator[list[str]]:
    """Rows of UTF-8 text that was read already; see :func:`read_rows`."""
    lines = TextIOWrapper(BytesIO(data), encoding="utf-8", newline="")
    if separator == BLANKS:
        yield from filter(None, map(str.split, lines))
        return
    # Of the whole process: lowering it again could hit another reader.
    csv.field_size_limit(max(_CELL_LIMIT, csv.field_size_limit()))
    rows = csv.reader(
        lines,
        delimiter=separator,
        quoting=csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    try:
        yield from filter(None, rows)
    except csv.Error as error:
        raise SourceContractError(
            f"{path}: a quote does not fit in the row that ends in line {rows.line_num} ({error})",
            path=path,
            fix='a quote in a cell is written "" and the cell is quoted; or save the file as TSV, which has no quotes',
        ) from None


def checked_separator(separator: str, setting: str = "separator") -> str:
    r"""A separator of cells; ``tab`` and ``\t``, as one types it in a shell, are a tab.

    Raises:
        SettingError: If it is none.
    """
    separator = "\t" if separator in ("tab", "\\t") else separator
    one = isinstance(separator, str) and len(separator) == 1 and separator not in '"\r\n\0'
    if one or separator == BLANKS:
        return separator
    fix = f'one character such as ";", or "tab" or "{BLANKS}"'
    raise SettingError(f"{setting}={separator!r} separates no cells", fix=fix)


def check_header(path: Path, header: list[str]) -> list[str]:
    """Column names without the blanks around them; any number of columns may have none.

    Raises:
        SourceContractError: If a name stands there twice; lists all such names.
    """
    names = [name.strip() for name in header]
    if repeated := [name for k, name in enumerate(names) if name and name in names[:k]]:
        said = f"{path}: the header has {', '.join(map(repr, dict.fromkeys(repeated)))} more than once"
        fix = "give each column a name of its own, or remove the copy"
        raise SourceContractError(said, path=path, fix=fix)
    return names


def unquoted(cell: str) -> str:
    """A cell without the blanks and quotes around it."""
    text = cell.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _unpacked(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data.startswith(_GZIP) else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceContractError(f"{path} is a damaged gzip file ({error})", fix=_AGAIN) from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        said = f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}"
        said = f"no file at {path}" if isinstance(error, FileNotFoundError) else said
        raise SourceContractError(said, path=path, fix="check the path") from None


def _wide(data: bytes) -> str:
    """The encoding of several bytes a letter that data seems to have, by its mark or its zero bytes."""
    for name, marks in _MARKS.items():
        if data.startswith(marks):
            return name
    first = data.find(b"\0")
    return "" if first < 0 else ("utf-16-be", "utf-16-le")[first % 2]
