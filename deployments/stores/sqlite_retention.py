"""Rows leave the embedded store when they are older than RETENTION_DAYS; their quarters of an hour stay.

A row that came late into a quarter whose rows have left would make it the sum of that row alone, so rows from before
the horizon are refused, as InfluxDB refuses what its bucket keeps no longer. The horizon is in the file and never moves
back, neither by a clock that is set back nor by a longer retention.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator, Iterator

from deployments.contracts import NotPersisted, PersistFailure, RecordSet
from deployments.stores.base import oldest_kept_ns
from deployments.stores.sqlite_rollups import renew_revision
from deployments.stores.sqlite_schema import APPLIANCES_SQL

SWEEP_EVERY_S = 3600.0
STEP_S = 0.01
"""What deleting may add to one commit while a sweep lasts."""
CHUNK_ROWS = 1000

_BUILDINGS = "SELECT building_id FROM building_revision"
_LAST_OF_CHUNK = """
SELECT max(time_ns) FROM
  (SELECT time_ns FROM {table} WHERE {of} AND time_ns < :before_ns ORDER BY time_ns LIMIT :rows)
"""
_DELETE = "DELETE FROM {table} WHERE {of} AND time_ns <= :last_ns"
_READINGS = {"table": "sensor_reading", "of": "building_id = :building_id"}
_PREDICTIONS = {"table": "prediction", "of": "building_id = :building_id AND appliance_id = :appliance_id"}


class Retention:
    """The horizon of one file, and the sweep that deletes what is behind it. Use inside the writer's transactions."""

    def __init__(self, connection: sqlite3.Connection, retention_days: int) -> None:
        """`retention_days` 0: nothing leaves, and what has left before stays refused."""
        self._days = retention_days
        self._before_ns = int(connection.execute("SELECT before_ns FROM pruned").fetchone()[0])
        self._next_sweep_s = float("-inf")
        self._sweep: Iterator[None] | None = None

    def refusal(self, record_set: RecordSet) -> NotPersisted | None:
        """Why a record set comes too late, or None."""
        times = [point.time_ns for point in record_set.points]
        if record_set.readings is not None:
            times.append(int(record_set.readings.time_ns.min()))
        if min(times) >= self._before_ns:
            return None
        return NotPersisted(PersistFailure.REJECTED, "it is older than what is kept (RETENTION_DAYS)")

    def step(self, connection: sqlite3.Connection) -> None:
        """Delete for a moment, if there is anything to delete."""
        until = time.monotonic() + STEP_S
        if self._sweep is None:
            if not self._days or time.monotonic() < self._next_sweep_s:
                return
            self._sweep = self._sweep_through(connection)
        for _ in self._sweep:
            if time.monotonic() >= until:
                return
        self._sweep = None
        self._next_sweep_s = time.monotonic() + SWEEP_EVERY_S

    def forget_step(self) -> None:
        """The transaction was undone, and with it what the sweep believes to have deleted: begin again."""
        self._sweep = None
        self._next_sweep_s = float("-inf")

    def _sweep_through(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Yields after each chunk; between two of them there may be commits."""
        self._before_ns = max(self._before_ns, oldest_kept_ns(self._days, time.time_ns()))
        connection.execute("UPDATE pruned SET before_ns = :before_ns", {"before_ns": self._before_ns})
        for (building_id,) in connection.execute(_BUILDINGS).fetchall():
            deleted = yield from self._sweep_series(connection, _READINGS, {"building_id": building_id})
            for (appliance_id,) in connection.execute(APPLIANCES_SQL, {"building_id": building_id}).fetchall():
                one = {"building_id": building_id, "appliance_id": appliance_id}
                deleted = (yield from self._sweep_series(connection, _PREDICTIONS, one)) or deleted
            if deleted:
                renew_revision(connection, {building_id})

    def _sweep_series(
        self, connection: sqlite3.Connection, where: dict[str, str], series: dict[str, str]
    ) -> Generator[None, None, bool]:
        """Returns whether there was anything."""
        deleted = False
        while True:
            values = {**series, "before_ns": self._before_ns, "rows": CHUNK_ROWS}
            last_ns = connection.execute(_LAST_OF_CHUNK.format(**where), values).fetchone()[0]
            if last_ns is None:
                return deleted
            connection.execute(_DELETE.format(**where), {**series, "last_ns": last_ns})
            deleted = True
            yield
