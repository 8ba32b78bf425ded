"""Looks after the embedded store's file: is it whole, a copy of it, its rows for other programs.

Everything here reads in snapshots, beside a running service, and changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.stores.base import StoreUnavailable
from deployments.stores.sqlite import explained, read_rows
from deployments.stores.sqlite_schema import MINUTE_SQL, QUARTER_SQL, SCHEMA_VERSION

CHUNK_ROWS = 20_000
LONGEST_CHECK_S = 3600.0

_COUNTS = """
SELECT (SELECT count(*) FROM sensor_reading), (SELECT count(*) FROM prediction),
       (SELECT count(*) FROM building_revision), (SELECT count(*) FROM idempotent_reply),
       (SELECT count(*) FROM rollout)
"""
_SUMS = {
    "readings": f"""
WITH raw AS (
  SELECT building_id, quarter, count(*) AS minutes, sum(kw) AS kw
  FROM (SELECT building_id, {QUARTER_SQL} AS quarter, avg(aggregate_kw) AS kw
        FROM sensor_reading WHERE time_ns >= (SELECT before_ns FROM pruned)
        GROUP BY building_id, quarter, {MINUTE_SQL})
  GROUP BY building_id, quarter)
SELECT (SELECT count(*) FROM raw), count(*),
       sum(raw.minutes IS NOT kept.minutes OR abs(raw.kw - kept.sum_kw) > 1e-6)
FROM reading_quarter AS kept
LEFT JOIN raw ON kept.building_id = raw.building_id AND kept.time_ns = raw.quarter
WHERE kept.time_ns >= (SELECT before_ns FROM pruned)
""",  # noqa: S608 - constants of ours
    "predictions": f"""
WITH raw AS (
  SELECT building_id, quarter, appliance_id, model_version, attribution, count(*) AS minutes, sum(kw) AS kw
  FROM (SELECT building_id, appliance_id, model_version, attribution, {QUARTER_SQL} AS quarter, avg(predicted_kw) AS kw
        FROM prediction WHERE time_ns >= (SELECT before_ns FROM pruned)
        GROUP BY building_id, appliance_id, model_version, attribution, quarter, {MINUTE_SQL})
  GROUP BY building_id, quarter, appliance_id, model_version, attribution)
SELECT (SELECT count(*) FROM raw), count(*),
       sum(raw.minutes IS NOT kept.minutes OR abs(raw.kw - kept.sum_kw) > 1e-6)
FROM prediction_quarter AS kept
LEFT JOIN raw ON kept.building_id = raw.building_id AND kept.time_ns = raw.quarter
  AND kept.appliance_id = raw.appliance_id AND kept.model_version = raw.model_version
  AND kept.attribution = raw.attribution
WHERE kept.time_ns >= (SELECT before_ns FROM pruned)
""",  # noqa: S608 - constants of ours
}
"""Quarters that rows make, quarters that are kept, and how many of these are not what their rows make; of those whose
rows have not left."""

TABLES: dict[str, tuple[str, ...]] = {
    "readings": ("building_id", "time_ns", "aggregate_kw"),
    "predictions": (
        "building_id",
        "appliance_id",
        "time_ns",
        "model_version",
        "attribution",
        "predicted_kw",
        "confidence",
        "aggregate_kw",
        "request_id",
        "user_id",
        "artifact_sha256",
        "latency_ms",
    ),
}
"""What can be exported, with its columns; the order of the first ones is that of the primary key."""
_SOURCES = {"readings": ("sensor_reading", 2), "predictions": ("prediction", 5)}


@dataclass(frozen=True, slots=True)
class FileReport:
    """What is in the file, and what is wrong with it: `faults`, empty for a file that is whole."""

    schema_version: int
    readings: int
    predictions: int
    buildings: int
    replies: int
    journal_entries: int
    file_bytes: int
    wal_bytes: int
    faults: tuple[str, ...]


def check_file(path: Path) -> FileReport:
    """Reads all of it. Raises StoreUnavailable when it cannot be read at all."""
    version = int(read_rows(path, "PRAGMA user_version")[0][0])
    if version != SCHEMA_VERSION:
        raise StoreUnavailable(f"{path} has schema {version} and not {SCHEMA_VERSION}: start the service once")
    faults = [
        str(row[0]) for row in read_rows(path, "PRAGMA integrity_check(20)", max_s=LONGEST_CHECK_S) if row[0] != "ok"
    ]
    readings, predictions, buildings, replies, journal_entries = read_rows(path, _COUNTS, max_s=LONGEST_CHECK_S)[0]
    for what, query in _SUMS.items():
        made, kept, wrong = read_rows(path, query, max_s=LONGEST_CHECK_S)[0]
        if wrong or made != kept:
            faults.append(f"{(wrong or 0) + abs(made - kept)} quarters of an hour are not the sum of their {what}")
    wal = path.with_name(path.name + "-wal")
    return FileReport(
        schema_version=version,
        readings=readings,
        predictions=predictions,
        buildings=buildings,
        replies=replies,
        journal_entries=journal_entries,
        file_bytes=path.stat().st_size,
        wal_bytes=wal.stat().st_size if wal.exists() else 0,
        faults=tuple(faults),
    )


def back_up(path: Path, target: Path) -> None:
    """A consistent copy of a file in use: checked, on the disk, and complete or not there at all.

    Raises StoreUnavailable, and FileExistsError when the target exists.
    """
    if target.exists():
        raise FileExistsError(target)
    unfinished = target.with_name(target.name + ".unfinished")
    unfinished.unlink(missing_ok=True)
    try:
        with explained(path), contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as db:
            # One read transaction: the writer goes on, and what it commits meanwhile is not in the copy.
            db.execute("VACUUM INTO ?", (str(unfinished),))
        with explained(unfinished), contextlib.closing(sqlite3.connect(unfinished)) as copy:
            if copy.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
                raise StoreUnavailable(f"the copy of {path} is not whole: check the file and the disk")
        _sync(unfinished)
        unfinished.replace(target)
        _sync(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rows_of(
    path: Path, what: str, building_id: str | None, start_ns: int, stop_ns: int
) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Rows of `TABLES[what]` in the order of their key, in chunks; each is a snapshot of its own.

    So the writer's log is held back for a chunk at most. Raises StoreUnavailable.
    """
    table, key_size = _SOURCES[what]
    columns = TABLES[what]
    key = ", ".join(columns[:key_size])
    last: tuple[Any, ...] | None = None
    while True:
        after = "" if last is None else f"({key}) > ({', '.join('?' * key_size)}) AND "
        of_building = "" if building_id is None else "building_id = ? AND "
        query = (
            f"SELECT {', '.join(columns)} FROM {table} WHERE {of_building}{after}time_ns >= ? AND time_ns < ? "  # noqa: S608
            f"ORDER BY {key} LIMIT {CHUNK_ROWS}"
        )
        values = (*(() if building_id is None else (building_id,)), *(last or ()), start_ns, stop_ns)
        chunk = read_rows(path, query, values, max_s=LONGEST_CHECK_S)
        if not chunk:
            return
        yield chunk
        last = chunk[-1][:key_size]
