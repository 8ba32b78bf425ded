"""A canary that misbehaves is taken from its buildings, everywhere, and stays so until the plan changes."""

from __future__ import annotations

from dataclasses import replace

from deployments.rollout_contracts import Role
from deployments.rollout_control import LEARNING_S
from deployments.rollout_plan import Canary, RolloutPlan
from tests.unit.deployments.rollouts import BAD, ONE, QUICK, TWO, Bench, Replica, misbehave, move


async def demoted(*names: str) -> tuple[Bench, list[Replica]]:
    """Replicas that serve QUICK and have heard that its canary was demoted."""
    bench = Bench()
    replicas = await bench.serving(QUICK, *names)
    await misbehave(bench, replicas)
    for replica in replicas:
        await replica.switch()
    return bench, replicas


def is_demoted(bench: Bench) -> bool:
    return bench.active().demoted is not None


async def test_a_canary_that_fails_is_demoted_on_every_replica_at_once() -> None:
    bench = Bench()
    a, b = await bench.serving(QUICK, "a", "b")
    before = bench.active()
    await misbehave(bench, [a, b])
    active = bench.active()
    assert active.demoted is not None
    assert active.demoted.model_version == "2.0.0"
    assert "errors: 20 of 20 windows (100.00%), bound 0.20%" in active.demoted.reason
    assert active.demoted.at_s == bench.clock.at_s
    assert (active.plan, active.plan_number, active.activate_at_s) == (QUICK, before.plan_number, 0.0)
    assert active.number > before.number
    assert {(await replica.follow()).active for replica in (a, b)} == {active}
    assert bench.control.overview().demotions_total == 1
    assert bench.kinds() == ["applied", "demoted"]
    (_, document) = bench.events[-1]
    assert (document["model_version"], document["reason"]) == ("2.0.0", active.demoted.reason)


async def test_it_is_demoted_once_and_what_is_counted_goes_on() -> None:
    bench, (a,) = await demoted("a")
    await misbehave(bench, [a], looks=10)
    assert bench.kinds() == ["applied", "demoted"]
    assert bench.counts(Role.STABLE).windows == 14 * 20
    assert bench.control.overview().demotions_total == 1


async def test_replicas_of_one_canary_are_judged_together() -> None:
    bench = Bench()
    a, b = await bench.serving(QUICK, "a", "b")
    for _ in range(6):
        for replica in (a, b):
            await replica.saw(Role.CANARY, windows=6, errors=6)
        await bench.control.tick()
    assert is_demoted(bench), "six a look of each would be too few"


async def test_a_canary_that_works_stays() -> None:
    bench = Bench()
    (a,) = await bench.serving(QUICK)
    for _ in range(50):
        await a.saw(Role.STABLE, windows=20)
        await a.saw(Role.CANARY, windows=20)
        await bench.ticks(1, [a])
    assert not is_demoted(bench)


async def test_a_shadow_is_never_demoted() -> None:
    bench = Bench()
    plan = replace(QUICK, canary=None, shadow=None)
    (a,) = await bench.serving(plan)
    for _ in range(10):
        await a.saw(Role.SHADOW, windows=20, errors=20)
        await bench.control.tick()
    assert not is_demoted(bench)


async def test_the_same_plan_again_does_not_bring_the_canary_back() -> None:
    bench, (a,) = await demoted("a")
    for fresh in (True, False):
        await bench.offer(QUICK, fresh=fresh)
        assert bench.rollout().preparing is None
    await bench.control.reload(0.0)
    await a.prepare()
    assert is_demoted(bench)
    assert bench.kinds() == ["applied", "demoted"]


async def test_another_plan_does() -> None:
    bench, (a,) = await demoted("a")
    await move(bench, [a], replace(QUICK, canary=Canary("2.0.0", 20.0)))
    assert not is_demoted(bench)
    assert bench.counts(Role.CANARY).windows == 0, "it is judged anew"
    await move(bench, [a], QUICK)
    assert not is_demoted(bench)


async def test_a_refused_plan_leaves_the_canary_demoted() -> None:
    bench, (a,) = await demoted("a")
    await bench.offer(TWO)
    await a.refuse()
    assert is_demoted(bench)
    await bench.offer(QUICK)
    assert is_demoted(bench)


async def test_a_replica_that_joins_hears_of_it() -> None:
    bench, _ = await demoted("a")
    orders = await Replica(bench, "b").follow()
    assert orders.active == bench.active()
    assert is_demoted(bench)


async def test_a_demotion_while_the_same_plan_is_loaded_again_is_not_lost() -> None:
    bench = Bench()
    a, b = await bench.serving(QUICK, "a", "b")
    await bench.control.reload(0.0)
    await a.prepare()
    await misbehave(bench, [a, b])
    for replica in (a, b):
        await replica.switch()
    for replica in (a, b):
        await replica.prepare()
    for replica in (a, b):
        await replica.switch()
    assert bench.rollout().preparing is None
    assert is_demoted(bench)


async def test_a_plan_that_is_prepared_when_the_canary_is_demoted_still_comes() -> None:
    """Whatever number it has: the demotion's is not the later word."""
    bench = Bench()
    a, b = await bench.serving(QUICK, "a", "b")
    await bench.offer(TWO)
    await a.prepare()
    await misbehave(bench, [b])
    assert is_demoted(bench)
    assert bench.preparing().number > bench.active().number
    for replica in (a, b):
        await replica.switch()  # to the demoted plan
    for replica in (a, b):
        await replica.prepare()
    assert bench.active().plan == TWO
    for replica in (a, b):
        await replica.tell()  # still serving the demoted plan, before the instant
    assert bench.active().plan == TWO
    for replica in (a, b):
        await replica.switch()
    assert (bench.active().plan, bench.kinds()) == (TWO, ["applied", "demoted", "applied"])


# A coordinator that has forgotten everything ---------------------------------------------------------------------


async def test_after_a_restart_a_replicas_report_brings_the_demotion_back() -> None:
    bench, (a, b) = await demoted("a", "b")
    active = bench.active()
    bench.restart()
    await a.tell()
    assert bench.active() == active
    await bench.offer(QUICK, fresh=False)
    assert bench.rollout().preparing is None
    await b.tell()
    assert bench.active() == active
    assert bench.kinds() == ["applied", "demoted"], "nothing new happened"


async def test_after_a_restart_the_gate_may_come_first() -> None:
    bench, (a, b) = await demoted("a", "b")
    bench.restart()
    await bench.offer(QUICK, fresh=False)
    assert not is_demoted(bench), "the gate knows of no demotion"
    orders = await a.follow()
    assert orders.active is not None
    assert orders.active.demoted == a.active.demoted if a.active else None
    assert is_demoted(bench)
    assert (await b.follow()).active == bench.active()


async def test_after_a_restart_the_gate_may_come_first_and_then_a_replica_without_anything() -> None:
    bench, (a, _) = await demoted("a", "b")
    bench.restart()
    await bench.offer(QUICK, fresh=False)
    newcomer = Replica(bench, "c")
    await newcomer.switch()
    await a.tell()
    assert is_demoted(bench)
    assert (await newcomer.follow()).active == bench.active()


async def test_long_after_a_restart_a_demotion_is_no_news() -> None:
    bench, (a,) = await demoted("a")
    bench.restart()
    await bench.offer(QUICK, fresh=False)
    newcomer = Replica(bench, "c")
    await newcomer.switch()
    await bench.ticks(int(LEARNING_S / 0.5) + 2, [newcomer])
    await a.tell()
    assert not is_demoted(bench)


async def test_after_a_restart_a_demotion_of_another_plan_is_none_of_the_offered_one() -> None:
    bench, (a,) = await demoted("a")
    bench.restart()
    other = RolloutPlan("1.0.0", canary=Canary("3.0.0", 5.0))
    await bench.offer(other, fresh=False)
    await a.tell()
    assert not is_demoted(bench)
    assert bench.active().plan == other


async def test_after_a_restart_a_plan_on_its_way_is_prepared_again() -> None:
    bench = Bench()
    a, b = await bench.serving(ONE, "a", "b")
    await bench.offer(TWO)
    await a.prepare()
    bench.restart()
    await a.tell()
    await b.tell()
    assert bench.active().plan == ONE
    await bench.offer(TWO, fresh=False)
    assert bench.active().plan == ONE
    await a.prepare()
    await b.prepare()
    assert bench.active().plan == TWO


async def test_after_a_restart_the_latest_of_what_replicas_serve_was_decided() -> None:
    """The coordinator died just before all had switched."""
    bench = Bench()
    a, b = await bench.serving(ONE, "a", "b")
    await bench.offer(TWO)
    await a.prepare()
    await b.prepare()
    await a.switch()
    bench.restart()
    await b.tell()
    assert bench.active().plan == ONE
    await a.tell()
    assert bench.active().plan == TWO
    assert (await b.follow()).active == a.active


async def test_numbers_grow_over_a_restart_though_the_clock_was_set_back() -> None:
    bench = Bench()
    (a,) = await bench.serving(ONE)
    assert a.active is not None
    ahead = replace(a.active, number=a.active.number + 10**18, plan_number=a.active.number + 10**18)
    a.active = ahead
    bench.restart()
    await a.tell()
    await bench.offer(TWO)
    assert bench.preparing().number > ahead.number
    await a.prepare()
    await a.switch()
    assert bench.active().plan == TWO


async def test_a_refusal_before_the_restart_is_not_held_against_the_next_offer() -> None:
    bench = Bench()
    (a,) = await bench.serving(ONE)
    await bench.offer(TWO)
    await a.refuse(BAD)
    bench.restart()
    await a.tell()
    assert bench.rollout().refused is None
    await bench.offer(TWO, fresh=False)
    await a.prepare()
    assert bench.active().plan == TWO
