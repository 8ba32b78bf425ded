"""ApplianceModel without Ray: who answers for which building, and what a canary or a shadow may do to a reply."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deployments import appliance, comparison
from deployments.batching import Batcher
from deployments.contracts import Inference, InferenceRefusal, InferenceRefused, InferenceRequest, InferenceResult
from deployments.rollout_contracts import Role, VersionCounts
from models.attribution import Attribution
from tests.unit.deployments.replica import (
    FINAL_INDEX,
    PROVISIONAL_INDEX,
    WINDOW,
    Kettle,
    Shelf,
    both,
    deploy,
    directive,
    freed,
    output,
    plan,
    request,
)

CANARY = plan("1.0.0", canary="2.0.0")
SHADOW = plan("1.0.0", shadow="3.0.0")


def version(result: InferenceResult | None) -> str:
    assert isinstance(result, Inference)
    return result.model_version


class Behaviour:
    """What one loaded version does with a batch: waits for `open`, raises, or gives NaN for some windows."""

    def __init__(self, kettle: Kettle, role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.begun = threading.Event(), threading.Event()
        self.open.set()
        self.error: Exception | None = None
        self.nan_from: int | None = None
        self.takes_s = 0.0
        self.windows = 0

        def predict(windows_kw: Any) -> Any:
            self.windows += len(windows_kw)
            self.begun.set()
            assert self.open.wait(20)
            time.sleep(self.takes_s)
            if self.error is not None:
                raise self.error
            power = np.full(len(windows_kw), 100.0)
            if self.nan_from is not None:
                power[self.nan_from :] = np.nan
            return both(output(power, np.full(len(windows_kw), 0.9)))

        monkeypatch.setattr(kettle.serving.models[role], "predict", predict)

    async def started(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, 5)


@pytest.fixture(autouse=True)
def _cores_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """How busy the machine is decides nothing here, but where a test says so."""
    monkeypatch.setattr(comparison, "STARVED_S", float("inf"))


@pytest.fixture
def patience_s(monkeypatch: pytest.MonkeyPatch) -> float:
    """A canary's."""
    monkeypatch.setattr(appliance, "CANARY_PATIENCE_S", 0.4)
    return 0.4


# One version -----------------------------------------------------------------------------------------------------


def test_without_a_word_the_answer_is_final() -> None:
    assert InferenceRequest("home-1", np.zeros(WINDOW, dtype=np.float32), 0.0).attribution is Attribution.FINAL


async def test_before_any_plan_nothing_is_ready(kettle: Kettle) -> None:
    status = await kettle.model.status()
    assert not status.ready
    assert (status.model_version, status.artifact_sha256, status.nothing) == (None, None, "")
    result = await kettle.infer(request())
    assert isinstance(result, InferenceRefused)
    assert (result.reason, result.detail) == (InferenceRefusal.NO_MODEL, "still loading")
    kettle.model._follower.nothing = "sha256_mismatch: another hash"
    result = await kettle.infer(request())
    assert isinstance(result, InferenceRefused)
    assert result.detail == (await kettle.model.status()).nothing == "sha256_mismatch: another hash"
    results = await kettle.stable(request(), request())
    assert [r.reason for r in results if isinstance(r, InferenceRefused)] == [InferenceRefusal.NO_MODEL] * 2
    assert await kettle.canary(request()) == [None]


async def test_the_status_is_that_of_the_stable_version(kettle: Kettle, shelf: Shelf) -> None:
    kettle.model._follower.nothing = "an old refusal"
    await deploy(kettle.versions, CANARY)
    await kettle.stable(request(), request())
    await kettle.canary(request())
    status = await kettle.model.status()
    assert (status.ready, status.model_version, status.nothing) == (True, "1.0.0", "")
    assert status.artifact_sha256 == shelf.entries[0]["artifact_sha256"]
    assert (status.input_window_size, status.device, status.sample_period_s) == (WINDOW, "cpu", 60.0)
    assert status.sample_indices == {Attribution.FINAL: FINAL_INDEX, Attribution.PROVISIONAL: PROVISIONAL_INDEX}


async def test_batches_are_counted_by_role_and_version(kettle: Kettle) -> None:
    await deploy(kettle.versions, CANARY)
    await kettle.stable(request(), request([1.0]), request())
    await kettle.canary(request())
    told = kettle.told()
    kettle_stable = {"appliance": "kettle", "role": "stable"}
    assert told.value("nilm_windows_total", **kettle_stable, version="1.0.0", outcome="answered") == 2
    assert told.value("nilm_windows_total", **kettle_stable, version="1.0.0", outcome="refused") == 1
    assert told.value("nilm_windows_total", appliance="kettle", role="canary", version="2.0.0", outcome="answered") == 1
    assert told.value("nilm_batch_windows_sum", **kettle_stable) == 2
    assert told.value("nilm_batch_windows_bucket", **kettle_stable, le="1.0") == 0
    assert told.value("nilm_batch_windows_bucket", **kettle_stable, le="2.0") == 1
    assert told.value("nilm_forward_seconds_count", **kettle_stable) == 1
    assert told.value("nilm_replica_windows", appliance="kettle") == 0


async def test_windows_are_counted_and_refused_ones_are_not(kettle: Kettle) -> None:
    await deploy(kettle.versions, plan("1.0.0"))
    await kettle.stable(request(), request([1.0]), request())
    counts = kettle.counts(Role.STABLE)
    assert (counts.windows, counts.errors) == (2, 0)
    assert counts.time_s > 0


# Canary ----------------------------------------------------------------------------------------------------------


async def test_each_building_is_answered_by_its_version_every_time(kettle: Kettle) -> None:
    await deploy(kettle.versions, plan("1.0.0", canary="2.0.0", percent=50.0))
    buildings = [f"home-{n}" for n in range(20)]
    first = [version(await kettle.infer(request(building=building))) for building in buildings]
    assert set(first) == {"1.0.0", "2.0.0"}
    again = [version(await kettle.infer(request(building=building))) for building in buildings]
    assert again == first
    assert kettle.counts(Role.CANARY).windows == 2 * first.count("2.0.0")
    assert kettle.counts(Role.STABLE).windows == 2 * first.count("1.0.0")


async def test_a_canarys_window_is_run_by_the_stable_version_as_well_off_the_path(kettle: Kettle) -> None:
    await deploy(kettle.versions, CANARY)
    await kettle.canary(request(), request())
    await kettle.compared()
    counts = kettle.counts(Role.CANARY)
    assert (counts.windows, counts.compared) == (2, 2)
    assert counts.compared_power_w == pytest.approx(counts.power_w)
    assert kettle.counts(Role.STABLE) == VersionCounts()


async def test_a_canary_that_raises_fails_nobody(
    kettle: Kettle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await deploy(kettle.versions, CANARY)
    behaviour = Behaviour(kettle, Role.CANARY, monkeypatch)
    behaviour.error = RuntimeError("a bug")
    with caplog.at_level(logging.WARNING, "ray.serve"):
        answers = [version(await kettle.infer(request())) for _ in range(5)]
    assert answers == ["1.0.0"] * 5
    assert (kettle.counts(Role.CANARY).windows, kettle.counts(Role.CANARY).errors) == (5, 5)
    assert kettle.counts(Role.STABLE).windows == 5
    assert len([r for r in caplog.records if r.levelno > logging.INFO]) == 1, "the counts say how often"


async def test_of_a_batch_only_the_windows_that_failed_are_answered_by_the_stable_version(
    kettle: Kettle, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle.versions, CANARY)
    Behaviour(kettle, Role.CANARY, monkeypatch).nan_from = 2
    results = await kettle.canary(request(), request([1.0]), request(), request(), request())
    assert [getattr(r, "model_version", None) for r in results] == ["2.0.0", None, "2.0.0", None, None]
    refused = results[1]
    assert isinstance(refused, InferenceRefused), "no version could run it"
    assert results[3:] == [None, None]
    counts = kettle.counts(Role.CANARY)
    assert (counts.windows, counts.errors) == (4, 2)


async def test_a_canary_that_hangs_costs_its_patience_once_and_then_nothing(
    kettle: Kettle, monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    await deploy(kettle.versions, CANARY)
    behaviour = Behaviour(kettle, Role.CANARY, monkeypatch)
    behaviour.open.clear()
    started = time.monotonic()
    assert version(await kettle.infer(request())) == "1.0.0"
    assert patience_s * 0.9 <= time.monotonic() - started < 10 * patience_s
    started = time.monotonic()
    for _ in range(3):
        assert version(await kettle.infer(request())) == "1.0.0"
    assert time.monotonic() - started < patience_s * 0.9
    assert (behaviour.windows, kettle.counts(Role.CANARY).errors) == (1, 4)
    behaviour.open.set()
    async with asyncio.timeout(5):
        while kettle.model._canary.busy:  # noqa: ASYNC110 - the thread tells nobody
            await asyncio.sleep(0.002)
    assert version(await kettle.infer(request())) == "2.0.0"
    assert kettle.counts(Role.CANARY).errors == 4


async def test_a_canary_that_cannot_keep_up_has_its_windows_answered_in_time_and_counted_once(
    kettle: Kettle, monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    await deploy(kettle.versions, CANARY)
    kettle.model._canary_windows = Batcher(kettle.model._run_canary, 1)
    behaviour = Behaviour(kettle, Role.CANARY, monkeypatch)
    behaviour.takes_s = patience_s * 0.6
    started = time.monotonic()
    answers = await asyncio.gather(*(kettle.infer(request(building=f"home-{n}")) for n in range(8)))
    assert time.monotonic() - started < 2.5 * patience_s  # not 8 times 0.6
    assert sorted(map(version, answers)) == ["1.0.0"] * 7 + ["2.0.0"]
    async with asyncio.timeout(5):
        while kettle.model._canary.busy:  # noqa: ASYNC110 - the thread tells nobody
            await asyncio.sleep(0.002)
    await asyncio.sleep(0.01)
    counts = kettle.counts(Role.CANARY)
    assert (counts.windows, counts.errors) == (8, 7)
    # The wait for the canary is none of the stable version's time.
    assert kettle.counts(Role.STABLE).time_s / 7 < patience_s * 0.5


async def test_a_canary_in_place_of_one_that_hangs_starts_clean(
    kettle: Kettle, monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    await deploy(kettle.versions, CANARY)
    hanging = Behaviour(kettle, Role.CANARY, monkeypatch)
    hanging.open.clear()
    in_flight = asyncio.create_task(kettle.infer(request()))
    await hanging.started()
    await deploy(kettle.versions, plan("1.0.0", canary="3.0.0"))
    assert version(await kettle.infer(request())) == "3.0.0"
    assert version(await in_flight) == "1.0.0"
    assert (kettle.counts(Role.CANARY).windows, kettle.counts(Role.CANARY).errors) == (1, 0)
    hanging.open.set()


async def test_a_canary_demoted_while_a_window_waits_does_not_answer_it(kettle: Kettle) -> None:
    order = await deploy(kettle.versions, CANARY)
    assert kettle.serving.role_for("home-1") is Role.CANARY
    assert kettle.versions.switch(directive(CANARY, of=order, demoted=True))
    assert await kettle.canary(request(), request()) == [None, None]
    assert version(await kettle.infer(request())) == "1.0.0"
    assert kettle.counts(Role.CANARY) == VersionCounts()


async def test_a_slow_canary_keeps_no_building_of_the_stable_version_waiting(
    kettle: Kettle, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle.versions, plan("1.0.0", canary="2.0.0", percent=50.0))
    behaviour = Behaviour(kettle, Role.CANARY, monkeypatch)
    behaviour.open.clear()
    buildings = {kettle.serving.role_for(f"home-{n}"): f"home-{n}" for n in range(20)}
    slow = asyncio.create_task(kettle.infer(request(building=buildings[Role.CANARY])))
    await behaviour.started()
    result = await asyncio.wait_for(kettle.infer(request(building=buildings[Role.STABLE])), 5)
    assert (version(result), slow.done()) == ("1.0.0", False)
    behaviour.open.set()
    assert version(await slow) == "2.0.0"


# Shadow ----------------------------------------------------------------------------------------------------------


async def test_a_shadow_sees_the_windows_and_answers_none(kettle: Kettle) -> None:
    await deploy(kettle.versions, SHADOW)
    results = [await kettle.infer(request()) for _ in range(4)]
    assert {version(result) for result in results} == {"1.0.0"}
    await kettle.compared()
    counts = kettle.counts(Role.SHADOW)
    assert (counts.windows, counts.compared, counts.errors) == (4, 4, 0)
    assert kettle.counts(Role.STABLE).windows == 4


async def test_a_shadow_delays_no_reply(kettle: Kettle, monkeypatch: pytest.MonkeyPatch) -> None:
    await deploy(kettle.versions, SHADOW)
    behaviour = Behaviour(kettle, Role.SHADOW, monkeypatch)
    behaviour.open.clear()
    async with asyncio.timeout(5):
        for _ in range(10):
            assert version(await kettle.infer(request())) == "1.0.0"
    assert kettle.counts(Role.SHADOW).compared == 0
    behaviour.open.set()
    await kettle.compared()
    assert kettle.counts(Role.SHADOW).compared == 10


async def test_a_pass_that_waits_for_a_core_is_followed_by_a_rest(
    kettle: Kettle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "STARVED_S", 0.05)
    await deploy(kettle.versions, SHADOW)
    behaviour = Behaviour(kettle, Role.SHADOW, monkeypatch)
    behaviour.open.clear()
    await kettle.infer(request())
    await behaviour.started()
    await asyncio.sleep(0.1)  # so long its thread has no core: it waits for the gate
    await kettle.infer(request())
    behaviour.open.set()
    await kettle.compared()
    await kettle.infer(request())
    counts = kettle.counts(Role.SHADOW)
    assert (counts.compared, counts.dropped) == (1, 2), "the one that waited behind it, and the one that came after"
    monkeypatch.setattr(kettle.model._comparison, "_rests_until", 0.0)
    monkeypatch.setattr(comparison, "STARVED_S", float("inf"))
    await kettle.infer(request())
    await kettle.compared()
    assert kettle.counts(Role.SHADOW).compared == 2


async def test_a_shadow_sees_its_share_of_the_windows_that_were_answered(
    kettle: Kettle, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = plan("1.0.0", shadow="3.0.0")
    assert sampled.shadow is not None
    object.__setattr__(sampled.shadow, "sample", 0.25)
    await deploy(kettle.versions, sampled)
    draws = iter([0.1, 0.3, 0.24, 0.9])
    monkeypatch.setattr(appliance.random, "random", lambda: next(draws))
    await kettle.stable(request(), request([1.0]), request(), request(), request())
    await kettle.compared()
    assert kettle.counts(Role.SHADOW).windows == 2


async def test_under_load_nothing_is_compared_and_what_waits_is_dropped(
    kettle: Kettle, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle.versions, SHADOW)
    behaviour = Behaviour(kettle, Role.SHADOW, monkeypatch)
    behaviour.open.clear()
    for _ in range(3):
        await kettle.stable(request())
        await asyncio.sleep(0)
    kettle.model._live = appliance.BUSY_WINDOWS + 1
    await kettle.stable(request())
    assert kettle.counts(Role.SHADOW).dropped == 3, "all but the one that runs"
    kettle.model._live = 0
    behaviour.open.set()
    await kettle.compared()
    assert kettle.counts(Role.SHADOW).compared == 1


async def test_windows_that_arrive_while_one_runs_share_the_next_pass(
    kettle: Kettle, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle.versions, plan("1.0.0"))
    behaviour = Behaviour(kettle, Role.STABLE, monkeypatch)
    behaviour.open.clear()
    first = asyncio.create_task(kettle.infer(request()))
    await behaviour.started()
    others = []
    for _ in range(5):
        others.append(asyncio.create_task(kettle.infer(request())))
        await asyncio.sleep(0.001)
    behaviour.open.set()
    answers = await asyncio.gather(first, *others)
    assert [one.batch_size for one in answers if isinstance(one, Inference)] == [1, 5, 5, 5, 5, 5]


async def test_live_windows_are_counted_whatever_becomes_of_them(
    kettle: Kettle, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle.versions, plan("1.0.0"))
    behaviour = Behaviour(kettle, Role.STABLE, monkeypatch)
    behaviour.open.clear()
    waiting = [asyncio.create_task(kettle.infer(request())) for _ in range(3)]
    await behaviour.started()
    assert kettle.model._live == 3
    waiting[0].cancel()
    behaviour.error = RuntimeError("a bug")
    behaviour.open.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(outcomes[1], InferenceRefused)
    assert (outcomes[1].reason, outcomes[1].detail) == (InferenceRefusal.FAILED, "RuntimeError")
    assert kettle.model._live == 0


# Switches --------------------------------------------------------------------------------------------------------


async def test_requests_in_flight_are_answered_by_the_version_that_took_them(
    kettle: Kettle, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle.versions, plan("1.0.0"))
    old = Behaviour(kettle, Role.STABLE, monkeypatch)
    old.open.clear()
    in_flight = asyncio.create_task(kettle.stable(request()))
    await old.started()
    await deploy(kettle.versions, plan("2.0.0"))
    assert not in_flight.done()
    waiting = asyncio.create_task(kettle.stable(request()))
    old.open.set()
    (before,), (after,) = await in_flight, await waiting
    assert (version(before), version(after)) == ("1.0.0", "2.0.0")
    assert kettle.counts(Role.STABLE).windows == 1, "what the old plan's version ran is not the new one's"


async def test_under_load_every_answer_after_the_instant_is_the_new_versions(kettle: Kettle) -> None:
    await deploy(kettle.versions, plan("1.0.0"))
    order = directive(plan("2.0.0"))
    await kettle.versions.prepare(order)
    order = replace(order, activate_at_s=time.time() + 0.15)
    assert kettle.versions.switch(order)
    seen: list[tuple[float, str]] = []

    async def client() -> None:
        while time.time() < order.activate_at_s + 0.05:
            sent = time.time()
            seen.append((sent, version(await kettle.infer(request()))))

    await asyncio.gather(*(client() for _ in range(4)))
    assert {one for sent, one in seen if sent >= order.activate_at_s} == {"2.0.0"}
    assert "1.0.0" in {one for _, one in seen}


async def test_a_promotion_takes_the_building_over_without_a_load(kettle: Kettle) -> None:
    await deploy(kettle.versions, CANARY)
    promoted = kettle.serving.models[Role.CANARY]
    await deploy(kettle.versions, plan("2.0.0"))
    assert kettle.serving.stable is promoted
    assert version(await kettle.infer(request())) == "2.0.0"


async def test_versions_of_before_are_freed_after_the_switch(kettle: Kettle) -> None:
    await deploy(kettle.versions, plan("1.0.0", canary="2.0.0", shadow="3.0.0", percent=50.0))
    for n in range(10):
        await kettle.infer(request(building=f"home-{n}"))
    await kettle.compared()
    old = [weakref.ref(model) for model in kettle.serving.models.values()]
    await deploy(kettle.versions, plan("2.0.0"))
    await kettle.infer(request())
    await freed(old[0])
    await freed(old[2])
    assert old[1]() is kettle.serving.stable


async def test_a_replica_whose_pass_hangs_or_that_follows_nobody_is_replaced(
    kettle: Kettle, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = kettle.model
    model._following = asyncio.create_task(asyncio.sleep(60))
    await deploy(kettle.versions, plan("1.0.0"))
    behaviour = Behaviour(kettle, Role.STABLE, monkeypatch)
    behaviour.open.clear()
    waiting = asyncio.create_task(kettle.infer(request()))
    await behaviour.started()
    model.check_health()
    monkeypatch.setattr(appliance, "HUNG_S", 0.0)
    with pytest.raises(RuntimeError, match="hangs"):
        model.check_health()
    behaviour.open.set()
    await waiting
    model.check_health()
    model._following.cancel()
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="follows nobody"):
        model.check_health()


async def test_a_shadow_that_hangs_is_given_up_and_another_is_compared(
    kettle: Kettle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "PASS_S", 0.05)
    await deploy(kettle.versions, SHADOW)
    behaviour = Behaviour(kettle, Role.SHADOW, monkeypatch)
    behaviour.open.clear()
    await kettle.infer(request())
    await kettle.compared()
    await kettle.infer(request())
    counts = kettle.counts(Role.SHADOW)
    assert (counts.errors, counts.dropped) == (1, 1), "its thread is lost; no other is lost with the next window"
    await deploy(kettle.versions, plan("1.0.0", shadow="2.0.0"))
    monkeypatch.setattr(comparison, "PASS_S", 20.0)
    await kettle.infer(request())
    await kettle.compared()
    assert kettle.counts(Role.SHADOW).compared == 1
    behaviour.open.set()
