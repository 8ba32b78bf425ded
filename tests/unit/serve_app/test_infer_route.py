"""`POST /infer`: what is answered is stored; how a model or a store fails; which of the two answers is given."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError

from deployments.contracts import (
    InferenceRefusal,
    NotPersisted,
    Persisted,
    PersistFailure,
    PowerInterval,
    RecordSet,
)
from serve_app import store_client
from serve_app.inference import MAX_ATTEMPTS
from tests.unit.serve_app.failures import MODEL_FAILURES, problem, raises


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_infer_answers_only_what_is_stored(service: Any, kit: Any, prefix: str) -> None:
    response = await service.client.post(f"{prefix}/infer", json=kit.infer_body())
    assert response.status_code == 200
    assert response.json() == {
        "predicted_kw": 0.1,
        "confidence": 0.75,
        "interval_kw": {"80": [0.05, 0.15], "90": [0.0, 0.2]},
        "attribution": "final",
        "model_version": "1.0.0",
        "request_id": response.headers["x-request-id"],
        "persisted": True,
        "predicted_for": "2026-01-31T17:00:00Z",
        "output_sample_index": 4,
        "sample_period_s": 60.0,
        "model_id": "kettle-net",
        "artifact_sha256": "ab" * 32,
    }
    ((point,),) = [record_set.points for record_set in service.store.stored]
    assert (point.building_id, point.appliance_id, point.model_version) == ("home", "kettle", "1.0.0")
    assert point.time_ns == 1_769_878_800 * 10**9
    assert (point.predicted_kw, point.confidence, point.user_id) == (0.1, 0.75, "user-1")
    assert point.aggregate_kw == kit.float32(0.5)
    assert point.request_id == response.json()["request_id"]
    assert service.appliances["kettle"].windows == [[0.1, 0.2, 0.3, 0.4, 0.5]]
    assert service.appliances["kettle"].attributions == ["final"]


async def test_the_prediction_stands_for_the_models_output_sample(kit: Any) -> None:
    appliance = kit.FakeAppliance("kettle", output_index=1, sample_period_s=6.0)
    async with kit.start({"kettle": appliance}) as service:
        response = await service.infer(kit.infer_body(timestamp="2026-01-31T17:00:00.25Z"))
        assert response.json()["predicted_for"] == "2026-01-31T16:59:42.250000Z"
        assert service.store.stored[0].points[0].time_ns == 1_769_878_782_250_000_000


async def test_the_same_request_has_the_same_identity(service: Any) -> None:
    await service.infer()
    await service.infer()
    first, second = (record_set.points[0] for record_set in service.store.stored)
    assert first.time_ns == second.time_ns
    assert first.request_id != second.request_id


@pytest.mark.parametrize(
    ("asked", "given", "index", "predicted_for", "predicted_kw", "interval_kw"),
    [
        (..., "final", 2, "2026-01-31T16:58:00Z", 2.0, {"80": [1.95, 2.05], "90": [1.9, 2.1]}),
        ("final", "final", 2, "2026-01-31T16:58:00Z", 2.0, {"80": [1.95, 2.05], "90": [1.9, 2.1]}),
        ("provisional", "provisional", 4, "2026-01-31T17:00:00Z", 1.0, {"80": [0.95, 1.05], "90": [0.9, 1.1]}),
    ],
)
async def test_the_answer_asked_for_is_given_and_stored_at_its_own_instant(
    kit: Any,
    asked: Any,
    given: str,
    index: int,
    predicted_for: str,
    predicted_kw: float,
    interval_kw: dict[str, list[float]],
) -> None:
    kettle = kit.FakeAppliance("kettle", output_index=2, provisional_index=4, predicted_w=2000.0, provisional_w=1000.0)
    async with kit.start({"kettle": kettle}) as service:
        response = await service.infer(kit.infer_body(attribution=asked))
        assert response.status_code == 200, response.text
        reply = response.json()
        assert (reply["attribution"], reply["output_sample_index"]) == (given, index)
        assert (reply["predicted_for"], reply["predicted_kw"]) == (predicted_for, predicted_kw)
        assert reply["interval_kw"] == interval_kw
        assert kettle.attributions == [given]
        (point,) = service.store.stored[0].points
        assert datetime.fromtimestamp(point.time_ns / 1e9, UTC) == datetime.fromisoformat(predicted_for)
        assert (point.predicted_kw, point.aggregate_kw) == (predicted_kw, kit.float32((index + 1) / 10))


async def test_a_final_answer_has_the_identity_of_the_provisional_one_for_its_instant(kit: Any) -> None:
    kettle = kit.FakeAppliance("kettle", output_index=2, provisional_index=4)
    async with kit.start({"kettle": kettle}) as service:
        # Two samples later the same instant is in the middle of the window.
        await service.infer(kit.infer_body(attribution="provisional", timestamp="2026-01-31T17:00:00Z"))
        await service.infer(kit.infer_body(attribution="final", timestamp="2026-01-31T17:02:00Z"))
        first, second = (record_set.points[0] for record_set in service.store.stored)
        assert (first.building_id, first.appliance_id, first.model_version, first.time_ns) == (
            second.building_id,
            second.appliance_id,
            second.model_version,
            second.time_ns,
        )


async def test_an_interval_holds_the_power_even_where_the_bounds_of_the_model_do_not(service: Any) -> None:
    kettle = service.appliances["kettle"]
    bounds = (PowerInterval(0.8, 120.0, 130.0), PowerInterval(0.9, 0.0, 90.0))
    kettle.answer = lambda request: replace(kettle.inference(request), intervals=bounds)
    assert (await service.infer()).json()["interval_kw"] == {"80": [0.1, 0.13], "90": [0.0, 0.1]}


def not_persisted(failure: PersistFailure, retry_after_s: int = 1) -> Callable[[RecordSet], NotPersisted]:
    return lambda _: NotPersisted(failure, "disk /secret/path is full", retry_after_s)


STORE_FAILURES: list[tuple[Callable[[RecordSet], Any], int, str, str | None]] = [
    (not_persisted(PersistFailure.UNAVAILABLE, 9), 503, "store_unavailable", "9"),
    (not_persisted(PersistFailure.UNAVAILABLE, 0), 503, "store_unavailable", "1"),
    (not_persisted(PersistFailure.DEADLINE, 2), 503, "store_unavailable", "2"),
    (not_persisted(PersistFailure.QUEUE_FULL, 3), 503, "overloaded", "3"),
    (not_persisted(PersistFailure.REJECTED), 422, "record_rejected", None),
    (raises(BackPressureError(num_queued_requests=1, max_queued_requests=1)), 503, "overloaded", "1"),
    (raises(RayActorError()), 503, "store_unavailable", "1"),
    (raises(RuntimeError("bug with /secret/path")), 500, "internal", None),
]


@pytest.mark.parametrize("case", range(len(STORE_FAILURES)))
@pytest.mark.parametrize("route", ["/infer", "/disaggregate"])
async def test_a_store_that_fails_is_never_acknowledged(service: Any, kit: Any, case: int, route: str) -> None:
    service.store.answer, status, code, retry_after = STORE_FAILURES[case]
    body = kit.infer_body() if route == "/infer" else kit.disaggregate_body()
    response = await service.client.post(route, json=body)
    problem(response, status, code)
    assert response.headers.get("retry-after") == retry_after
    assert "secret" not in response.text
    assert service.store.stored == []
    service.store.answer = None
    assert (await service.client.post(route, json=body)).status_code == 200


async def test_a_silent_store_ends_with_the_deadline(kit: Any) -> None:
    async with kit.start(request_timeout_s=0.2) as service:
        service.store.release = asyncio.Event()
        started = time.perf_counter()
        problem(await service.infer(), 503, "store_unavailable")
        assert time.perf_counter() - started < 2


@pytest.mark.parametrize("case", range(len(MODEL_FAILURES)))
async def test_a_model_that_fails_stores_nothing(service: Any, case: int) -> None:
    service.appliances["kettle"].answer, status, code = MODEL_FAILURES[case]
    response = await service.infer()
    problem(response, status, code)
    assert "secret" not in response.text
    assert service.store.stored == []
    service.appliances["kettle"].answer = None
    assert (await service.infer()).status_code == 200


async def test_every_refusal_of_a_model_is_a_problem() -> None:
    assert {case[0](None).reason for case in MODEL_FAILURES[: len(InferenceRefusal)]} == set(InferenceRefusal)


async def test_a_lost_replica_is_asked_again_and_not_for_ever(service: Any) -> None:
    kettle = service.appliances["kettle"]
    left = MAX_ATTEMPTS - 1

    def flaky(request: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise RayActorError
        return kettle.inference(request)

    kettle.answer = flaky
    assert (await service.infer()).status_code == 200
    assert len(kettle.windows) == MAX_ATTEMPTS
    kettle.windows.clear()
    kettle.answer = raises(RayActorError())
    problem(await service.infer(), 503, "model_unavailable")
    assert len(kettle.windows) == MAX_ATTEMPTS


async def test_code_that_fails_in_a_replica_is_not_run_again(service: Any, kit: Any) -> None:
    kettle = service.appliances["kettle"]
    kettle.answer = raises(RayTaskError("infer", "traceback with /secret/path", ValueError("x")).as_instanceof_cause())
    response = await service.infer()
    assert problem(response, 503, "model_unavailable")["detail"] == "The model failed on this window."
    assert "secret" not in response.text
    assert len(kettle.windows) == 1
    body = (await service.client.post("/disaggregate", json=kit.disaggregate_body())).json()
    assert body["unavailable"] == ["kettle"]


async def test_a_record_set_lost_with_its_replica_is_sent_again(service: Any) -> None:
    """It overwrites itself, whether or not the first one arrived."""
    sent: list[object] = []

    def lost_once(record_set: object) -> Any:
        sent.append(record_set)
        if len(sent) == 1:
            raise RayActorError
        return Persisted(commit_size=1, persist_ms=1.0)

    service.store.answer = lost_once
    assert (await service.infer()).status_code == 200
    assert len(sent) == 2
    assert sent[0] == sent[1]


async def test_a_store_whose_replicas_are_lost_again_and_again_is_away(service: Any) -> None:
    calls = 0

    def lost(_: object) -> Any:
        nonlocal calls
        calls += 1
        raise RayActorError

    service.store.answer = lost
    problem(await service.infer(), 503, "store_unavailable")
    assert calls == store_client.MAX_ATTEMPTS


async def test_a_store_that_crashes_on_a_record_set_is_not_asked_again(service: Any) -> None:
    calls = 0

    def crash(_: object) -> Any:
        nonlocal calls
        calls += 1
        raise RayTaskError("persist", "traceback", ValueError("bug"))

    service.store.answer = crash
    problem(await service.infer(), 503, "store_unavailable")
    assert calls == 1


async def test_a_hanging_model_ends_with_the_deadline(kit: Any) -> None:
    async with kit.start(request_timeout_s=0.2) as service:
        service.appliances["kettle"].answer = lambda _: asyncio.sleep(60)
        problem(await service.infer(), 503, "deadline_exceeded")
        assert service.store.stored == []
