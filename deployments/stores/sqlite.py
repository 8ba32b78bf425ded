"""The embedded store: one SQLite file in WAL mode, one connection that writes and checkpoints.

Owns the file (see `ownership`) and its durability: a write that returned is on the disk (`synchronous=FULL`).
Refuses what `sqlite_schema` refuses, and a file moved away from under it.
Readers use `read_rows`, whose snapshots are short; that is what keeps the WAL bounded.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deployments.contracts import (
    Completion,
    KeyedRequest,
    NotPersisted,
    PersistFailure,
    PredictionPoint,
    Readings,
    RecordSet,
    StoredReply,
)
from deployments.stores.base import KEY_KEPT_S, StoreUnavailable, WriteOutcome
from deployments.stores.checks import exact_float, refusal
from deployments.stores.ownership import FileOwnership
from deployments.stores.sqlite_retention import Retention
from deployments.stores.sqlite_rollups import roll_up
from deployments.stores.sqlite_schema import prepare

logger = logging.getLogger(__name__)

WAL_LIMIT_BYTES = 16 * 1024 * 1024
"""Beyond this the writer waits for readers to leave and truncates the WAL. SQLite's own checkpoints start at
4 MB but never wait, so overlapping readers alone could let the WAL grow for ever."""

CHECKPOINT_WAIT_MS = 250
TRUNCATE_EVERY_S = 1.0
BUSY_TIMEOUT_MS = 1000
"""How long a write waits for a foreign lock (an operator's shell, a backup)."""

FREE_SPACE_FLOOR_BYTES = 32 * 1024 * 1024
"""`ping` calls the store unusable below this: a commit and a checkpoint must both fit."""

FORGET_EVERY_S = 60.0
FORGET_AT_ONCE = 1000
"""Expired keys leave in small steps, which no commit notices."""

_COMPLETE = """
INSERT INTO idempotent_reply VALUES (:key, :fingerprint, :reply, :now)
ON CONFLICT DO UPDATE SET fingerprint = :fingerprint, reply = :reply, stored_at_s = :now
WHERE stored_at_s <= :expired
"""
_RECALL = "SELECT fingerprint, reply FROM idempotent_reply WHERE key = ? AND stored_at_s > ?"
_FORGET = """
DELETE FROM idempotent_reply
WHERE key IN (SELECT key FROM idempotent_reply WHERE stored_at_s <= ? ORDER BY stored_at_s LIMIT ?)
"""

_UPSERT = """
INSERT INTO prediction VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET
  predicted_kw = excluded.predicted_kw, confidence = excluded.confidence,
  aggregate_kw = excluded.aggregate_kw, latency_ms = excluded.latency_ms,
  request_id = excluded.request_id, user_id = excluded.user_id, artifact_sha256 = excluded.artifact_sha256
"""

_UPSERT_READING = """
INSERT INTO sensor_reading VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET aggregate_kw = excluded.aggregate_kw
"""

_UPSERT_ENTRY = "INSERT INTO rollout VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET document = excluded.document"

_BAD_RECORD = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
)

_EXPLANATIONS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_BUSY: "the database is locked by another process",
    sqlite3.SQLITE_LOCKED: "the database is locked",
    sqlite3.SQLITE_READONLY: "the database is read-only",
    sqlite3.SQLITE_IOERR: "the disk refused a read or a write",
    sqlite3.SQLITE_CORRUPT: "the database file is corrupted: restore it from a backup",
    sqlite3.SQLITE_NOTADB: "the file is not an SQLite database",
    sqlite3.SQLITE_CANTOPEN: "the database file cannot be opened",
}


class SqliteStore:
    """Predictions in one SQLite file of this node."""

    kind = "sqlite"

    def __init__(self, path: Path, *, retention_days: int = 0, ownership_wait_s: float = 10.0) -> None:
        """Open or create `path`; 0 `retention_days` keep every row.

        Raises StoreUnavailable (StoreInUse when another process owns the file).
        """
        # Resolved, so that two names of one file meet at one lock.
        self._path = path.resolve()
        self._last_truncate_s = float("-inf")
        self._last_forget_s = float("-inf")
        # write() and ping() come from different threads and share the connection.
        self._lock = threading.Lock()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._ownership = FileOwnership(self._path, ownership_wait_s)
        except OSError as error:
            raise StoreUnavailable(f"{self._path}: {error.strerror}") from error
        try:
            with explained(self._path):
                self._connection = self._open(retention_days)
            self._inode = self._path.stat().st_ino
        except BaseException:
            self._ownership.release()
            raise

    def _open(self, retention_days: int) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None, check_same_thread=False
        )
        try:
            prepare(connection, self._path)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
            self._retention = Retention(connection, retention_days)
        except BaseException:
            connection.close()
            raise
        return connection

    def write(self, record_sets: Sequence[RecordSet]) -> list[WriteOutcome]:
        """See `PredictionStore.write`. One transaction; each record set, with its reply, is atomic inside it."""
        outcomes: list[WriteOutcome] = [refusal(record_set) for record_set in record_sets]
        if None not in outcomes:
            return outcomes
        with self._lock, explained(self._path):
            self._check_file()
            connection = self._connection
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._retention.step(connection)
                for index, record_set in enumerate(record_sets):
                    if outcomes[index] is None:
                        outcomes[index] = self._retention.refusal(record_set) or _insert(connection, record_set)
                roll_up(
                    connection, [one for one, outcome in zip(record_sets, outcomes, strict=True) if outcome is None]
                )
                self._forget_old_keys()
                connection.execute("COMMIT")
            except BaseException:
                self._retention.undone()
                # Some errors (a full disk) have already rolled the transaction back.
                if connection.in_transaction:
                    with contextlib.suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                raise
            self._bound_wal()
        return outcomes

    def _check_file(self) -> None:
        """A commit into a file without a name would be acknowledged and then lost."""
        try:
            still_there = self._path.stat().st_ino == self._inode
        except OSError:
            still_there = False
        if not still_there:
            raise StoreUnavailable(f"{self._path} was moved or deleted; restart to use a new file")

    def _bound_wal(self) -> None:
        """Truncate a WAL over its limit. What was committed stays committed whatever happens here."""
        now = time.monotonic()
        try:
            too_long = self._path.with_name(self._path.name + "-wal").stat().st_size > WAL_LIMIT_BYTES
            # Once a second: while a reader holds on, waiting at every commit would only slow writes down.
            if not too_long or now - self._last_truncate_s < TRUNCATE_EVERY_S:
                return
            self._last_truncate_s = now
            self._connection.execute(f"PRAGMA busy_timeout = {CHECKPOINT_WAIT_MS}")
            try:
                busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                self._connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            if busy:
                logger.warning("a reader keeps the WAL of %s from being truncated", self._path)
        except (OSError, sqlite3.Error) as error:
            logger.warning("checkpoint of %s failed: %s", self._path, error)

    def _forget_old_keys(self) -> None:
        now = time.monotonic()
        if now - self._last_forget_s >= FORGET_EVERY_S:
            forgotten = self._connection.execute(_FORGET, (int(time.time()) - KEY_KEPT_S, FORGET_AT_ONCE)).rowcount
            # As many as allowed: there are more, for the next commit.
            if forgotten < FORGET_AT_ONCE:
                self._last_forget_s = now

    def recall(self, request: KeyedRequest) -> StoredReply | int | None:
        """See `PredictionStore.recall`. A key without a reply stored nothing: reply and points are one transaction."""
        rows = read_rows(self._path, _RECALL, (request.key, int(time.time()) - KEY_KEPT_S))
        return StoredReply(*rows[0]) if rows else request.received_ns

    def ping(self, *, readings: bool = False) -> None:
        """See `PredictionStore.ping`: takes the write lock and gives it back, and looks at the free space."""
        if not self._lock.acquire(timeout=BUSY_TIMEOUT_MS / 1000):
            raise StoreUnavailable(f"{self._path}: a write has been running for more than {BUSY_TIMEOUT_MS} ms")
        try:
            with explained(self._path):
                self._check_file()
                if shutil.disk_usage(self._path.parent).free < FREE_SPACE_FLOOR_BYTES:
                    raise StoreUnavailable(f"{self._path}: the disk is nearly full")
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.execute("ROLLBACK")
        finally:
            self._lock.release()

    def close(self) -> None:
        """Checkpoint, close, and give the file up to the next owner."""
        with self._lock:
            self._connection.close()
            self._ownership.release()


def read_rows(
    path: Path, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = (), *, max_s: float = 5.0
) -> list[tuple[Any, ...]]:
    """Rows of one query on a read-only connection of its own, whose snapshot ends with the call.

    A query that runs longer than `max_s` seconds is interrupted, so that no reader holds the WAL back.
    Raises StoreUnavailable.
    """
    until = time.monotonic() + max_s
    with (
        explained(path),
        contextlib.closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_MS / 1000)
        ) as connection,
    ):
        connection.execute("PRAGMA query_only = ON")
        connection.set_progress_handler(lambda: time.monotonic() > until, 10_000)
        return connection.execute(sql, parameters).fetchall()


def _insert(connection: sqlite3.Connection, record_set: RecordSet) -> WriteOutcome:
    """Write one record set, or none of it."""
    connection.execute("SAVEPOINT record_set")
    try:
        earlier = None if record_set.completion is None else _complete(connection, record_set.completion)
        if earlier is not None:
            connection.execute("RELEASE record_set")
            return earlier
        connection.executemany(_UPSERT, [_row(point) for point in record_set.points])
        if record_set.readings is not None:
            connection.executemany(_UPSERT_READING, _reading_rows(record_set.readings))
        entry = record_set.journal_entry
        if entry is not None:
            connection.execute(_UPSERT_ENTRY, (entry.time_ns, entry.kind.value, entry.document))
    except _BAD_RECORD as error:
        connection.execute("ROLLBACK TO record_set")
        connection.execute("RELEASE record_set")
        logger.warning("SQLite refused a record set: %s", error)
        return NotPersisted(PersistFailure.REJECTED, "the store refused the record set")
    connection.execute("RELEASE record_set")
    return None


def _complete(connection: sqlite3.Connection, completion: Completion) -> StoredReply | None:
    """Store the reply, or give the one that was there first: the key is unique, whoever believes to hold it."""
    claim, now = completion.claim, int(time.time())
    values = {"key": claim.key, "fingerprint": claim.fingerprint, "reply": completion.body}
    cursor = connection.execute(_COMPLETE, {**values, "now": now, "expired": now - KEY_KEPT_S})
    if cursor.rowcount:
        return None
    return StoredReply(*connection.execute(_RECALL, (claim.key, now - KEY_KEPT_S)).fetchone())


def _row(point: PredictionPoint) -> tuple[str | int | float, ...]:
    return (
        point.building_id,
        point.appliance_id,
        point.model_version,
        point.attribution,
        point.time_ns,
        exact_float(point.predicted_kw),
        exact_float(point.confidence),
        exact_float(point.aggregate_kw),
        point.request_id,
        point.user_id,
        point.artifact_sha256,
        exact_float(point.latency_ms),
    )


def _reading_rows(readings: Readings) -> Iterator[tuple[str, int, float]]:
    columns = zip(readings.building.tolist(), readings.time_ns.tolist(), readings.aggregate_kw.tolist(), strict=True)
    return ((readings.building_ids[index], time_ns, exact_float(kw)) for index, time_ns, kw in columns)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into StoreUnavailable with words for the operator."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        raise StoreUnavailable(f"{path}: {_EXPLANATIONS.get(code, str(error))}") from error
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error.strerror}") from error
