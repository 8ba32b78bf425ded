"""What versions did, summed over replicas that come, go and fall silent; and reading the registry again."""

from __future__ import annotations

import asyncio

from deployments.rollout_contracts import Role, VersionCounts
from deployments.rollout_control import GONE_AFTER_S
from tests.unit.deployments.rollouts import BAD, CANARY, ONE, SHADOW, THREE, TWO, Bench, Replica

GONE = int(GONE_AFTER_S / 0.5) + 2


def recent(bench: Bench, role: Role) -> VersionCounts:
    return dict(bench.rollout().recent)[role]


async def test_counts_of_all_replicas_are_added() -> None:
    bench = Bench()
    a, b = await bench.serving(CANARY, "a", "b")
    await a.saw(Role.CANARY, windows=10, errors=1, power_w=5.0)
    await b.saw(Role.CANARY, windows=5, slow=2)
    await a.saw(Role.CANARY, windows=10)
    assert bench.counts(Role.CANARY) == VersionCounts(windows=25, errors=1, slow=2, power_w=5.0)
    assert recent(bench, Role.CANARY) == bench.counts(Role.CANARY)


async def test_a_report_that_comes_twice_counts_once() -> None:
    bench = Bench()
    (a,) = await bench.serving(CANARY)
    await a.saw(Role.STABLE, windows=10)
    for _ in range(5):
        await a.tell()
    assert bench.counts(Role.STABLE).windows == 10


async def test_reports_that_overtake_each_other_end_at_the_right_sum() -> None:
    bench = Bench()
    (a,) = await bench.serving(CANARY)
    await a.saw(Role.STABLE, windows=10)
    old = a.report()
    await a.saw(Role.STABLE, windows=10)
    await bench.control.report(old)
    await a.tell()
    assert bench.counts(Role.STABLE).windows == recent(bench, Role.STABLE).windows == 20


async def test_what_a_dead_replica_saw_stays_and_its_successor_adds_to_it() -> None:
    bench = Bench()
    a, b = await bench.serving(CANARY, "a", "b")
    await b.saw(Role.STABLE, windows=10)
    await bench.ticks(GONE, [a])
    assert len(bench.rollout().replicas) == 1
    successor = Replica(bench, "b2")
    await successor.switch()
    await successor.saw(Role.STABLE, windows=7)
    assert bench.counts(Role.STABLE).windows == 17


async def test_a_replica_that_was_silent_for_long_is_not_counted_twice() -> None:
    bench = Bench()
    a, b = await bench.serving(CANARY, "a", "b")
    await b.saw(Role.STABLE, windows=1000)
    await bench.ticks(GONE, [a])
    await b.saw(Role.STABLE, windows=10)
    assert bench.counts(Role.STABLE).windows == recent(bench, Role.STABLE).windows == 1010


async def test_a_new_plan_counts_from_zero_and_late_counts_of_the_old_one_are_not_its() -> None:
    bench = Bench()
    a, b = await bench.serving(CANARY, "a", "b")
    await a.saw(Role.STABLE, windows=10)
    await bench.offer(SHADOW)
    await a.prepare()
    await b.prepare()
    await a.switch()
    await b.saw(Role.STABLE, windows=99)  # still of the old plan
    assert bench.counts(Role.STABLE).windows == 0
    await a.saw(Role.STABLE, windows=3)
    assert bench.counts(Role.STABLE).windows == 3


async def test_after_a_restart_of_the_coordinator_the_sums_are_those_of_the_replicas() -> None:
    bench = Bench()
    a, b = await bench.serving(CANARY, "a", "b")
    await a.saw(Role.STABLE, windows=10)
    await b.saw(Role.STABLE, windows=5)
    bench.restart()
    await a.tell()
    await b.tell()
    await a.saw(Role.STABLE, windows=1)
    assert bench.counts(Role.STABLE).windows == 16


async def test_replicas_that_come_and_go_leave_little_behind() -> None:
    bench = Bench()
    (a,) = await bench.serving(ONE)
    for n in range(50):
        await Replica(bench, f"short-lived-{n}").tell()
        await bench.ticks(1, [a], step_s=1.0)
    await bench.ticks(GONE, [a])
    assert [state.replica for state in bench.rollout().replicas] == ["a"]
    one = bench.control._appliances["kettle"]
    assert set(one.told) <= {"a"}, "who counted nothing is not remembered"


# Reading the registry again --------------------------------------------------------------------------------------


async def test_a_reload_loads_what_serves_again_and_keeps_the_counts() -> None:
    bench = Bench()
    a, b = await bench.serving(CANARY, "a", "b")
    await a.saw(Role.STABLE, windows=10)
    before = bench.active()
    reload = asyncio.create_task(bench.control.reload(5.0))
    await asyncio.sleep(0)
    assert (bench.preparing().plan, bench.preparing().plan_number) == (CANARY, before.plan_number)
    for replica in (a, b):
        await replica.prepare()
    for replica in (a, b):
        await replica.switch()
    overview = await asyncio.wait_for(reload, 5)
    kettle = overview.appliances[0]
    assert kettle.active is not None
    assert (kettle.preparing, kettle.active.plan) == (None, CANARY)
    assert kettle.active.number > before.number
    assert bench.counts(Role.STABLE).windows == 10
    assert bench.kinds() == ["applied"]


async def test_a_reload_tries_what_was_refused_again() -> None:
    bench = Bench()
    (a,) = await bench.serving(ONE)
    await bench.offer(TWO)
    await a.refuse()
    await bench.control.reload(0.0)
    assert bench.preparing().plan == TWO
    await a.prepare()
    assert bench.active().plan == TWO


async def test_a_reload_that_is_refused_says_so_in_time() -> None:
    bench = Bench()
    (a,) = await bench.serving(ONE)
    reload = asyncio.create_task(bench.control.reload(5.0))
    await asyncio.sleep(0)
    await a.refuse()
    overview = await asyncio.wait_for(reload, 2)
    assert overview.appliances[0].refused == BAD
    assert bench.active().plan == ONE


async def test_a_reload_does_not_take_back_a_plan_that_is_on_its_way() -> None:
    bench = Bench()
    (a,) = await bench.serving(ONE)
    await bench.offer(THREE)
    number = bench.preparing().number
    await bench.control.reload(0.0)
    assert bench.preparing().plan == THREE
    assert bench.preparing().number > number, "a replica that has it already reads the registry again as well"
    await a.prepare()
    assert bench.active().plan == THREE


async def test_a_reload_of_nothing_does_nothing() -> None:
    bench = Bench()
    overview = await asyncio.wait_for(bench.control.reload(5.0), 1)
    assert [one.preparing for one in overview.appliances] == [None, None]
