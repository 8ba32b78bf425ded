"""The tables of the embedded store, and how an older file becomes one of today.

Refuses a file of another program and one of a newer build.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from deployments.analytics.spans import MINUTE_NS, QUARTER_NS
from deployments.stores.base import StoreUnavailable
from deployments.stores.checks import TIME_NS_MIN

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 6
"""`PRAGMA user_version` of a file this code writes."""

_PREDICTION = """
CREATE TABLE prediction (
  building_id     TEXT    NOT NULL,
  appliance_id    TEXT    NOT NULL,
  model_version   TEXT    NOT NULL,
  attribution     TEXT    NOT NULL,
  time_ns         INTEGER NOT NULL,
  predicted_kw    REAL    NOT NULL,
  confidence      REAL    NOT NULL,
  aggregate_kw    REAL    NOT NULL,
  request_id      TEXT    NOT NULL,
  user_id         TEXT    NOT NULL,
  artifact_sha256 TEXT    NOT NULL,
  latency_ms      REAL    NOT NULL,
  -- Time before version: analytics ask for a range of time over whatever versions served it.
  PRIMARY KEY (building_id, appliance_id, time_ns, model_version, attribution)
) STRICT, WITHOUT ROWID
"""

_SENSOR_READING = """
CREATE TABLE sensor_reading (
  building_id  TEXT    NOT NULL,
  time_ns      INTEGER NOT NULL,
  aggregate_kw REAL    NOT NULL,
  PRIMARY KEY (building_id, time_ns)
) STRICT, WITHOUT ROWID
"""

_ROLLUPS = (
    """
CREATE TABLE reading_quarter (
  building_id TEXT    NOT NULL,
  time_ns     INTEGER NOT NULL,
  minutes     INTEGER NOT NULL,
  sum_kw      REAL    NOT NULL,
  PRIMARY KEY (building_id, time_ns)
) STRICT, WITHOUT ROWID
""",
    """
CREATE TABLE prediction_quarter (
  building_id    TEXT    NOT NULL,
  appliance_id   TEXT    NOT NULL,
  model_version  TEXT    NOT NULL,
  attribution    TEXT    NOT NULL,
  time_ns        INTEGER NOT NULL,
  minutes        INTEGER NOT NULL,
  sum_kw         REAL    NOT NULL,
  sum_confidence REAL    NOT NULL,
  -- Time last: a year of one series is read in one go.
  PRIMARY KEY (building_id, appliance_id, model_version, attribution, time_ns)
) STRICT, WITHOUT ROWID
""",
    """
CREATE TABLE building_revision (
  building_id TEXT    NOT NULL PRIMARY KEY,
  revision    INTEGER NOT NULL
) STRICT, WITHOUT ROWID
""",
)
"""Quarters of an hour: sums over the minutes that hold a sample, of the mean of each minute. See `sqlite_rollups`."""

_INTO_QUARTER = f"((time_ns % {QUARTER_NS}) + {QUARTER_NS}) % {QUARTER_NS}"
# SQLite's remainder has the sign of the dividend: twice, it is right before 1970 too.
QUARTER_SQL = f"time_ns - {_INTO_QUARTER}"
"""The start of the quarter of an hour a row is in."""
MINUTE_SQL = f"{_INTO_QUARTER} / {MINUTE_NS}"
"""The minute of that quarter."""

# Leaps from one appliance to the next in the primary key; DISTINCT would walk through all rows of the building.
APPLIANCES_SQL = """
WITH RECURSIVE one (id) AS (
  SELECT min(appliance_id) FROM prediction_quarter WHERE building_id = :building_id
  UNION ALL
  SELECT (SELECT min(appliance_id) FROM prediction_quarter WHERE building_id = :building_id AND appliance_id > one.id)
  FROM one WHERE one.id IS NOT NULL
)
SELECT id FROM one WHERE id IS NOT NULL
"""
"""The appliances of a building that have, or once had, rows."""

_FILL_ROLLUPS = (
    f"""
INSERT INTO prediction_quarter
SELECT building_id, appliance_id, model_version, attribution, quarter, count(*), sum(kw), sum(confidence)
FROM (SELECT building_id, appliance_id, model_version, attribution,
             {QUARTER_SQL} AS quarter,
             avg(predicted_kw) AS kw, avg(confidence) AS confidence
      FROM prediction
      GROUP BY building_id, appliance_id, model_version, attribution, quarter,
               {MINUTE_SQL})
GROUP BY building_id, appliance_id, model_version, attribution, quarter
""",  # noqa: S608 - constants of ours
    "INSERT INTO building_revision SELECT building_id, random() FROM prediction GROUP BY building_id",
)

_IDEMPOTENT_REPLY = """
CREATE TABLE idempotent_reply (
  key         TEXT    NOT NULL PRIMARY KEY,
  fingerprint TEXT    NOT NULL,
  reply       BLOB    NOT NULL,
  stored_at_s INTEGER NOT NULL
) STRICT
"""
_IDEMPOTENT_REPLY_AGE = "CREATE INDEX idempotent_reply_age ON idempotent_reply (stored_at_s)"

_PRUNED = (
    "CREATE TABLE pruned (before_ns INTEGER NOT NULL) STRICT",
    f"INSERT INTO pruned VALUES ({TIME_NS_MIN})",  # noqa: S608 - a constant of ours
)
"""One row: rows from before it have left, their quarters have not. See `sqlite_retention`."""

_ROLLOUT = """
CREATE TABLE rollout (
  time_ns  INTEGER NOT NULL,
  kind     TEXT    NOT NULL,
  document TEXT    NOT NULL,
  PRIMARY KEY (time_ns, kind)
) STRICT
"""
"""The journal of rollouts. With rowids, because a document may be longer than a page."""

_MIGRATIONS = {
    0: (_PREDICTION, _SENSOR_READING, _IDEMPOTENT_REPLY, _IDEMPOTENT_REPLY_AGE, *_ROLLUPS, *_PRUNED, _ROLLOUT),
    # Version 1 held one answer an instant and did not say which: what `/infer` gives unless asked is the final one.
    1: (
        "ALTER TABLE prediction RENAME TO prediction_1",
        _PREDICTION,
        """INSERT INTO prediction
           SELECT building_id, appliance_id, model_version, 'final', time_ns, predicted_kw, confidence, aggregate_kw,
                  request_id, user_id, artifact_sha256, latency_ms FROM prediction_1""",
        "DROP TABLE prediction_1",
    ),
    2: (_IDEMPOTENT_REPLY, _IDEMPOTENT_REPLY_AGE),
    3: (_SENSOR_READING, *_ROLLUPS, *_FILL_ROLLUPS),
    4: _PRUNED,
    5: (_ROLLOUT,),
}
"""By the version they start from: what makes the next one of it, and of an empty file the newest."""


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Check that the file is ours, then set it up and migrate it.

    A foreign file stays as it was. Raises StoreUnavailable, and what SQLite raises.
    """
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > SCHEMA_VERSION:
        raise StoreUnavailable(f"{path} has schema {found}, this build knows {SCHEMA_VERSION}: run the newer build")
    if found == 0 and connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        raise StoreUnavailable(f"{path} is a database of another program")
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreUnavailable(f"{path}: the file system does not support WAL (got {mode!r})")
    if found < SCHEMA_VERSION:
        _migrate(connection, found, path)


def _migrate(connection: sqlite3.Connection, found: int, path: Path) -> None:
    """From an empty file or an older schema to this one, all of it or nothing."""
    versions = (0,) if found == 0 else range(found, SCHEMA_VERSION)
    steps = [step for version in versions for step in _MIGRATIONS[version]]
    if found:
        logger.warning("%s: migrating schema %d to %d", path, found, SCHEMA_VERSION)
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in steps:
            connection.execute(step)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
