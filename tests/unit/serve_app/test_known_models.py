"""The registered models as an ingress knows them: without a registry it starts, and it keeps up with what serves."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.noticeboard import Heard, Question
from deployments.rollout_contracts import ApplianceRollout, Directive, RolloutOverview
from deployments.rollout_plan import Canary, RolloutPlan
from models.registry import Registry, RegistryError
from serve_app import known_models
from serve_app.known_models import KnownModels, RereadRegistry
from serve_app.problems import Problem, Problems
from serve_app.questions import Listener

LOGGER = logging.Logger("unit")
NOTHING = RolloutOverview((), None, 0, 0)


def serving(version: str) -> RolloutOverview:
    directive = Directive(1, 1, RolloutPlan("2.0.0", Canary(version, 5.0)))
    return RolloutOverview((ApplianceRollout("kettle", directive, None, None, None, (), (), ()),), None, 0, 0)


class Source:
    """A registry that can be away, or lag behind."""

    def __init__(self) -> None:
        self.whole = Registry.load()
        self.registry: Registry | None = None
        self.reads = 0

    def read(self) -> Registry:
        self.reads += 1
        if self.registry is None:
            raise RegistryError("there is no server at https://models.test")
        return self.registry

    def without(self, version: str) -> Registry:
        kept = tuple(one for one in self.whole.entries if one.model_version != version)
        return Registry(kept, Path())


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - whatever it waits for
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_models, "LOOK_S", 0.01)
    monkeypatch.setattr(known_models, "RETRY_S", 0.02)


async def test_a_registry_that_is_away_is_a_503_and_is_read_when_it_is_back() -> None:
    source = Source()
    models = KnownModels(source.read, LOGGER)
    task = asyncio.create_task(models.run(lambda: NOTHING))
    await until(lambda: source.reads >= 2)
    with pytest.raises(Problem) as refused:
        _ = models.entries
    assert refused.value.kind is Problems.MODEL_UNAVAILABLE
    source.registry = source.whole
    await until(lambda: source.reads and models._registry is not None)
    assert models.entries == source.whole.entries
    task.cancel()


async def test_it_is_read_again_when_replicas_serve_what_it_does_not_know() -> None:
    source = Source()
    source.registry = source.without("2.2.0")
    models = KnownModels(source.read, LOGGER)
    overview = NOTHING
    task = asyncio.create_task(models.run(lambda: overview))
    await until(lambda: source.reads == 1)
    await asyncio.sleep(0.05)
    assert source.reads == 1, "not without a reason"
    source.registry = source.whole
    overview = serving("2.2.0")
    await until(lambda: models.entries == source.whole.entries)
    await asyncio.sleep(0.05)
    assert source.reads == 2
    task.cancel()


async def test_a_slow_registry_keeps_no_replica_from_hearing_the_next_question() -> None:
    gate, said = asyncio.Event(), []

    async def slow(_: RereadRegistry) -> dict[str, Any]:
        await gate.wait()
        return {"registry_sha256": "ab"}

    async def listen(replica: str, after: int | None) -> Heard:
        return Heard((Question(1, RereadRegistry()), Question(2, "of a newer version")), 2, missed=False)

    async def answer(replica: str, number: int, answer: Any) -> None:
        said.append((number, answer))

    handle = SimpleNamespace(listen=SimpleNamespace(remote=listen), answer=SimpleNamespace(remote=answer))
    listener = Listener(handle, "a", {RereadRegistry: slow}, lambda: None, LOGGER)
    async with asyncio.timeout(1):
        await listener.listen_once()
    await until(lambda: said)
    assert said == [(2, {})]
    gate.set()
    await until(lambda: len(said) == 2)
    assert said[1] == (1, {"registry_sha256": "ab"})
