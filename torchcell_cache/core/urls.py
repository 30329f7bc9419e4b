"""Which roots are addresses of object stores, and what such an address may hold: never credentials."""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchcell_cache.errors import SettingError

PROTOCOLS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "az",
    "abfs": "az",
    "abfss": "az",
    "file": None,
    "memory": None,
}
"""Protocols that stores can be kept under, and the extra each needs."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_SECRET_NAMES = re.compile(
    r"secret|password|passphrase|credential|connection_string|account_key|access_key|session_token|sas|^key$|^token$",
    re.IGNORECASE,
)
_LOGINS = {
    "s3": "set or renew credentials where s3fs finds them (aws sso login, AWS_PROFILE, ~/.aws/credentials, "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a role of the machine), then run the same again; "
    "for a public bucket storage_options={'anon': True}",
    "gs": "run gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS, then run the same again",
    "az": "run az login, or set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, then run the same again",
}
_HARMLESS = ("anon", "anonymous", "google_default", "cloud", "cache", "browser", None, True, False)


def is_url(root: Any) -> bool:
    """Whether a root is the address of an object store rather than a directory."""
    try:
        text = os.fspath(root)
    except TypeError:
        return False
    match = _URL.fullmatch(text) if isinstance(text, str) else None
    return match is not None and (match[1].lower() in PROTOCOLS or "://" in text)


def local_path(path: Any, what: str = "root") -> Path:
    """A place on this machine's file system, absolute: what everything that writes makes of its argument.

    Raises:
        SettingError: If it is an address, which would become a directory named ``s3:``, or no path that a file
            system could take.
    """
    if is_url(path):
        raise SettingError(
            f"{what}={os.fspath(path)} is an address, expected a path on a file system",
            fix=_on_disk(path, what),
        )
    try:
        if not os.fspath(path):
            raise ValueError("it is empty, perhaps of a variable that is not set")
        local = Path(os.fspath(path)).expanduser().absolute()
        str(local).encode()  # LMDB and JSON take UTF-8 only
        local.stat()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise SettingError(
                f"{what}={path} cannot be: {error.strerror}", fix="choose another path"
            ) from None
    # No text, a null byte; a home directory that nobody has.
    except (TypeError, ValueError, RuntimeError) as error:
        raise SettingError(
            f"{what}={path!r} is no path: {error}", fix=f"{what}=a path, . for this directory"
        ) from None
    return local


def _on_disk(url: Any, what: str) -> str:
    protocol, rest = _URL.fullmatch(os.fspath(url)).groups()  # type: ignore[union-attr] # is_url has said so
    if protocol.lower() == "file":
        return f"write it as {shlex.quote('/' + rest)}"
    if what != "root" or protocol.lower() not in PROTOCOLS:
        return "name a place on this machine, and copy between it and the address with the tools of the object store"
    pushed = shlex.quote(f"url={os.fspath(url)}")
    return (
        f"build in a directory, then torchcell-cache push root=... {pushed}; "
        f"to work on a store that is there: {pull_command(os.fspath(url))}"
    )


def pull_command(url: str) -> str:
    """The line that brings a store from an address to the working directory."""
    name = name_of(url.rstrip("/")) or "store"
    return f"torchcell-cache pull {shlex.quote(f'url={url}')} {shlex.quote(f'root={name}')}"


def checked_url(root: Any) -> str:
    """The address, spelt one way.

    Raises:
        SettingError: If the protocol is unknown, the address is empty, or it carries a password.
    """
    match = _URL.fullmatch(os.fspath(root)) if isinstance(root, str | os.PathLike) else None
    if match is None or match[1].lower() not in PROTOCOLS:
        raise SettingError(
            f"{root!s:.200} is no address of a store; known: {', '.join(f'{p}://' for p in PROTOCOLS)}",
            fix="write for instance s3://bucket/prefix",
        )
    protocol, rest = match[1].lower(), match[2].rstrip("/")
    if "@" in rest.split("/")[0] and ":" in rest.split("@")[0]:
        raise SettingError(
            f"the {protocol}:// address holds a password, which would end up in logs",
            fix=how_to_log_in(protocol),
        )
    if not rest:
        raise SettingError(f"{protocol}:// names no bucket", fix=f"write {protocol}://bucket/prefix")
    return f"{protocol}:///{rest}" if protocol == "file" else f"{protocol}://{rest}"


def protocol_of(url: str) -> str:
    """``s3`` of ``s3://bucket``."""
    return url.partition(":")[0]


def name_of(url: str) -> str:
    """Last part of an address."""
    return url.rpartition("/")[2]


def checked_options(options: Mapping[str, Any] | None, protocol: str) -> dict[str, Any]:
    """Options of the file system, without secrets: datasets are pickled, printed and logged.

    Raises:
        SettingError: If one of them is or looks like a credential.
    """
    if options is not None and not isinstance(options, Mapping):
        raise SettingError(
            f"storage_options is {type(options).__name__}, expected a mapping", fix="{'anon': True}"
        )
    found = _secret_in(dict(options or {}))
    if found is not None:
        raise SettingError(
            f"storage_options hold {found!r}: credentials are not passed through datasets, which are pickled and logged",
            fix=how_to_log_in(protocol),
        )
    return dict(options or {})


def refuse_remote(root: Any, given: Mapping[str, Any]) -> None:
    """Refuse what only addresses take for a directory."""
    names = [name for name, value in given.items() if repr(value) not in ("None", "''", "{}", "0")]
    if names:
        raise SettingError(
            f"{', '.join(names)}: for addresses only, {os.fspath(root)} is a directory", fix="leave it out"
        )


def refuse_inside(place: Path, store: Any, what: str) -> None:
    """Refuse a place in the directory of a store, whose files belong to what wrote them.

    Raises:
        SettingError: If ``place`` is the store's directory or below it.
    """
    text = os.fspath(store)
    if is_url(text):
        if protocol_of(text) != "file":
            return
        text = text.partition("://")[2]
    try:
        root, inner = Path(text).resolve(), place.resolve()
    except (
        OSError,
        RuntimeError,
        ValueError,
    ):  # links in a circle, impossible names: whoever goes there says so
        return
    if inner.is_relative_to(root):
        raise SettingError(
            f"{what}={place} is in the store {store} itself",
            fix=f"choose a place beside it, {root.parent / 'copies'}",
        )


def how_to_log_in(protocol: str) -> str:
    """Where the file system of a protocol looks for credentials, as a fix."""
    return _LOGINS.get(PROTOCOLS.get(protocol) or "", "check owner and permissions")


def _secret_in(options: Mapping[str, Any]) -> str | None:
    for name, value in options.items():
        if isinstance(value, Mapping):
            inside = _secret_in(value)
            if inside is not None:
                return f"{name}.{inside}"
        elif _SECRET_NAMES.search(str(name)) and not (value is None or value in _HARMLESS):
            return str(name)
    return None
