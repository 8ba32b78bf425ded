"""RolloutGate: a configuration is checked whole, offered, repeated, and Serve is told what became of it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deployments import rollout_gate
from deployments.registry_source import REGISTRY_VARIABLE
from deployments.rollout_contracts import Offer, OfferOutcome
from deployments.rollout_gate import RolloutGate, RolloutRefused
from deployments.rollout_plan import Canary, RolloutPlan
from tests.unit.deployments.replica import Shelf
from tests.unit.deployments.rollouts import BAD
from tests.unit.handles import Method

DONE = OfferOutcome((), ())
REFUSED = OfferOutcome((), (("kettle", BAD),))
GOOD = {"kettle": {"stable": "1.0.0", "canary": {"version": "2.0.0", "percent": 10}}}


class FakeCoordinator:
    """Notes what it is told, and answers with `outcome`."""

    def __init__(self) -> None:
        self.offers: list[tuple[Offer, float]] = []
        self.refusals: list[tuple[str, str]] = []
        self.outcome: OfferOutcome | Exception = DONE
        self.called = asyncio.Event()
        self.offer, self.refuse_config = Method(self._offer), Method(self._refuse)

    async def _offer(self, offer: Offer, wait_s: float) -> OfferOutcome:
        self.offers.append((offer, wait_s))
        self.called.set()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    async def _refuse(self, reason: str, document: str) -> None:
        self.refusals.append((reason, document))
        if isinstance(self.outcome, Exception):
            raise self.outcome

    async def offered(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.offers) < count:
                self.called.clear()
                await self.called.wait()


class Bench:
    def __init__(self, shelf: Shelf) -> None:
        self.shelf, self.coordinator = shelf, FakeCoordinator()
        self.gate = RolloutGate(self.coordinator, ("kettle",))


@pytest.fixture
async def bench(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(rollout_gate, "REPEAT_S", 0.01)
    monkeypatch.setenv(REGISTRY_VARIABLE, str(shelf.registry))
    one = Bench(shelf)
    yield one
    if one.gate._repeating is not None:
        one.gate._repeating.cancel()


async def test_a_good_configuration_is_offered_once_as_new_and_then_repeated(bench: Bench) -> None:
    await bench.gate.reconfigure(GOOD)
    plan = RolloutPlan("1.0.0", Canary("2.0.0", 10.0))
    first, wait_s = bench.coordinator.offers[0]
    assert (first, wait_s) == (Offer((("kettle", plan),), fresh=True), rollout_gate.OFFER_WAIT_S)
    await bench.coordinator.offered(4)
    assert [(offer.plans, offer.fresh) for offer, _ in bench.coordinator.offers[1:4]] == [(first.plans, False)] * 3
    bench.gate.check_health()


async def test_of_two_configurations_only_the_later_is_repeated(bench: Bench) -> None:
    await bench.gate.reconfigure(GOOD)
    await bench.gate.reconfigure({"kettle": {"stable": "2.0.0"}})
    before = len(bench.coordinator.offers)
    await bench.coordinator.offered(before + 3)
    assert {offer.plans[0][1].stable for offer, _ in bench.coordinator.offers[before:]} == {"2.0.0"}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "user_config: input should be a valid dictionary"),
        ({"kettle": {"stable": 2.2}}, "kettle.stable: is not a text"),
        ({"kettle": {"stable": "9.9.9"}}, "kettle.stable: there is no version '9.9.9'"),
        ({"kettle": {"stable": "1.0.0"}, "fridge": {"stable": "1.0.0"}}, "fridge: is not an appliance"),
    ],
)
async def test_an_unusable_configuration_is_refused_with_its_reason_and_nothing_is_offered(
    bench: Bench, config: object, reason: str
) -> None:
    with pytest.raises(RolloutRefused, match=reason):
        await bench.gate.reconfigure(config)
    ((told, document),) = bench.coordinator.refusals
    assert reason in told
    assert json.loads(document) == config
    assert bench.coordinator.offers == []


async def test_a_registry_that_cannot_be_read_is_a_reason(bench: Bench) -> None:
    bench.shelf.registry.write_text("{")
    with pytest.raises(RolloutRefused, match="registry"):
        await bench.gate.reconfigure(GOOD)


async def test_while_the_coordinator_is_away_the_reason_still_reaches_serve(bench: Bench) -> None:
    bench.coordinator.outcome = ConnectionError("no replica")
    with pytest.raises(RolloutRefused, match="is not a text"):
        await bench.gate.reconfigure({"kettle": {"stable": 2.2}})


async def test_what_the_replicas_refuse_fails_the_deploy(bench: Bench) -> None:
    bench.coordinator.outcome = REFUSED
    with pytest.raises(RolloutRefused, match="sha256_mismatch: another hash"):
        await bench.gate.reconfigure(GOOD)


async def test_what_is_refused_after_the_deploy_makes_it_unhealthy_until_it_is_not(bench: Bench) -> None:
    bench.coordinator.outcome = OfferOutcome(("kettle",), ())
    await bench.gate.reconfigure(GOOD)
    bench.gate.check_health()
    bench.coordinator.outcome = REFUSED
    await bench.coordinator.offered(len(bench.coordinator.offers) + 2)
    with pytest.raises(RolloutRefused, match="sha256_mismatch"):
        bench.gate.check_health()
    bench.coordinator.outcome = DONE  # an operator repaired the file and had it loaded again
    await bench.coordinator.offered(len(bench.coordinator.offers) + 2)
    bench.gate.check_health()


async def test_a_new_configuration_is_not_ill_of_the_old_one(bench: Bench) -> None:
    await bench.gate.reconfigure(GOOD)
    bench.coordinator.outcome = REFUSED
    await bench.coordinator.offered(len(bench.coordinator.offers) + 2)
    bench.coordinator.outcome = DONE
    await bench.gate.reconfigure({"kettle": {"stable": "1.0.0"}})
    bench.gate.check_health()


async def test_a_coordinator_that_is_away_is_told_when_it_is_back(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.gate.reconfigure(GOOD)
    bench.coordinator.outcome = ConnectionError("no replica")
    with caplog.at_level(logging.WARNING, "ray.serve"):
        await bench.coordinator.offered(len(bench.coordinator.offers) + 5)
    assert [record.message for record in caplog.records] == ["the coordinator is away: ConnectionError"]
    bench.coordinator.outcome = DONE
    before = len(bench.coordinator.offers)
    await bench.coordinator.offered(before + 1)
    assert not bench.coordinator.offers[-1][0].fresh
    bench.gate.check_health()


async def test_a_call_that_hangs_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_gate, "OFFER_WAIT_S", 0.0)
    monkeypatch.setattr(rollout_gate, "CALL_MARGIN_S", 0.02)

    async def hang(*_: Any) -> None:
        await asyncio.Event().wait()

    bench.coordinator.offer = Method(hang)
    await asyncio.wait_for(bench.gate.reconfigure(GOOD), 5)
    assert bench.gate._repeating is not None, "it is told again"
    bench.gate.check_health()


async def test_a_deploy_while_the_coordinator_is_away_is_offered_as_new_when_it_is_back(bench: Bench) -> None:
    bench.coordinator.outcome = ConnectionError("no replica")
    await bench.gate.reconfigure(GOOD)
    await bench.coordinator.offered(3)
    assert all(offer.fresh for offer, _ in bench.coordinator.offers)
    bench.coordinator.outcome = DONE
    before = len(bench.coordinator.offers)
    await bench.coordinator.offered(before + 3)
    assert bench.coordinator.offers[before][0].fresh
    assert not bench.coordinator.offers[-1][0].fresh
    bench.gate.check_health()
