"""A query's rows into ``root/raw``: bounded memory, and any interruption costs at most one shard.

A query that takes ``$after`` continues behind the last id that is stored. Any other query is run again, and the rows
it returns first are compared with the stored ones by digest instead of being stored again. See docs/adr/0010.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchcell_cache.core.failures import storage_errors
from torchcell_cache.core.files import make_dirs_durable
from torchcell_cache.core.locks import LOCK_NAME, BuilderLock
from torchcell_cache.core.progress import Console, Progress, human_bytes
from torchcell_cache.errors import SettingError, SourceContractError, SourceUnavailableError, StaleCacheError
from torchcell_cache.sources.neo4j.raw import (
    MANIFEST_NAME,
    Columns,
    RawRecords,
    RawWriter,
    raw_dir,
    rows_digest,
)

if TYPE_CHECKING:
    from torchcell_cache.sources.neo4j.driver import Login

SHARD_ROWS = 8192
SHARD_BYTES = 8 << 20
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0

_FIX = "RETURN e, ref, or name the columns: columns={'id': ..., 'perturbed': ..., 'phenotypes': [...]}"

Row = dict[str, Any]


class _Fetch:
    """One fetch: what has arrived but is not yet committed, and how to go on."""

    def __init__(
        self,
        writer: RawWriter,
        rows: Callable[[Mapping[str, Any]], Iterator[Row]],
        parameters: Mapping[str, Any],
        columns: Columns | None,
        limit: int | None,
        progress: bool,
    ) -> None:
        self.writer, self.rows, self.columns, self.limit = writer, rows, columns, limit
        self.parameters = dict(parameters)
        self.by_id, self.last_id = "after" in parameters, writer.last_id
        self.pending: list[bytes] = []
        self.pending_bytes = self.stored_bytes = 0
        self.heard, self.say = False, Console(progress)
        self.meter = Progress(
            0, writer.num_records, None, enabled=progress, what="fetch experiments", unit="rows"
        )

    def run(self, retries: int) -> None:
        """Until the result ends; waits and reconnects when the server goes away after it has answered once."""
        failures, wait = 0, _FIRST_WAIT_S
        while True:
            before = self.writer.num_records
            try:
                return self._pass()
            except SourceUnavailableError as error:
                self._commit()
                kept, said = self.writer.num_records, error.args[0].splitlines()[0]
                failures = 0 if kept > before else failures + 1
                if not self.heard or failures >= retries:
                    raise SourceUnavailableError(f"{said}; {kept:,} rows are kept", fix=error.fix) from None
                wait = _FIRST_WAIT_S if failures == 0 else min(2 * wait, _LONGEST_WAIT_S)
                self.say(f"fetch experiments: {said}; trying again in {wait:.0f} s ({kept:,} rows)")
                time.sleep(wait)
            except BaseException:
                with contextlib.suppress(Exception):  # must not hide what happened
                    self._commit()
                raise

    def _pass(self) -> None:
        """Ask until there is no more; raises where it stopped."""
        while True:
            if self.by_id and self.last_id is not None:
                self.parameters["after"] = self.last_id
            with contextlib.closing(self.rows(self.parameters)) as rows:  # type: ignore[type-var]
                stream = rows if self.by_id else self._behind_stored(rows)
                count = sum(1 for _ in map(self._take, stream))
            if self.limit is None or count < self.limit:
                return self._commit()

    def _behind_stored(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Rows after the stored ones, which must come again as they are stored."""
        for entry in list(self.writer.entries):
            bodies = [self._encode(row)[0] for row in islice(rows, entry.stop - entry.start)]
            if rows_digest(bodies) != entry.stats["rows"]:
                what = f"other rows at {entry.start:,} to {entry.stop:,}"
                if len(bodies) < entry.stop - entry.start:
                    what = f"{entry.start + len(bodies):,} rows, {self.writer.num_records:,} were stored"
                raise StaleCacheError(
                    f"the interrupted query now returns {what}: its order or the database has changed",
                    path=self.writer.directory,
                    fix="add ORDER BY id (better: WHERE id > $after), then fetch again with refresh=True",
                )
        yield from rows

    def _take(self, row: Row) -> None:
        body, row_id = self._encode(row)
        last = self.parameters.get("after") if self.last_id is None else self.last_id
        if self.by_id and not _follows(row_id, last):
            raise SettingError(
                f"the query takes $after, but id {row_id!r} came after {self.last_id!r}",
                fix="write WHERE e.id > $after ... RETURN ... ORDER BY e.id, each id once",
            )
        self.last_id = row_id
        self.pending.append(body)
        self.pending_bytes += len(body)
        if len(self.pending) >= SHARD_ROWS or self.pending_bytes >= SHARD_BYTES:
            self._commit()

    def _commit(self) -> None:
        if self.pending:
            self.writer.append(self.pending, self.last_id)
            self.stored_bytes += self.pending_bytes
            self.meter.unit = f"rows, {human_bytes(self.stored_bytes)}"
            count, self.pending, self.pending_bytes = len(self.pending), [], 0
            self.meter(count)

    def _encode(self, row: Row) -> tuple[bytes, Any]:
        """The raw record of a row, and its id."""
        self.heard = True
        wanted = ("e",) if self.columns is None else self.columns.names
        if missing := [name for name in wanted if name not in row]:
            raise SettingError(f"the query returns the columns {list(row)}, not {missing}", fix=_FIX)
        if self.columns is None:
            found = type(row["e"]).__name__
            if not isinstance(row["e"], dict):
                raise SettingError(f"column 'e' holds {found}, expected the node of an experiment", fix=_FIX)
            nodes = (node if isinstance(node, dict) else {} for node in (row["e"], row.get("ref")))
            row_id, rest = row["e"].get("id"), [node.get("serialized_data") for node in nodes]
        else:
            row_id, rest = row[self.columns.id], [row[name] for name in wanted]
        if isinstance(row_id, bool) or not isinstance(row_id, str | int):
            raise SourceContractError(
                f"row {self.writer.num_records + len(self.pending):,} has id {row_id!r}, expected text or an integer",
                fix="give every experiment an id",
            )
        try:
            return json.dumps([row_id, *rest], ensure_ascii=False, separators=(",", ":")).encode(), row_id
        except (TypeError, ValueError) as error:
            raise SourceContractError(f"experiment {row_id!r} cannot be stored: {error}") from None


def _follows(this: Any, last: Any) -> bool:
    """Whether an id comes after another in a server's order, which may compare code points or UTF-16."""
    if isinstance(this, str) and isinstance(last, str):
        return this > last or this.encode("utf-16-be") > last.encode("utf-16-be")
    return not isinstance(this, str) and not isinstance(last, str) and this > last


def fetch(
    root: Path,
    plan: dict[str, Any],
    login: Login,
    query: str,
    parameters: Mapping[str, Any],
    columns: Columns | None,
    *,
    page_size: int,
    retries: int,
    progress: bool,
    refresh: bool = False,
) -> RawRecords:
    """Run a query and store its rows; goes on where an earlier call stopped, unless all are to be fetched again.

    Raises:
        SettingError, SourceUnavailableError: See :func:`torchcell_cache.sources.neo4j.driver.stream`.
        StaleCacheError: If the query returns something else than it did before the interruption.
        SourceContractError: If there are no rows, or one has no id.
        BuildInProgressError: If another process is fetching into this root.
    """
    from torchcell_cache.sources.neo4j.driver import parameters_of, stream

    taken, raw = parameters_of(query), raw_dir(root)
    _check_taken(taken, parameters)
    limit = page_size if {"after", "limit"} <= taken else None
    sent = {**{"after": ""}, **parameters, **({} if limit is None else {"limit": limit})}
    sent = {key: value for key, value in sent.items() if key in taken}
    make_dirs_durable(raw)
    with BuilderLock(raw / LOCK_NAME):
        if refresh:  # the manifest first, so that half of the records are never taken for all
            with storage_errors(raw / MANIFEST_NAME, "remove"):
                (raw / MANIFEST_NAME).unlink(missing_ok=True)
            _remove_others(raw, None)
        complete = RawRecords.open(root)
        if complete is not None and complete.plan == plan:
            return complete
        writer = RawWriter(root, plan)
        work = _Fetch(writer, partial(stream, login, query, page_size), sent, columns, limit, progress)
        if writer.num_records:
            work.say(f"fetch experiments: {writer.num_records:,} rows are there from before")
        with work.meter:
            work.run(retries)
        if writer.num_records == 0:
            raise SourceContractError(
                "the query returned no rows",
                fix="check NEO4J_DATABASE, the names in gene_set, and the conditions of the query"
                + ("; for ids that are numbers pass parameters={'after': -1}" if "after" in taken else ""),
            )
        work.say(f"fetch experiments: {writer.num_records:,} rows stored in {writer.directory}")
        found = writer.publish()
        _remove_others(raw, writer.directory)
    return found


def _check_taken(taken: set[str], given: Mapping[str, Any]) -> None:
    """Refuse a query whose parameters are not all given: some servers take a missing one for null."""
    if missing := sorted(taken - {*given, "after", "limit"}):
        raise SettingError(
            f"the query takes {', '.join('$' + name for name in missing)}, given are "
            f"{', '.join('$' + name for name in sorted(given)) or 'none'}",
            fix=f"pass parameters={{{missing[0]!r}: ...}}",
        )
    if {"after", "limit"} <= taken and "limit" in given:
        raise SettingError(
            "the query takes $after and $limit: it is asked page by page, for all rows",
            fix=f"page_size={given['limit']}, or a query without $after for the first rows only",
        )
    if "limit" in taken and "after" not in taken and "limit" not in given:
        raise SettingError(
            "the query takes $limit and not $after: each page would be the first one again",
            fix="WHERE e.id > $after ... ORDER BY e.id LIMIT $limit, or parameters={'limit': ...} for one page",
        )


def _remove_others(raw: Path, keep: Path | None) -> None:
    for path in raw.glob("gen-*"):
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)
