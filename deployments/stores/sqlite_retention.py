"""Rows leave the embedded store when they are older than RETENTION_DAYS; their quarters of an hour stay.

A row that came late into a quarter whose rows have left would make it the sum of that row alone, so rows from before
the horizon are refused, as InfluxDB refuses what its bucket keeps no longer. The horizon is in the file and never moves
back, neither by a clock that is set back nor by a longer retention.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator

from deployments.analytics.spans import DAY_NS, QUARTER_NS
from deployments.contracts import NotPersisted, PersistFailure, RecordSet
from deployments.stores.sqlite_rollups import renew_revision
from deployments.stores.sqlite_schema import APPLIANCES_SQL

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 3600.0
STEP_S = 0.01
"""After which a commit deletes no further chunk."""
CHUNK_ROWS = 250
"""Some milliseconds' work."""

_BUILDINGS = "SELECT building_id FROM building_revision"
_LAST_OF_CHUNK = """
SELECT max(time_ns) FROM
  (SELECT time_ns FROM {table} WHERE {of} AND time_ns < :before_ns ORDER BY time_ns LIMIT :rows)
"""
_DELETE = "DELETE FROM {table} WHERE {of} AND time_ns <= :last_ns"
_READINGS = {"table": "sensor_reading", "of": "building_id = :building_id"}
_PREDICTIONS = {"table": "prediction", "of": "building_id = :building_id AND appliance_id = :appliance_id"}


class Retention:
    """The horizon of one file, and the sweep that deletes what is behind it. Only inside the writer's transactions."""

    def __init__(self, connection: sqlite3.Connection, retention_days: int) -> None:
        """`retention_days` 0: nothing leaves, and what has left before stays refused."""
        self._days = retention_days
        self._before_ns = int(connection.execute("SELECT before_ns FROM pruned").fetchone()[0])
        self._next_sweep_s = float("-inf")
        self._sweep: Iterator[None] | None = None
        self._deleted = 0

    def refusal(self, record_set: RecordSet) -> NotPersisted | None:
        """Why a record set comes too late, or None."""
        times = [point.time_ns for point in record_set.points]
        if record_set.readings is not None:
            times.append(int(record_set.readings.time_ns.min()))
        # A journal entry has no age: the journal stays whole.
        if not times or min(times) >= self._before_ns:
            return None
        detail = "it is older than what is kept (RETENTION_DAYS)"
        return NotPersisted(PersistFailure.TOO_OLD, detail, oldest_kept_ns=self._before_ns)

    def step(self, connection: sqlite3.Connection) -> None:
        """Delete for a moment, if there is anything to delete. First in a transaction: it may undo itself."""
        if self._sweep is None and (not self._days or time.monotonic() < self._next_sweep_s):
            return
        connection.execute("SAVEPOINT sweep")
        try:
            self._sweep_for_a_moment(connection)
        except sqlite3.Error:
            # Whatever keeps old rows from leaving must not keep new ones from coming.
            logger.exception("rows older than RETENTION_DAYS could not be deleted; the next try is in an hour")
            self._sweep, self._next_sweep_s = None, time.monotonic() + SWEEP_EVERY_S
            if connection.in_transaction:
                connection.execute("ROLLBACK TO sweep")
            else:
                connection.execute("BEGIN IMMEDIATE")
                return
        connection.execute("RELEASE sweep")

    def undone(self) -> None:
        """The transaction was rolled back, and with it what the sweep believes to have deleted: begin again."""
        self._sweep, self._next_sweep_s = None, float("-inf")

    def _sweep_for_a_moment(self, connection: sqlite3.Connection) -> None:
        until = time.monotonic() + STEP_S
        if self._sweep is None:
            self._sweep = self._sweep_through(connection)
        for _ in self._sweep:
            if time.monotonic() >= until:
                return
        self._sweep, self._next_sweep_s = None, time.monotonic() + SWEEP_EVERY_S
        logger.info("%d rows older than RETENTION_DAYS=%d have left", self._deleted, self._days)

    def _sweep_through(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Yields after each chunk and each series; between two of them there may be commits."""
        self._deleted = 0
        horizon_ns = (time.time_ns() - self._days * DAY_NS) // QUARTER_NS * QUARTER_NS
        self._before_ns = max(self._before_ns, horizon_ns)
        connection.execute("UPDATE pruned SET before_ns = :before_ns", {"before_ns": self._before_ns})
        for (building_id,) in connection.execute(_BUILDINGS).fetchall():
            yield from self._sweep_series(connection, _READINGS, {"building_id": building_id})
            for (appliance_id,) in connection.execute(APPLIANCES_SQL, {"building_id": building_id}).fetchall():
                one = {"building_id": building_id, "appliance_id": appliance_id}
                yield from self._sweep_series(connection, _PREDICTIONS, one)

    def _sweep_series(
        self, connection: sqlite3.Connection, where: dict[str, str], series: dict[str, str]
    ) -> Iterator[None]:
        while True:
            values = {**series, "before_ns": self._before_ns, "rows": CHUNK_ROWS}
            last_ns = connection.execute(_LAST_OF_CHUNK.format(**where), values).fetchone()[0]
            if last_ns is not None:
                self._deleted += connection.execute(_DELETE.format(**where), {**series, "last_ns": last_ns}).rowcount
                # What is answered by the minute has changed: tags that clients hold must not fit any more.
                renew_revision(connection, {series["building_id"]})
            yield
            if last_ns is None:
                return
