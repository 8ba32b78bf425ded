"""`/disaggregate` while versions change or a model is away: the window keeps its length, answers their instant."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.contracts import ApplianceStatus, Inference, Persisted, RecordSet
from serve_app.access.principal import Principal
from serve_app.catalogue import MAX_AGE_S, Catalogue
from serve_app.disaggregation import plan_windows
from serve_app.middleware import RequestContext
from serve_app.predict import Predictor
from serve_app.schemas import DisaggregateRequest


@dataclass
class FakeAppliance:
    """A handle: says one shape in its status, answers with `answers_index`, and may be away."""

    name: str
    window: int
    index: int
    answers_index: int
    away: bool = False

    @property
    def status(self) -> Any:
        async def remote() -> ApplianceStatus:
            if self.away:
                raise RuntimeError("gone")
            return ApplianceStatus(
                self.name, "1", "m", "1", "0" * 64, self.window, self.index, 60.0, "cpu", False, None, 0, 0, 0
            )

        return SimpleNamespace(remote=remote)

    @property
    def infer(self) -> Any:
        async def remote(request: Any) -> Inference:
            return Inference(100.0, 0.9, "m", "1", "0" * 64, self.answers_index, 60.0, 0.5, 1, 0.1, 0.1)

        return SimpleNamespace(remote=remote)


class FakeStore:
    stored: RecordSet

    @property
    def status(self) -> Any:
        async def remote() -> None:
            return None

        return SimpleNamespace(remote=remote)

    @property
    def persist(self) -> Any:
        async def remote(record_set: RecordSet) -> Persisted:
            self.stored = record_set
            return Persisted(1, 1.0)

        return SimpleNamespace(remote=remote)


async def predictor(*appliances: FakeAppliance) -> tuple[Predictor, FakeStore]:
    store = FakeStore()
    handles = {a.name: a for a in appliances}
    catalogue = Catalogue(handles, store, logging.getLogger("test"))
    await catalogue.refresh()
    return Predictor(handles, store, catalogue), store


async def split(predict: Predictor, samples: int) -> Any:
    body = DisaggregateRequest(building_id="b", window=[0.5] * samples)
    context = RequestContext("r", "0" * 32, time.time() + 5)
    return await predict.disaggregate(body, Principal("u", frozenset({"b"})), context)


async def test_an_answer_for_another_instant_counts_as_unavailable() -> None:
    predict, store = await predictor(FakeAppliance("a", 10, 7, 7), FakeAppliance("b", 10, 7, answers_index=9))
    reply = await split(predict, 10)
    assert [a.appliance_id for a in reply.appliances] == ["a"]
    assert reply.unavailable == ["b"]
    assert [p.appliance_id for p in store.stored.points] == ["a"]


async def test_the_window_keeps_its_length_when_the_longest_model_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = FakeAppliance("long", 20, 19, 19)
    predict, _ = await predictor(FakeAppliance("short", 10, 9, 9), longest)
    longest.away = True
    later = time.monotonic() + MAX_AGE_S + 1
    monkeypatch.setattr("serve_app.catalogue.time.monotonic", lambda: later)
    await predict.catalogue.refresh()
    assert [s.appliance_id for s in predict.catalogue.appliances()] == ["short"]
    plan = plan_windows(predict.catalogue.last_known())
    assert plan is not None
    assert plan.input_window_size == 20
