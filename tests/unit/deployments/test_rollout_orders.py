"""What a replica that follows is answered, and when: at once with news, and never again and again without."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from deployments import rollout_control
from deployments.rollout_contracts import Orders, Refusal
from tests.unit.deployments.rollouts import BAD, CANARY, ONE, SHADOW, TWO, Bench, Replica

WAIT_S = 0.08


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_control, "LISTEN_S", WAIT_S)
    monkeypatch.setattr(rollout_control, "WATCHED_LISTEN_S", WAIT_S)


async def waited_s(replica: Replica) -> float:
    started = time.monotonic()
    await replica.follow()
    return time.monotonic() - started


async def assert_waits(replica: Replica) -> None:
    # Timers may ring a little early.
    assert await waited_s(replica) > WAIT_S * 0.9


async def assert_answered_at_once(replica: Replica) -> Orders:
    async with asyncio.timeout(WAIT_S * 0.9):
        return await replica.follow()


async def test_with_nothing_to_do_the_call_waits() -> None:
    bench = Bench()
    newcomer = Replica(bench, "a")
    await assert_waits(newcomer)
    (a,) = await bench.serving(ONE)
    await assert_waits(a)


async def test_the_wait_ends_with_news() -> None:
    bench = Bench()
    (a,) = await bench.serving(ONE)
    with_news = asyncio.create_task(a.follow())
    await asyncio.sleep(0)
    await bench.offer(TWO)
    orders = await asyncio.wait_for(with_news, WAIT_S * 0.9)
    assert orders.prepare == bench.preparing()


async def test_one_that_has_begun_to_prepare_is_not_asked_again() -> None:
    bench = Bench()
    (a,) = await bench.serving(ONE)
    await bench.offer(TWO)
    await assert_answered_at_once(a)
    a.working_on = bench.preparing().number
    await assert_waits(a)


async def test_one_that_is_prepared_waits_for_the_others() -> None:
    bench = Bench()
    a, b = await bench.serving(ONE, "a", "b")
    await bench.offer(TWO)
    await a.prepare()
    await assert_waits(a)
    await b.prepare()
    await assert_answered_at_once(a)


async def test_a_call_made_while_it_prepared_is_answered_as_soon_as_all_are_ready() -> None:
    """Else it would hear of the common instant when that is over: what it said meanwhile, by another call, counts."""
    bench = Bench()
    a, b = await bench.serving(ONE, "a", "b")
    await bench.offer(TWO)
    for replica in (a, b):
        replica.working_on = bench.preparing().number
    waiting = [asyncio.create_task(replica.follow()) for replica in (a, b)]
    await asyncio.sleep(0)
    for replica in (a, b):
        replica.working_on = None
        await replica.prepare()
    async with asyncio.timeout(WAIT_S * 0.9):
        assert {orders.active for orders in await asyncio.gather(*waiting)} == {bench.active()}


async def test_a_call_made_while_it_loaded_its_first_version_is_answered_with_the_next_plan() -> None:
    bench = Bench()
    a = Replica(bench, "a")
    await a.tell()
    await bench.offer(ONE)
    a.working_on = bench.active().number
    waiting = asyncio.create_task(a.follow())
    await asyncio.sleep(0)
    await a.switch()
    await bench.offer(TWO)
    assert (await asyncio.wait_for(waiting, WAIT_S * 0.9)).prepare == bench.preparing()


async def test_one_that_waits_for_the_instant_is_not_asked_again() -> None:
    bench = Bench()
    (a,) = await bench.serving(ONE)
    await bench.offer(TWO)
    await a.prepare()
    a.working_on, a.prepared = bench.active().number, None
    await assert_waits(a)


async def test_one_that_refused_is_not_asked_again() -> None:
    bench = Bench()
    (a,) = await bench.serving(ONE)
    await bench.offer(TWO)
    await a.refuse()
    await assert_waits(a)


async def test_one_that_refused_the_first_plan_is_not_asked_again() -> None:
    bench = Bench()
    a = Replica(bench, "a")
    await a.tell()
    await bench.offer(TWO)
    await a.refuse()
    await assert_waits(a)


async def test_a_newcomer_that_loads_what_serves_is_not_asked_to_prepare_meanwhile() -> None:
    """It could do nothing with the order but ask again: thousands of calls while it loads."""
    bench = Bench()
    a, newcomer = *(await bench.serving(ONE)), Replica(bench, "b")
    await bench.offer(TWO)
    newcomer.working_on = bench.active().number
    await assert_waits(newcomer)
    await newcomer.switch()
    assert (await assert_answered_at_once(newcomer)).prepare == bench.preparing()
    await a.prepare()


async def test_one_that_cannot_load_what_serves_is_asked_to_prepare_what_comes() -> None:
    bench = Bench()
    (a,) = await bench.serving(ONE)
    b = Replica(bench, "b", refusal=Refusal(bench.active().number, BAD))
    await bench.offer(TWO)
    assert (await assert_answered_at_once(b)).prepare == bench.preparing()
    b.working_on = bench.preparing().number
    await assert_waits(b)
    b.working_on = None
    await b.prepare()
    await assert_waits(b)
    await a.prepare()
    assert bench.active().plan == TWO


async def test_reports_of_others_do_not_end_the_wait() -> None:
    bench = Bench()
    a, b = await bench.serving(ONE, "a", "b")
    waiting = asyncio.create_task(waited_s(a))
    for _ in range(5):
        await asyncio.sleep(0.005)
        await b.tell()
    assert await waiting > WAIT_S * 0.9


async def test_all_that_wait_are_answered_together() -> None:
    bench = Bench()
    replicas = await bench.serving(ONE, *"abcdefgh")
    waiting = [asyncio.create_task(replica.follow()) for replica in replicas]
    await asyncio.sleep(0)
    await bench.offer(TWO)
    async with asyncio.timeout(WAIT_S * 0.9):
        assert {orders.prepare for orders in await asyncio.gather(*waiting)} == {bench.preparing()}


async def test_a_cancelled_call_leaves_nothing_behind() -> None:
    bench = Bench()
    a, b = await bench.serving(ONE, "a", "b")
    waiting = [asyncio.create_task(a.follow()) for _ in range(20)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not bench.control._news.locked()
    assert len(bench.control._news._waiters) == 0  # type: ignore[attr-defined]
    await bench.offer(TWO)
    assert (await assert_answered_at_once(b)).prepare == bench.preparing()


@pytest.mark.parametrize(
    ("plan", "watched"), [(ONE, False), (CANARY, True), (SHADOW, True)], ids=["plain", "canary", "shadow"]
)
async def test_counts_come_often_while_there_is_something_to_watch(
    monkeypatch: pytest.MonkeyPatch, plan: object, watched: bool
) -> None:
    monkeypatch.setattr(rollout_control, "WATCHED_LISTEN_S", WAIT_S / 4)
    bench = Bench()
    (a,) = await bench.serving(plan)  # type: ignore[arg-type]
    assert (await waited_s(a) < WAIT_S * 0.9) == watched


async def test_a_late_report_of_before_changes_nothing_that_was_decided() -> None:
    """Two calls of one replica may overtake each other: the older one comes last."""
    bench = Bench()
    a, b = await bench.serving(ONE, "a", "b")
    old = a.report()
    await bench.offer(TWO)
    for replica in (a, b):
        await replica.prepare()
    active = bench.active()
    await a.switch()
    await bench.control.report(old)
    assert bench.active() == active
    await bench.control.report(replace(old, working_on=active.number))
    assert bench.active() == active
    await a.tell()
    assert {state.replica: state.number for state in bench.rollout().replicas} == {
        "a": active.number,
        "b": old.active.number if old.active else None,
    }
