"""Reads the embedded store's file, beside its writer: short snapshots on connections of their own."""

from __future__ import annotations

from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from deployments.analytics.series import BucketSeries, Latest, PredictionSeries
from deployments.analytics.spans import QUARTER_NS, Span
from deployments.contracts import PredictionPoint
from deployments.journal_contracts import JournalEntry, JournalKind
from deployments.stores.base import MAX_BUILDINGS, MAX_REQUEST_POINTS, first_of_request
from deployments.stores.sqlite import read_rows
from deployments.stores.sqlite_schema import APPLIANCES_SQL

_MAINS = """
SELECT time_ns / :step_ns * :step_ns AS bucket, avg(aggregate_kw), 1 FROM sensor_reading
WHERE building_id = :building_id AND time_ns >= :start_ns AND time_ns < :stop_ns
GROUP BY bucket ORDER BY bucket
"""
_MAINS_OF_QUARTERS = """
SELECT time_ns / :step_ns * :step_ns AS bucket, sum(sum_kw) / sum(minutes), sum(minutes) FROM reading_quarter
WHERE building_id = :building_id AND time_ns >= :start_ns AND time_ns < :stop_ns
GROUP BY bucket ORDER BY bucket
"""
_SERIES_OF_QUARTERS = """
SELECT DISTINCT appliance_id, model_version, attribution FROM prediction_quarter
WHERE building_id = :building_id AND (:appliance_id IS NULL OR appliance_id = :appliance_id)
ORDER BY appliance_id, model_version, attribution
"""
_SERIES = """
SELECT DISTINCT appliance_id, model_version, attribution FROM prediction
WHERE building_id = :building_id AND appliance_id = :appliance_id AND time_ns >= :start_ns AND time_ns < :stop_ns
ORDER BY appliance_id, model_version, attribution
"""
_OF_SERIES = """
WHERE building_id = :building_id AND appliance_id = :appliance_id AND model_version = :model_version
  AND attribution = :attribution AND time_ns >= :start_ns AND time_ns < :stop_ns
"""
_PREDICTIONS = f"""
SELECT time_ns / :step_ns * :step_ns AS bucket, avg(predicted_kw), 1, avg(confidence)
FROM prediction {_OF_SERIES} GROUP BY bucket ORDER BY bucket
"""  # noqa: S608 - a constant of ours
_QUARTERS = f"""
SELECT time_ns, sum_kw / minutes, minutes, sum_confidence / minutes
FROM prediction_quarter {_OF_SERIES} ORDER BY time_ns
"""  # noqa: S608 - a constant of ours
_QUARTERS_PUT_TOGETHER = f"""
SELECT time_ns / :step_ns * :step_ns AS bucket, sum(sum_kw) / sum(minutes), sum(minutes),
       sum(sum_confidence) / sum(minutes)
FROM prediction_quarter {_OF_SERIES} GROUP BY bucket ORDER BY bucket
"""  # noqa: S608 - a constant of ours
_ROW = np.dtype([("time_ns", np.int64), ("kw", np.float64), ("minutes", np.int32), ("confidence", np.float64)])

# Of rows that have left, the quarters remain.
_LAST_READING = """
SELECT coalesce((SELECT max(time_ns) FROM sensor_reading WHERE building_id = :building_id),
                (SELECT max(time_ns) FROM reading_quarter WHERE building_id = :building_id))
"""
_LAST_PREDICTION = """
SELECT coalesce(
  (SELECT max(time_ns) FROM prediction WHERE building_id = :building_id AND appliance_id = :appliance_id),
  (SELECT max(time_ns) FROM prediction_quarter WHERE building_id = :building_id AND appliance_id = :appliance_id))
"""
_BUILDINGS = "SELECT building_id FROM building_revision ORDER BY building_id LIMIT ?"
# For one series: the primary key has no time without it, and an index of request ids would be paid for by every write.
_OF_REQUEST = f"""
SELECT {", ".join(field.name for field in fields(PredictionPoint))} FROM prediction
WHERE building_id = :building_id AND appliance_id = :appliance_id AND time_ns >= :start_ns AND time_ns < :stop_ns
  AND request_id = :request_id
ORDER BY time_ns, model_version, attribution LIMIT {MAX_REQUEST_POINTS}
"""  # noqa: S608 - names and a constant of ours
_ALL = -1
"""A LIMIT that is none."""
_JOURNAL = "SELECT time_ns, kind, document FROM rollout ORDER BY time_ns DESC, kind DESC LIMIT ?"
_REVISION = "SELECT revision FROM building_revision WHERE building_id = ?"


class SqliteHistory:
    """See `HistoryReader`."""

    def __init__(self, path: Path) -> None:
        """Opens nothing yet: the file is its writer's to make."""
        self._path = path

    def mains(self, building_id: str, span: Span) -> BucketSeries:
        """See `HistoryReader.mains`."""
        query = _MAINS_OF_QUARTERS if span.step_ns >= QUARTER_NS else _MAINS
        return BucketSeries.of(read_rows(self._path, query, _parameters(building_id, span)))

    def predictions(self, building_id: str, span: Span, appliance_id: str | None = None) -> list[PredictionSeries]:
        """See `HistoryReader.predictions`."""
        parameters = _parameters(building_id, span) | {"appliance_id": appliance_id}
        if span.step_ns >= QUARTER_NS:
            names = read_rows(self._path, _SERIES_OF_QUARTERS, parameters)
            query = _QUARTERS if span.step_ns == QUARTER_NS else _QUARTERS_PUT_TOGETHER
        else:
            wanted = [appliance_id] if appliance_id is not None else self._appliances(building_id)
            names = [
                row for one in wanted for row in read_rows(self._path, _SERIES, parameters | {"appliance_id": one})
            ]
            query = _PREDICTIONS
        found = (self._series(query, parameters, *identity) for identity in names)
        return [one for one in found if len(one.buckets)]

    def _series(
        self, query: str, parameters: dict[str, Any], appliance_id: str, model_version: str, attribution: str
    ) -> PredictionSeries:
        identity = {"appliance_id": appliance_id, "model_version": model_version, "attribution": attribution}
        rows = np.array(read_rows(self._path, query, parameters | identity), dtype=_ROW)
        buckets = BucketSeries(rows["time_ns"], rows["kw"], rows["minutes"])
        return PredictionSeries(appliance_id, model_version, attribution, buckets, rows["confidence"])

    def _appliances(self, building_id: str) -> list[str]:
        return [str(row[0]) for row in read_rows(self._path, APPLIANCES_SQL, {"building_id": building_id})]

    def latest(self, building_ids: tuple[str, ...] | None) -> list[Latest]:
        """See `HistoryReader.latest`."""
        if building_ids is None:
            wanted = [str(row[0]) for row in read_rows(self._path, _BUILDINGS, (MAX_BUILDINGS,))]
        else:
            wanted = sorted(building_ids)
        found = (self._latest_of(one) for one in wanted)
        return list(islice((one for one in found if one.reading_ns is not None or one.predictions), MAX_BUILDINGS))

    def _latest_of(self, building_id: str) -> Latest:
        building = {"building_id": building_id}
        reading_ns = read_rows(self._path, _LAST_READING, building)[0][0]
        predictions = {
            one: int(read_rows(self._path, _LAST_PREDICTION, building | {"appliance_id": one})[0][0])
            for one in self._appliances(building_id)
        }
        return Latest(building_id, reading_ns, predictions)

    def predictions_of(self, request_id: str, start_ns: int, stop_ns: int) -> list[PredictionPoint]:
        """See `HistoryReader.predictions_of`."""
        asked = {"request_id": request_id, "start_ns": start_ns, "stop_ns": stop_ns}
        found = [
            PredictionPoint(*row)
            for (building_id,) in read_rows(self._path, _BUILDINGS, (_ALL,))
            for appliance_id in self._appliances(building_id)
            for row in read_rows(
                self._path, _OF_REQUEST, {**asked, "building_id": building_id, "appliance_id": appliance_id}
            )
        ]
        return first_of_request(found)

    def journal(self, limit: int) -> list[JournalEntry]:
        """See `HistoryReader.journal`."""
        rows = read_rows(self._path, _JOURNAL, (limit,))
        return [JournalEntry(time_ns, JournalKind(kind), document) for time_ns, kind, document in rows]

    def revision(self, building_id: str) -> str | None:
        """See `HistoryReader.revision`."""
        rows = read_rows(self._path, _REVISION, (building_id,))
        return str(rows[0][0]) if rows else "0"

    def close(self) -> None:
        """Nothing is kept open."""


def _parameters(building_id: str, span: Span) -> dict[str, Any]:
    return {
        "building_id": building_id,
        "start_ns": span.start_ns,
        "stop_ns": span.stop_ns,
        "step_ns": span.step_ns,
    }
