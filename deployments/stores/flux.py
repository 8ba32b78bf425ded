"""Every Flux query there is. The texts are fixed: values are bound as typed parameters, never written into them.

`influxdb-client` sends the parameters beside the text (`extern`), where a string stays one literal whatever it holds.
Instants are integers of nanoseconds, because the client's datetimes end at microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from deployments.analytics.spans import Span

Parameter = str | int | timedelta


@dataclass(frozen=True, slots=True)
class FluxQuery:
    """A text of this module and the values of all parameters it names."""

    text: str
    parameters: dict[str, Parameter]


_BETWEEN = """
from(bucket: bucket)
  |> range(start: time(v: start_ns), stop: time(v: stop_ns))
"""
_OF_MAINS = """
  |> filter(fn: (r) => r._measurement == "sensor_reading" and r.building_id == building_id)
  |> filter(fn: (r) => r._field == "aggregate_kw")
"""
_OF_PREDICTIONS = """
  |> filter(fn: (r) => r._measurement == "prediction" and r.building_id == building_id)
  |> filter(fn: (r) => r._field == "predicted_kw" or r._field == "confidence")
"""
_OF_ONE_APPLIANCE = """
  |> filter(fn: (r) => r.appliance_id == appliance_id)
"""
# Minutes first, so that a minute counts once however often it was measured. The time of a window is its start: by
# default Flux stamps the end, which is the next window's start.
_MINUTES = """
  |> aggregateWindow(every: inner_step, fn: mean, createEmpty: false, timeSrc: "_start")
"""
_MEAN = """
  |> aggregateWindow(every: step, fn: mean, createEmpty: false, timeSrc: "_start")
"""
_COUNT = """
  |> aggregateWindow(every: step, fn: count, createEmpty: false, timeSrc: "_start")
"""
_READINGS = """
  |> filter(fn: (r) => r._measurement == "sensor_reading" and r._field == "aggregate_kw")
"""
_PREDICTIONS = """
  |> filter(fn: (r) => r._measurement == "prediction" and r._field == "predicted_kw")
"""
_OF_ONE_BUILDING = """
  |> filter(fn: (r) => r.building_id == building_id)
"""
_LAST = """
  |> last()
"""
_OF_A_KEY = """
  |> filter(fn: (r) => r._measurement == "idempotent_reply" and r.shard == shard)
  |> filter(fn: (r) => r._time == time(v: start_ns) or r._time == time(v: last_ns))
"""
# Instants as integers: the client's own datetimes end at microseconds, and an instant is part of an identity.
_OF_A_REQUEST = """
  |> filter(fn: (r) => r._measurement == "prediction" and r._field == "request_id")
  |> filter(fn: (r) => r._value == request_id)
  |> group()
  |> sort(columns: ["_time", "building_id", "appliance_id", "model_version", "attribution"])
  |> limit(n: at_most)
  |> map(fn: (r) => ({time_ns: int(v: r._time), building_id: r.building_id}))
"""
_ALL_FIELDS_OF_PREDICTIONS = """
  |> filter(fn: (r) => r._measurement == "prediction" and r.building_id == building_id)
"""
_JOURNAL = """
  |> filter(fn: (r) => r._measurement == "rollout" and r._field == "document")
  |> group()
  |> sort(columns: ["_time", "kind"], desc: true)
  |> limit(n: at_most)
  |> map(fn: (r) => ({time_ns: int(v: r._time), kind: r.kind, document: r._value}))
"""

RECALL_KEY = _BETWEEN + _OF_A_KEY
MAINS_MEAN = _BETWEEN + _OF_MAINS + _MINUTES + _MEAN
MAINS_COUNT = _BETWEEN + _OF_MAINS + _MINUTES + _COUNT
PREDICTIONS_MEAN = _BETWEEN + _OF_PREDICTIONS + _MINUTES + _MEAN
PREDICTIONS_COUNT = _BETWEEN + _OF_PREDICTIONS + _MINUTES + _COUNT
APPLIANCE_MEAN = _BETWEEN + _OF_PREDICTIONS + _OF_ONE_APPLIANCE + _MINUTES + _MEAN
APPLIANCE_COUNT = _BETWEEN + _OF_PREDICTIONS + _OF_ONE_APPLIANCE + _MINUTES + _COUNT

LAST_READINGS = _BETWEEN + _READINGS + _LAST
LAST_PREDICTIONS = _BETWEEN + _PREDICTIONS + _LAST
LAST_READING = _BETWEEN + _READINGS + _OF_ONE_BUILDING + _LAST
LAST_PREDICTION = _BETWEEN + _PREDICTIONS + _OF_ONE_BUILDING + _LAST
REQUEST_INSTANTS = _BETWEEN + _OF_A_REQUEST
PREDICTION_FIELDS = _BETWEEN + _ALL_FIELDS_OF_PREDICTIONS
JOURNAL = _BETWEEN + _JOURNAL


def latest(
    bucket_raw: str, bucket_pred: str, building_id: str | None, start_ns: int, stop_ns: int
) -> tuple[FluxQuery, FluxQuery]:
    """The last reading, and the last prediction of each series, of one building or of all."""
    between: dict[str, Parameter] = {"start_ns": start_ns, "stop_ns": stop_ns}
    texts = (LAST_READINGS, LAST_PREDICTIONS)
    if building_id is not None:
        between["building_id"] = building_id
        texts = (LAST_READING, LAST_PREDICTION)
    return (
        FluxQuery(texts[0], {**between, "bucket": bucket_raw}),
        FluxQuery(texts[1], {**between, "bucket": bucket_pred}),
    )


def mains(bucket: str, building_id: str, span: Span) -> tuple[FluxQuery, FluxQuery]:
    """The means and the minutes of a building's readings."""
    parameters = _of_span(bucket, building_id, span)
    return FluxQuery(MAINS_MEAN, parameters), FluxQuery(MAINS_COUNT, parameters)


def predictions(bucket: str, building_id: str, span: Span, appliance_id: str | None) -> tuple[FluxQuery, FluxQuery]:
    """The means and the minutes of a building's predictions, both of power and of confidence."""
    parameters = _of_span(bucket, building_id, span)
    if appliance_id is None:
        return FluxQuery(PREDICTIONS_MEAN, parameters), FluxQuery(PREDICTIONS_COUNT, parameters)
    parameters["appliance_id"] = appliance_id
    return FluxQuery(APPLIANCE_MEAN, parameters), FluxQuery(APPLIANCE_COUNT, parameters)


def _of_span(bucket: str, building_id: str, span: Span) -> dict[str, Parameter]:
    return {
        "bucket": bucket,
        "building_id": building_id,
        "start_ns": span.start_ns,
        "stop_ns": span.stop_ns,
        "inner_step": timedelta(microseconds=span.inner_step_ns // 1000),
        "step": timedelta(microseconds=span.step_ns // 1000),
    }


def recall_key(bucket: str, shard: str, first_ns: int, last_ns: int) -> FluxQuery:
    """The fields of one Idempotency-Key at its two possible instants, `first_ns` < `last_ns`."""
    parameters: dict[str, Parameter] = {
        "bucket": bucket,
        "shard": shard,
        "start_ns": first_ns,
        "last_ns": last_ns,
        "stop_ns": last_ns + 1,
    }
    return FluxQuery(RECALL_KEY, parameters)


def request_instants(bucket: str, request_id: str, start_ns: int, stop_ns: int, at_most: int) -> FluxQuery:
    """Where a request's points are: `time_ns` and `building_id` of each, in order."""
    between: dict[str, Parameter] = {"start_ns": start_ns, "stop_ns": stop_ns}
    return FluxQuery(REQUEST_INSTANTS, {**between, "bucket": bucket, "request_id": request_id, "at_most": at_most})


def prediction_fields(bucket: str, building_id: str, time_ns: int) -> FluxQuery:
    """All fields of all of a building's predictions of one instant, a record each."""
    instant: dict[str, Parameter] = {"start_ns": time_ns, "stop_ns": time_ns + 1}
    return FluxQuery(PREDICTION_FIELDS, {**instant, "bucket": bucket, "building_id": building_id})


def journal(bucket: str, start_ns: int, stop_ns: int, at_most: int) -> FluxQuery:
    """The latest entries of the journal, newest first: `time_ns`, `kind` and `document`."""
    return FluxQuery(JOURNAL, {"bucket": bucket, "start_ns": start_ns, "stop_ns": stop_ns, "at_most": at_most})
