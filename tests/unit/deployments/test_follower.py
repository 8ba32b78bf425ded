"""Follower: obeys the coordinator's orders in one replica, reports, and never falls over."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from deployments import follower as follower_module
from deployments.contracts import RefusedVersion
from deployments.follower import Follower
from deployments.rollout_contracts import Directive, Orders, Refusal, ReplicaReport
from deployments.tally import Tally
from deployments.versions import Serving, VersionRefused
from tests.unit.deployments.rollouts import BAD, ONE, THREE, TWO
from tests.unit.handles import Method


class FakeVersions:
    """`Versions` without models: loads wait for `gates`, and fail as `failures` say."""

    def __init__(self) -> None:
        self.serving: Serving | None = None
        self.next: Serving | None = None
        self.prepared: int | None = None
        self.registry_sha256 = "0" * 64
        self.failures: dict[int, Exception] = {}
        self.gates: dict[int, asyncio.Event] = {}
        self.loads: list[int] = []

    def current(self) -> Serving | None:
        if self.next is not None and time.time() >= self.next.directive.activate_at_s:
            self.serving, self.next = self.next, None
        return self.serving

    async def prepare(self, directive: Directive) -> None:
        self.loads.append(directive.number)
        if directive.number in self.gates:
            await self.gates[directive.number].wait()
        if directive.number in self.failures:
            raise self.failures[directive.number]
        self.prepared = directive.number

    def switch(self, directive: Directive) -> bool:
        if self.prepared != directive.number:
            return False
        self.prepared, self.next = None, Serving("kettle", directive, {})
        return True

    def forget_prepared(self) -> None:
        self.prepared = None


class FakeCoordinator:
    """Answers `follow` with what it is told to say; then the call hangs, as when there is no news."""

    def __init__(self) -> None:
        self.reports: list[ReplicaReport] = []
        self.follows = 0
        self.failure: Exception | None = None
        self._orders: asyncio.Queue[Orders | Exception] = asyncio.Queue()
        self._news = asyncio.Condition()
        self.follow, self.report_replica = Method(self._follow), Method(self._hear)

    def say(
        self, active: Directive | None, prepare: Directive | None = None, peers: int = 0, nothing: str = ""
    ) -> None:
        self._orders.put_nowait(Orders(active, prepare, peers, nothing))

    def fail(self, error: Exception) -> None:
        self._orders.put_nowait(error)

    async def _follow(self, report: ReplicaReport) -> Orders:
        self.follows += 1
        await self._hear(report)
        orders = await self._orders.get()
        if isinstance(orders, Exception):
            raise orders
        return orders

    async def _hear(self, report: ReplicaReport) -> None:
        self.reports.append(report)
        async with self._news:
            self._news.notify_all()
        if self.failure is not None:
            raise self.failure

    async def heard(self, condition: Callable[[ReplicaReport], Any]) -> ReplicaReport:
        """The first report from now on, the latest included, for which it is so."""
        async with asyncio.timeout(5), self._news:
            await self._news.wait_for(lambda: bool(self.reports) and bool(condition(self.reports[-1])))
        return self.reports[-1]


class Bench:
    def __init__(self) -> None:
        self.versions, self.coordinator = FakeVersions(), FakeCoordinator()
        versions: Any = self.versions
        self.follower = Follower(self.coordinator, "r", "node", "kettle", versions, Tally("kettle"))


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(follower_module, "RETRY_S", 0.01)
    one = Bench()
    running = asyncio.create_task(one.follower.run())
    yield one
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def directive(number: int, plan: Any = ONE, *, at_s: float = 0.0, plan_number: int | None = None) -> Directive:
    return Directive(number, number if plan_number is None else plan_number, plan, activate_at_s=at_s)


def serves(number: int) -> Callable[[ReplicaReport], bool]:
    return lambda report: report.active is not None and report.active.number == number


async def serving(bench: Bench, number: int = 1) -> Directive:
    one = directive(number)
    bench.coordinator.say(one)
    await bench.coordinator.heard(serves(number))
    return one


async def test_the_first_plan_is_loaded_and_reported_at_once(bench: Bench) -> None:
    first = await bench.coordinator.heard(lambda _: True)
    assert (first.active, first.working_on, first.prepared, first.refusal) == (None, None, None, None)
    assert (first.replica, first.node, first.appliance_id) == ("r", "node", "kettle")
    assert not bench.follower.settled.is_set()
    await serving(bench)
    assert bench.follower.settled.is_set()
    assert bench.versions.loads == [1]
    # Said by itself: the call for orders hangs.
    assert bench.coordinator.follows == 2


async def test_what_is_prepared_is_said_and_not_served(bench: Bench) -> None:
    one, two = await serving(bench), directive(2, TWO)
    bench.coordinator.say(one, prepare=two)
    report = await bench.coordinator.heard(lambda report: report.prepared == 2)
    assert (report.active, report.working_on) == (one, None)
    bench.coordinator.say(two)
    await bench.coordinator.heard(serves(2))
    assert bench.versions.loads == [1, 2]


async def test_the_instant_is_waited_for_and_said_even_without_a_window(bench: Bench) -> None:
    one, two = await serving(bench), directive(2, TWO)
    bench.coordinator.say(one, prepare=two)
    await bench.coordinator.heard(lambda report: report.prepared == 2)
    at_s = time.time() + 0.1
    bench.coordinator.say(directive(2, TWO, at_s=at_s))
    waiting = await bench.coordinator.heard(lambda report: report.working_on == 2)
    assert waiting.active == one
    await bench.coordinator.heard(serves(2))
    assert time.time() >= at_s


async def test_the_instant_may_pass_while_newer_orders_come(bench: Bench) -> None:
    one, two = await serving(bench), directive(2, TWO)
    bench.coordinator.say(one, prepare=two)
    await bench.coordinator.heard(lambda report: report.prepared == 2)
    two, three = directive(2, TWO, at_s=time.time() + 0.1), directive(3, THREE)
    bench.coordinator.say(two)
    bench.coordinator.say(two, prepare=three)
    await bench.coordinator.heard(lambda report: report.working_on == 2)
    report = await bench.coordinator.heard(serves(2))
    assert report.prepared is None, "what comes next does not disturb what is decided"
    bench.coordinator.say(two, prepare=three)
    await bench.coordinator.heard(lambda report: report.prepared == 3)


async def test_a_later_word_stops_a_load_that_hangs(bench: Bench) -> None:
    one = await serving(bench)
    bench.versions.gates[2] = asyncio.Event()
    bench.coordinator.say(one, prepare=directive(2, TWO))
    await bench.coordinator.heard(lambda report: report.working_on == 2)
    assert bench.follower.loading
    bench.coordinator.say(one, prepare=directive(3, THREE))
    await bench.coordinator.heard(lambda report: report.prepared == 3)
    bench.versions.gates[2].set()
    await asyncio.sleep(0.01)
    assert bench.versions.prepared == 3


async def test_an_order_that_is_taken_back_is_forgotten(bench: Bench) -> None:
    one = await serving(bench)
    bench.coordinator.say(one, prepare=directive(2, TWO))
    await bench.coordinator.heard(lambda report: report.prepared == 2)
    bench.coordinator.say(one)
    await bench.coordinator.heard(lambda report: report.prepared is None)
    bench.versions.gates[3] = asyncio.Event()
    bench.coordinator.say(one, prepare=directive(3, THREE))
    await bench.coordinator.heard(lambda report: report.working_on == 3)
    bench.coordinator.say(one)
    await bench.coordinator.heard(lambda report: report.working_on is None)
    assert not bench.follower.loading


async def test_the_same_orders_again_start_nothing_again(bench: Bench) -> None:
    one, two = await serving(bench), directive(2, TWO)
    bench.versions.gates[2] = asyncio.Event()
    for _ in range(3):
        bench.coordinator.say(one, prepare=two)
    await bench.coordinator.heard(lambda report: report.working_on == 2)
    bench.versions.gates[2].set()
    await bench.coordinator.heard(lambda report: report.prepared == 2)
    for _ in range(3):
        bench.coordinator.say(one, prepare=two)
    await asyncio.sleep(0.01)
    assert bench.versions.loads == [1, 2]


async def test_a_refusal_is_said_and_the_same_is_not_tried_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = await serving(bench), directive(2, TWO)
    bench.versions.failures[2] = VersionRefused(BAD)
    with caplog.at_level(logging.ERROR, "ray.serve"):
        for _ in range(3):
            bench.coordinator.say(one, prepare=two)
        report = await bench.coordinator.heard(lambda report: report.refusal is not None)
        await asyncio.sleep(0.01)
    assert report.refusal == Refusal(2, BAD)
    assert (report.active, report.working_on, bench.versions.loads) == (one, None, [1, 2])
    assert bench.follower.refused == BAD
    assert len(caplog.records) == 1
    # The next order is another chance.
    bench.coordinator.say(one, prepare=directive(3, TWO))
    report = await bench.coordinator.heard(lambda report: report.prepared == 3)
    assert report.refusal is None


async def test_whatever_a_load_raises_is_a_refusal_without_what_it_says(bench: Bench) -> None:
    one = await serving(bench)
    bench.versions.failures[2] = MemoryError("at /secret/path")
    bench.coordinator.say(one, prepare=directive(2, TWO))
    report = await bench.coordinator.heard(lambda report: report.refusal is not None)
    assert report.refusal == Refusal(2, RefusedVersion("2.0.0", "failed", "MemoryError"))


async def test_a_first_plan_that_does_not_load_is_decided_too_and_a_repaired_one_serves(bench: Bench) -> None:
    first, second = directive(1, TWO), directive(2, ONE)
    bench.versions.failures[1] = VersionRefused(BAD)
    bench.coordinator.say(first)
    await asyncio.wait_for(bench.follower.settled.wait(), 5)
    assert bench.follower.nothing == "sha256_mismatch: another hash"
    bench.coordinator.say(first, prepare=second)
    await bench.coordinator.heard(lambda report: report.prepared == 2)
    bench.coordinator.say(second)
    await bench.coordinator.heard(serves(2))
    assert bench.versions.loads == [1, 2]


async def test_nothing_to_serve_is_decided_too(bench: Bench) -> None:
    bench.coordinator.say(None)
    await asyncio.sleep(0.01)
    assert not bench.follower.settled.is_set()
    bench.coordinator.say(None, nothing="kettle.stable: is missing", peers=0)
    await asyncio.wait_for(bench.follower.settled.wait(), 5)
    assert bench.follower.nothing == "kettle.stable: is missing"


async def test_others_that_serve_are_known(bench: Bench) -> None:
    bench.coordinator.say(directive(1), peers=3)
    await bench.coordinator.heard(serves(1))
    assert bench.follower.peers == 3


async def test_while_the_coordinator_is_away_what_serves_goes_on_and_it_is_said_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    one = await serving(bench)
    with caplog.at_level(logging.WARNING, "ray.serve"):
        for _ in range(5):
            bench.coordinator.fail(ConnectionError("no replica"))
        before = bench.coordinator.follows
        async with asyncio.timeout(5):
            while bench.coordinator.follows < before + 5:  # noqa: ASYNC110 - what it waits for is a count
                await asyncio.sleep(0.005)
    assert [record.message for record in caplog.records] == ["the coordinator is away: ConnectionError"]
    current = bench.versions.current()
    assert current is not None
    assert current.directive == one
    bench.coordinator.say(one, prepare=directive(2, TWO))
    await bench.coordinator.heard(lambda report: report.prepared == 2)


async def test_a_call_that_hangs_is_made_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.coordinator.heard(lambda _: True)
    monkeypatch.setattr(follower_module, "LISTEN_S", 0.0)
    monkeypatch.setattr(follower_module, "CALL_MARGIN_S", 0.02)
    bench.coordinator.fail(ConnectionError())
    async with asyncio.timeout(5):
        while bench.coordinator.follows < 4:  # noqa: ASYNC110 - what it waits for is a count
            await asyncio.sleep(0.005)


async def test_a_report_that_is_lost_is_made_up_for_by_the_next_call(bench: Bench) -> None:
    one = await serving(bench)
    bench.coordinator.failure = ConnectionError()
    bench.coordinator.say(one, prepare=directive(2, TWO))
    await bench.coordinator.heard(lambda report: report.prepared == 2)
    bench.coordinator.failure = None
    bench.coordinator.fail(ConnectionError())
    report = await bench.coordinator.heard(lambda report: report.prepared == 2)
    assert (report.active, report.working_on) == (one, None)


async def test_orders_that_cannot_be_obeyed_do_not_end_the_following(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await serving(bench)
    broken: Any = "not orders at all"
    bench.coordinator._orders.put_nowait(broken)
    await asyncio.sleep(0.02)
    bench.coordinator.say(directive(2, TWO))
    await bench.coordinator.heard(serves(2))
