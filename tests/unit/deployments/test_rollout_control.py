"""RolloutControl: from plan to plan with all replicas or none, whatever they do meanwhile."""

from __future__ import annotations

import asyncio
import time

import pytest

from deployments import rollout_control
from deployments.contracts import RefusedVersion
from deployments.rollout_contracts import Offer, OfferOutcome, Refusal
from deployments.rollout_control import GONE_AFTER_S, LEAD_S, PREPARE_TIMEOUT_S
from tests.unit.deployments.rollouts import BAD, CANARY, ONE, THREE, TWO, Bench, Replica, move

PENDING, DONE = OfferOutcome(("kettle",), ()), OfferOutcome((), ())


async def kettle_outcome(bench: Bench, outcome: OfferOutcome) -> OfferOutcome:
    """The outcome without the microwave, which has no replica here."""
    return OfferOutcome(tuple(name for name in outcome.pending if name == "kettle"), outcome.refused)


async def test_the_first_plan_serves_at_once() -> None:
    bench = Bench()
    a = Replica(bench, "a")
    await a.tell()
    assert (await bench.offer(ONE)).pending == ("kettle", "microwave")
    active = bench.active()
    assert (active.plan, active.activate_at_s, active.demoted) == (ONE, 0.0, None)
    assert bench.rollout().preparing is None
    orders = await a.follow()
    assert (orders.active, orders.prepare, orders.peers, orders.nothing) == (active, None, 0, "")
    await a.switch()
    assert await kettle_outcome(bench, await bench.offer(ONE)) == DONE
    assert bench.kinds() == ["applied"]


async def test_replicas_switch_at_the_same_instant_and_only_when_all_are_prepared() -> None:
    bench = Bench()
    a, b = await bench.serving(ONE, "a", "b")
    assert await kettle_outcome(bench, await bench.offer(TWO)) == PENDING
    await a.prepare()
    assert (bench.active().plan, bench.preparing().plan) == (ONE, TWO)
    orders = await b.follow()
    assert orders.active == b.active, "what serves goes on"
    assert orders.prepare == bench.preparing()
    number = bench.preparing().number
    await b.prepare()
    assert bench.rollout().preparing is None
    for replica in (a, b):
        told = (await replica.follow()).active
        assert told is not None
        assert (told.number, told.plan, told.activate_at_s) == (number, TWO, bench.clock.at_s + LEAD_S)
    assert await kettle_outcome(bench, await bench.offer(TWO)) == PENDING, "nobody serves it before the instant"
    await a.switch()
    await b.switch()
    assert await kettle_outcome(bench, await bench.offer(TWO)) == DONE
    assert bench.kinds() == ["applied", "applied"]


async def test_one_that_refuses_leaves_all_where_they_are_and_says_why() -> None:
    bench = Bench()
    a, b = await bench.serving(ONE, "a", "b")
    deploy = asyncio.create_task(bench.control.offer(Offer((("kettle", TWO),), fresh=True), 5.0))
    await asyncio.sleep(0)
    await a.prepare()
    await b.refuse()
    assert await asyncio.wait_for(deploy, 5) == OfferOutcome((), (("kettle", BAD),))
    rollout = bench.rollout()
    assert (bench.active().plan, rollout.preparing, rollout.refused, rollout.refused_plan) == (ONE, None, BAD, TWO)
    assert (await a.follow_soon()).prepare is None
    assert [state.refused for state in rollout.replicas] == [None, BAD]
    assert bench.control.overview().refusals_total == 1
    (_, document) = bench.events[-1]
    assert document == {
        "appliance": "kettle",
        "plan": {"stable": "2.0.0"},
        "reason": "2.0.0: sha256_mismatch: another hash",
    }
    await a.refuse()
    await b.tell()
    assert bench.kinds() == ["applied", "refused"], "it was refused once"


async def test_a_refusal_of_something_older_is_no_refusal() -> None:
    bench = Bench()
    a, b = await bench.serving(ONE, "a", "b")
    await bench.offer(TWO)
    old = bench.preparing().number
    await bench.offer(THREE)
    a.refusal = Refusal(old, BAD)
    await a.tell()
    assert (bench.preparing().plan, bench.rollout().refused) == (THREE, None)
    await a.prepare()
    await b.prepare()
    assert bench.active().plan == THREE


async def test_a_later_plan_overtakes_the_one_that_is_prepared() -> None:
    bench = Bench()
    a, b = await bench.serving(ONE, "a", "b")
    await bench.offer(TWO)
    await a.prepare()
    await bench.offer(THREE)
    b.prepared = a.prepared
    await b.tell()
    assert (bench.active().plan, bench.preparing().plan) == (ONE, THREE)
    await move(bench, [a, b], THREE)
    assert bench.active().plan == THREE
    assert [document["plan"] for kind, document in bench.events if document["appliance"] == "kettle"] == [
        {"stable": "1.0.0"},
        {"stable": "3.0.0"},
    ]


async def test_a_rollback_while_a_plan_is_prepared_never_serves_it() -> None:
    bench = Bench()
    a, b = await bench.serving(ONE, "a", "b")
    plan_number = bench.active().plan_number
    await bench.offer(TWO)
    await a.prepare()
    await bench.offer(ONE)
    b.prepared = a.prepared  # said late
    await b.tell()
    assert bench.active().plan == ONE
    await a.prepare()
    await b.prepare()
    assert (bench.active().plan, bench.rollout().preparing) == (ONE, None)
    assert bench.active().plan_number == plan_number, "it is the same plan, and its counts go on"
    assert bench.kinds() == ["applied"]


async def test_a_load_that_hangs_is_refused_in_time() -> None:
    bench = Bench()
    a, b = await bench.serving(ONE, "a", "b")
    await bench.offer(CANARY)
    await a.prepare()
    await bench.ticks(int(PREPARE_TIMEOUT_S / 2), [a, b], step_s=2.0)
    assert bench.preparing().plan == CANARY
    await bench.ticks(1, [a, b])
    refused = bench.rollout().refused
    assert refused is not None
    assert (refused.model_version, refused.reason) == ("2.0.0", "load_timeout")
    assert refused.detail == "not ready after 60 s on b"
    assert bench.active().plan == ONE
    # The gate starts again, because it was refused, and offers as fresh; each attempt would keep a thread for good.
    await bench.offer(CANARY)
    assert bench.rollout().preparing is None
    assert bench.rollout().refused == refused
    reload = asyncio.create_task(bench.control.reload(0.01))
    await reload
    assert bench.preparing().plan == CANARY


async def test_a_dead_replica_is_not_waited_for() -> None:
    bench = Bench()
    a, b = await bench.serving(ONE, "a", "b")
    await bench.offer(TWO)
    await a.prepare()
    await bench.ticks(int(GONE_AFTER_S / 0.5), [a])
    assert bench.active().plan == ONE
    await bench.ticks(1, [a])
    assert bench.active().plan == TWO
    assert [state.replica for state in bench.rollout().replicas] == ["a"]
    await b.tell()
    orders = await b.follow()
    assert orders.active == bench.active(), "should it come back, it is told"


async def test_a_coordinator_that_was_stopped_does_not_take_its_replicas_for_dead() -> None:
    """Neither a stop of the process nor a step of its clock is the replicas' silence."""
    for gap_s in (60.0, 3600.0):
        bench = Bench()
        a, b = await bench.serving(ONE, "a", "b")
        await bench.ticks(1, [a, b])
        await bench.offer(TWO)
        bench.clock.forward(gap_s)
        await bench.control.tick()
        assert bench.active().plan == ONE, "nobody has prepared it"
        bench.clock.forward(gap_s)
        await a.prepare()  # a call that comes before the next look
        assert (bench.active().plan, len(bench.rollout().replicas)) == (ONE, 2)
        await b.prepare()
        assert bench.active().plan == TWO


async def test_a_clock_that_is_set_back_does_not_keep_a_dead_replica() -> None:
    bench = Bench()
    a, _ = await bench.serving(ONE, "a", "b")
    await bench.ticks(1, [a])
    await bench.offer(TWO)
    await a.prepare()
    bench.clock.forward(-3600.0)
    await bench.ticks(int(GONE_AFTER_S / 0.5) + 2, [a])
    assert bench.active().plan == TWO


async def test_a_replica_that_joins_while_a_plan_is_prepared_first_serves_then_prepares() -> None:
    bench = Bench()
    a, b = *(await bench.serving(ONE, "a")), Replica(bench, "b")
    await bench.offer(TWO)
    orders = await b.follow()
    assert (orders.active, orders.prepare, orders.peers) == (bench.active(), bench.preparing(), 1)
    await a.prepare()
    assert bench.active().plan == ONE, "the newcomer is waited for"
    await b.switch()
    assert bench.active().plan == ONE
    await b.prepare()
    assert bench.active().plan == TWO


async def test_a_replica_that_joins_later_is_told_what_serves() -> None:
    bench = Bench()
    (a,) = await bench.serving(ONE)
    await move(bench, [a], TWO)
    assert (await Replica(bench, "b").follow()).active == bench.active()


async def test_other_appliances_go_on() -> None:
    bench = Bench()
    (a,) = await bench.serving(ONE)
    other = Replica(bench, "m", "microwave")
    await other.switch()
    before = bench.rollout("microwave")
    await bench.offer(TWO)
    await a.refuse()
    await bench.ticks(5, [a, other])
    assert bench.rollout("microwave") == before
    assert bench.kinds("microwave") == ["applied"]


async def test_a_first_plan_that_nobody_can_load_is_refused_and_a_repaired_one_takes_over() -> None:
    bench = Bench()
    a = Replica(bench, "a")
    await a.tell()
    await bench.offer(TWO)
    await a.refuse()
    assert (await bench.offer(TWO, fresh=False)).refused == (("kettle", BAD),)
    assert bench.kinds() == ["applied", "refused"]
    assert bench.control.overview().refusals_total == 1
    await a.tell()
    assert bench.kinds() == ["applied", "refused"]
    await bench.offer(ONE)
    assert bench.rollout().refused is None
    await a.prepare()
    await a.switch()
    assert (bench.active().plan, (await bench.offer(ONE)).refused) == (ONE, ())


async def test_an_offer_says_after_its_wait_how_far_it_is() -> None:
    bench = Bench()
    await bench.serving(ONE)
    started = time.monotonic()
    outcome = await bench.control.offer(Offer((("kettle", TWO),), fresh=True), 0.05)
    assert outcome == PENDING
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize("fresh", [True, False])
async def test_repeated_offers_change_nothing(fresh: bool) -> None:
    bench = Bench()
    a, b = await bench.serving(ONE, "a", "b")
    for _ in range(3):
        await bench.offer(ONE, fresh=fresh)
    assert (bench.rollout().preparing, bench.kinds()) == (None, ["applied"])
    await bench.offer(TWO)
    number = bench.preparing().number
    for _ in range(3):
        await bench.offer(TWO, fresh=fresh)
    assert bench.preparing().number == number
    await move(bench, [a, b], TWO)
    await bench.offer(TWO, fresh=fresh)
    assert (bench.active().number, bench.rollout().preparing, bench.kinds()) == (number, None, ["applied"] * 2)


async def test_what_was_refused_is_tried_again_for_a_deploy_and_not_for_a_repetition() -> None:
    bench = Bench()
    (a,) = await bench.serving(ONE)
    await bench.offer(TWO)
    await a.refuse()
    assert (await bench.offer(TWO, fresh=False)).refused == (("kettle", BAD),)
    assert bench.rollout().preparing is None
    await bench.offer(TWO, fresh=True)
    assert (bench.preparing().plan, bench.rollout().refused) == (TWO, None)
    await a.prepare()
    assert bench.active().plan == TWO


async def test_going_back_to_what_serves_clears_the_refusal() -> None:
    bench = Bench()
    (a,) = await bench.serving(ONE)
    await bench.offer(TWO)
    await a.refuse()
    number = bench.active().number
    outcome = await bench.offer(ONE)
    assert outcome.refused == ()
    assert (bench.rollout().refused, bench.rollout().refused_plan, bench.active().number) == (None, None, number)


async def test_an_unusable_configuration_is_told_once_and_changes_nothing() -> None:
    bench = Bench()
    await bench.serving(ONE)
    before = bench.rollout()
    for _ in range(3):
        await bench.control.refuse_config("kettle.stable: is missing", '{"kettle": {}}')
    overview = bench.control.overview()
    assert (overview.refused_config, overview.refusals_total) == ("kettle.stable: is missing", 1)
    assert bench.events[-1] == ("refused", {"reason": "kettle.stable: is missing", "user_config": '{"kettle": {}}'})
    assert len(bench.events) == 3
    assert bench.rollout() == before
    await bench.offer(ONE)
    assert bench.control.overview().refused_config is None


async def test_a_replica_without_a_plan_hears_that_the_configuration_is_unusable() -> None:
    bench = Bench()
    waiting = asyncio.create_task(Replica(bench, "a").follow())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await bench.control.refuse_config("kettle.stable: is missing", "{}")
    orders = await asyncio.wait_for(waiting, 1)
    assert (orders.active, orders.nothing) == (None, "kettle.stable: is missing")


async def test_a_look_that_fails_does_not_end_the_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_control, "TICK_S", 0.001)
    bench, looks, third = Bench(), [], asyncio.Event()

    async def tick() -> None:
        looks.append(1)
        if len(looks) == 3:
            third.set()
        raise ValueError("a bug")

    monkeypatch.setattr(bench.control, "tick", tick)
    running = asyncio.create_task(bench.control.run())
    await asyncio.wait_for(third.wait(), 5)
    assert not running.done()
    running.cancel()


async def test_a_refusal_is_of_the_plan_that_failed() -> None:
    bench = Bench()
    a, b = await bench.serving(ONE, "a", "b")
    await bench.offer(TWO)
    await a.refuse(RefusedVersion("2.0.0", "golden_mismatch", "0.7 W"))
    await bench.offer(THREE)
    await a.prepare()
    await b.prepare()
    rollout = bench.rollout()
    assert (bench.active().plan, rollout.refused, rollout.refused_plan) == (THREE, None, None)
