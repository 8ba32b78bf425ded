"""`/disaggregate` while versions change or a model is away: the window keeps its length, answers their instant."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from models.attribution import Attribution
from serve_app.catalogue import MAX_AGE_S
from serve_app.disaggregation import plan_windows


async def test_an_answer_for_another_instant_counts_as_unavailable(service: Any, kit: Any) -> None:
    kettle = service.appliances["kettle"]
    # A version of another shape came in after the last poll.
    kettle.answer = lambda request: replace(kettle.inference(request), output_sample_index=3)
    reply = (await service.client.post("/disaggregate", json=kit.disaggregate_body())).json()
    assert [a["appliance_id"] for a in reply["appliances"]] == ["microwave"]
    assert reply["unavailable"] == ["kettle"]
    assert [p.appliance_id for p in service.store.stored[0].points] == ["microwave"]


@pytest.mark.parametrize("attribution", Attribution)
async def test_the_window_keeps_its_length_when_the_longest_model_is_away(
    kit: Any, monkeypatch: pytest.MonkeyPatch, attribution: Attribution
) -> None:
    long = kit.FakeAppliance("long", window_size=20, output_index=19)
    async with kit.start({"short": kit.FakeAppliance("short"), "long": long}) as service:
        long.silent = True
        later = time.monotonic() + MAX_AGE_S + 1
        monkeypatch.setattr("serve_app.catalogue.time.monotonic", lambda: later)
        await service.catalogue.refresh()
        assert [s.appliance_id for s in service.catalogue.appliances()] == ["short"]
        plan = plan_windows(service.catalogue.last_known(), attribution)
    assert plan is not None
    assert plan.input_window_size == 20
