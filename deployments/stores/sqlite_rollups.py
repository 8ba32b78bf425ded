"""Quarters of an hour, kept beside the rows they sum up: a year of them is read in the time of a week of minutes.

They are written in the commit that touches their rows, from those rows, so that an overwritten row, a late one and one
written twice leave the same sums. A quarter is at most 900 rows of a second, and a commit usually touches few.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from deployments.analytics.spans import MINUTE_NS, QUARTER_NS
from deployments.contracts import RecordSet

_READINGS = f"""
INSERT INTO reading_quarter
SELECT :building_id, :quarter_ns, count(*), sum(kw)
FROM (SELECT avg(aggregate_kw) AS kw FROM sensor_reading
      WHERE building_id = :building_id AND time_ns >= :quarter_ns AND time_ns < :quarter_ns + {QUARTER_NS}
      GROUP BY (time_ns - :quarter_ns) / {MINUTE_NS})
WHERE true
ON CONFLICT DO UPDATE SET minutes = excluded.minutes, sum_kw = excluded.sum_kw
"""  # noqa: S608 - two constants of ours
_PREDICTIONS = f"""
INSERT INTO prediction_quarter
SELECT :building_id, :appliance_id, :model_version, :attribution, :quarter_ns, count(*), sum(kw), sum(confidence)
FROM (SELECT avg(predicted_kw) AS kw, avg(confidence) AS confidence FROM prediction
      WHERE building_id = :building_id AND appliance_id = :appliance_id
        AND time_ns >= :quarter_ns AND time_ns < :quarter_ns + {QUARTER_NS}
        AND model_version = :model_version AND attribution = :attribution
      GROUP BY (time_ns - :quarter_ns) / {MINUTE_NS})
WHERE true
ON CONFLICT DO UPDATE SET
  minutes = excluded.minutes, sum_kw = excluded.sum_kw, sum_confidence = excluded.sum_confidence
"""  # noqa: S608 - two constants of ours
# Not a counter: one that a restored backup sets back would come again to values that clients know for other rows.
_REVISION = """
INSERT INTO building_revision VALUES (?, random()) ON CONFLICT DO UPDATE SET revision = random()
"""


def roll_up(connection: sqlite3.Connection, record_sets: Iterable[RecordSet]) -> None:
    """Bring the quarters and the buildings' revisions up to what these record sets, already written, have changed."""
    readings: set[tuple[str, int]] = set()
    predictions: set[tuple[str, int, str, str, str]] = set()
    for record_set in record_sets:
        predictions.update(
            (p.building_id, _quarter(p.time_ns), p.appliance_id, p.model_version, p.attribution)
            for p in record_set.points
        )
        rows = record_set.readings
        if rows is not None:
            quarters = zip(rows.building.tolist(), (rows.time_ns // QUARTER_NS * QUARTER_NS).tolist(), strict=True)
            readings.update((rows.building_ids[index], quarter) for index, quarter in quarters)
    names = ("building_id", "quarter_ns", "appliance_id", "model_version", "attribution")
    connection.executemany(_READINGS, [dict(zip(names, one, strict=False)) for one in readings])
    connection.executemany(_PREDICTIONS, [dict(zip(names, one, strict=True)) for one in predictions])
    touched = {one[0] for one in readings} | {one[0] for one in predictions}
    renew_revision(connection, touched)


def renew_revision(connection: sqlite3.Connection, building_ids: Iterable[str]) -> None:
    """After any change to what these buildings have."""
    connection.executemany(_REVISION, [(building_id,) for building_id in building_ids])


def _quarter(time_ns: int) -> int:
    return time_ns // QUARTER_NS * QUARTER_NS
