"""JSON documents that prove themselves: canonical text whose first field is the SHA-256 of all the rest.

The seal is checked on the raw bytes, before anything is parsed, so damage anywhere - in a value, a key or a
space - is found, and no damaged byte reaches the parser. What passes is parsed strictly all the same: a seal
is a checksum, not a signature, and whoever writes a hostile document can seal it too.

The layout, which every later format version keeps: line 1 is ``{``, line 2 is ``"digest": "<64 hexadecimal
digits>",``, and the digest covers the document without that line. Keys are sorted, so the order of an
object's keys carries no meaning; where order matters, use a list.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any

from torchcell_cache.core.failures import storage_errors
from torchcell_cache.core.files import open_regular
from torchcell_cache.core.fingerprint import MAX_DEPTH, check_json
from torchcell_cache.core.hints import StrPath
from torchcell_cache.errors import CorruptManifestError

MAX_BYTES = 64 << 20
# A hostile document of tiny elements would cost 30 times its size in memory; this many are a quarter of a
# GiB.
_MAX_ELEMENTS = 4_000_000

_OPEN = b"{\n"
_SEAL = re.compile(rb'\{\n "digest": "([0-9a-f]{64})",\n')


def seal(document: dict[str, Any]) -> bytes:
    """Canonical bytes of ``document`` with its digest in front."""
    if not document or "digest" in document:
        raise ValueError("a sealed document has fields, and 'digest' is not one of them")
    body = _canonical(plain(document))
    digest = hashlib.sha256(body).hexdigest().encode()
    data = _OPEN + b' "digest": "' + digest + b'",\n' + body[len(_OPEN) :]
    if len(data) > MAX_BYTES:
        raise ValueError(f"a document of {len(data):,} bytes is over the cap of {MAX_BYTES:,}")
    return data


def unseal(
    data: bytes, *, path: StrPath | None = None, fix: str | None = None, canonical: bool = True
) -> dict[str, Any]:
    """Check and parse what ``seal`` wrote.

    Raises:
        CorruptManifestError: Anything differs from what ``seal`` would write for the parsed document.
    """
    name = "document" if path is None else os.fspath(path)

    def damaged(what: str) -> CorruptManifestError:
        return CorruptManifestError(f"{name} is damaged: {what}", path=path_text, fix=fix)

    path_text = None if path is None else os.fspath(path)
    if len(data) > MAX_BYTES:
        raise damaged(f"{len(data):,} bytes, at most {MAX_BYTES:,} expected")
    match = _SEAL.match(data)
    if match is None:
        raise damaged(f"no digest in its first two lines ({len(data):,} bytes)")
    body = _OPEN + data[match.end() :]
    found, expected = hashlib.sha256(body).hexdigest(), match[1].decode()
    if found != expected:
        raise damaged(f"its content has SHA-256 {found[:16]}..., its own digest says {expected[:16]}...")
    if body.count(b",") + body.count(b"[") + body.count(b"{") > _MAX_ELEMENTS:
        raise damaged(f"more than {_MAX_ELEMENTS:,} elements")
    try:
        document = strict_json(body)
        if not isinstance(document, dict) or (canonical and _canonical(plain(document)) != body):
            raise ValueError("not in canonical form")
    except (ValueError, TypeError, RecursionError) as error:
        raise damaged(str(error)) from error
    return document


def read_sealed(path: StrPath, *, fix: str | None = None, canonical: bool = True) -> dict[str, Any]:
    """Read and check a sealed file, see :func:`unseal`; a symbolic link, a device or a pipe in its place is refused.

    Raises:
        FileNotFoundError: There is no such file.
        CorruptManifestError: It does not hold what was written.
    """
    with storage_errors(path, "read"), os.fdopen(open_regular(path, CorruptManifestError, fix), "rb") as file:
        data = file.read(MAX_BYTES + 1)
    return unseal(data, path=path, fix=fix, canonical=canonical)


def plain(value: Any, where: str = "$") -> Any:
    """Copy of ``value`` in plain JSON types; tuples become lists, what JSON cannot hold is refused by ``ValueError``."""
    check_json(value, where, MAX_DEPTH + 1)
    return json.loads(json.dumps(value))


def _canonical(document: dict[str, Any]) -> bytes:
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


def strict_json(text: bytes) -> Any:
    """JSON without NaN literals and double keys; raises ``ValueError`` or ``RecursionError``."""
    return json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return fields


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")
