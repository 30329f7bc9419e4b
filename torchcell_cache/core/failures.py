"""What a file system or an object store said, as an error a user can act on.

A file system is full, read-only or lost. An object is gone, we may not see it, or it is worth another try: the libraries behind
fsspec have no common exceptions, and none of them can be imported just to name them; so exceptions are told apart by the errors
of Python they derive from, by their class's name and by the code the server gave.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchcell_cache.core.hints import StrPath
from torchcell_cache.core.urls import how_to_log_in
from torchcell_cache.errors import (
    CacheError,
    RemoteAccessError,
    RemoteUnavailableError,
    SettingError,
    StorageError,
    StorageFullError,
    StorageLostError,
    StorageReadOnlyError,
)

GONE, ACCESS, TRANSIENT, WRONG, USAGE = "gone", "access", "transient", "wrong", "usage"

_ACCESS_NAMES = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
    "UnauthorizedSSOTokenError", "SSOTokenLoadError", "DefaultCredentialsError", "RefreshError",
    "ClientAuthenticationError", "ProfileNotFound", "SSOError", "LoginRefreshRequired",
}  # fmt: skip
_WRONG_NAMES = {"FlexibleChecksumError", "ChecksumError", "DataCorruption"}
_ACCESS_CODES = {
    "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId",
    "SignatureDoesNotMatch", "AccessDenied", "RequestTimeTooSkewed", "401", "403",
}  # fmt: skip
_TRANSIENT_CODES = {"IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "RequestTimeout", "SlowDown"}
_USAGE_ERRNOS = (errno.EINVAL, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
_USAGE_TYPES = (TypeError, ValueError, KeyError, AttributeError, NotImplementedError, ImportError)
_SECRETS = (
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}\b"),
    re.compile(
        r"(?i)((?:x-amz-(?:signature|credential|security-token)|sig|token|key|secret|password)=)[^&\s'\"]+"
    ),
    re.compile(r"(?i)((?:authorization|x-amz-security-token)['\"]?\s*[:=]\s*b?['\"]?)[^'\",}]+"),
)


def kind_of(error: BaseException) -> str:
    """``GONE``, ``ACCESS``, ``TRANSIENT``, ``WRONG`` (other bytes than the server's own checksum says) or ``USAGE``."""
    chain = list(_chain(error))
    codes = {code for each in chain for code in _codes(each)}
    if any(type(each).__name__ in _ACCESS_NAMES for each in chain) or codes & _ACCESS_CODES:
        return ACCESS
    if any(type(each).__name__ in _WRONG_NAMES for each in chain):
        return WRONG
    if codes & _TRANSIENT_CODES:
        return TRANSIENT
    if isinstance(error, PermissionError):
        return ACCESS
    if isinstance(error, FileNotFoundError):
        return GONE
    if isinstance(error, OSError) and error.errno in _USAGE_ERRNOS:
        return USAGE
    if isinstance(error, UnicodeError) or type(error) in _USAGE_TYPES:
        return USAGE
    return TRANSIENT


def is_short(error: BaseException) -> bool:
    """Whether the server says that an object ends before the bytes asked for."""
    return any({"InvalidRange", "416"} & _codes(each) for each in _chain(error))


def text_of(error: BaseException) -> str:
    """The exception in one line, without anything that looks like a credential."""
    text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    for pattern in _SECRETS:
        text = pattern.sub(lambda match: f"{match[1] if match.re.groups else ''}[hidden]", text)
    return text


def server_error(error: BaseException, action: str, label: str, protocol: str, tried: str = "") -> CacheError:
    """The error for what a server said of an object that may well be there: not allowed, wrongly asked, or no answer."""
    kind, text = kind_of(error), text_of(error)
    if kind == ACCESS:
        fix = how_to_log_in(protocol)
        return RemoteAccessError(f"not allowed to {action} {label} ({text})", path=label, fix=fix)
    said = f"cannot {action} {label}: {tried}{text}"
    if kind == USAGE:
        return SettingError(said, path=label, fix="check the address and storage_options")
    again = "check network and endpoint, then run the same again: what has arrived is kept"
    return RemoteUnavailableError(said, path=label, fix=again)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__


def _codes(error: Any) -> set[str]:
    """Codes of botocore's ClientError, gcsfs's HttpError, aiohttp's ClientResponseError."""
    response = getattr(error, "response", None)
    found = set()
    if isinstance(response, dict):
        found.add(str(response.get("Error", {}).get("Code", "")))
        found.add(str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")))
    for name in ("code", "status", "status_code"):
        value = getattr(error, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600:
            found.add(str(value))
    return found - {""}


# What the file system said, as an error a user can act on: full, read-only or lost

# Below this much free space an EIO is a full disk: LMDB and some file systems report one as the other.
_NEARLY_FULL_BYTES = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_LOST = {errno.EIO, errno.ESTALE}
_NO_PLACE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO}


def free_bytes(path: StrPath) -> int:
    """Bytes a user without privileges can still write at ``path`` (or its nearest existing parent)."""
    where = Path(path).absolute()
    for candidate in (where, *where.parents):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            stats = os.statvfs(candidate)
            return stats.f_bavail * stats.f_frsize
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def storage_error(number: int | None, path: StrPath, action: str = "write") -> StorageError | None:
    """Typed error for an ``errno``, or ``None`` if it says nothing about the storage."""
    if number is None:
        return None
    text = f"cannot {action} {os.fspath(path)}: {os.strerror(number)}"
    kind: type[StorageError]
    if number in _FULL or (number == errno.EIO and _is_full(path)):
        free = "free space unknown"
        with contextlib.suppress(OSError):
            free = f"{free_bytes(path):,} bytes free"
        kind, text = StorageFullError, f"{text} ({free})"
        fix = "free space or raise the quota, then run the same command again; finished shards are kept"
    elif number in _READ_ONLY:
        kind = StorageReadOnlyError
        fix = f"check owner, permissions and mount options of {Path(path).parent}, or choose another root"
    elif number in _LOST:
        kind = StorageLostError
        fix = "look at the system log and the mount, then run the same command again; no part was published"
    elif number in _NO_PLACE:
        kind, text = StorageError, f"{text}{_in_the_way(path)}"
        fix = "choose another path, or remove what is in the way"
    else:
        return None
    error = kind(text, path=os.fspath(path), fix=fix)
    error.errno = number
    return error


@contextlib.contextmanager
def storage_errors(path: StrPath, action: str = "write") -> Iterator[None]:
    """Turn an ``OSError`` about space, permission or lost data into the package's own error."""
    try:
        yield
    except CacheError:
        raise
    except NotADirectoryError as error:
        if action != "read":
            raise storage_error(error.errno, path, action) or error from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path)) from error
    except OSError as error:
        translated = storage_error(error.errno, path, action)
        if translated is None:
            raise
        raise translated from error


def _in_the_way(path: StrPath) -> str:
    """The part of a path that is neither a directory nor free."""
    for part in (Path(path), *Path(path).parents):
        if os.path.islink(part) and not os.path.exists(part):  # noqa: PTH110, PTH114 - which never raise
            return f" ({part} is a symbolic link to a place that does not exist)"
        if os.path.isfile(part):  # noqa: PTH113
            return f" ({part} is a file)"
    return ""


def _is_full(path: StrPath) -> bool:
    """Whether there is no room left, on the device or below this process's file size limit."""
    try:
        if free_bytes(path) < _NEARLY_FULL_BYTES:
            return True
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        return limit != resource.RLIM_INFINITY and Path(path).stat().st_size + _NEARLY_FULL_BYTES > limit
    except OSError:
        return False
