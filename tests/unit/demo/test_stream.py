"""Streaming: in order, a few in flight, bounded failures, a clean stop, and sums that add up."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from serve_app.demo.client import ServiceClient
from serve_app.demo.errors import Refused, ServiceError
from serve_app.demo.recording import Plan, Recording, plan_windows
from serve_app.demo.results import Results, in_order
from serve_app.demo.stream import IN_FLIGHT, Outcome, Pace, stream

START = datetime(2026, 3, 1, tzinfo=UTC)


def _recording(count: int = 40) -> Recording:
    mains = 1000.0 + np.arange(count)
    return Recording("test", START, 60, mains, {"kettle": mains / 2 - 10.0})


async def _run(service: Any, plan: Plan, pace: Pace | None = None) -> list[Outcome]:
    async with ServiceClient(service.url, service.token) as client:
        return [o async for o in stream(client, "home", plan.windows, pace or Pace(), asyncio.Event())]


async def test_outcomes_come_in_order_of_time_whatever_the_order_of_replies(service: Any) -> None:
    service.delay_s = lambda number: 0.05 if number % 3 == 0 else 0.0
    plan = plan_windows(_recording(), 10, 7, None, 1)
    outcomes = await _run(service, plan)
    assert [outcome.window.target for outcome in outcomes] == list(range(7, 38))
    assert all(outcome.reply and outcome.reply.persisted for outcome in outcomes)


async def test_busy_answers_delay_and_lose_nothing(service: Any) -> None:
    service.fault = lambda n: (503, {"Retry-After": "1"}, {"title": "Busy"}) if n in {3, 4, 5} else None
    plan = plan_windows(_recording(), 10, 7, None, 1)
    outcomes = await _run(service, plan)
    assert [outcome.window.target for outcome in outcomes] == list(range(7, 38))
    assert len(service.bodies) == len(outcomes) + 3


async def test_a_lost_window_is_counted_and_the_run_goes_on(service: Any) -> None:
    service.fault = lambda n: (500, {}, {"title": "Internal error"}) if n == 5 else None
    recording = _recording()
    plan = plan_windows(recording, 10, 7, None, 1)
    results = Results(recording, plan, ["kettle", "microwave"])
    for outcome in await _run(service, plan):
        results.add(outcome)
    assert (results.sent, results.acknowledged, results.failed) == (31, 30, 1)
    assert results.answered.sum() == 30


async def test_ten_failures_in_a_row_are_the_service(service: Any) -> None:
    service.fault = lambda _n: (500, {}, {"title": "Internal error"})
    with pytest.raises(ServiceError, match="10 windows in a row failed: 500, Internal error"):
        await _run(service, plan_windows(_recording(), 10, 7, None, 1))
    assert len(service.bodies) < 10 + 2 * IN_FLIGHT


async def test_a_refusal_ends_the_run_after_handing_over_what_was_answered(service: Any) -> None:
    service.fault = lambda n: (401, {}, {"detail": "The token has expired."}) if n > 8 else None
    seen: list[Outcome] = []
    plan = plan_windows(_recording(), 10, 7, None, 1)
    async with ServiceClient(service.url, service.token) as client:
        with pytest.raises(Refused, match="expired"):  # noqa: PT012 - what came before it is the point
            async for outcome in stream(client, "home", plan.windows, Pace(), asyncio.Event()):
                seen.append(outcome)
    assert len(seen) == 8


async def test_a_stop_hands_over_what_is_in_flight(service: Any) -> None:
    stop = asyncio.Event()
    seen: list[int] = []
    plan = plan_windows(_recording(), 10, 7, None, 1)
    async with ServiceClient(service.url, service.token) as client:
        async for outcome in stream(client, "home", plan.windows, Pace(), stop):
            seen.append(outcome.window.target)
            if len(seen) == 5:
                stop.set()
    assert seen == list(range(7, 7 + len(seen)))
    assert 5 <= len(seen) <= 5 + IN_FLIGHT
    assert len(service.bodies) == len(seen)


async def test_a_stop_does_not_wait_for_a_slow_pace(service: Any) -> None:
    stop = asyncio.Event()
    plan = plan_windows(_recording(), 10, 7, None, 1)
    async with asyncio.timeout(10):
        async with ServiceClient(service.url, service.token) as client:
            async for _ in stream(client, "home", plan.windows, Pace(interval_s=60.0), stop):
                stop.set()
    assert len(service.bodies) == 1


def test_the_pace() -> None:
    assert Pace.parse("max", 60).interval_s == 0
    assert Pace.parse("realtime", 60).interval_s == 60
    assert Pace.parse("120", 60).interval_s == 0.5
    for wrong in ("0", "-1", "fast", "nan", "inf"):
        with pytest.raises(ValueError, match=r".*"):
            Pace.parse(wrong, 60)


async def test_the_summary_compares_like_with_like(service: Any) -> None:
    recording = _recording()
    recording.appliances_w["kettle"][20] = np.nan
    plan = plan_windows(recording, 10, 7, None, 1)
    results = Results(recording, plan, ["microwave", "kettle"])
    for outcome in await _run(service, plan):
        results.add(outcome)
    kettle, microwave = results.summaries()
    known = [index for index in range(7, 38) if index != 20]
    assert kettle.appliance_id == "kettle"
    assert kettle.predicted_kwh == pytest.approx(sum(1000 + i for i in range(7, 38)) / 2 / 60 / 1000)
    assert kettle.mae_w == pytest.approx(10.0, abs=1e-3)
    assert kettle.always_off_mae_w == pytest.approx(np.mean([(1000 + i) / 2 - 10 for i in known]))
    assert kettle.measured_kwh == pytest.approx(sum((1000 + i) / 2 - 10 for i in known) / 60 / 1000)
    assert microwave.predicted_kwh == 0
    assert (microwave.measured_kwh, microwave.mae_w, microwave.always_off_mae_w) == (None, None, None)
    assert results.energy_kwh(results.unattributed_kw) == pytest.approx(kettle.predicted_kwh)


async def test_the_services_instant_wins_over_ours(service: Any) -> None:
    service.extra = {"predicted_for": (START + timedelta(minutes=12)).isoformat()}
    recording = _recording()
    plan = plan_windows(recording, 10, 7, None, 1 / 60)
    results = Results(recording, plan, ["kettle"])
    for outcome in await _run(service, plan):
        results.add(outcome)
    assert list(np.flatnonzero(results.answered)) == [12]


async def test_a_run_cut_short_counts_only_the_gaps_it_reached(service: Any) -> None:
    recording = _recording(80)
    recording.aggregate_w[[20, 60]] = np.nan
    plan = plan_windows(recording, 10, 7, None, 2)
    results = Results(recording, plan, ["kettle"])
    assert (results.skipped, plan.skipped) == (0, 20)
    outcomes = await _run(service, plan)
    for outcome in outcomes[:20]:
        results.add(outcome)
    assert results.skipped == 10
    assert results.span() == slice(7, outcomes[19].window.target + 1)
    for outcome in outcomes[20:]:
        results.add(outcome)
    assert results.skipped == 20


def test_the_order_of_appliances_is_fixed() -> None:
    assert in_order(["toaster", "microwave", "kettle", "washing_machine", "dishwasher", "ev"]) == (
        "dishwasher",
        "washing_machine",
        "kettle",
        "microwave",
        "ev",
        "toaster",
    )
