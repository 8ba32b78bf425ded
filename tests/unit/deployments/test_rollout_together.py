"""The control, followers and real models in one process: what Serve adds is only the distance between them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from deployments import appliance, follower, rollout_control
from deployments import versions as versions_module
from deployments.appliance import ApplianceModel
from deployments.contracts import Inference
from deployments.registry_source import REGISTRY_VARIABLE
from deployments.rollout_contracts import ApplianceRollout, Offer, OfferOutcome, ReplicaReport, Role
from deployments.rollout_control import RolloutControl
from deployments.rollout_plan import RolloutPlan
from models.loader import load_verified
from models.registry import RegistryEntry
from tests.unit.deployments.replica import Kettle, Shelf, both, output, plan, request
from tests.unit.handles import Method


class House:
    """A coordinator's control and some replicas of the kettle that follow it."""

    def __init__(self, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
        self._shelf = shelf
        self._monkeypatch = monkeypatch
        self._tasks: list[asyncio.Task[None]] = []
        self.calls = 0
        self.events: list[str] = []
        self.restart()

    def restart(self) -> None:
        """The coordinator is another process."""
        self.control = RolloutControl(("kettle",), lambda kind, _: self.events.append(kind))
        self.control.remember(())
        self._tasks.append(asyncio.create_task(self.control.run()))

    @property
    def follow(self) -> Method:
        return Method(self._follow)

    @property
    def report_replica(self) -> Method:
        return Method(self._report)

    async def _report(self, report: ReplicaReport) -> None:
        await self.control.report(report)

    async def _follow(self, report: ReplicaReport) -> Any:
        self.calls += 1
        return await self.control.follow(report)

    async def join(self, name: str) -> Kettle:
        """Another replica, as Serve starts it."""
        context = SimpleNamespace(replica_id=SimpleNamespace(unique_id=name))
        self._monkeypatch.setattr(appliance.serve, "get_replica_context", lambda: context)
        self._monkeypatch.setattr(
            appliance.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node")
        )
        kettle = Kettle(self._shelf)
        model: Any = kettle.model
        # In this task: it reads the names above before it waits for anything.
        async with asyncio.timeout(20):
            await ApplianceModel.__init__(model, "kettle", self, device="cpu")
        self._tasks.append(model._following)
        return kettle

    def kill(self, kettle: Kettle) -> None:
        """It says nothing any more."""
        model: Any = kettle.model
        model._following.cancel()
        if model._follower._work is not None:
            model._follower._work.cancel()

    async def deploy(self, wanted: RolloutPlan, wait_s: float = 20.0) -> OfferOutcome:
        return await self.control.offer(Offer((("kettle", wanted),), fresh=True), wait_s)

    def rollout(self) -> ApplianceRollout:
        (one,) = self.control.overview().appliances
        return one

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - whatever it waits for
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def house(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setenv(REGISTRY_VARIABLE, str(shelf.registry))
    monkeypatch.setattr(rollout_control, "TICK_S", 0.02)
    monkeypatch.setattr(rollout_control, "WATCHED_LISTEN_S", 0.05)
    monkeypatch.setattr(rollout_control, "LEAD_S", 0.1)
    monkeypatch.setattr(follower, "RETRY_S", 0.02)
    one = House(shelf, monkeypatch)
    yield one
    await one.stop()


async def start(house: House, wanted: RolloutPlan, *names: str) -> list[Kettle]:
    """Replicas that serve it."""
    joining = [asyncio.create_task(house.join(name)) for name in names]
    await asyncio.sleep(0)
    await house.deploy(wanted, wait_s=0.0)
    kettles = await asyncio.gather(*joining)
    assert (await house.deploy(wanted)).pending == ()
    await house.until(lambda: [one.number for one in house.rollout().replicas] == [number(house)] * len(names))
    return kettles


def number(house: House) -> int | None:
    active = house.rollout().active
    return active.number if active else None


def versions(*kettles: Kettle) -> list[str]:
    return [kettle.serving.stable.entry.model_version for kettle in kettles]


def one_version_is_held(shelf: Shelf, version: str, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Loads of it wait for the event."""
    gate = threading.Event()

    def load(entry: RegistryEntry, *rest: Any) -> Any:
        if entry.model_version == version:
            assert gate.wait(20)
        return load_verified(entry, *rest)

    monkeypatch.setattr(versions_module, "load_verified", load)
    return gate


async def test_replicas_start_with_a_warm_model_and_move_together(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_control, "WATCHED_LISTEN_S", 5.0)  # nobody hears of the instant by chance
    a, b = await start(house, plan("1.0.0"), "a", "b")
    assert versions(a, b) == ["1.0.0", "1.0.0"]
    seen: list[tuple[float, str, str]] = []
    deploying = asyncio.create_task(house.deploy(plan("2.0.0")))
    async with asyncio.timeout(20):
        while not deploying.done() or versions(a, b) != ["2.0.0"] * 2:
            before = time.time()
            seen.append((before, *versions(a, b)))  # type: ignore[arg-type]
            await asyncio.sleep(0.002)
    assert await deploying == OfferOutcome((), ())
    active = house.rollout().active
    assert active is not None
    for at_s, *which in seen:
        # A look takes a moment, so one that spans the instant may see either.
        if abs(at_s - active.activate_at_s) > 0.05:
            assert which == [["1.0.0", "2.0.0"][at_s > active.activate_at_s]] * 2
    await house.until(lambda: versions(a, b) == ["2.0.0"] * 2)


async def test_a_version_that_one_replica_cannot_load_serves_nowhere(
    house: House, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await start(house, plan("1.0.0"), "a", "b")
    real, seen = b.versions._load_one, []

    def damaged(entry: RegistryEntry, registry: Any) -> Any:
        seen.append(entry.model_version)
        shelf.flip_a_byte("2.0.0")
        return real(entry, registry)

    monkeypatch.setattr(b.versions, "_load_one", damaged)
    outcome = await house.deploy(plan("1.0.0", canary="2.0.0"))
    ((_, refused),) = outcome.refused
    assert (refused.model_version, refused.reason) == ("2.0.0", "sha256_mismatch")
    await house.until(lambda: all(one.versions.prepared is None for one in (a, b)))
    assert versions(a, b) == ["1.0.0", "1.0.0"]
    assert (house.events, seen) == (["applied", "refused"], ["2.0.0"])


async def test_a_first_plan_that_does_not_load_is_repaired(house: House, shelf: Shelf) -> None:
    whole = shelf.artifact("2.0.0").read_bytes()
    shelf.flip_a_byte()
    joining = asyncio.create_task(house.join("a"))
    await asyncio.sleep(0)
    assert [name for name, _ in (await house.deploy(plan("2.0.0"))).refused] == ["kettle"]
    kettle = await joining
    assert not (await kettle.model.status()).ready
    shelf.artifact("2.0.0").write_bytes(whole)
    assert await house.deploy(plan("2.0.0")) == OfferOutcome((), ())
    assert versions(kettle) == ["2.0.0"]
    shelf.flip_a_byte("3.0.0")
    assert (await house.deploy(plan("3.0.0"))).refused
    assert versions(kettle) == ["2.0.0"]


async def test_a_replica_that_cannot_serve_what_others_do_does_not_start(house: House, shelf: Shelf) -> None:
    await start(house, plan("2.0.0"), "a")
    shelf.flip_a_byte()
    with pytest.raises(RuntimeError, match="kettle cannot serve: sha256_mismatch"):
        await house.join("b")


async def test_a_replica_that_joins_during_a_deploy_ends_with_the_others_and_asks_seldom(
    house: House, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    (a,) = await start(house, plan("1.0.0"), "a")
    gates = [one_version_is_held(shelf, "2.0.0", monkeypatch)]
    deploying = asyncio.create_task(house.deploy(plan("2.0.0")))
    await house.until(lambda: house.rollout().preparing is not None)
    b = await house.join("b")
    assert versions(b) == ["1.0.0"]
    before, began = house.calls, time.monotonic()
    await asyncio.sleep(0.3)
    assert house.calls - before < 2 * (time.monotonic() - began) / 0.05 + 10, "two replicas, a call each 50 ms"
    gates[0].set()
    assert await deploying == OfferOutcome((), ())
    await house.until(lambda: versions(a, b) == ["2.0.0"] * 2)


async def test_a_later_deploy_overtakes_a_load_that_hangs(
    house: House, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await start(house, plan("1.0.0"), "a", "b")
    gate = one_version_is_held(shelf, "2.0.0", monkeypatch)
    hanging = asyncio.create_task(house.deploy(plan("2.0.0")))
    await house.until(lambda: house.rollout().preparing is not None)
    assert await house.deploy(plan("3.0.0")) == OfferOutcome((), ())
    gate.set()
    await asyncio.sleep(0.05)
    await house.until(lambda: versions(a, b) == ["3.0.0"] * 2)
    hanging.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await hanging


async def test_a_canary_that_fails_is_demoted_everywhere_and_over_a_restart(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = plan("1.0.0", canary="2.0.0", min_windows=10, over_windows=50)
    a, b = await start(house, wanted, "a", "b")
    for kettle in (a, b):
        nan = output([float("nan")], [0.5])
        monkeypatch.setattr(kettle.serving.models[Role.CANARY], "predict", lambda _, nan=nan: both(nan))

    async def client() -> None:
        while house.rollout().active.demoted is None:  # type: ignore[union-attr]
            for kettle in (a, b):
                result = await kettle.infer(request())
                assert isinstance(result, Inference)
                assert result.model_version == "1.0.0"
            await asyncio.sleep(0.002)

    await asyncio.wait_for(client(), 20)
    await house.until(lambda: all(Role.CANARY not in kettle.serving.models for kettle in (a, b)))
    assert house.events == ["applied", "demoted"]
    house.restart()
    await house.deploy(wanted, wait_s=0.0)
    await house.until(lambda: len(house.rollout().replicas) == 2)
    c = await house.join("c")
    assert all(Role.CANARY not in kettle.serving.models for kettle in (a, b, c))
    assert await house.deploy(wanted) == OfferOutcome((), ())


async def test_replicas_go_on_without_a_coordinator_and_the_next_one_learns_from_them(house: House) -> None:
    a, b = await start(house, plan("1.0.0", canary="2.0.0"), "a", "b")
    before = house.rollout().active
    for kettle in (a, b):
        await kettle.infer(request())
    house.restart()
    await house.until(lambda: len(house.rollout().replicas) == 2)
    assert house.rollout().active == before
    await house.until(lambda: dict(house.rollout().counts)[Role.CANARY].windows == 2)
    assert await house.deploy(plan("2.0.0")) == OfferOutcome((), ())
    assert house.events == ["applied", "applied"]


async def test_a_reload_brings_a_replaced_file_and_drops_no_request(house: House, shelf: Shelf) -> None:
    (a,) = await start(house, plan("1.0.0"), "a")
    before = a.serving.stable
    overview = await house.control.reload(10.0)
    (rollout,) = overview.appliances
    assert (rollout.preparing, rollout.refused) == (None, None)
    await house.until(lambda: rollout.active is not None and a.serving.directive.number == rollout.active.number)
    assert a.serving.stable is before, "nothing changed, so nothing was loaded"
