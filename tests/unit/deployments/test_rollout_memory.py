"""A canary that was demoted stays so when every process of the service is a new one: the journal says it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from deployments import rollout_journal
from deployments.history_contracts import HistoryFailed
from deployments.journal_contracts import LOOKED_BACK_ENTRIES, JournalEntry, JournalKind
from deployments.rollout_control import LEARNING_S
from deployments.rollout_journal import RolloutJournal
from deployments.rollout_memory import demoted_plans
from deployments.rollout_plan import Canary, RolloutPlan, plain
from tests.unit.deployments.rollouts import ONE, QUICK, Bench, Replica, misbehave, move

AGAIN = replace(QUICK, canary=Canary("2.0.0", 20.0))


def entries(bench: Bench) -> list[JournalEntry]:
    """What the bench told the journal, as the store gives it back."""
    told = [
        JournalEntry(second * 10**9, JournalKind(kind), json.dumps(document))
        for second, (kind, document) in enumerate(bench.events)
    ]
    return told[::-1]


async def judged() -> Bench:
    """A service whose canary was demoted, and that was stopped."""
    bench = Bench()
    await misbehave(bench, await bench.serving(QUICK))
    return bench


async def started_anew(before: Bench, plan: RolloutPlan) -> tuple[Bench, Replica]:
    """Nothing of it is left but its journal, which the new one has not read yet."""
    bench = Bench(remembers=False, events=list(before.events))
    replica = Replica(bench, "new")
    await replica.tell()
    await bench.offer(plan)
    return bench, replica


async def test_what_was_demoted_is_so_from_the_first_window_on() -> None:
    before = await judged()
    reason = before.active().demoted
    bench, replica = await started_anew(before, QUICK)
    assert bench.rollout().active is None, "its canary may have been demoted"
    bench.control.remember(entries(before))
    await bench.control.tick()
    await replica.switch()
    demoted = bench.active().demoted
    assert demoted is not None
    assert reason is not None
    assert (demoted.model_version, demoted.reason, demoted.at_s) == ("2.0.0", reason.reason, 2.0)
    assert replica.active == bench.active()
    assert bench.control.overview().demotions_total == 0, "none of this process"
    assert bench.kinds() == ["applied", "demoted", "applied"]


async def test_it_is_remembered_over_the_start_after_that_as_well() -> None:
    before = await judged()
    second, _ = await started_anew(before, QUICK)
    second.control.remember(entries(before))
    await second.control.tick()
    third, _ = await started_anew(second, QUICK)
    third.control.remember(entries(second))
    await third.control.tick()
    assert third.active().demoted is not None


@pytest.mark.parametrize("plan", [AGAIN, replace(QUICK, canary=Canary("3.0.0", 10.0))])
async def test_another_plan_is_judged_anew(plan: RolloutPlan) -> None:
    before = await judged()
    bench, _ = await started_anew(before, plan)
    bench.control.remember(entries(before))
    await bench.control.tick()
    assert bench.active().demoted is None


async def test_a_plan_that_came_back_after_another_one_is_not_demoted() -> None:
    before = Bench()
    replicas = await before.serving(QUICK)
    await misbehave(before, replicas)
    for replica in replicas:
        await replica.switch()
    await move(before, replicas, ONE)
    await move(before, replicas, QUICK)
    assert demoted_plans(entries(before)) == {}


async def test_a_plan_without_a_canary_waits_for_nobody() -> None:
    bench, _ = await started_anew(Bench(), ONE)
    assert bench.active().plan == ONE


async def test_without_a_store_it_is_judged_anew_after_a_while_and_demoted_once_that_is_known() -> None:
    before = await judged()
    bench, replica = await started_anew(before, QUICK)
    await bench.ticks(int(LEARNING_S / 0.5) - 1, [replica])
    assert bench.rollout().active is None
    await bench.ticks(2, [replica])
    assert bench.active().demoted is None
    bench.control.remember(entries(before))
    assert bench.active().demoted is not None
    assert (await replica.follow()).active == bench.active()


async def test_a_plan_that_came_back_meanwhile_is_not_demoted_by_what_is_read_late() -> None:
    before = await judged()
    bench, replica = await started_anew(before, QUICK)
    await bench.ticks(int(LEARNING_S / 0.5) + 1, [replica])
    await replica.switch()
    await move(bench, [replica], ONE)
    await move(bench, [replica], QUICK)
    bench.control.remember(entries(before))
    assert bench.active().demoted is None


@pytest.mark.parametrize("read", [True, False])
async def test_a_coordinator_that_starts_anew_beside_living_replicas_prepares_nothing(read: bool) -> None:
    """The gate's word comes first, waits for the journal, and is what the replicas serve."""
    bench = Bench()
    (replica,) = await bench.serving(QUICK)
    await misbehave(bench, [replica])
    await replica.switch()
    active = bench.active()
    bench.remembers = False
    bench.restart()
    await bench.offer(QUICK, fresh=False)
    assert bench.preparing().plan == QUICK
    await replica.tell()
    if read:
        bench.control.remember(entries(bench))
    await bench.ticks(int(LEARNING_S / 0.5) + 2, [replica])
    assert bench.rollout().preparing is None
    assert bench.active() == active
    assert bench.kinds() == ["applied", "demoted"]


async def test_what_was_demoted_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    before = await judged()
    bench, _ = await started_anew(before, QUICK)
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        bench.control.remember(entries(before))
        await bench.control.tick()
    assert "kettle: canary 2.0.0 was demoted before and stays so: errors" in caplog.text


def test_what_else_is_in_the_journal_is_passed_over() -> None:
    plan = plain(QUICK)
    told: list[tuple[JournalKind, dict[str, Any]]] = [
        (JournalKind.DEMOTED, {"appliance": "kettle", "model_version": "1.5.0", "reason": "its plan is too long ago"}),
        (JournalKind.APPLIED, {"appliance": "kettle", "plan": plan, "offer": 1}),
        (JournalKind.APPLIED, {"appliance": "microwave", "plan": plan, "offer": 1}),
        (JournalKind.DEMOTED, {"appliance": "kettle", "model_version": "2.0.0", "windows": 9, "reason": "slow"}),
        (JournalKind.DEMOTED, {"appliance": "microwave", "model_version": "9.0.0", "reason": "another cluster's"}),
        (JournalKind.REFUSED, {"reason": "not a plan", "user_config": "3"}),
        (JournalKind.REFUSED, {"appliance": "kettle", "plan": plain(AGAIN), "reason": "sha256_mismatch"}),
    ]
    journal = [JournalEntry(n * 10**9, kind, json.dumps(document)) for n, (kind, document) in enumerate(told)]
    (found,) = demoted_plans(journal[::-1]).items()
    assert found[0] == "kettle"
    assert (found[1].plan, found[1].demotion.reason, found[1].demotion.at_s) == (plan, "slow", 3.0)
    assert demoted_plans([]) == {}


async def test_the_journal_is_read_as_soon_as_the_store_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rollout_journal, "READ_AGAIN_S", 0.0)
    entry = JournalEntry(1, JournalKind.APPLIED, "{}")
    answers = iter([ConnectionError("gone"), HistoryFailed("the store is away", 1.0), (entry,)])
    asked = []

    async def journal(limit: int) -> Any:
        asked.append(limit)
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    history = SimpleNamespace(journal=SimpleNamespace(remote=journal))
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        assert await RolloutJournal(None, history).read() == (entry,)
    assert asked == [LOOKED_BACK_ENTRIES] * 3
    (said,) = caplog.records
    assert said.message == "the journal of rollouts cannot be read yet: ConnectionError"
