"""The official Neo4j driver, and what its errors mean. The only file that imports neo4j.

Everything goes over as a parameter. A :class:`Login` is made just before it is used and kept by nobody: it is
neither shown, nor logged, nor pickled, and no message holds more of an address than its host and port.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import urlsplit

import neo4j
from neo4j import exceptions as refused

from torchcell_cache.errors import CacheError, SettingError, SourceUnavailableError

_SCHEMES = ("bolt", "bolt+s", "bolt+ssc", "neo4j", "neo4j+s", "neo4j+ssc")
_CONNECT_SECONDS = 10.0
_ENDED = (
    ".TransactionTimedOut", ".TransactionTimedOutClientConfiguration", ".TransactionMarkedAsFailed",
    ".Terminated", ".LockClientStopped", ".LockAcquisitionTimeout",
)  # fmt: skip
"""Codes that the driver counts as the client's errors although nothing about the query is wrong."""
# Text in quotes or backticks and comments name no parameters.
_TOKENS = re.compile(
    r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\$(?:`([^`]+)`|(\w+))|`[^`]*`|//[^\n]*|/\*.*?\*/", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Login:
    """Address and credentials of a server.

    Attributes:
        uri: Address, without credentials in it.
        username: User.
        password: Password; not shown by ``repr``, refused by ``pickle``.
        database: Database, or ``None`` for the user's home database.
    """

    uri: str
    username: str
    password: str = field(repr=False)
    database: str | None = None

    @classmethod
    def from_settings(
        cls,
        uri: str | None = None,
        username: str | None = None,
        password: str | None = None,
        database: str | None = None,
    ) -> Login:
        """From arguments, and from ``NEO4J_URI``, ``NEO4J_USER``, ``NEO4J_PASSWORD``, ``NEO4J_DATABASE`` otherwise.

        Raises:
            SettingError: If something is missing, or the address is not one.
        """
        env = os.environ
        uri = uri or env.get("NEO4J_URI")
        username = username or env.get("NEO4J_USER") or env.get("NEO4J_USERNAME")
        password = password or env.get("NEO4J_PASSWORD")
        database = database or env.get("NEO4J_DATABASE")
        given = {"uri": uri, "username": username, "password": password, "database": database}
        for name, value in given.items():
            if value is not None and not isinstance(value, str):
                raise SettingError(f"{name} is {type(value).__name__}, expected text")
        if not uri or not username or not password:
            names = {"NEO4J_URI": uri, "NEO4J_USER": username, "NEO4J_PASSWORD": password}
            missing = [name for name, value in names.items() if not value]
            raise SettingError(
                f"the database cannot be reached: {', '.join(missing)} not set",
                fix=" ".join(f"export {name}=..." for name in missing),
            )
        parts = _address(uri)
        if parts.username is not None or parts.password is not None:
            raise SettingError(
                "the address holds credentials, which end up in logs",
                fix="put them into NEO4J_USER and NEO4J_PASSWORD, the address alone into NEO4J_URI",
            )
        if parts.path.strip("/"):
            raise SettingError(
                f"the address ends in {parts.path!r}, which no driver reads",
                fix=f"leave it out; database={parts.path.strip('/')!r} names a database",
            )
        if database and not re.fullmatch(r"[\w.-]+", database):
            raise SettingError(
                f"database={database!r} is no name of a database", fix="SHOW DATABASES lists them"
            )
        return cls(uri, username, password, database)

    @property
    def place(self) -> str:
        """Host and port, for messages."""
        parts = _address(self.uri)
        return f"{parts.hostname}:{parts.port or 7687}"

    def __reduce__(self) -> NoReturn:
        raise TypeError("credentials are not pickled; pass them again, or set NEO4J_PASSWORD")


def _address(uri: str) -> Any:
    wanted = f"expected an address such as bolt://localhost:7687 ({', '.join(_SCHEMES)})"
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:
        raise SettingError(f"NEO4J_URI is malformed; {wanted}") from None
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise SettingError(f"the address has scheme {parts.scheme[:20]!r}; {wanted}")
    return parts


def parameters_of(query: str) -> set[str]:
    """Names of the parameters a Cypher query takes."""
    return {match[1] or match[2] for match in _TOKENS.finditer(query) if match[1] or match[2]}


def stream(
    login: Login, query: str, fetch_size: int, parameters: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Rows of a query by column, read only, as they arrive; at most about ``fetch_size`` are held here.

    Nodes and relationships are their properties.

    Raises:
        SettingError: If user, password, database or query are wrong.
        SourceUnavailableError: If the server cannot be reached, or is gone.
    """
    with _meaning(login), _driver(login) as driver:
        session = driver.session(
            database=login.database, default_access_mode=neo4j.READ_ACCESS, fetch_size=fetch_size
        )
        with session:
            for record in session.run(query, dict(parameters)):
                yield {key: _plain(value) for key, value in dict(record).items()}
                for value in record.values():
                    if isinstance(value, neo4j.graph.Entity):
                        # Drop nodes from the driver's own graph of the result, which otherwise grows to hold all of them.
                        for name in ("_nodes", "_relationships"):
                            getattr(value.graph, name, {}).clear()


@contextlib.contextmanager
def writing(login: Login) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """A function that runs statements which may write, each in a transaction of its own.

    ``run(query, parameters)`` returns the rows; with ``optional=True`` a statement that the server does not know is
    passed over.

    Raises:
        SettingError, SourceUnavailableError: As :func:`stream`.
    """
    with _driver(login) as driver, driver.session(database=login.database) as session:

        def run(
            query: str, parameters: Mapping[str, Any] | None = None, optional: bool = False
        ) -> list[dict[str, Any]]:
            with _meaning(login):
                try:
                    return [record.data() for record in session.run(query, dict(parameters or {}))]
                except (refused.ClientError, refused.DatabaseError) as error:
                    if not optional or isinstance(error, refused.AuthError | refused.Forbidden):
                        raise
            return []

        yield run


def _driver(login: Login) -> neo4j.Driver:
    try:
        return neo4j.GraphDatabase.driver(
            login.uri,
            auth=(login.username, login.password),
            connection_timeout=_CONNECT_SECONDS,
            connection_acquisition_timeout=2 * _CONNECT_SECONDS,
        )
    except (ValueError, refused.DriverError) as error:
        said = str(error)
    raise SettingError(
        f"the driver cannot use this address: {said.replace(login.password, '***')}", fix="correct NEO4J_URI"
    )


def _plain(value: Any) -> Any:
    if hasattr(value, "iso_format"):  # a duration is a tuple too
        return value.iso_format()
    if isinstance(value, neo4j.graph.Node | neo4j.graph.Relationship | dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def _meaning(login: Login) -> Iterator[None]:
    """Turn the driver's errors into ours, without their chain: a driver's frame holds the credentials."""
    failure: CacheError | None = None
    try:
        yield
    except (refused.Neo4jError, refused.DriverError, OSError) as error:
        failure = _explain(error, login)
    if failure is not None:
        raise failure


def _explain(error: Exception, login: Login) -> CacheError:
    code = str(getattr(error, "code", None) or "")
    said = str(getattr(error, "message", None) or error).splitlines()[0][:400].replace(login.password, "***")
    where, user = login.place, f"user {login.username!r}"
    again = "the same call goes on where it stopped"
    kind: type[CacheError] = SettingError
    if code.endswith("CredentialsExpired"):
        text = f"the password of {user} on {where} has expired: {said}"
        fix = "set a new one (ALTER CURRENT USER SET PASSWORD), then NEO4J_PASSWORD"
    elif code.endswith("AuthenticationRateLimit"):
        text = f"{where} locked out {user} for a while: {said}"
        fix = "correct NEO4J_PASSWORD, wait some seconds, then run the same again"
    elif isinstance(error, refused.AuthError):
        text, fix = f"{where} refused {user}: {said}", "correct NEO4J_USER and NEO4J_PASSWORD"
    elif code.endswith(("DatabaseNotFound", "InvalidDatabase")):
        text = f"{where} has no database {login.database!r}"
        fix = "set NEO4J_DATABASE, or pass database=...; SHOW DATABASES lists them"
    elif isinstance(error, refused.Forbidden):
        text, fix = f"{user} may not do that on {where}: {said}", "grant the user read access"
    elif isinstance(error, refused.ConfigurationError):
        text, fix = f"the driver cannot use these settings: {said}", "correct NEO4J_URI"
    elif code.endswith(_ENDED):
        kind, text = SourceUnavailableError, f"{where} ended the query before its last row: {said}"
        fix = (
            "run the same call again, it goes on where it stopped; if it ends there every time, give the query "
            "$after and $limit with a smaller page_size, or raise the server's db.transaction.timeout"
        )
    elif isinstance(error, refused.ClientError):
        text, fix = f"{where} refused the query: {said}", "correct the query"
    elif isinstance(error, refused.Neo4jError):  # it answers, but cannot: out of memory, not the leader
        kind, text = SourceUnavailableError, f"{where} could not finish the query: {said}"
        fix = f"look at the server's log; {again}"
    else:
        kind, text = SourceUnavailableError, f"{where} does not answer ({type(error).__name__}: {said})"
        fix = f"check NEO4J_URI and that the server runs; {again}"
    return kind(text, fix=fix)
