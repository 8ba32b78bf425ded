"""The points of one request, found again by its id, on every store that has queries."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from deployments.contracts import PredictionPoint, RecordSet
from deployments.history import HistoryReplica
from deployments.history_contracts import HistoryFailed, RequestQuery
from deployments.stores import HistoryReader, PredictionStore, open_history
from deployments.stores.base import MAX_REQUEST_POINTS
from tests.contract.test_stores import WRITABLE

MakePoint = Callable[..., PredictionPoint]
T0 = 1_769_904_000 * 10**9 + 123
"""Not on a microsecond: an instant is kept to the nanosecond."""
HOUR_NS = 3600 * 10**9
PARTS = ("time_ns", "building_id", "appliance_id", "model_version", "attribution")


@pytest.fixture
def history(backend: Any) -> Iterator[HistoryReader]:
    reader = open_history(backend.config())
    yield reader
    reader.close()


def write(store: PredictionStore, *points: PredictionPoint) -> None:
    assert store.write([RecordSet((point,), time.time() + 30) for point in points]) == [None] * len(points)


def in_order(points: list[PredictionPoint]) -> list[PredictionPoint]:
    return sorted(points, key=lambda point: tuple(getattr(point, part) for part in PARTS))


def test_all_of_a_request_and_nothing_of_others(
    store: PredictionStore, history: HistoryReader, make_point: MakePoint
) -> None:
    others = {
        "time_ns": T0 + HOUR_NS,
        "building_id": "cabin",
        "appliance_id": "microwave",
        "model_version": "2.0.0",
        "attribution": "provisional",
    }
    first = make_point(
        time_ns=T0, request_id="mine", predicted_kw=0.1, confidence=1e-300, aggregate_kw=2.0, latency_ms=1e16
    )
    mine = [first, *(replace(first, **{part: value}) for part, value in others.items())]
    theirs = [make_point(time_ns=T0, appliance_id="fridge", request_id="theirs"), make_point(time_ns=T0 + 1)]
    write(store, *mine, *theirs)
    assert history.predictions_of("mine", T0, T0 + HOUR_NS + 1) == in_order(mine)
    assert history.predictions_of("theirs", T0, T0 + HOUR_NS) == theirs[:1]
    assert history.predictions_of("nobody's", T0, T0 + HOUR_NS) == []


def test_only_of_its_range(store: PredictionStore, history: HistoryReader, make_point: MakePoint) -> None:
    points = [make_point(time_ns=T0 + n) for n in (-1, 0, HOUR_NS - 1, HOUR_NS)]
    write(store, *points)
    assert history.predictions_of("request-1", T0, T0 + HOUR_NS) == points[1:3]


def test_a_point_that_was_overwritten_is_its_last_writers(
    store: PredictionStore, history: HistoryReader, make_point: MakePoint
) -> None:
    before = make_point(time_ns=T0, request_id="before")
    after = replace(before, request_id="after", predicted_kw=2.0)
    write(store, before, after)
    assert history.predictions_of("before", T0, T0 + 1) == []
    assert history.predictions_of("after", T0, T0 + 1) == [after]


def test_the_first_of_very_many(store: PredictionStore, history: HistoryReader, make_point: MakePoint) -> None:
    """As a backfill leaves them."""
    points = [
        make_point(time_ns=T0 + n, building_id=building, appliance_id=appliance)
        for n in range(MAX_REQUEST_POINTS // 2)
        for building in ("cabin", "home")
        for appliance in ("kettle", "microwave")
    ]
    assert store.write([RecordSet(tuple(points[::-1]), time.time() + 30)]) == [None]
    assert history.predictions_of("request-1", T0, T0 + HOUR_NS) == points[:MAX_REQUEST_POINTS]


def test_hostile_names_are_only_names(store: PredictionStore, history: HistoryReader, make_point: MakePoint) -> None:
    points = [make_point(time_ns=T0, building_id=text, appliance_id=text, request_id=text) for text in WRITABLE]
    write(store, *points)
    for text, point in zip(WRITABLE, points, strict=True):
        assert history.predictions_of(text, T0, T0 + 1) == [point]
    for text in ("' OR '1'='1", '" or true or r._value == "', "%", "*", ""):
        assert history.predictions_of(text, T0, T0 + 1) == []


async def test_the_deployment_tells(backend: Any, store: PredictionStore, make_point: MakePoint) -> None:
    point = make_point(time_ns=T0)
    write(store, point)
    assert await HistoryReplica(backend.config()).predictions_of(RequestQuery("request-1", T0, T0 + 1)) == (point,)


async def test_what_cannot_be_read_is_an_answer(sqlite_backend: Any, influx_backend: Any) -> None:
    influx_backend.break_it()
    for backend in (sqlite_backend, influx_backend):
        replica = HistoryReplica(backend.config())
        assert isinstance(await replica.predictions_of(RequestQuery("r", T0, T0 + 1)), HistoryFailed)
