"""Instants: from a client's text to UTC, and to the integer nanoseconds in which they are stored."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST_AHEAD = timedelta(days=1)
"""A sample from further ahead is a broken clock, and would hide behind every later query."""

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:[0-5]\d)", re.ASCII)
_BEFORE_NOW = re.compile(r"-(\d{1,9})([smhdw])", re.ASCII)
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_instant(text: str) -> datetime:
    """An ISO 8601 instant with offset, as UTC. Raises ValueError with a reason for people."""
    if not _RFC3339.fullmatch(text):
        raise ValueError("must be ISO 8601 with an offset, like 2026-01-31T18:00:00Z")
    try:
        instant = datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("is not a date and time that exists") from None
    check_instant(instant)
    return instant


def parse_moment(text: str, now: datetime) -> datetime:
    """An ISO 8601 instant with offset, `now()`, or a time before now like `-30m` (s, m, h, d, w), as UTC.

    Raises ValueError with a reason for people.
    """
    if text == "now()":
        return now
    relative = _BEFORE_NOW.fullmatch(text)
    if relative is None:
        return parse_instant(text)
    try:
        moment = now - timedelta(seconds=int(relative[1]) * _UNITS_S[relative[2]])
    except OverflowError:
        raise ValueError("is before the year 2000") from None
    check_instant(moment)
    return moment


def check_instant(instant: datetime) -> None:
    """Raises ValueError with a reason for people when no sample can be of this time."""
    if instant < EARLIEST:
        raise ValueError("is before the year 2000")
    if instant > datetime.now(UTC) + LATEST_AHEAD:
        raise ValueError("is more than a day in the future")


def to_ns(instant: datetime) -> int:
    """Nanoseconds since 1970. Integer arithmetic: a float of seconds has no room for them, and identity is exact."""
    return (instant - _EPOCH) // timedelta(microseconds=1) * 1000


def from_ns(time_ns: int) -> datetime:
    """The instant, UTC, cut to microseconds."""
    return _EPOCH + timedelta(microseconds=time_ns // 1000)
