"""What an object store's exception means: the object is gone, we may not see it, or it is worth another try.

The libraries behind fsspec have no common exceptions, and none of them can be imported just to name them; so exceptions are
told apart by the errors of Python they derive from, by their class's name and by the code the server gave.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import Any

from torchcell_cache.core.urls import how_to_log_in
from torchcell_cache.errors import CacheError, RemoteAccessError, RemoteUnavailableError, SettingError

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
