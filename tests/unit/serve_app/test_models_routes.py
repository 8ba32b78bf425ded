"""`GET /models`: what is registered, what it does in the running rollout, and why something does not serve."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.contracts import RefusedVersion
from deployments.rollout_contracts import Demotion, Directive, RolloutOverview
from deployments.rollout_plan import Canary, RolloutPlan, Shadow

EMPTY = {"canary": None, "shadow_version": None, "preparing": [], "refused": None}


async def appliance(service: Any) -> dict[str, Any]:
    """The kettle's row, after a look at everyone."""
    await service.catalogue.refresh()
    row: dict[str, Any] = (await service.client.get("/models")).json()["appliances"][0]
    return row


async def roles(service: Any) -> dict[str, str | None]:
    return {m["model_version"]: m["role"] for m in (await service.client.get("/models")).json()["models"]}


async def test_models_lists_versions_and_what_serves(service: Any) -> None:
    body = (await service.client.get("/models")).json()
    assert [(m["model_version"], m["serving"], m["role"], m["is_active"]) for m in body["models"]] == [
        ("1.0.0", True, "stable", True),
        ("0.9.0", False, None, False),
    ]
    served = {"appliance_id": "kettle", "ready": True, "wanted_version": "1.0.0", "serving_version": "1.0.0"}
    assert body["appliances"][0] == served | EMPTY


async def test_models_tells_the_sample_and_the_window_of_either_answer(kit: Any) -> None:
    fakes = {
        "kettle": kit.FakeAppliance("kettle", output_index=2, provisional_index=4),
        "microwave": kit.FakeAppliance("microwave", window_size=7, output_index=3, provisional_index=5),
    }
    async with kit.start(fakes) as service:
        body = (await service.client.get("/models")).json()
        assert {(m["output_sample_index"], m["provisional_sample_index"]) for m in body["models"]} == {(2, 4)}
        shape = {"sample_period_s": 60.0}
        assert body["disaggregate"] == shape | {"input_window_size": 7, "output_sample_index": 3}
        assert body["disaggregate_provisional"] == shape | {"input_window_size": 7, "output_sample_index": 5}
        fakes["microwave"].provisional_index = 3
        await service.catalogue.refresh()
        body = (await service.client.get("/models")).json()
        # The kettle needs four samples before the common instant, the microwave three after it.
        assert body["disaggregate_provisional"] == shape | {"input_window_size": 8, "output_sample_index": 4}


async def test_models_says_why_a_version_is_not_served(service: Any, kit: Any) -> None:
    refused = RefusedVersion("2.0.0", "sha256_mismatch", "another hash")
    service.coordinator.tells(kit.rollout("kettle", refused=refused))
    row = await appliance(service)
    assert row["refused"] == "2.0.0: sha256_mismatch", "the detail may name hosts and folders"
    assert (row["ready"], row["serving_version"]) == (True, "1.0.0")


CANARY = RolloutPlan("1.0.0", canary=Canary("0.9.0", 12.5), shadow=Shadow("0.8.0"))


async def test_models_shows_the_canary_and_the_shadow(service: Any, kit: Any) -> None:
    service.coordinator.tells(kit.rollout("kettle", active=Directive(8, 8, CANARY)))
    row = await appliance(service)
    assert row["canary"] == {"model_version": "0.9.0", "percent": 12.5, "demoted": None}
    assert (row["shadow_version"], row["wanted_version"], row["preparing"]) == ("0.8.0", "1.0.0", [])
    assert await roles(service) == {"1.0.0": "stable", "0.9.0": "canary"}


async def test_models_shows_a_shadow_among_the_versions(service: Any, kit: Any) -> None:
    plan = RolloutPlan("1.0.0", shadow=Shadow("0.9.0"))
    service.coordinator.tells(kit.rollout("kettle", active=Directive(8, 8, plan)))
    assert (await appliance(service))["canary"] is None
    assert await roles(service) == {"1.0.0": "stable", "0.9.0": "shadow"}


async def test_a_demoted_canary_has_its_reason_and_no_role(service: Any, kit: Any) -> None:
    demoted = Directive(9, 8, CANARY, Demotion("0.9.0", "errors: 9 of 300 windows", 5.0))
    service.coordinator.tells(kit.rollout("kettle", active=demoted))
    row = await appliance(service)
    assert row["canary"] == {"model_version": "0.9.0", "percent": 12.5, "demoted": "errors: 9 of 300 windows"}
    assert await roles(service) == {"1.0.0": "stable", "0.9.0": None}


async def test_what_is_being_prepared_is_wanted_and_does_not_serve_yet(service: Any, kit: Any) -> None:
    preparing = Directive(8, 8, RolloutPlan("0.9.0", canary=Canary("0.8.0", 5.0)))
    service.coordinator.tells(kit.rollout("kettle", preparing=preparing))
    row = await appliance(service)
    assert (row["wanted_version"], row["serving_version"]) == ("0.9.0", "1.0.0")
    assert (row["preparing"], row["canary"]) == (["0.9.0", "0.8.0"], None)
    assert await roles(service) == {"1.0.0": "stable", "0.9.0": None}


@pytest.mark.parametrize("known", [True, False])
async def test_models_before_any_plan(service: Any, kit: Any, known: bool) -> None:
    service.coordinator.tells(*([kit.rollout("kettle", active=None)] if known else []))
    assert await appliance(service) == EMPTY | {
        "appliance_id": "kettle",
        "ready": True,
        "wanted_version": "",
        "serving_version": "1.0.0",
    }
    assert set((await roles(service)).values()) == {None}


async def test_a_coordinator_that_is_away_is_shown_as_it_was(service: Any, kit: Any) -> None:
    service.coordinator.tells(kit.rollout("kettle", active=Directive(8, 8, CANARY)))
    before = await appliance(service)
    service.coordinator.overview = None
    assert await appliance(service) == before
    assert service.catalogue.not_ready() == []
    assert [line["deployment"] for line in service.log if line["message"] == "no status"] == ["coordinator"]


async def test_a_coordinator_that_starts_anew_is_believed(service: Any) -> None:
    service.coordinator.overview = RolloutOverview((), "kettle.stable: is missing", 0, 1)
    await service.catalogue.refresh()
    assert service.catalogue.rollouts().refused_config == "kettle.stable: is missing"
    assert service.catalogue.rollout("kettle") is None


async def test_models_before_anything_answered(kit: Any) -> None:
    async with kit.start(poll=False) as service:
        body = (await service.client.get("/models")).json()
        assert body["disaggregate"] is body["disaggregate_provisional"] is None
        assert [a["ready"] for a in body["appliances"]] == [False, False]
        assert not any(m["serving"] for m in body["models"])


async def test_one_model_in_detail(service: Any) -> None:
    versions = (await service.client.get("/models/kettle-net")).json()
    assert [v["model_version"] for v in versions] == ["0.9.0", "1.0.0"]
    assert (versions[0]["output_sample_index"], versions[0]["provisional_sample_index"]) == (2, 4)
    assert versions[0]["metrics"] == {"mae_w": 12.5}
    assert versions[0]["training_data"] == [
        {"home": "home-1", "from": "2024-01-01", "to": "2024-02-01", "attribution": "a household"}
    ]
