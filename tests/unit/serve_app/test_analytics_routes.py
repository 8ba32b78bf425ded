"""`GET /analytics/readings` and `/predictions` on a real SQLite file: rows, ranges, tags, and who may see what."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deployments.contracts import PredictionPoint, Readings, RecordSet
from deployments.history import HistoryReplica
from deployments.history_contracts import History, HistoryFailed, HistoryQuery
from deployments.stores import PredictionStore, StoreConfig, open_store

MIDNIGHT = datetime(2026, 1, 31, tzinfo=UTC)
MIDNIGHT_NS = int(MIDNIGHT.timestamp()) * 10**9
MINUTE_NS = 60 * 10**9
RANGE = {"building_id": "home", "start": "2026-01-31T00:00:00Z", "end": "2026-01-31T01:00:00Z"}


class Shelf:
    """A store on disk, and the deployment that reads it."""

    def __init__(self, path: Path, make_point: Callable[..., PredictionPoint], kit: Any) -> None:
        config = StoreConfig.for_sqlite(path)
        self.store: PredictionStore = open_store(config)
        self.replica = HistoryReplica(config)
        self._make_point = make_point
        self.ask = kit.Method(self._ask)
        self.failure: HistoryFailed | None = None
        self.asked = 0

    async def _ask(self, query: Any) -> Any:
        self.asked += 1
        return self.failure or await self.replica.ask(query)

    def mains(self, *kw: float, start_ns: int = MIDNIGHT_NS, building_id: str = "home") -> None:
        arrays = Readings.of((building_id, start_ns + n * MINUTE_NS, one) for n, one in enumerate(kw))
        assert self.store.write([RecordSet((), time.time() + 5, readings=arrays)]) == [None]

    def predict(self, *kw: float, start_ns: int = MIDNIGHT_NS, **changes: Any) -> None:
        values = {"building_id": "home", "confidence": 0.5, **changes}
        points = [
            self._make_point(time_ns=start_ns + n * MINUTE_NS, predicted_kw=one, **values) for n, one in enumerate(kw)
        ]
        assert self.store.write([RecordSet(tuple(points), time.time() + 5)]) == [None]


@pytest.fixture
async def shelf(tmp_path: Path, make_point: Callable[..., PredictionPoint], kit: Any) -> AsyncIterator[Shelf]:
    shelf = Shelf(tmp_path / "predictions.db", make_point, kit)
    yield shelf
    shelf.store.close()


@pytest.fixture
async def past(kit: Any, shelf: Shelf) -> AsyncIterator[Any]:
    """The service with that store behind `/analytics`."""
    async with kit.start(history=shelf) as service:
        yield service


async def get(service: Any, what: str = "readings", headers: dict[str, str] | None = None, **parameters: Any) -> Any:
    return await service.client.get(f"/analytics/{what}", params={**RANGE, **parameters}, headers=headers)


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_mains_by_the_quarter_and_what_was_not_measured(past: Any, shelf: Shelf, prefix: str) -> None:
    shelf.mains(*[1.0] * 15, *[2.0, 4.0, 3.0])
    reply = await past.client.get(f"{prefix}/analytics/readings", params=RANGE)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == {
        "building_id": "home",
        "resolution": "15m",
        "rows": [
            {"time": "2026-01-31T00:00:00Z", "value": 1.0, "coverage": 1.0},
            {"time": "2026-01-31T00:15:00Z", "value": 3.0, "coverage": 0.2},
            {"time": "2026-01-31T00:30:00Z", "value": None, "coverage": 0.0},
            {"time": "2026-01-31T00:45:00Z", "value": None, "coverage": 0.0},
        ],
    }


@pytest.mark.parametrize(
    ("resolution", "rows", "first"),
    [("1s", 3600, 1.0), ("1m", 60, 1.0), ("15m", 4, 8.0), ("1h", 1, 30.5), ("1d", 1, 30.5)],
)
async def test_every_resolution(past: Any, shelf: Shelf, resolution: str, rows: int, first: float) -> None:
    shelf.mains(*range(1, 61))
    found = (await get(past, resolution=resolution)).json()["rows"]
    assert len(found) == rows
    assert found[0]["value"] == first
    assert found[0]["time"] == "2026-01-31T00:00:00Z"
    assert found[0]["coverage"] == (pytest.approx(60 / 1440, abs=1e-4) if resolution == "1d" else 1.0)


async def test_edges_are_widened_to_whole_buckets(past: Any, shelf: Shelf) -> None:
    shelf.mains(*[1.0] * 60)
    found = (await get(past, start="2026-01-31T00:14:59Z", end="2026-01-31T00:15:01Z")).json()["rows"]
    assert [row["time"][11:16] for row in found] == ["00:00", "00:15"]
    assert [row["coverage"] for row in found] == [1.0, 1.0]


async def test_the_appliances_beside_the_mains(past: Any, shelf: Shelf) -> None:
    shelf.mains(*[2.0] * 30)
    shelf.predict(*[0.5] * 15, appliance_id="kettle")
    shelf.predict(*[1.0] * 3, appliance_id="microwave", confidence=0.25, start_ns=MIDNIGHT_NS + 15 * MINUTE_NS)
    found = (await get(past, include_disaggregation="true")).json()["rows"]
    assert found[0]["appliances"] == {"kettle": 0.5, "microwave": None}
    assert found[0]["confidence"] == {"kettle": 0.5, "microwave": None}
    assert found[1]["appliances"] == {"kettle": None, "microwave": 1.0}
    assert found[1]["confidence"] == {"kettle": None, "microwave": 0.25}
    assert found[2]["appliances"] == {"kettle": None, "microwave": None}
    one = (await get(past, include_disaggregation="true", appliance_id="kettle")).json()["rows"]
    assert one[0]["appliances"] == {"kettle": 0.5}


async def test_a_building_without_predictions_has_no_appliances(past: Any, shelf: Shelf) -> None:
    shelf.mains(1.0)
    found = (await get(past, include_disaggregation="true")).json()["rows"]
    assert [row["appliances"] for row in found] == [{}] * 4


async def test_final_before_provisional_and_the_newest_version_first(past: Any, shelf: Shelf) -> None:
    shelf.predict(*[1.0] * 60, attribution="provisional", model_version="2.0.0")
    shelf.predict(*[2.0] * 45, attribution="final", model_version="1.9.0")
    shelf.predict(*[3.0] * 30, attribution="final", model_version="1.10.0-rc1")
    shelf.predict(*[4.0] * 15, attribution="final", model_version="1.10.0")
    for resolution, expected in (("15m", [4.0, 3.0, 2.0, 1.0]), ("1h", [2.5])):
        found = (await get(past, "predictions", resolution=resolution)).json()["rows"]
        assert [row["predicted_kw"] for row in found] == expected
        assert {row["appliance_id"] for row in found} == {"kettle"}


async def test_predictions_have_a_row_for_each_appliance_and_bucket(past: Any, shelf: Shelf) -> None:
    shelf.predict(0.5, appliance_id="microwave")
    shelf.predict(1.0, appliance_id="kettle", confidence=0.9)
    document = (await get(past, "predictions")).json()
    assert len(document["rows"]) == 8
    assert document["rows"][0] == {
        "time": "2026-01-31T00:00:00Z",
        "appliance_id": "kettle",
        "predicted_kw": 1.0,
        "confidence": 0.9,
        "coverage": 0.0667,
    }
    assert document["rows"][1]["predicted_kw"] is None
    only = (await get(past, "predictions", appliance_id="microwave")).json()["rows"]
    assert {row["appliance_id"] for row in only} == {"microwave"}


async def test_a_range_before_now_ends_with_now(past: Any, shelf: Shelf) -> None:
    now = datetime.now(UTC)
    minute_ns = int(now.timestamp()) // 60 * MINUTE_NS
    shelf.mains(7.0, start_ns=minute_ns)
    found = (await get(past, start="-10m", end="now()", resolution="1m")).json()["rows"]
    assert 10 <= len(found) <= 12
    assert 7.0 in [row["value"] for row in found]
    ahead = (now + timedelta(hours=5)).isoformat()
    assert len((await get(past, start="-10m", end=ahead, resolution="1m")).json()["rows"]) <= 12


@pytest.mark.parametrize(
    "parameters",
    [
        {"start": "yesterday"},
        {"start": "2026-02-30T00:00:00Z"},
        {"start": "2026-01-31T00:00:00"},
        {"start": "2026-01-31T01:00:00Z"},
        {"start": "2026-01-31T02:00:00Z"},
        {"start": "1999-01-01T00:00:00Z"},
        {"start": "-5y"},
        {"start": "--5d"},
        {"start": "-9999999999d"},
        {"start": "-999999999w"},
        {"end": "2027-01-01T00:00:00Z"},
        {"end": "now"},
        {"end": ""},
        {"resolution": "5m"},
        {"resolution": ""},
        {"resolution": "1m", "start": "2025-12-01T00:00:00Z"},
        {"resolution": "1s", "start": "2026-01-30T12:59:00Z"},
        {"building_id": "a b"},
        {"building_id": "home\n"},
        {"building_id": ""},
        {"appliance_id": "x" * 65},
        {"include_disaggregation": "perhaps"},
    ],
)
async def test_what_cannot_be_asked_is_refused(past: Any, shelf: Shelf, parameters: dict[str, str]) -> None:
    for what in ("readings", "predictions"):
        if what == "predictions" and "include_disaggregation" in parameters:
            continue
        refused = await get(past, what, **parameters)
        assert refused.status_code == 422, refused.text
        assert refused.json()["code"] == "validation"
        assert refused.json()["errors"]
    assert shelf.asked == 0


async def test_the_start_is_required(past: Any) -> None:
    refused = await past.client.get("/analytics/readings", params={"building_id": "home"})
    assert refused.status_code == 422


async def test_a_poll_for_the_same_rows_is_not_answered_twice(past: Any, shelf: Shelf) -> None:
    shelf.mains(1.0)
    first = await get(past, include_disaggregation="true")
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    for known in (tag, tag.removeprefix("W/"), f'"other", {tag}'):
        again = await get(past, include_disaggregation="true", headers={"If-None-Match": known})
        assert again.status_code == 304
        assert again.content == b""
        assert again.headers["etag"] == tag
    for unknown in ("", "*", '"other"', tag.strip('W/"')):
        assert (await get(past, include_disaggregation="true", headers={"If-None-Match": unknown})).status_code == 200
    # Another question, another tag.
    for other in ({}, {"include_disaggregation": "true", "resolution": "1m"}, {"end": "2026-01-31T02:00:00Z"}):
        assert (await get(past, headers={"If-None-Match": tag}, **other)).status_code == 200


async def test_new_or_overwritten_rows_change_the_tag(past: Any, shelf: Shelf) -> None:
    shelf.mains(1.0)
    tags = [(await get(past)).headers["etag"]]
    shelf.mains(2.0)
    tags.append((await get(past)).headers["etag"])
    shelf.predict(1.0)
    tags.append((await get(past)).headers["etag"])
    shelf.mains(2.0, building_id="other")
    assert (await get(past)).headers["etag"] == tags[-1]
    assert len(set(tags)) == 3


async def test_the_body_is_compressed_for_whoever_takes_it(past: Any, shelf: Shelf) -> None:
    shelf.mains(*[1.0] * 60)
    small = await get(past, resolution="1m", headers={"Accept-Encoding": "gzip"})
    plain = await get(past, resolution="1m", headers={"Accept-Encoding": "identity"})
    assert small.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert small.json() == plain.json()
    assert int(small.headers["content-length"]) < len(plain.content) / 5
    assert "Accept-Encoding" in small.headers["vary"]


async def test_only_ones_own_buildings_and_appliances(past: Any, shelf: Shelf) -> None:
    shelf.mains(1.0, building_id="neighbour")
    shelf.mains(1.0)
    shelf.predict(1.0, appliance_id="kettle")
    shelf.predict(1.0, appliance_id="microwave")
    past.grants.buildings["user-1"] = {"home": {"kettle", "fridge"}}
    for what in ("readings", "predictions"):
        refused = await get(past, what, building_id="neighbour")
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden_building")
        refused = await get(past, what, appliance_id="microwave")
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden_appliance")
    assert (await get(past, include_disaggregation="true")).json()["rows"][0]["appliances"] == {"kettle": 1.0}
    rows = (await get(past, "predictions")).json()["rows"]
    assert {row["appliance_id"] for row in rows} == {"kettle"}
    assert (await get(past, headers={"Authorization": ""})).status_code == 401


async def test_a_tag_is_worth_nothing_to_someone_who_sees_less(past: Any, shelf: Shelf) -> None:
    shelf.predict(1.0, appliance_id="kettle")
    tag = (await get(past, "predictions")).headers["etag"]
    past.grants.buildings["user-1"] = {"home": {"fridge"}}
    past.services.grants.invalidate(None)
    reply = await get(past, "predictions", headers={"If-None-Match": tag})
    assert reply.status_code == 200
    assert reply.json()["rows"] == []


async def test_a_store_that_cannot_be_read_is_never_empty(past: Any, shelf: Shelf, tmp_path: Path) -> None:
    shelf.failure = HistoryFailed("away", 3)
    refused = await get(past)
    assert (refused.status_code, refused.json()["code"]) == (503, "store_unreadable")
    assert refused.headers["retry-after"] == "3"
    gone = HistoryReplica(StoreConfig.for_sqlite(tmp_path / "nothing" / "here.db"))
    shelf.failure, shelf.replica = None, gone
    assert (await get(past)).status_code == 503


async def test_a_year_of_quarters_with_its_appliances(past: Any, shelf: Shelf) -> None:
    """Its rows come from the rollups: the raw rows are gone."""
    import sqlite3

    shelf.mains(*[1.0] * 1440)
    shelf.predict(*[0.5] * 1440)
    with sqlite3.connect(shelf.replica._reader._path) as connection:  # type: ignore[attr-defined]
        connection.execute("DELETE FROM sensor_reading")
        connection.execute("DELETE FROM prediction")
    reply = await get(past, start="2025-02-01T00:00:00Z", end="2026-02-01T00:00:00Z", include_disaggregation="true")
    rows = reply.json()["rows"]
    assert len(rows) == 365 * 96
    assert [row["value"] for row in rows[-96:]] == [1.0] * 96
    assert rows[-1]["appliances"] == {"kettle": 0.5}
    assert rows[0]["value"] is None


async def test_energy_by_day_in_the_callers_time_zone(past: Any, shelf: Shelf) -> None:
    shelf.mains(*[1.0] * 120, start_ns=MIDNIGHT_NS - 60 * MINUTE_NS)
    shelf.predict(*[0.5] * 60, appliance_id="kettle")
    asked = {"end": "2026-01-31T00:30:00Z", "timezone": "Europe/Berlin", "price_per_kwh": "0.25"}
    document = (await get(past, "energy", **asked)).json()
    assert document["timezone"] == "Europe/Berlin"
    [day] = document["days"]
    assert (day["date"], day["start"], day["end"]) == ("2026-01-31", "2026-01-30T23:00:00Z", "2026-01-31T23:00:00Z")
    assert day["mains"] == {"energy_kwh": 2.0, "cost": 0.5, "coverage": 0.0833}
    assert day["appliances"]["kettle"]["energy_kwh"] == 0.5
    assert day["unattributed"] == {"energy_kwh": 1.5, "cost": 0.375}
    assert day["always_on"]["power_kw"] == 1.0
    utc = (await get(past, "energy", end="2026-01-31T00:30:00Z")).json()["days"]
    assert [one["mains"]["energy_kwh"] for one in utc] == [1.0]
    assert utc[0]["mains"]["cost"] is None


@pytest.mark.parametrize(
    "parameters",
    [
        {"timezone": "Mars/Olympus"},
        {"timezone": "../../etc/passwd"},
        {"timezone": ""},
        {"timezone": "x" * 65},
        {"price_per_kwh": "-1"},
        {"price_per_kwh": "nan"},
        {"price_per_kwh": "inf"},
        {"start": "2024-01-01T00:00:00Z"},
    ],
)
async def test_energy_that_cannot_be_asked(past: Any, parameters: dict[str, str]) -> None:
    refused = await get(past, "energy", **parameters)
    assert (refused.status_code, refused.json()["code"]) == (422, "validation")


async def test_cycles_are_told_whole_and_only_those_in_the_range(past: Any, shelf: Shelf) -> None:
    shelf.predict(*[0.0] * 10, *[2.5] * 2, *[0.0] * 40, *[2.5] * 5, *[0.0] * 30, appliance_id="kettle")
    document = (await get(past, "cycles", appliance_id="kettle", start="2026-01-31T00:11:00Z")).json()
    assert document["appliance_id"] == "kettle"
    assert [(one["start"], one["end"]) for one in document["cycles"]] == [
        ("2026-01-31T00:10:00Z", "2026-01-31T00:12:00Z"),
        ("2026-01-31T00:52:00Z", "2026-01-31T00:57:00Z"),
    ]
    assert document["cycles"][0]["peak_kw"] == 2.5
    later = (await get(past, "cycles", appliance_id="kettle", start="2026-01-31T00:30:00Z")).json()
    assert len(later["cycles"]) == 1
    assert (await get(past, "cycles", appliance_id="microwave")).json()["cycles"] == []
    refused = await get(past, "cycles", appliance_id="sauna")
    assert (refused.status_code, refused.json()["code"]) == (404, "unknown_appliance")
    assert (await get(past, "cycles")).status_code == 422


async def test_ones_buildings_and_their_appliances(past: Any, shelf: Shelf) -> None:
    shelf.mains(1.0)
    shelf.mains(1.0, building_id="neighbour")
    shelf.predict(1.0, 1.0, appliance_id="kettle")
    shelf.predict(1.0, appliance_id="microwave")
    past.grants.buildings["user-1"] = {"home": {"kettle"}, "empty": {"*"}}
    listed = (await past.client.get("/analytics/buildings")).json()
    home = {
        "building_id": "home",
        "last_reading": "2026-01-31T00:00:00Z",
        "last_prediction": "2026-01-31T00:01:00Z",
    }
    assert listed == {"buildings": [home]}
    found = (await past.client.get("/analytics/appliances", params={"building_id": "home"})).json()
    assert found == {
        "building_id": "home",
        "appliances": [{"appliance_id": "kettle", "last_prediction": "2026-01-31T00:01:00Z"}],
    }
    past.grants.buildings["user-1"] = {"home": {"fridge"}, "neighbour": set()}
    past.services.grants.invalidate(None)
    unseen = (await past.client.get("/analytics/buildings")).json()["buildings"]
    assert [(one["building_id"], one["last_prediction"]) for one in unseen] == [("home", None), ("neighbour", None)]
    past.grants.buildings["user-1"] = {"home": {"kettle"}}
    past.services.grants.invalidate(None)
    for building in ("neighbour", "nobody"):
        refused = await past.client.get("/analytics/appliances", params={"building_id": building})
        assert refused.status_code == 403
    past.grants.buildings["user-1"] = {"*": {"*"}}
    past.services.grants.invalidate(None)
    everything = (await past.client.get("/analytics/buildings")).json()["buildings"]
    assert [one["building_id"] for one in everything] == ["home", "neighbour"]


@pytest.mark.parametrize("what", ["readings", "predictions", "energy", "cycles"])
async def test_a_poll_up_to_now_has_the_same_tag_as_long_as_nothing_is_stored(
    past: Any, shelf: Shelf, what: str
) -> None:
    """Polls of one minute, whose `start` and `end` move with the clock, are one question."""
    shelf.predict(1.0)
    polls = [{"start": f"2026-01-30T00:10:{s:02d}Z", "end": f"2026-01-31T00:10:{s:02d}.25Z"} for s in (1, 20, 59)]
    tag = (await get(past, what, appliance_id="kettle", **polls[0])).headers["etag"]
    for poll in polls:
        answer = await get(past, what, appliance_id="kettle", headers={"If-None-Match": tag}, **poll)
        assert answer.status_code == 304


async def test_a_query_nobody_waits_for_any_more_is_not_run(past: Any, shelf: Shelf) -> None:
    late = await shelf.replica.ask(
        HistoryQuery(History.READINGS, ("home",), 0, 900 * 10**9, deadline_s=time.time() - 1)
    )
    assert isinstance(late, HistoryFailed)


async def test_a_restored_backup_has_other_tags_than_what_was_lost(past: Any, shelf: Shelf) -> None:
    """Its revision must not climb back to one that a client knows for other rows."""
    import sqlite3

    shelf.mains(1.0)
    path = shelf.replica._reader._path  # type: ignore[attr-defined]
    with sqlite3.connect(path) as connection:
        backup = connection.execute("SELECT * FROM building_revision").fetchall()
    shelf.mains(2.0)
    lost = (await get(past)).headers["etag"]
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM building_revision")
        connection.executemany("INSERT INTO building_revision VALUES (?, ?)", backup)
    shelf.mains(3.0)
    assert (await get(past, headers={"If-None-Match": lost})).status_code == 200


@pytest.mark.parametrize("what", ["energy", "cycles", "buildings", "appliances"])
async def test_every_document_has_a_tag(past: Any, shelf: Shelf, what: str) -> None:
    shelf.mains(1.0)
    shelf.predict(1.0)
    first = await get(past, what, appliance_id="kettle")
    assert first.status_code == 200, first.text
    known = {"If-None-Match": first.headers["etag"]}
    assert (await get(past, what, appliance_id="kettle", headers=known)).status_code == 304
    shelf.predict(2.0, start_ns=MIDNIGHT_NS + MINUTE_NS)
    assert (await get(past, what, appliance_id="kettle", headers=known)).status_code == 200
