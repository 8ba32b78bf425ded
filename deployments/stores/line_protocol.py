"""A record set as InfluxDB line protocol. Expects points that passed `checks.refusal`; adds only the escaping.

Tags are what is filtered on; ids that differ for every request are string fields. Keys are in byte order, which
saves the server a sort. https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/
"""

from __future__ import annotations

from deployments.contracts import PredictionPoint, Readings, RecordSet
from deployments.journal_contracts import JournalEntry
from deployments.stores.checks import exact_float

MEASUREMENT = "prediction"
READING_MEASUREMENT = "sensor_reading"
JOURNAL_MEASUREMENT = "rollout"

# In a tag only these three are escaped; a backslash before anything else stands for itself.
_TAG_ESCAPES = str.maketrans({",": r"\,", "=": r"\=", " ": r"\ "})
_STRING_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\""})


def encode(record_set: RecordSet) -> bytes:
    """One line a point, and the journal entry's, in UTF-8, without a newline at the end."""
    lines = [_line(point) for point in record_set.points]
    if record_set.journal_entry is not None:
        lines.append(_journal_line(record_set.journal_entry))
    return "\n".join(lines).encode()


def encode_readings(readings: Readings) -> bytes:
    """One line a reading, in UTF-8, without a newline at the end."""
    series = [f"{READING_MEASUREMENT},building_id={_tag(building_id)}" for building_id in readings.building_ids]
    columns = zip(readings.building.tolist(), readings.aggregate_kw.tolist(), readings.time_ns.tolist(), strict=True)
    return "\n".join(f"{series[index]} aggregate_kw={_number(kw)} {time_ns}" for index, kw, time_ns in columns).encode()


def _line(point: PredictionPoint) -> str:
    tags = (
        f"appliance_id={_tag(point.appliance_id)},attribution={_tag(point.attribution)}"
        f",building_id={_tag(point.building_id)},model_version={_tag(point.model_version)}"
    )
    fields = (
        f"aggregate_kw={_number(point.aggregate_kw)},artifact_sha256={string_field(point.artifact_sha256)}"
        f",confidence={_number(point.confidence)},latency_ms={_number(point.latency_ms)}"
        f",predicted_kw={_number(point.predicted_kw)},request_id={string_field(point.request_id)}"
        f",user_id={string_field(point.user_id)}"
    )
    return f"{MEASUREMENT},{tags} {fields} {point.time_ns}"


def _journal_line(entry: JournalEntry) -> str:
    return f"{JOURNAL_MEASUREMENT},kind={_tag(entry.kind)} document={string_field(entry.document)} {entry.time_ns}"


def _tag(value: str) -> str:
    return value.translate(_TAG_ESCAPES)


def string_field(value: str) -> str:
    """A string field's value: quoted, with quotes and backslashes escaped."""
    return f'"{value.translate(_STRING_ESCAPES)}"'


def _number(value: float) -> str:
    # repr of a float is exact, and never an integer literal, which would change the field's type.
    return repr(exact_float(value))
