"""What a request may say: instants, identifiers, windows."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.attribution import Attribution
from serve_app.schemas import MAX_WINDOW_SAMPLES, DisaggregateRequest, InferRequest, parse_instant

NOW = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31T18:00:00Z", datetime(2026, 1, 31, 18, tzinfo=UTC)),
        ("2026-01-31t18:00:00z", datetime(2026, 1, 31, 18, tzinfo=UTC)),
        ("2026-01-31 18:00:00+01:00", datetime(2026, 1, 31, 17, tzinfo=UTC)),
        ("2026-01-31T18:00:00-00:00", datetime(2026, 1, 31, 18, tzinfo=UTC)),
        ("2026-01-31T18:00:00+14:00", datetime(2026, 1, 31, 4, tzinfo=UTC)),
        ("2026-01-31T18:00:00.5Z", datetime(2026, 1, 31, 18, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-01-31T18:00:00.123456789Z", datetime(2026, 1, 31, 18, 0, 0, 123_456, tzinfo=UTC)),
        ("2024-02-29T00:00:00Z", datetime(2024, 2, 29, tzinfo=UTC)),
        ("2000-01-01T00:00:00Z", datetime(2000, 1, 1, tzinfo=UTC)),
    ],
)
def test_an_instant_becomes_utc(text: str, expected: datetime) -> None:
    assert parse_instant(text) == expected
    assert parse_instant(text).tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2026-01-31T18:00:00", "offset"),
        ("2026-01-31", "offset"),
        ("2026-01-31T18:00:00Z\n", "offset"),
        (" 2026-01-31T18:00:00Z", "offset"),
        ("2026-01-31T18:00Z", "offset"),
        ("2026-01-31T18:00:00+0100", "offset"),
        ("2026-01-31T18:00:00+01", "offset"),
        ("2026-01-31T18:00:00.Z", "offset"),
        ("2026-01-31T18:00:00.1234567890Z", "offset"),
        ("2026-01-31T18:00:00,5Z", "offset"),
        ("20260131T180000Z", "offset"),
        ("2026-W05-6T18:00:00Z", "offset"),
        ("1769882400", "offset"),
        ("now()", "offset"),
        ("", "offset"),
        ("٢٠٢٦-01-31T18:00:00Z", "offset"),
        ("2026-01-31T18:00:00+05:60", "offset"),
        ("2026-01-31T18:00:00+05:99", "offset"),
        ("2026-02-30T00:00:00Z", "exists"),
        ("2025-02-29T00:00:00Z", "exists"),
        ("2026-13-01T00:00:00Z", "exists"),
        ("2026-00-01T00:00:00Z", "exists"),
        ("2026-01-31T24:00:00Z", "exists"),
        ("2016-12-31T23:59:60Z", "exists"),
        ("2026-01-31T18:00:00+24:00", "exists"),
        ("0001-01-01T00:00:00+10:00", "exists"),
        ("9999-12-31T23:59:59-10:00", "exists"),
        ("0000-01-01T00:00:00Z", "exists"),
        ("1999-12-31T23:59:59Z", "2000"),
        ("2000-01-01T00:00:00+00:01", "2000"),
        ("2226-01-31T18:00:00Z", "future"),
    ],
)
def test_an_instant_that_is_none_says_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_instant(text)


def test_a_day_ahead_is_the_limit() -> None:
    now = datetime.now(UTC)
    assert parse_instant((now + timedelta(hours=23)).isoformat(timespec="seconds"))
    with pytest.raises(ValueError, match="future"):
        parse_instant((now + timedelta(hours=25)).isoformat(timespec="seconds"))


@given(st.text(max_size=40))
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_instant(text)


def body(**changes: object) -> dict[str, Any]:
    values: dict[str, object] = {"building_id": "home", "appliance_id": "kettle", "window": [0.1, 1]}
    return {k: v for k, v in (values | changes).items() if v is not ...}


def parse(value: object) -> InferRequest:
    return InferRequest.model_validate_json(value if isinstance(value, str) else json.dumps(value))


def test_a_valid_request() -> None:
    request = parse(body(timestamp="2026-01-31T18:00:00+01:00", window=[0, 1, 99.5, 100]))
    assert request.window == [0.0, 1.0, 99.5, 100.0]
    assert request.window_end(NOW) == datetime(2026, 1, 31, 17, tzinfo=UTC)


@pytest.mark.parametrize("attribution", Attribution)
@pytest.mark.parametrize("kind", [InferRequest, DisaggregateRequest])
def test_an_attribution_is_its_text(kind: type[InferRequest | DisaggregateRequest], attribution: Attribution) -> None:
    appliance = "kettle" if kind is InferRequest else ...
    request = kind.model_validate_json(json.dumps(body(appliance_id=appliance, attribution=str(attribution))))
    assert request.attribution is attribution


def test_without_a_word_the_answer_is_final() -> None:
    assert parse(body()).attribution is Attribution.FINAL


def test_without_a_timestamp_the_window_ends_when_it_is_received() -> None:
    assert parse(body()).window_end(NOW) == NOW
    assert not parse(body()).names_every_instant()


@pytest.mark.parametrize("value", ["a", "A-b_9", "x" * 64])
def test_identifiers(value: str) -> None:
    assert parse(body(building_id=value)).building_id == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x" * 65,
        "home\n",
        "\nhome",
        "a b",
        "a/b",
        "../x",
        "höme",
        "home\u0000",
        "a,b",
        "a=b",
        7,
        None,
        ["home"],
        True,
    ],
)
@pytest.mark.parametrize("name", ["building_id", "appliance_id"])
def test_identifiers_refused(name: str, value: object) -> None:
    assert places(body(**{name: value})) == [(name,)]


def places(value: object) -> list[tuple[Any, ...]]:
    with pytest.raises(ValidationError) as caught:
        parse(value)
    return [fault["loc"] for fault in caught.value.errors()]


@pytest.mark.parametrize(
    "sample",
    ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", '"1"', "true", "false", "null", "-0.001", "-1e-300", "100.001",
     "2300", "[1]", "{}", '""'],
)  # fmt: skip
def test_a_bad_sample_is_found_at_its_place(sample: str) -> None:
    text = json.dumps(body(window=[])).replace("[]", f"[0.5, {sample}, 0.5]")
    assert places(text) == [("window", 1)]


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"window": []}, ("window",)),
        ({"window": "0.1,0.2"}, ("window",)),
        ({"window": {"0": 1}}, ("window",)),
        ({"window": None}, ("window",)),
        ({"window": ...}, ("window",)),
        ({"window": [0.5] * 30_000}, ("window",)),
        ({"window": [0.5] * (MAX_WINDOW_SAMPLES + 1)}, ("window",)),
        ({"building_id": ...}, ("building_id",)),
        ({"appliance_id": ...}, ("appliance_id",)),
        ({"extra": 1}, ("extra",)),
        ({"attribution": "centred"}, ("attribution",)),
        ({"attribution": "final\n"}, ("attribution",)),
        ({"attribution": 0}, ("attribution",)),
        ({"attribution": None}, ("attribution",)),
        ({"timestamp": "yesterday"}, ("timestamp",)),
        ({"timestamp": 1769882400}, ("timestamp",)),
        ({"timestamp": "2026-01-31T18:00:00Z\n"}, ("timestamp",)),
    ],
)
def test_a_fault_is_found_at_its_place(changes: dict[str, object], place: tuple[str, ...]) -> None:
    assert places(body(**changes)) == [place]


def test_disaggregate_takes_no_appliance() -> None:
    assert DisaggregateRequest.model_validate(body(appliance_id=...)).building_id == "home"
    with pytest.raises(ValidationError, match="appliance_id"):
        DisaggregateRequest.model_validate(body())
