"""What every store refuses before it writes, so that SQLite and InfluxDB hold exactly the same rows.

A record set that fails here fails alone; its neighbours in the commit are unaffected. The rules are those of
the stricter store, InfluxDB: its client drops NaN fields silently, an empty tag puts the point into another
series, and line protocol has no way to write a newline or a trailing backslash in a tag.
"""

from __future__ import annotations

import math
import re
from numbers import Real

import numpy as np
import orjson

from deployments.analytics.spans import QUARTER_NS
from deployments.contracts import NotPersisted, PersistFailure, PredictionPoint, Readings, RecordSet
from deployments.journal_contracts import JournalEntry, JournalKind

TEXT_LIMIT = 512
"""Longest string of a point, far above the API's own limits; it keeps a series key below InfluxDB's 64 KiB."""
DOCUMENT_LIMIT_BYTES = 64 * 1024
"""Longest document of a journal entry: InfluxDB's limit of a string field."""

TIME_NS_MIN = -(2**63) + QUARTER_NS
TIME_NS_MAX = 2**63 - 1 - QUARTER_NS
"""InfluxDB keeps the ends of the int64 range for itself, and the quarter of an hour around a point must fit too."""

TAGS = ("building_id", "appliance_id", "model_version", "attribution")
"""Of a prediction: with its time, its identity."""
_TEXT_FIELDS = ("request_id", "user_id", "artifact_sha256")
_NUMBERS = ("predicted_kw", "confidence", "aggregate_kw", "latency_ms")

# Control characters (C0, DEL, C1) and lone surrogates, which have no UTF-8 form.
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def refusal(record_set: RecordSet) -> NotPersisted | None:
    """Why no store will take this record set, or None when it may be written."""
    reason = _record_set_problem(record_set)
    return None if reason is None else NotPersisted(PersistFailure.REJECTED, reason)


def exact_float(value: float) -> float:
    """The number as every store keeps it.

    A Python float, because SQLite would bind numpy's as blobs; and 0.0 for -0.0, because SQLite stores a whole
    number in a REAL column as an integer and so loses the sign, which no reader should find in one store only.
    """
    return float(value) + 0.0


def _record_set_problem(record_set: RecordSet) -> str | None:
    if not record_set.records:
        return "the record set is empty"
    if record_set.readings is not None:
        problem = _readings_problem(record_set.readings)
        if problem is not None:
            return problem
    if record_set.journal_entry is not None:
        problem = _journal_problem(record_set.journal_entry)
        if problem is not None:
            return problem
    if not record_set.points:
        return None
    identities = {(*(getattr(p, tag) for tag in TAGS), p.time_ns) for p in record_set.points}
    if len(identities) != len(record_set.points):
        # One of the two would overwrite the other and be lost without a word.
        return "two points of the record set have the same identity"
    return next((problem for p in record_set.points if (problem := _point_problem(p)) is not None), None)


def _point_problem(point: PredictionPoint) -> str | None:
    for name in (*TAGS, *_TEXT_FIELDS):
        problem = _text_problem(name, getattr(point, name), is_tag=name in TAGS)
        if problem is not None:
            return problem
    for name in _NUMBERS:
        if not _is_finite(getattr(point, name)):
            return f"{name} is not a finite number"
    return _time_problem(point.time_ns)


def _journal_problem(entry: JournalEntry) -> str | None:
    if not isinstance(entry.kind, JournalKind):
        return "kind is not one of a journal entry"
    # A query of InfluxDB answers in lines that end with CR LF, and makes those of a text such line ends too.
    if not isinstance(entry.document, str) or _UNWRITABLE.search(entry.document):
        return "document is not a string without control characters"
    if len(entry.document.encode()) > DOCUMENT_LIMIT_BYTES:
        return f"document is longer than {DOCUMENT_LIMIT_BYTES} bytes"
    try:
        orjson.loads(entry.document)
    except orjson.JSONDecodeError as error:
        return f"document is not JSON: {error}"
    return _time_problem(entry.time_ns)


def _time_problem(time_ns: object) -> str | None:
    if type(time_ns) is not int or not TIME_NS_MIN <= time_ns <= TIME_NS_MAX:
        return "time_ns is not an integer that fits 64 bits"
    return None


def _readings_problem(readings: Readings) -> str | None:
    size = len(readings)
    if not size or len(readings.building) != size or len(readings.aggregate_kw) != size:
        return "the readings' arrays are empty or differ in length"
    if readings.time_ns.dtype != np.int64 or not np.issubdtype(readings.building.dtype, np.integer):
        return "time_ns and building are not integers"
    order = np.lexsort((readings.time_ns, readings.building))
    same = (np.diff(readings.time_ns[order]) == 0) & (np.diff(readings.building[order]) == 0)
    faults = {
        "aggregate_kw is not a finite number": not np.isfinite(readings.aggregate_kw).all(),
        "building is not an index into building_ids": readings.building.min() < 0
        or readings.building.max() >= len(readings.building_ids),
        "time_ns is not an integer that fits 64 bits": readings.time_ns.min() < TIME_NS_MIN
        or readings.time_ns.max() > TIME_NS_MAX,
        "a building is named twice": len(set(readings.building_ids)) != len(readings.building_ids),
        "two readings of the record set have the same identity": same.any(),
    }
    texts = (_text_problem("building_id", building_id, is_tag=True) for building_id in readings.building_ids)
    return next((fault for fault, found in faults.items() if found), None) or next(filter(None, texts), None)


def _text_problem(name: str, value: object, *, is_tag: bool) -> str | None:
    if not isinstance(value, str):
        return f"{name} is not a string"
    if len(value) > TEXT_LIMIT:
        return f"{name} is longer than {TEXT_LIMIT} characters"
    if _UNWRITABLE.search(value):
        return f"{name} holds a control character"
    if is_tag and not value:
        return f"{name} is empty"
    if is_tag and value.endswith("\\"):
        return f"{name} ends with a backslash"
    return None


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
