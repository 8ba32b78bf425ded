"""`POST /infer` and `POST /disaggregate` through the whole ASGI application."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError

from deployments.contracts import (
    InferenceRefusal,
    InferenceRefused,
    NotPersisted,
    PersistFailure,
    RecordSet,
)
from serve_app.inference import MAX_ATTEMPTS

JSON_TYPE = {"content-type": "application/json"}


def problem(response: httpx.Response, status: int, code: str, pointer: str | None = None) -> dict[str, Any]:
    """The reply is this problem, whole and self-consistent."""
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["code"]) == (status, code), body
    assert response.headers["content-type"] == "application/problem+json"
    assert body["status"] == status
    assert body["instance"] == response.request.url.path
    assert body["request_id"] == response.headers.get("x-request-id")
    assert ("retry-after" in response.headers) == (status == 503)
    if status == 503:
        assert int(response.headers["retry-after"]) >= 1
        assert body["retryable"] is True
    if pointer is not None:
        assert pointer in [fault["pointer"] for fault in body["errors"]], body["errors"]
    assert "persisted" not in body
    return body


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_infer_answers_only_what_is_stored(service: Any, kit: Any, prefix: str) -> None:
    response = await service.client.post(f"{prefix}/infer", json=kit.infer_body())
    assert response.status_code == 200
    assert response.json() == {
        "predicted_kw": 0.1,
        "confidence": 0.75,
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


BODY_FAULTS: list[tuple[str, dict[str, object] | str, int, str, str | None]] = [
    ("too short", {"window": [0.1]}, 422, "window_length", "/window"),
    ("too long", {"window": [0.1] * 6}, 422, "window_length", "/window"),
    ("far too long", {"window": [0.1] * 30_000}, 422, "validation", "/window"),
    ("empty", {"window": []}, 422, "validation", "/window"),
    ("NaN", "[0.1, NaN, 0.3, 0.4, 0.5]", 422, "validation", "/window/1"),
    ("Inf", "[0.1, 0.2, Infinity, 0.4, 0.5]", 422, "validation", "/window/2"),
    ("overflow", "[0.1, 0.2, 1e999, 0.4, 0.5]", 422, "validation", "/window/2"),
    ("text", {"window": ["a", 0.2, 0.3, 0.4, 0.5]}, 422, "validation", "/window/0"),
    ("number as text", {"window": [0.1, 0.2, "0.3", 0.4, 0.5]}, 422, "validation", "/window/2"),
    ("null", {"window": [0.1, 0.2, None, 0.4, 0.5]}, 422, "validation", "/window/2"),
    ("bool", {"window": [True, 0.2, 0.3, 0.4, 0.5]}, 422, "validation", "/window/0"),
    ("nested", {"window": [[0.1, 0.2], 0.3]}, 422, "validation", "/window/0"),
    ("negative", {"window": [0.1, -0.2, 0.3, 0.4, 0.5]}, 422, "validation", "/window/1"),
    ("watts", {"window": [0.1, 2300, 0.3, 0.4, 0.5]}, 422, "validation", "/window/1"),
    ("no building", {"building_id": ...}, 422, "validation", "/building_id"),
    ("newline", {"building_id": "home\n"}, 422, "validation", "/building_id"),
    ("foreign building", {"building_id": "other"}, 403, "forbidden_building", "/building_id"),
    ("unknown appliance", {"appliance_id": "sauna"}, 404, "unknown_appliance", "/appliance_id"),
    ("appliance path", {"appliance_id": "../kettle"}, 422, "validation", "/appliance_id"),
    ("unknown field", {"windows": []}, 422, "validation", "/windows"),
    ("pointer escapes", {"a/b~c": 1}, 422, "validation", "/a~1b~0c"),
    ("invalid date", {"timestamp": "2026-02-30T00:00:00Z"}, 422, "validation", "/timestamp"),
    ("no offset", {"timestamp": "2026-01-31T18:00:00"}, 422, "validation", "/timestamp"),
    ("epoch", {"timestamp": 1769882400}, 422, "validation", "/timestamp"),
    ("future", {"timestamp": "2226-01-31T18:00:00Z"}, 422, "validation", "/timestamp"),
]


@pytest.mark.parametrize("name", [case[0] for case in BODY_FAULTS])
async def test_each_faulty_body_has_its_own_4xx_and_the_next_request_works(service: Any, kit: Any, name: str) -> None:
    _, change, status, code, pointer = next(case for case in BODY_FAULTS if case[0] == name)
    if isinstance(change, str):
        content = json.dumps(kit.infer_body(window="W")).replace('"W"', change)
    else:
        content = json.dumps(kit.infer_body(**change))
    response = await service.client.post("/infer", content=content, headers=JSON_TYPE)
    body = problem(response, status, code, pointer)
    assert body["retryable"] is False
    assert service.store.stored == []
    assert (await service.infer()).status_code == 200


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{'a': 1}", b'{"a": 1,}', b"\xff\xfe", b"[" * 100_000, b'{"window":' + b"[" * 200_000, b"nul"],
    ids=["empty", "open", "quotes", "comma", "utf-16", "deep", "deep window", "junk"],
)
async def test_what_is_not_json_is_400(service: Any, content: bytes) -> None:
    problem(await service.client.post("/infer", content=content, headers=JSON_TYPE), 400, "malformed_json")
    assert (await service.infer()).status_code == 200


@pytest.mark.parametrize("content", [b"[]", b"7", b"null", b'"text"'])
async def test_json_that_is_no_object_points_at_the_whole(service: Any, content: bytes) -> None:
    problem(await service.client.post("/infer", content=content, headers=JSON_TYPE), 422, "validation", "")


async def test_many_faults_make_a_small_reply(service: Any, kit: Any) -> None:
    extras = {f"extra_{i}": i for i in range(5_000)}
    body = problem(await service.infer(kit.infer_body(**extras)), 422, "validation", "/extra_0")
    assert len(body["errors"]) == 20
    # Of a window the first fault is enough: listing all of them would block the event loop.
    body = problem(await service.infer(kit.infer_body(window=["x"] * 20_000)), 422, "validation", "/window/0")
    assert len(body["errors"]) == 1
    wide = {"k" * 500 + str(i): 1 for i in range(100)}
    response = await service.infer(kit.infer_body(**wide))
    assert len(response.content) < 8_000


@pytest.mark.parametrize("cut", [79, 80, 81])
async def test_a_pointer_is_cut_at_a_whole_character(service: Any, kit: Any, cut: int) -> None:
    body = problem(await service.infer(kit.infer_body(**{"k" * cut + "/~/~": 1})), 422, "validation")
    pointer = body["errors"][0]["pointer"]
    assert "~" not in pointer.replace("~0", "").replace("~1", "")


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"content-type": "text/plain"}, "application/json"),
        ({"content-type": "application/x-www-form-urlencoded"}, "application/json"),
        ({"content-type": "multipart/form-data; boundary=x"}, "application/json"),
        ({"content-type": "application/jsonp"}, "application/json"),
        ({"content-type": ""}, "application/json"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, "Compressed"),
        ({"content-type": "application/json", "content-encoding": "br"}, "Compressed"),
    ],
)
async def test_another_type_or_encoding_is_415(service: Any, kit: Any, headers: dict[str, str], says: str) -> None:
    content = json.dumps(kit.infer_body()).encode()
    content = gzip.compress(content) if headers.get("content-encoding") == "gzip" else content
    response = await service.client.post("/infer", content=content, headers=headers)
    assert says in problem(response, 415, "unsupported_media_type")["detail"]
    assert (await service.infer()).status_code == 200


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8"])
async def test_json_types_that_are_accepted(service: Any, kit: Any, content_type: str) -> None:
    content = json.dumps(kit.infer_body())
    response = await service.client.post("/infer", content=content, headers={"content-type": content_type})
    assert response.status_code == 200


async def test_a_large_body_with_its_length_is_413_and_never_read(service: Any) -> None:
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(10):
            read += 1
            yield b"0" * 1_000_000

    headers = JSON_TYPE | {"content-length": "10000000"}
    problem(await service.client.post("/infer", content=chunks(), headers=headers), 413, "body_too_large")
    assert read <= 1
    assert (await service.infer()).status_code == 200


async def test_a_large_chunked_body_is_413_when_the_limit_is_crossed(service: Any) -> None:
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(160):
            read += 1
            yield b" " * 65_536

    response = await service.client.post("/infer", content=chunks(), headers=JSON_TYPE)
    problem(response, 413, "body_too_large")
    assert response.headers["connection"] == "close"
    assert read <= 8
    assert (await service.infer()).status_code == 200


@pytest.mark.parametrize(("extra", "status"), [(0, 200), (1, 413)])
@pytest.mark.parametrize("chunked", [False, True])
async def test_the_body_limit_is_exact(service: Any, kit: Any, extra: int, status: int, chunked: bool) -> None:
    content = json.dumps(kit.infer_body()).encode()
    content += b" " * (256 * 1024 + extra - len(content))

    async def stream() -> AsyncIterator[bytes]:
        yield content

    response = await service.client.post("/infer", content=stream() if chunked else content, headers=JSON_TYPE)
    assert response.status_code == status


async def test_an_understated_length_does_not_help(service: Any) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 65_536

    headers = JSON_TYPE | {"content-length": "10"}
    problem(await service.client.post("/infer", content=chunks(), headers=headers), 413, "body_too_large")


@pytest.mark.parametrize("authorization", ["", "Bearer junk", "Basic abc"])
async def test_no_token_is_refused_before_the_body_is_read(service: Any, kit: Any, authorization: str) -> None:
    response = await service.client.post("/infer", content=b"{", headers={"authorization": authorization})
    body = problem(response, 401, "token_malformed" if "junk" in authorization else "token_missing")
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert body["retryable"] is False


def not_persisted(failure: PersistFailure, retry_after_s: int = 1) -> Callable[[RecordSet], NotPersisted]:
    return lambda _: NotPersisted(failure, "disk /secret/path is full", retry_after_s)


def raises(error: Exception) -> Callable[..., Any]:
    def fail(_: object) -> Any:
        raise error

    return fail


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
    body = kit.infer_body() if route == "/infer" else kit.infer_body(appliance_id=...)
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


def refused(reason: InferenceRefusal) -> Callable[[object], InferenceRefused]:
    return lambda _: InferenceRefused(reason, "internal /secret/path", input_window_size=599)


MODEL_FAILURES: list[tuple[Callable[[Any], Any], int, str]] = [
    (refused(InferenceRefusal.WINDOW_LENGTH), 422, "window_length"),
    (refused(InferenceRefusal.NOT_FINITE), 422, "validation"),
    (refused(InferenceRefusal.DEADLINE), 503, "deadline_exceeded"),
    (refused(InferenceRefusal.NO_MODEL), 503, "model_unavailable"),
    (refused(InferenceRefusal.BAD_OUTPUT), 503, "model_unavailable"),
    (raises(BackPressureError(num_queued_requests=1, max_queued_requests=1)), 503, "overloaded"),
    (raises(RayActorError()), 503, "model_unavailable"),
    (raises(RuntimeError("bug with /secret/path")), 500, "internal"),
]


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
    assert {case[0](None).reason for case in MODEL_FAILURES[:5]} == set(InferenceRefusal)


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
    body = (await service.client.post("/disaggregate", json=disaggregate_body(kit))).json()
    assert body["unavailable"] == ["kettle"]


async def test_a_lost_store_replica_is_not_asked_again(service: Any) -> None:
    calls = 0

    def lost(_: object) -> Any:
        nonlocal calls
        calls += 1
        raise RayActorError

    service.store.answer = lost
    problem(await service.infer(), 503, "store_unavailable")
    assert calls == 1


async def test_a_hanging_model_ends_with_the_deadline(kit: Any) -> None:
    async with kit.start(request_timeout_s=0.2) as service:
        service.appliances["kettle"].answer = lambda _: asyncio.sleep(60)
        problem(await service.infer(), 503, "deadline_exceeded")
        assert service.store.stored == []


def disaggregate_body(kit: Any, size: int = 5) -> dict[str, object]:
    body: dict[str, object] = kit.infer_body(appliance_id=..., window=[0.5] * size)
    return body


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_disaggregate_splits_the_mains_and_stores_one_record_set(
    service: Any, kit: SimpleNamespace, prefix: str
) -> None:
    service.appliances["kettle"].predicted_w = 300.0
    response = await service.client.post(f"{prefix}/disaggregate", json=disaggregate_body(kit))
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
    body = (await service.client.post("/disaggregate", json=disaggregate_body(kit))).json()
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


FAN_OUT_FAILURES = [MODEL_FAILURES[3][0], MODEL_FAILURES[4][0], MODEL_FAILURES[5][0], MODEL_FAILURES[6][0]]


@pytest.mark.parametrize("case", range(len(FAN_OUT_FAILURES)))
async def test_an_appliance_that_fails_is_listed_and_the_others_answer(service: Any, kit: Any, case: int) -> None:
    service.appliances["kettle"].answer = FAN_OUT_FAILURES[case]
    body = (await service.client.post("/disaggregate", json=disaggregate_body(kit))).json()
    assert body["unavailable"] == ["kettle"]
    assert [a["appliance_id"] for a in body["appliances"]] == ["microwave"]
    assert [p.appliance_id for p in service.store.stored[0].points] == ["microwave"]


async def test_an_appliance_that_hangs_leaves_time_to_store_the_others(kit: Any) -> None:
    async with kit.start(request_timeout_s=0.5) as service:
        service.appliances["kettle"].answer = lambda _: asyncio.sleep(60)
        response = await service.client.post("/disaggregate", json=disaggregate_body(kit))
        assert response.status_code == 200, response.json()
        assert response.json()["unavailable"] == ["kettle"]
        assert [p.appliance_id for p in service.store.stored[0].points] == ["microwave"]


async def test_an_appliance_that_is_not_loaded_is_listed(kit: Any) -> None:
    fakes = {"kettle": kit.FakeAppliance("kettle", version=None), "microwave": kit.FakeAppliance("microwave")}
    async with kit.start(fakes) as service:
        body = (await service.client.post("/disaggregate", json=disaggregate_body(kit))).json()
        assert body["unavailable"] == ["kettle"]
        assert fakes["kettle"].windows == []


async def test_no_appliance_at_all_is_503(service: Any, kit: Any) -> None:
    for fake in service.appliances.values():
        fake.answer = FAN_OUT_FAILURES[0]
    problem(await service.client.post("/disaggregate", json=disaggregate_body(kit)), 503, "model_unavailable")
    async with kit.start(poll=False) as unpolled:
        response = await unpolled.client.post("/disaggregate", json=disaggregate_body(kit))
        problem(response, 503, "model_unavailable")
    assert service.store.stored == []


@pytest.mark.parametrize(
    ("changes", "status", "code", "pointer"),
    [
        ({"window": [0.5] * 4}, 422, "window_length", "/window"),
        ({"window": [0.5, -1, 0.5, 0.5, 0.5]}, 422, "validation", "/window/1"),
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


async def cancel_while_storing(service: Any, kit: Any, route: str) -> None:
    """A client that hangs up while its prediction is on its way to the store; the store then goes on."""
    service.store.release = asyncio.Event()
    body = kit.infer_body() if route == "/infer" else disaggregate_body(kit)
    call = asyncio.create_task(service.client.post(route, json=body))
    await asyncio.wait_for(service.store.started.wait(), 5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    service.store.release.set()
    await asyncio.sleep(0.02)


@pytest.mark.parametrize("route", ["/infer", "/disaggregate"])
async def test_a_prediction_on_its_way_to_the_store_arrives_when_the_client_leaves(
    service: Any, kit: Any, route: str
) -> None:
    await cancel_while_storing(service, kit, route)
    assert service.store.cancelled == 0
    assert len(service.store.stored) == 1
    assert (await service.infer()).status_code == 200


async def test_without_the_shield_that_test_fails(service: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve_app.inference import persist
    from serve_app.predict import Predictor

    async def unshielded(self: Any, points: Any, context: Any) -> None:
        await persist(self.persistence, RecordSet(points=points, deadline_s=context.deadline_s))

    monkeypatch.setattr(Predictor, "_store", unshielded)
    await cancel_while_storing(service, kit, "/infer")
    assert service.store.cancelled == 1
    assert service.store.stored == []


async def test_a_client_that_leaves_is_no_error_of_ours(service: Any, kit: Any) -> None:
    await cancel_while_storing(service, kit, "/infer")
    assert [line["level"] for line in service.log] == ["info"]
    assert service.log[0]["status"] == 499
    assert 'status_class="5xx"' not in (await service.client.get("/metrics")).text


async def test_a_client_that_leaves_during_its_upload_is_no_crash(service: Any, kit: Any) -> None:
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/infer",
        "raw_path": b"/infer",
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"authorization", f"Bearer {kit.mint()}".encode())],
        "client": ("127.0.0.1", 1),
        "server": ("nilm.test", 80),
    }
    messages = [{"type": "http.request", "body": b'{"win', "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(_: Any) -> None:
        return None

    await service.app(scope, receive, send)
    assert [line["message"] for line in service.log] == ["request"]
    assert service.log[0]["status"] < 500
