"""Reads what InfluxDB holds: one query for the means and one for the minutes, put together here."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import numpy as np

from deployments.analytics.series import BucketSeries, Latest, PredictionSeries
from deployments.analytics.spans import DAY_NS, Span
from deployments.contracts import PredictionPoint
from deployments.journal_contracts import JournalEntry, JournalKind
from deployments.stores import flux
from deployments.stores.base import MAX_BUILDINGS, MAX_REQUEST_POINTS, first_of_request
from deployments.stores.checks import TAGS
from deployments.stores.influx_connection import InfluxConnection

Record = Mapping[str, object]
LATEST_WITHIN_NS = 400 * DAY_NS
"""A building that was silent for longer is not listed: InfluxDB would search all of its past for it."""
JOURNAL_WITHIN_NS = 3650 * DAY_NS
"""Further back than a service lives; there are so few entries that looking there costs nothing."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class InfluxHistory:
    """See `HistoryReader`."""

    def __init__(self, *, url: str, token: str, org: str, bucket_pred: str, bucket_raw: str, timeout_s: float) -> None:
        """Contact nothing yet."""
        self._connection = InfluxConnection(url=url, token=token, org=org, timeout_s=timeout_s)
        self._bucket = bucket_pred
        self._bucket_raw = bucket_raw

    def mains(self, building_id: str, span: Span) -> BucketSeries:
        """See `HistoryReader.mains`."""
        means, minutes = flux.mains(self._bucket_raw, building_id, span)
        mean_kw = _by_time(self._connection.query(means, self._bucket_raw))
        counts = _by_time(self._connection.query(minutes, self._bucket_raw))
        both = sorted(mean_kw.keys() & counts.keys())
        return BucketSeries.of([(ns, mean_kw[ns], int(counts[ns])) for ns in both])

    def predictions(self, building_id: str, span: Span, appliance_id: str | None = None) -> list[PredictionSeries]:
        """See `HistoryReader.predictions`."""
        means, minutes = flux.predictions(self._bucket, building_id, span, appliance_id)
        mean_of = _by_series(self._connection.query(means, self._bucket))
        count_of = _by_series(self._connection.query(minutes, self._bucket))
        series: list[PredictionSeries] = []
        for identity in sorted({identity for identity, _ in mean_of}):
            mean_kw, confidence, minutes_of = (
                mean_of.get((identity, "predicted_kw"), {}),
                mean_of.get((identity, "confidence"), {}),
                count_of.get((identity, "predicted_kw"), {}),
            )
            # A point that arrived between two reads is in one and not in the other; it is there the next time.
            common = sorted(mean_kw.keys() & confidence.keys() & minutes_of.keys())
            if common:
                buckets = BucketSeries.of([(ns, mean_kw[ns], int(minutes_of[ns])) for ns in common])
                certain = np.array([confidence[ns] for ns in common], dtype=np.float64)
                series.append(PredictionSeries(*identity, buckets, certain))
        return series

    def latest(self, building_ids: tuple[str, ...] | None) -> list[Latest]:
        """See `HistoryReader.latest`; looks `LATEST_WITHIN_NS` back.

        One building is asked for by name; of several, two queries over all cost less than two for each.
        """
        building_id = building_ids[0] if building_ids is not None and len(building_ids) == 1 else None
        stop_ns = time.time_ns() + DAY_NS
        queries = flux.latest(self._bucket_raw, self._bucket, building_id, stop_ns - LATEST_WITHIN_NS, stop_ns)
        readings = {
            str(record["building_id"]): _time_ns(record)
            for record in self._connection.query(queries[0], self._bucket_raw)
        }
        predictions: dict[str, dict[str, int]] = {}
        for record in self._connection.query(queries[1], self._bucket):
            of_building = predictions.setdefault(str(record["building_id"]), {})
            appliance_id = str(record["appliance_id"])
            of_building[appliance_id] = max(_time_ns(record), of_building.get(appliance_id, 0))
        known = readings.keys() | predictions.keys()
        found = sorted(known if building_ids is None else known & set(building_ids))[:MAX_BUILDINGS]
        return [Latest(one, readings.get(one), dict(sorted(predictions.get(one, {}).items()))) for one in found]

    def predictions_of(self, request_id: str, start_ns: int, stop_ns: int) -> list[PredictionPoint]:
        """See `HistoryReader.predictions_of`: first where its points are, then all fields of those instants."""
        query = flux.request_instants(self._bucket, request_id, start_ns, stop_ns, MAX_REQUEST_POINTS)
        records = self._connection.query(query, self._bucket)
        instants = dict.fromkeys((str(record["building_id"]), cast(int, record["time_ns"])) for record in records)
        found = (
            point
            for building_id, time_ns in instants
            for point in self._at(building_id, time_ns)
            if point.request_id == request_id
        )
        return first_of_request(found)

    def _at(self, building_id: str, time_ns: int) -> list[PredictionPoint]:
        records = self._connection.query(flux.prediction_fields(self._bucket, building_id, time_ns), self._bucket)
        found: dict[tuple[str, ...], dict[str, Any]] = {}
        for record in records:
            tags = {name: str(record[name]) for name in TAGS}
            point = found.setdefault(tuple(tags.values()), {**tags, "time_ns": time_ns})
            point[str(record["_field"])] = record["_value"]
        names = {field.name for field in fields(PredictionPoint)}
        # One that lacks a field, or has another, was not written by us.
        return [PredictionPoint(**values) for values in found.values() if values.keys() == names]

    def journal(self, limit: int) -> list[JournalEntry]:
        """See `HistoryReader.journal`; looks `JOURNAL_WITHIN_NS` back, and no further than its bucket keeps points."""
        stop_ns = time.time_ns() + DAY_NS
        query = flux.journal(self._bucket, stop_ns - JOURNAL_WITHIN_NS, stop_ns, limit)
        return [
            JournalEntry(cast(int, record["time_ns"]), JournalKind(str(record["kind"])), str(record["document"]))
            for record in self._connection.query(query, self._bucket)
        ]

    def revision(self, building_id: str) -> str | None:
        """See `HistoryReader.revision`: InfluxDB cannot tell that a point was overwritten."""
        return None

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()


def _time_ns(record: Record) -> int:
    """Cut to the client's microseconds; starts of windows are whole seconds anyway."""
    return (cast(datetime, record["_time"]) - _EPOCH) // timedelta(microseconds=1) * 1000


def _by_time(records: Iterable[Record]) -> dict[int, float]:
    return {_time_ns(record): cast(float, record["_value"]) for record in records}


def _by_series(records: Iterable[Record]) -> dict[tuple[tuple[str, str, str], str], dict[int, float]]:
    """By ((appliance, version, attribution), field)."""
    found: dict[tuple[tuple[str, str, str], str], dict[int, float]] = {}
    for record in records:
        identity = (str(record["appliance_id"]), str(record["model_version"]), str(record["attribution"]))
        values = found.setdefault((identity, str(record["_field"])), {})
        values[_time_ns(record)] = cast(float, record["_value"])
    return found
