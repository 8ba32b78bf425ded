"""A strict line protocol parser, written from the rules of InfluxDB's own and not from our encoder.

Stricter than the server where leniency would hide a mistake: a timestamp is required, and so is at least one tag.
https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Value = float | int | bool | str

_FLOAT = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_INTEGER = re.compile(r"[+-]?\d+i")
_BOOLEANS = {"t": True, "true": True, "f": False, "false": False}
_INT64 = range(-(2**63) + 2, 2**63 - 1)


class LineProtocolError(Exception):
    """One line is malformed; the message is what the server would say."""


@dataclass(frozen=True)
class Point:
    """One parsed line."""

    measurement: str
    tags: dict[str, str]
    fields: dict[str, Value]
    time_ns: int


def parse(body: str) -> list[Point]:
    """Every point of a request body. Raises LineProtocolError at the first bad line."""
    points, position = [], 0
    while position < len(body):
        if body[position] == "\n":
            position += 1
            continue
        point, position = _point(body, position)
        points.append(point)
    return points


def _point(body: str, start: int) -> tuple[Point, int]:
    measurement, at = _until(body, start, ", \n")
    if not measurement or at >= len(body) or body[at] != ",":
        raise LineProtocolError(f"unable to parse {_excerpt(body, start)}: missing measurement or tags")
    tags: dict[str, str] = {}
    while body[at] == ",":
        key, at = _until(body, at + 1, "=, \n")
        if not key or at >= len(body) or body[at] != "=":
            raise LineProtocolError(f"unable to parse {_excerpt(body, start)}: missing tag key")
        value, at = _until(body, at + 1, "=, \n")
        if not value or at >= len(body) or body[at] not in ", ":
            raise LineProtocolError(f"unable to parse {_excerpt(body, start)}: missing tag value")
        if key in tags:
            raise LineProtocolError(f"unable to parse {_excerpt(body, start)}: duplicate tags")
        tags[_unescape(key)] = _unescape(value)
    fields: dict[str, Value] = {}
    separator = ","
    while separator == ",":
        key, at = _until(body, at + 1, "=, \n")
        if not key or at >= len(body) or body[at] != "=":
            raise LineProtocolError(f"unable to parse {_excerpt(body, start)}: missing field key")
        value_, at = _field_value(body, at + 1)
        fields[_unescape(key)] = value_
        separator = body[at : at + 1]
    if separator != " ":
        raise LineProtocolError(f"unable to parse {_excerpt(body, start)}: missing timestamp")
    end = body.find("\n", at)
    end = len(body) if end < 0 else end
    timestamp = body[at + 1 : end]
    if not re.fullmatch(r"-?\d+", timestamp) or int(timestamp) not in _INT64:
        raise LineProtocolError(f"unable to parse {_excerpt(body, start)}: bad timestamp")
    return Point(_unescape(measurement), tags, fields, int(timestamp)), end


def _until(body: str, start: int, stops: str) -> tuple[str, int]:
    """Text up to the first stop that no backslash precedes. A newline stops always."""
    at = start
    while at < len(body) and not (body[at] in stops and (body[at] == "\n" or at == start or body[at - 1] != "\\")):
        at += 1
    return body[start:at], at


def _unescape(text: str) -> str:
    return text.replace("\\,", ",").replace("\\=", "=").replace("\\ ", " ")


def _field_value(body: str, start: int) -> tuple[Value, int]:
    if body[start : start + 1] == '"':
        return _string(body, start + 1)
    at = start
    while at < len(body) and body[at] not in ", \n":
        at += 1
    text = body[start:at]
    if text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()], at
    if _INTEGER.fullmatch(text):
        return int(text[:-1]), at
    if _FLOAT.fullmatch(text):
        return float(text), at
    raise LineProtocolError(f"invalid number or boolean {text!r}")  # also NaN and Inf


def _string(body: str, start: int) -> tuple[str, int]:
    characters: list[str] = []
    at = start
    while at < len(body):
        if body[at] == '"':
            return "".join(characters), at + 1
        if body[at] == "\\" and body[at + 1 : at + 2] in ("\\", '"'):
            at += 1
        characters.append(body[at])
        at += 1
    raise LineProtocolError("unbalanced quotes")


def _excerpt(body: str, start: int) -> str:
    return repr(body[start : start + 80])
