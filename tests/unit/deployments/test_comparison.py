"""Comparison: second opinions off the reply's path, counted for whoever is judged, dropped when there is no time."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import numpy as np
import pytest

from deployments import comparison
from deployments.comparison import BATCH_WINDOWS, QUEUE_WINDOWS, Answered, Comparison
from deployments.contracts import Inference, InferenceRequest
from deployments.rollout_contracts import Role, VersionCounts
from deployments.tally import Tally
from models.attribution import Attribution
from tests.unit.deployments.replica import FINAL_INDEX, both, output, request

PLAN = 7


class Opinion:
    """A loaded version that says what it is told; it may wait, and fail."""

    def __init__(self, power_w: float = 100.0, on: float = 0.9) -> None:
        self.power_w, self.on = power_w, on
        self.provisional_w = power_w
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.threads: list[str] = []
        self.entry = type("Entry", (), {"model_version": "2.0.0"})

    def predict(self, windows: Any) -> Any:
        self.batches.append(len(windows))
        self.threads.append(threading.current_thread().name)
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        n = len(windows)
        return both(output([self.power_w] * n, [self.on] * n), output([self.provisional_w] * n, [self.on] * n))


class Bench:
    def __init__(self) -> None:
        self.tally = Tally("kettle")
        self.tally.begin(PLAN, slow_ms=10_000.0)
        self.comparison = Comparison(self.tally)

    def offer(
        self,
        other: Opinion,
        role: Role = Role.SHADOW,
        power_w: float = 50.0,
        on: float = 0.1,
        asked: InferenceRequest | None = None,
    ) -> None:
        loaded: Any = other
        self.comparison.offer(Answered(PLAN, role, asked or request(), answer(power_w, on), loaded))

    def counts(self, role: Role = Role.SHADOW) -> VersionCounts:
        return dict(self.tally.counts).get(role, VersionCounts())

    async def done(self) -> None:
        assert self.comparison._working is not None
        await asyncio.wait_for(self.comparison._working, 10)


def answer(power_w: float, on: float) -> Inference:
    return Inference(
        power_w, on, (), Attribution.FINAL, "kettle-net", "1.0.0", "0" * 64, FINAL_INDEX, 60.0, 0.5, 1, 0.0, 0.0
    )


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_a_shadow_is_counted_as_a_version_and_against_the_stable_answer(bench: Bench) -> None:
    bench.offer(Opinion(100.0, 0.9))
    await bench.done()
    found = bench.counts()
    assert (found.windows, found.on, found.power_w) == (1, 1, 100.0)
    assert (found.compared, found.disagreements, found.compared_on) == (1, 1, 1)
    assert (found.compared_power_w, found.stable_power_w) == (100.0, 50.0)
    assert found.time_s > 0


async def test_a_canary_is_judged_by_its_answer_and_the_stable_version_is_the_other(bench: Bench) -> None:
    bench.offer(Opinion(power_w=80.0, on=0.9), Role.CANARY, power_w=50.0, on=0.9)
    await bench.done()
    assert bench.counts(Role.CANARY) == VersionCounts(
        compared=1, compared_on=1, compared_power_w=50.0, stable_power_w=80.0
    )
    assert bench.counts(Role.STABLE) == VersionCounts(), "that answered nobody"


async def test_the_answer_that_was_asked_for_is_compared(bench: Bench) -> None:
    other = Opinion(power_w=100.0)
    other.provisional_w = 7.0
    bench.offer(other, asked=request(attribution=Attribution.PROVISIONAL))
    await bench.done()
    assert bench.counts().compared_power_w == 7.0


async def test_offering_never_waits_and_runs_in_a_thread_of_its_own(bench: Bench) -> None:
    other = Opinion()
    other.gate.clear()
    started = time.perf_counter()
    for _ in range(10):
        bench.offer(other)
    assert time.perf_counter() - started < 0.5
    assert bench.counts() == VersionCounts()
    await asyncio.sleep(0.01)  # the loop turns while the pass hangs
    other.gate.set()
    await bench.done()
    assert bench.counts().windows == 10
    assert set(other.threads) == {"load"}


async def test_windows_that_wait_together_share_a_pass(bench: Bench) -> None:
    one, two = Opinion(), Opinion()
    for _ in range(BATCH_WINDOWS + 3):
        bench.offer(one)
    bench.offer(two, Role.CANARY)
    bench.offer(two, Role.CANARY)
    bench.offer(one)
    await bench.done()
    assert one.batches == [BATCH_WINDOWS, 3, 1]
    assert two.batches == [2]
    assert (bench.counts().compared, bench.counts(Role.CANARY).compared) == (BATCH_WINDOWS + 4, 2)


async def test_more_than_may_wait_is_dropped_and_counted(bench: Bench) -> None:
    other = Opinion()
    other.gate.clear()
    for _ in range(QUEUE_WINDOWS + 30):
        bench.offer(other)
    assert len(bench.comparison._queue) == QUEUE_WINDOWS
    assert bench.counts() == VersionCounts(dropped=30)
    other.gate.set()
    await bench.done()
    assert (bench.counts().compared, bench.counts().dropped) == (QUEUE_WINDOWS, 30)


async def test_what_waits_goes_when_the_core_is_needed(bench: Bench) -> None:
    other = Opinion()
    other.gate.clear()
    for _ in range(20):
        bench.offer(other)
    await asyncio.sleep(0)  # the first pass takes its windows
    bench.comparison.drop_waiting()
    assert bench.counts() == VersionCounts(dropped=20 - BATCH_WINDOWS)
    other.gate.set()
    await bench.done()
    assert bench.counts().compared == BATCH_WINDOWS


@pytest.mark.parametrize("field", ["power_w", "on"])
async def test_a_shadow_that_gives_nan_has_failed_at_that_window(bench: Bench, field: str) -> None:
    other = Opinion()
    setattr(other, field, np.nan)
    bench.offer(other)
    await bench.done()
    assert bench.counts() == VersionCounts(windows=1, errors=1)


async def test_a_shadow_that_raises_has_failed_and_the_next_window_is_another_chance(bench: Bench) -> None:
    other = Opinion()
    other.error = ValueError("a bug")
    for _ in range(3):
        bench.offer(other)
    await bench.done()
    assert bench.counts() == VersionCounts(windows=3, errors=3)
    other.error = None
    bench.offer(other)
    await bench.done()
    assert (bench.counts().windows, bench.counts().errors, bench.counts().compared) == (4, 3, 1)


async def test_a_version_that_always_fails_is_logged_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    other = Opinion()
    other.error = ValueError("a bug")
    with caplog.at_level(logging.INFO, "ray.serve"):
        for _ in range(5):
            bench.offer(other)
            await bench.done()
    assert [record.message for record in caplog.records] == ["comparing with 2.0.0 failed"]
    other.error = None
    bench.offer(other)
    await bench.done()
    other.error = ValueError("again")
    with caplog.at_level(logging.INFO, "ray.serve"):
        bench.offer(other)
        await bench.done()
    assert len(caplog.records) == 2


async def test_a_stable_version_that_fails_beside_a_canary_is_no_fault_of_the_canary(bench: Bench) -> None:
    other = Opinion()
    other.error = ValueError("a bug")
    bench.offer(other, Role.CANARY)
    await bench.done()
    other.error, other.power_w = None, np.nan
    bench.offer(other, Role.CANARY)
    await bench.done()
    assert bench.counts(Role.CANARY) == VersionCounts()


async def test_after_a_pass_that_got_no_core_nothing_is_compared_for_a_moment(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "STARVED_S", 0.001)
    monkeypatch.setattr(comparison, "REST_S", 0.05)
    other = Opinion()
    other.gate.clear()  # a wait is time without a core
    for _ in range(BATCH_WINDOWS + 2):
        bench.offer(other)
    await asyncio.sleep(0.01)
    other.gate.set()
    await bench.done()
    assert (bench.counts().compared, bench.counts().dropped) == (BATCH_WINDOWS, 2), "what it found still counts"
    bench.offer(other)
    assert bench.counts().dropped == 3
    await asyncio.sleep(0.06)
    bench.offer(other)
    await bench.done()
    assert bench.counts().compared == BATCH_WINDOWS + 1


async def test_what_was_answered_under_an_older_plan_counts_for_nobody(bench: Bench) -> None:
    other = Opinion()
    other.gate.clear()
    bench.offer(other)
    await asyncio.sleep(0.01)
    bench.tally.begin(PLAN + 1, slow_ms=10_000.0)
    other.gate.set()
    await bench.done()
    assert bench.tally.counts == ()
