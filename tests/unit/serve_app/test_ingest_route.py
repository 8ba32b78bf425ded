"""`POST /ingest/readings`: what is stored, what is refused and why, in JSON and in line protocol."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.contracts import NotPersisted, Persisted, PersistFailure, PersistResult, RecordSet
from deployments.stores.checks import refusal
from serve_app.problems import Problem
from serve_app.readings import from_json, from_line_protocol

TS = "2026-01-31T18:00:00Z"
TS_NS = 1_769_882_400 * 10**9
TEXT = {"Content-Type": "text/plain"}


def reading(n: int = 0, **changes: object) -> dict[str, object]:
    values = {"building_id": "home", "ts": f"2026-01-31T18:{n // 60:02d}:{n % 60:02d}Z", "aggregate_kw": 0.5}
    return {k: v for k, v in (values | changes).items() if v is not ...}


async def post(service: Any, *readings: object, **parameters: object) -> Any:
    return await service.client.post("/ingest/readings", json={"readings": list(readings)}, params=parameters)


def stored(service: Any) -> list[tuple[str, int, float]]:
    rows = []
    for record_set in service.store.stored:
        one = record_set.readings
        columns = zip(one.building.tolist(), one.time_ns.tolist(), one.aggregate_kw.tolist(), strict=True)
        rows += [(one.building_ids[building], ns, kw) for building, ns, kw in columns]
    return rows


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_readings_of_several_buildings_are_one_commit(service: Any, prefix: str) -> None:
    service.grants.buildings["user-1"]["cabin"] = {"*"}
    body = {"readings": [reading(), reading(1, building_id="cabin", aggregate_kw=2), reading(2)]}
    reply = await service.client.post(f"{prefix}/ingest/readings", json=body)
    assert reply.status_code == 200
    assert reply.json() == {
        "request_id": reply.headers["x-request-id"],
        "persisted": True,
        "accepted": 3,
        "refused": 0,
        "errors": [],
    }
    assert len(service.store.stored) == 1
    assert stored(service) == [("home", TS_NS, 0.5), ("cabin", TS_NS + 10**9, 2.0), ("home", TS_NS + 2 * 10**9, 0.5)]


BAD = [
    ({"aggregate_kw": -0.1}, "aggregate_kw", "negative"),
    ({"aggregate_kw": 530.0}, "aggregate_kw", "not W"),
    ({"aggregate_kw": "0.5"}, "aggregate_kw", "number"),
    ({"aggregate_kw": None}, "aggregate_kw", "number"),
    ({"aggregate_kw": True}, "aggregate_kw", "number"),
    ({"aggregate_kw": ...}, "aggregate_kw", "required"),
    ({"ts": "2026-01-31T18:00:00"}, "ts", "offset"),
    ({"ts": "2026-02-30T18:00:00Z"}, "ts", "exists"),
    ({"ts": 1769882400}, "ts", "string"),
    ({"ts": "1999-12-31T23:59:59Z"}, "ts", "2000"),
    ({"ts": "2099-01-01T00:00:00Z"}, "ts", "future"),
    ({"building_id": "a b"}, "building_id", "A-Z"),
    ({"building_id": "x\n"}, "building_id", "A-Z"),
    ({"building_id": "neighbour"}, "building_id", "not yours"),
    ({"unit": "W"}, "unit", "not permitted"),
]


async def test_a_faulty_reading_is_named_and_the_others_are_stored(service: Any) -> None:
    mixed = [one for n, (change, _, _) in enumerate(BAD) for one in (reading(n, **change), reading(40 + n))]
    reply = await post(service, *mixed, "no object", 7, None)
    assert reply.status_code == 200
    document = reply.json()
    assert document["accepted"] == len(BAD) == len(stored(service))
    assert document["refused"] == len(BAD) + 3
    assert [error["index"] for error in document["errors"]] == [*range(0, 2 * len(BAD), 2), *range(30, 33)]
    for error, (_, place, word) in zip(document["errors"], BAD, strict=False):
        assert error["field"] == place
        assert word in error["detail"]


async def test_of_two_readings_for_one_instant_the_later_is_refused(service: Any) -> None:
    reply = await post(service, reading(), reading(aggregate_kw=9), reading(ts="2026-01-31T19:00:00+01:00"))
    assert [error["index"] for error in reply.json()["errors"]] == [1, 2]
    assert "reading 0" in reply.json()["errors"][0]["detail"]
    assert stored(service) == [("home", TS_NS, 0.5)]


async def test_all_or_nothing(service: Any) -> None:
    refused = await post(service, reading(), reading(1, aggregate_kw=-1), all_or_nothing="true")
    assert refused.status_code == 422
    assert refused.json()["code"] == "validation"
    assert refused.json()["errors"][0]["pointer"] == "/readings/1/aggregate_kw"
    assert service.store.stored == []
    assert (await post(service, reading(), all_or_nothing="true")).status_code == 200


async def test_nothing_that_can_be_stored_is_an_error(service: Any) -> None:
    refused = await post(service, reading(building_id="neighbour"), "x")
    assert refused.status_code == 422
    assert [error["pointer"] for error in refused.json()["errors"]] == ["/readings/0/building_id", "/readings/1"]
    assert service.store.stored == []


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"readings": [NaN]}', 400),
        (b"[" * 50_000, 400),
        (b'{"readings": ' + b"9" * 5000 + b"}", 400),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"readings": {}}', 422),
        (b'{"readings": []}', 422),
        (b'{"readings": [], "unit": "W"}', 422),
        (b'{"readings": [' + b"1," * 5000 + b"1]}", 422),
    ],
)
async def test_what_is_no_list_of_readings_is_refused_whole(service: Any, content: bytes, status: int) -> None:
    headers = {"Content-Type": "application/json"}
    refused = await service.client.post("/ingest/readings", content=content, headers=headers)
    assert refused.status_code == status
    assert refused.json()["code"] in ("malformed_json", "validation")


async def test_five_thousand_fit_and_twice_the_limit_does_not(service: Any) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    body = {"readings": [reading(ts=(start + timedelta(minutes=n)).isoformat()) for n in range(5000)]}
    reply = await service.client.post("/ingest/readings", json=body)
    assert reply.status_code == 200
    assert reply.json()["accepted"] == 5000
    large = await service.client.post("/ingest/readings", content=b" " * (1024 * 1024 + 1), headers=TEXT)
    assert large.status_code == 413
    assert "1048576" in large.json()["detail"]
    # The other routes keep theirs.
    assert (await service.client.post("/infer", content=b" " * (256 * 1024 + 1))).status_code == 413


LINES = f"""# a comment

sensor_reading,building_id=home aggregate_kw=0.5 {TS_NS}
sensor_reading,building_id=home,phase=1 voltage=230.1,aggregate_kw=1e0,unit="kW" {TS_NS + 1}
  sensor_reading,building_id=home aggregate_kw=.25   {TS_NS + 2}
"""


async def test_line_protocol(service: Any) -> None:
    reply = await service.client.post("/ingest/readings", content=LINES, headers=TEXT)
    assert reply.status_code == 200, reply.text
    assert reply.json()["accepted"] == 3
    assert stored(service) == [("home", TS_NS, 0.5), ("home", TS_NS + 1, 1.0), ("home", TS_NS + 2, 0.25)]


@pytest.mark.parametrize(("precision", "unit_ns"), [("ns", 1), ("us", 10**3), ("ms", 10**6), ("s", 10**9)])
async def test_the_unit_of_the_times(service: Any, precision: str, unit_ns: int) -> None:
    line = f"sensor_reading,building_id=home aggregate_kw=1 {TS_NS // unit_ns}"
    parameters = {"precision": precision}
    reply = await service.client.post("/ingest/readings", content=line, headers=TEXT, params=parameters)
    assert reply.status_code == 200
    assert stored(service) == [("home", TS_NS, 1.0)]


async def test_a_line_without_a_time_is_of_now(service: Any) -> None:
    before = datetime.now(UTC).timestamp()
    line = "sensor_reading,building_id=home aggregate_kw=1"
    await service.client.post("/ingest/readings", content=line, headers=TEXT)
    [(_, time_ns, _)] = stored(service)
    assert before - 1 <= time_ns / 10**9 <= datetime.now(UTC).timestamp() + 1


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("prediction,building_id=home aggregate_kw=1 {t}", ""),
        ("sensor_reading aggregate_kw=1 {t}", ""),
        ("sensor_reading,building_id= aggregate_kw=1 {t}", ""),
        ("sensor_reading,building_id=home predicted_kw=1 {t}", ""),
        ("sensor_reading,building_id=home aggregate_kw=1 {t} 5", ""),
        ("sensor_reading,building_id=home aggregate_kw=1 soon", ""),
        ("sensor_reading,building_id=a\\ b aggregate_kw=1 {t}", ""),
        ("sensor_reading,building_id=a,building_id=home aggregate_kw=1 {t}", ""),
        ("sensor_reading,building_id=home aggregate_kw=1,aggregate_kw=2 {t}", ""),
        ("sensor_reading,building_id=home aggregate_kw=1,x {t}", ""),
        ("sensor_reading,building_id=home,x= aggregate_kw=1 {t}", ""),
        ("sensor_reading,building_id=home aggregate_kw=1," + "x=1," * 400 + "y=1 {t}", ""),
        ("sensor_reading,building_id=größe aggregate_kw=1 {t}", "building_id"),
        ("sensor_reading,building_id=home aggregate_kw=1i {t}", "aggregate_kw"),
        ("sensor_reading,building_id=home aggregate_kw=NaN {t}", "aggregate_kw"),
        ("sensor_reading,building_id=home aggregate_kw=true {t}", "aggregate_kw"),
        ('sensor_reading,building_id=home aggregate_kw="1" {t}', "aggregate_kw"),
        ("sensor_reading,building_id=home aggregate_kw=-1 {t}", "aggregate_kw"),
        ("sensor_reading,building_id=home aggregate_kw=500 {t}", "aggregate_kw"),
        ("sensor_reading,building_id=home aggregate_kw=1e999 {t}", "aggregate_kw"),
        ("sensor_reading,building_id=home aggregate_kw=1 1769882400", "ts"),
        ("sensor_reading,building_id=home aggregate_kw=1 9223372036854775807", "ts"),
        ("sensor_reading,building_id=neighbour aggregate_kw=1 {t}", "building_id"),
    ],
)
async def test_a_faulty_line_is_named_and_the_other_is_stored(service: Any, line: str, place: str) -> None:
    content = f"{line}\nsensor_reading,building_id=home aggregate_kw=1 {TS_NS + 5}".replace("{t}", str(TS_NS))
    reply = await service.client.post("/ingest/readings", content=content.encode(), headers=TEXT)
    assert reply.status_code == 200, reply.text
    assert [(error["index"], error["field"]) for error in reply.json()["errors"]] == [(0, place)]
    assert stored(service) == [("home", TS_NS + 5, 1.0)]


@pytest.mark.timeout(20)
def test_a_megabyte_of_hostile_lines_is_read_in_one_pass() -> None:
    """A pattern that tries every way to share a line among its groups would need minutes."""
    for line in (
        "sensor_reading,building_id=a " + "aggregate_kw=1," * 60_000 + "!",
        "sensor_reading" + ",building_id=a" * 60_000 + " " + "aggregate_kw=1," * 10_000,
        "sensor_reading,building_id=a " + "=" * 900_000,
        " ".join("=" for _ in range(500_000)),
    ):
        assert len(from_line_protocol(line.encode(), "ns", datetime.now(UTC)).faults) == 1


async def test_other_types_and_encodings_are_refused(service: Any) -> None:
    for headers in ({"Content-Type": "text/csv"}, {"Content-Type": "application/json", "Content-Encoding": "gzip"}):
        assert (await service.client.post("/ingest/readings", content=b"x", headers=headers)).status_code == 415
    refused = await service.client.post("/ingest/readings", content=b"\xff", headers=TEXT)
    assert refused.status_code == 400
    refused = await service.client.post("/ingest/readings", content=LINES, headers=TEXT, params={"precision": "h"})
    assert refused.status_code == 422


@pytest.mark.parametrize("failure", [PersistFailure.UNAVAILABLE, PersistFailure.QUEUE_FULL])
async def test_a_store_that_is_away_acknowledges_nothing(service: Any, failure: PersistFailure) -> None:
    service.store.answer = lambda _: NotPersisted(failure, "")
    refused = await post(service, reading())
    assert refused.status_code == 503
    assert "retry-after" in refused.headers


async def test_it_needs_a_token(service: Any) -> None:
    headers = {"Authorization": ""}
    reply = await service.client.post("/ingest/readings", json={"readings": [reading()]}, headers=headers)
    assert reply.status_code == 401


@given(st.text(st.sampled_from('sensor_reading,building_id=home aggregate_kw=1.5e \\"\n#-17\u00e9'), max_size=80))
def test_no_text_breaks_the_line_parser(text: str) -> None:
    _never_breaks(lambda: from_line_protocol(text.encode(), "s", datetime.now(UTC)))


_json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["building_id", "ts", "x"]), inner),
    max_leaves=8,
)


@given(st.lists(_json_values, min_size=1, max_size=5))
def test_no_items_break_the_json_parser(items: list[object]) -> None:
    text = re.sub(r"NaN|-?Infinity", "null", json.dumps({"readings": items}))
    _never_breaks(lambda: from_json(text.encode()))


def _never_breaks(parse: Any) -> None:
    """Whatever passes can be stored, and every reading is either taken or has a fault."""
    try:
        readings = parse()
    except Problem:
        return
    assert len(readings) + len(readings.faults) == readings.received
    if len(readings):
        from deployments.contracts import RecordSet

        assert refusal(RecordSet((), 0.0, readings=readings.arrays())) is None


async def test_readings_older_than_what_the_store_keeps_are_named_and_the_others_stored(service: Any) -> None:
    fresh, old = "2026-01-31T18:00:00+00:00", "2025-12-31T18:00:00+00:00"

    def refuse_old(record_set: RecordSet) -> PersistResult:
        oldest = int(record_set.readings.time_ns.min())  # type: ignore[union-attr]
        return (
            NotPersisted(PersistFailure.TOO_OLD, "older", oldest_kept_ns=TS_NS) if oldest < TS_NS else Persisted(1, 0.5)
        )

    service.store.answer = refuse_old
    assert (await post(service, reading(ts=old), reading(ts=fresh), all_or_nothing=True)).status_code == 422
    assert (await post(service, reading(ts=old))).status_code == 422
    assert stored(service) == []
    reply = await post(service, reading(ts=old), reading(ts=fresh))
    assert reply.status_code == 200, reply.text
    assert reply.json()["errors"] == [{"index": 0, "field": "ts", "detail": "is older than what is kept here"}]
    assert [row[1] for row in stored(service)] == [TS_NS]
