"""Mains readings as clients send them, JSON or InfluxDB line protocol, and what of them can be stored.

A fault of one reading is that reading's: it is named by its index, and the others are taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import TypeAdapter, ValidationError

from deployments.contracts import Readings
from serve_app.instants import check_instant, from_ns, to_ns
from serve_app.problems import FieldError, Problem, Problems
from serve_app.schemas import MAX_MAINS_KW, Reading

MAX_READINGS = 5000
PRECISIONS_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
"""Units of a line's timestamp, as InfluxDB names them."""
LONGEST_LINE = 1024
_FORM = "is not `sensor_reading,building_id=B aggregate_kw=K [time]`"
_TIME = re.compile(r"-?\d{1,19}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_READING = TypeAdapter(Reading)


@dataclass(frozen=True, slots=True)
class ReadingFault:
    """Why one reading is not stored. `place`: the field, empty for the whole reading."""

    index: int
    place: str
    detail: str


@dataclass
class ReadingList:
    """The readings of one call, in their order, and the faults of those that cannot be stored."""

    received: int = 0
    faults: list[ReadingFault] = field(default_factory=list)
    _rows: dict[tuple[str, int], tuple[int, float]] = field(default_factory=dict)

    def add(self, index: int, building_id: str, time_ns: int, aggregate_kw: float) -> None:
        """Take one reading; of two for the same instant neither is the true one, and the later is refused."""
        earlier = self._rows.setdefault((building_id, time_ns), (index, aggregate_kw))
        if earlier[0] != index:
            self.refuse(index, "", f"is for the same building and time as reading {earlier[0]}")

    def refuse(self, index: int, place: str, detail: str) -> None:
        """Note a fault."""
        self.faults.append(ReadingFault(index, place, detail))

    def keep(self, may_use: Callable[[str], bool]) -> None:
        """Refuse the readings of buildings that the caller may not use."""
        allowed = {building_id: may_use(building_id) for building_id in {building_id for building_id, _ in self._rows}}
        self._refuse_where(
            lambda building_id, _: not allowed[building_id], "building_id", "is not yours, or does not exist"
        )

    def refuse_before(self, oldest_ns: int) -> None:
        """Refuse the readings of times whose rows have left the store."""
        self._refuse_where(lambda _, time_ns: time_ns < oldest_ns, "ts", "is older than what is kept here")

    def _refuse_where(self, unwanted: Callable[[str, int], bool], place: str, detail: str) -> None:
        for (building_id, time_ns), (index, _) in list(self._rows.items()):
            if unwanted(building_id, time_ns):
                del self._rows[building_id, time_ns]
                self.refuse(index, place, detail)
        self.faults.sort(key=lambda fault: fault.index)

    def __len__(self) -> int:
        return len(self._rows)

    def arrays(self) -> Readings:
        """What can be stored."""
        return Readings.of((building_id, time_ns, kw) for (building_id, time_ns), (_, kw) in self._rows.items())


def from_json(raw: bytes) -> ReadingList:
    """`{"readings": [{building_id, ts, aggregate_kw}, ...]}`. Raises Problem for what is no such list."""
    try:
        document = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Problem(Problems.MALFORMED_JSON, f"The body is not JSON: {str(error)[:200]}.") from None
    items = document.get("readings") if isinstance(document, dict) and set(document) == {"readings"} else None
    if not isinstance(items, list):
        detail = 'The body must be {"readings": [...]} and nothing else.'
        raise Problem(Problems.VALIDATION, detail, [FieldError("/readings", "must be a list")])
    readings = _list_of(len(items))
    for index, item in enumerate(items):
        try:
            reading = _READING.validate_python(item)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = "/".join(str(part)[:80] for part in fault["loc"])
            readings.refuse(index, place, _explain(fault["type"], fault["msg"]))
        else:
            readings.add(index, reading.building_id, to_ns(reading.ts), reading.aggregate_kw)
    return readings


def from_line_protocol(raw: bytes, precision: str, now: datetime) -> ReadingList:
    """`sensor_reading,building_id=B aggregate_kw=0.53 1700000000000000000` a line; other tags and fields are ignored.

    Comments and empty lines do not count. A line without a time is of now. Raises Problem.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise Problem(Problems.BAD_REQUEST, "The body is not UTF-8.") from None
    lines = [line for line in map(str.strip, text.split("\n")) if line and not line.startswith("#")]
    readings = _list_of(len(lines))
    for index, line in enumerate(lines):
        try:
            readings.add(index, *_of_line(line, PRECISIONS_NS[precision], now))
        except _LineFault as fault:
            readings.refuse(index, fault.place, fault.detail)
    return readings


class _LineFault(Exception):
    def __init__(self, place: str, detail: str) -> None:
        super().__init__(detail)
        self.place, self.detail = place, detail


def _of_line(line: str, unit_ns: int, now: datetime) -> tuple[str, int, float]:
    # Split and not matched: a pattern with repeated groups would try every way to share a hostile line among them.
    parts = line.split() if len(line) <= LONGEST_LINE else []
    if len(parts) not in (2, 3) or (len(parts) == 3 and not _TIME.fullmatch(parts[2])):
        raise _LineFault("", _FORM)
    measurement, _, tags = parts[0].partition(",")
    building_id, kw = _value_of(tags, "building_id"), _value_of(parts[1], "aggregate_kw")
    if measurement != "sensor_reading" or building_id is None or kw is None:
        raise _LineFault("", _FORM)
    if not _IDENTIFIER.fullmatch(building_id):
        raise _LineFault("building_id", "must be 1 to 64 of A-Z a-z 0-9 _ -")
    if not _NUMBER.fullmatch(kw):
        raise _LineFault("aggregate_kw", "must be a float without a suffix")
    aggregate_kw = float(kw)
    if not 0.0 <= aggregate_kw <= MAX_MAINS_KW:
        raise _LineFault("aggregate_kw", _out_of_range(negative=aggregate_kw < 0))
    if len(parts) == 2:
        return building_id, to_ns(now), aggregate_kw
    time_ns = int(parts[2]) * unit_ns
    try:
        check_instant(from_ns(time_ns))
    except (OverflowError, ValueError) as error:
        detail = str(error) if isinstance(error, ValueError) else "is not a date and time that exists"
        raise _LineFault("ts", f"{detail}; is its unit the one of `precision`?") from None
    return building_id, time_ns, aggregate_kw


def _value_of(pairs: str, name: str) -> str | None:
    """The one value of `name` in `k=v,k=v`; None when it is missing, there twice, or something is no pair."""
    found: list[str] = []
    for pair in pairs.split(","):
        key, equals, value = pair.partition("=")
        if not key or not equals or not value:
            return None
        if key == name:
            found.append(value)
    return found[0] if len(found) == 1 else None


def _list_of(size: int) -> ReadingList:
    if not 1 <= size <= MAX_READINGS:
        detail = f"A call takes 1 to {MAX_READINGS} readings, not {size}."
        raise Problem(Problems.VALIDATION, detail, [FieldError("/readings", detail)])
    return ReadingList(received=size)


def _explain(kind: str, message: str) -> str:
    """pydantic's words, except where the usual mistake has a better name."""
    if kind in ("less_than_equal", "greater_than_equal"):
        return _out_of_range(negative=kind == "greater_than_equal")
    if kind == "string_pattern_mismatch":
        return "must be 1 to 64 of A-Z a-z 0-9 _ -"
    return message.removeprefix("Value error, ")


def _out_of_range(*, negative: bool) -> str:
    if negative:
        return "is negative; mains power is the power drawn from the supply, in kW"
    return f"is above {MAX_MAINS_KW:g} kW; the unit is kW, not W"


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def as_problem(faults: Iterable[ReadingFault], received: int) -> Problem:
    """For a call of which nothing is stored."""
    listed = list(faults)
    errors = [
        FieldError(f"/readings/{fault.index}" + (f"/{fault.place}" if fault.place else ""), fault.detail)
        for fault in listed
    ]
    return Problem(Problems.VALIDATION, f"{len(listed)} of {received} readings cannot be stored; none was.", errors)
