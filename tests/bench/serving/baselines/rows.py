"""The store of every baseline: rows of our embedded store's schema, durable when a call returns, without its extras.

Left out, in the baselines' favour: sums by quarter of an hour, revisions, retention, idempotency keys.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from deployments.contracts import KeyedRequest, PredictionPoint, RecordSet
from deployments.stores.base import StoreUnavailable, WriteOutcome
from deployments.stores.sqlite_schema import prepare

BUSY_TIMEOUT_S = 5.0
"""How long SQLite waits for a foreign lock, far more than a commit takes."""

_INSERT = "INSERT OR REPLACE INTO prediction VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class PredictionRows:
    """Predictions in a file of our embedded store's schema; a call that returned is on the disk (WAL, FULL).

    One connection. Several processes may write to the file, each with rows of its own: SQLite locks it for the time
    of a transaction. They queue at a lock beside it, because SQLite's own waiting sleeps and tries again.
    """

    kind = "sqlite"

    def __init__(self, path: Path) -> None:
        """Open the file, or create it."""
        self._lock = threading.Lock()
        self._queue = os.open(path.with_name(path.name + ".queue"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        with self._turn():
            prepare(self._connection, path)
        self._connection.execute("PRAGMA synchronous = FULL")

    def insert(self, points: Sequence[PredictionPoint]) -> None:
        """One transaction. Raises sqlite3.Error; then nothing of it is stored."""
        rows = [_row(one) for one in points]
        with self._lock, self._turn():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(_INSERT, rows)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _turn(self) -> Iterator[None]:
        fcntl.flock(self._queue, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._queue, fcntl.LOCK_UN)

    def write(self, record_sets: Sequence[RecordSet]) -> list[WriteOutcome]:
        """What GroupCommit asks for: see `PredictionStore`."""
        try:
            self.insert([one for record_set in record_sets for one in record_set.points])
        except sqlite3.Error as error:
            raise StoreUnavailable(str(error)) from error
        return [None] * len(record_sets)

    def recall(self, request: KeyedRequest) -> int | None:
        """Keys are not kept here."""
        return request.received_ns

    def ping(self, *, readings: bool = False) -> None:
        """Raises StoreUnavailable when the file cannot be locked for a write."""
        try:
            with self._lock, self._turn():
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise StoreUnavailable(str(error)) from error

    def close(self) -> None:
        """Everything acknowledged is already durable."""
        with self._lock:
            self._connection.close()
            os.close(self._queue)


def stored_predictions(database: Path) -> int:
    """How many rows a file of this schema holds, ours or a baseline's; read by a connection of its own."""
    with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)) as one:
        return int(one.execute("SELECT count(*) FROM prediction").fetchone()[0])


def _row(one: PredictionPoint) -> tuple[str | int | float, ...]:
    return (
        one.building_id,
        one.appliance_id,
        one.model_version,
        one.attribution,
        one.time_ns,
        one.predicted_kw,
        one.confidence,
        one.aggregate_kw,
        one.request_id,
        one.user_id,
        one.artifact_sha256,
        one.latency_ms,
    )
