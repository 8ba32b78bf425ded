"""`POST /disaggregate`: one instant for all appliances, reconciled with the mains; who cannot answer is named."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.serve_app.failures import MODEL_FAILURES, problem


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_disaggregate_splits_the_mains_and_stores_one_record_set(
    service: Any, kit: SimpleNamespace, prefix: str
) -> None:
    service.appliances["kettle"].predicted_w = 300.0
    response = await service.client.post(f"{prefix}/disaggregate", json=kit.disaggregate_body())
    assert response.status_code == 200
    body = response.json()
    assert body["persisted"] is True
    assert body["unavailable"] == []
    assert {a["appliance_id"]: a["predicted_kw"] for a in body["appliances"]} == {"kettle": 0.3, "microwave": 0.1}
    assert math.isclose(body["unattributed_kw"], 0.1, abs_tol=1e-6)
    (record_set,) = service.store.stored
    assert [p.appliance_id for p in record_set.points] == ["kettle", "microwave"]
    assert len({p.time_ns for p in record_set.points}) == 1


async def test_disaggregate_scales_claims_down_to_the_mains_and_stores_what_it_answers(service: Any, kit: Any) -> None:
    service.appliances["kettle"].predicted_w = 3000.0
    service.appliances["microwave"].predicted_w = 1000.0
    body = (await service.client.post("/disaggregate", json=kit.disaggregate_body())).json()
    shares = {a["appliance_id"]: a["predicted_kw"] for a in body["appliances"]}
    assert shares == pytest.approx({"kettle": 0.375, "microwave": 0.125})
    assert {p.appliance_id: p.predicted_kw for p in service.store.stored[0].points} == shares
    assert sum(shares.values()) + body["unattributed_kw"] == pytest.approx(body["aggregate_kw"])


async def test_models_of_different_shape_share_one_instant(kit: Any) -> None:
    fakes = {
        "kettle": kit.FakeAppliance("kettle", window_size=5, output_index=2),
        "fridge": kit.FakeAppliance("fridge", window_size=4, output_index=3),
    }
    async with kit.start(fakes) as service:
        shape = (await service.client.get("/models")).json()["disaggregate"]
        assert shape == {"input_window_size": 6, "sample_period_s": 60.0, "output_sample_index": 3}
        body = kit.infer_body(appliance_id=..., window=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
        response = await service.client.post("/disaggregate", json=body)
        assert response.json()["predicted_for"] == "2026-01-31T16:58:00Z"
        assert response.json()["aggregate_kw"] == kit.float32(0.3)
        assert fakes["kettle"].windows == [[0.1, 0.2, 0.3, 0.4, 0.5]]
        assert fakes["fridge"].windows == [[0.0, 0.1, 0.2, 0.3]]
        assert [p.aggregate_kw for p in service.store.stored[0].points] == [kit.float32(0.3)] * 2


def two_answers(kit: Any) -> dict[str, Any]:
    """Models whose final answers share an instant in one window, and whose provisional ones do in another."""
    return {
        "kettle": kit.FakeAppliance(
            "kettle", window_size=5, output_index=2, provisional_index=4, predicted_w=200.0, provisional_w=100.0
        ),
        "fridge": kit.FakeAppliance("fridge", window_size=4, output_index=2, provisional_index=2, predicted_w=50.0),
    }


@pytest.mark.parametrize(
    ("asked", "given", "window", "shares", "predicted_for", "aggregate_kw", "seen"),
    [
        (
            ...,
            "final",
            [0.0, 0.1, 0.2, 0.3, 0.4],
            {"kettle": 0.2, "fridge": 0.0},
            "2026-01-31T16:58:00Z",
            0.2,
            [0.0, 0.1, 0.2, 0.3],
        ),
        (
            "provisional",
            "provisional",
            [0.0, 0.1, 0.2, 0.3, 0.4, 0.5],
            {"kettle": 0.1, "fridge": 0.05},
            "2026-01-31T16:59:00Z",
            0.4,
            [0.2, 0.3, 0.4, 0.5],
        ),
    ],
    ids=["default", "provisional"],
)
async def test_each_attribution_has_its_window_its_instant_and_its_answers(
    kit: Any,
    asked: Any,
    given: str,
    window: list[float],
    shares: dict[str, float],
    predicted_for: str,
    aggregate_kw: float,
    seen: list[float],
) -> None:
    fakes = two_answers(kit)
    fakes["fridge"].predicted_w = 1000 * shares["fridge"]
    async with kit.start(fakes) as service:
        response = await service.client.post(
            "/disaggregate", json=kit.disaggregate_body(window=window, attribution=asked)
        )
        assert response.status_code == 200, response.text
        reply = response.json()
        assert (reply["attribution"], reply["predicted_for"]) == (given, predicted_for)
        assert reply["aggregate_kw"] == kit.float32(aggregate_kw)
        assert {a["appliance_id"]: a["predicted_kw"] for a in reply["appliances"]} == shares
        assert reply["unavailable"] == []
        assert fakes["fridge"].windows == [seen]
        assert [fake.attributions for fake in fakes.values()] == [[given]] * 2
        for point in service.store.stored[0].points:
            assert datetime.fromtimestamp(point.time_ns / 1e9, UTC) == datetime.fromisoformat(predicted_for)


async def test_the_window_of_the_other_attribution_is_refused(kit: Any) -> None:
    async with kit.start(two_answers(kit)) as service:
        for attribution, size in (("final", 6), ("provisional", 5)):
            body = kit.disaggregate_body(size, attribution=attribution)
            problem(await service.client.post("/disaggregate", json=body), 422, "window_length", "/window")


def checked_intervals(reply: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Every interval holds its power and lies within the mains; the wider coverage holds the narrower one."""
    for appliance in reply["appliances"]:
        assert list(appliance["interval_kw"]) == ["80", "90"]
        for low_kw, high_kw in appliance["interval_kw"].values():
            assert 0.0 <= low_kw <= appliance["predicted_kw"] <= high_kw <= reply["aggregate_kw"]
        (low_80, high_80), (low_90, high_90) = appliance["interval_kw"].values()
        assert low_90 <= low_80
        assert high_80 <= high_90
    return {a["appliance_id"]: a["interval_kw"] for a in reply["appliances"]}


async def test_an_interval_of_a_claim_within_the_mains_is_the_models_cut_at_the_mains(service: Any, kit: Any) -> None:
    service.appliances["kettle"].predicted_w = 375.0
    service.appliances["kettle"].spread_w = 100.0
    reply = (await service.client.post("/disaggregate", json=kit.disaggregate_body())).json()
    assert checked_intervals(reply) == {
        "kettle": {"80": [0.275, 0.475], "90": [0.175, 0.5]},
        "microwave": {"80": [0.05, 0.15], "90": [0.0, 0.2]},
    }


async def test_an_interval_of_a_claim_scaled_down_comes_down_to_it_and_keeps_its_high_bound(
    service: Any, kit: Any
) -> None:
    service.appliances["kettle"].predicted_w = 300.0
    service.appliances["microwave"].predicted_w = 700.0
    reply = (await service.client.post("/disaggregate", json=kit.disaggregate_body())).json()
    # Halved to the mains of 0.5 kW. The kettle may still draw what its model said: then it was the microwave's fault.
    assert {a["appliance_id"]: a["predicted_kw"] for a in reply["appliances"]} == {"kettle": 0.15, "microwave": 0.35}
    assert checked_intervals(reply) == {
        "kettle": {"80": [0.15, 0.35], "90": [0.15, 0.4]},
        "microwave": {"80": [0.35, 0.5], "90": [0.35, 0.5]},
    }


WATTS = st.floats(0, 20_000, width=32, allow_subnormal=False)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 20, width=32, allow_subnormal=False), WATTS, WATTS, WATTS)
async def test_no_claim_makes_an_interval_contradict_its_power_or_the_mains(
    kit: Any, mains_kw: float, kettle_w: float, microwave_w: float, spread_w: float
) -> None:
    fakes = {
        "kettle": kit.FakeAppliance("kettle", predicted_w=kettle_w, spread_w=spread_w),
        "microwave": kit.FakeAppliance("microwave", predicted_w=microwave_w, spread_w=spread_w),
    }
    async with kit.start(fakes) as service:
        body = kit.disaggregate_body(window=[mains_kw] * 5)
        checked_intervals((await service.client.post("/disaggregate", json=body)).json())


FAN_OUT_FAILURES = [MODEL_FAILURES[3][0], MODEL_FAILURES[4][0], MODEL_FAILURES[5][0], MODEL_FAILURES[6][0]]


@pytest.mark.parametrize("case", range(len(FAN_OUT_FAILURES)))
async def test_an_appliance_that_fails_is_listed_and_the_others_answer(service: Any, kit: Any, case: int) -> None:
    service.appliances["kettle"].answer = FAN_OUT_FAILURES[case]
    body = (await service.client.post("/disaggregate", json=kit.disaggregate_body())).json()
    assert body["unavailable"] == ["kettle"]
    assert [a["appliance_id"] for a in body["appliances"]] == ["microwave"]
    assert [p.appliance_id for p in service.store.stored[0].points] == ["microwave"]


async def test_an_appliance_that_hangs_leaves_time_to_store_the_others(kit: Any) -> None:
    async with kit.start(request_timeout_s=0.5) as service:
        service.appliances["kettle"].answer = lambda _: asyncio.sleep(60)
        response = await service.client.post("/disaggregate", json=kit.disaggregate_body())
        assert response.status_code == 200, response.json()
        assert response.json()["unavailable"] == ["kettle"]
        assert [p.appliance_id for p in service.store.stored[0].points] == ["microwave"]


async def test_an_appliance_that_is_not_loaded_is_listed(kit: Any) -> None:
    fakes = {"kettle": kit.FakeAppliance("kettle", version=None), "microwave": kit.FakeAppliance("microwave")}
    async with kit.start(fakes) as service:
        body = (await service.client.post("/disaggregate", json=kit.disaggregate_body())).json()
        assert body["unavailable"] == ["kettle"]
        assert fakes["kettle"].windows == []


async def test_no_appliance_at_all_is_503(service: Any, kit: Any) -> None:
    for fake in service.appliances.values():
        fake.answer = FAN_OUT_FAILURES[0]
    problem(await service.client.post("/disaggregate", json=kit.disaggregate_body()), 503, "model_unavailable")
    async with kit.start(poll=False) as unpolled:
        response = await unpolled.client.post("/disaggregate", json=kit.disaggregate_body())
        problem(response, 503, "model_unavailable")
    assert service.store.stored == []


@pytest.mark.parametrize(
    ("changes", "status", "code", "pointer"),
    [
        ({"window": [0.5] * 4}, 422, "window_length", "/window"),
        ({"window": [0.5, -1, 0.5, 0.5, 0.5]}, 422, "validation", "/window/1"),
        ({"attribution": "both"}, 422, "validation", "/attribution"),
        ({"appliance_id": "kettle"}, 422, "validation", "/appliance_id"),
        ({"building_id": "other"}, 403, "forbidden_building", "/building_id"),
    ],
)
async def test_disaggregate_refuses(
    service: Any, kit: Any, changes: dict[str, object], status: int, code: str, pointer: str
) -> None:
    body = kit.infer_body(**{"appliance_id": ...} | changes)
    problem(await service.client.post("/disaggregate", json=body), status, code, pointer)
    assert service.store.stored == []
