"""`POST /infer/batch`: each window for itself, all answers in one commit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deployments.contracts import InferenceRefusal, InferenceRefused, NotPersisted, PersistFailure
from serve_app.schemas import MAX_BATCH_ITEMS
from tests.unit.serve_app.failures import problem, raises

ROUTE = "/infer/batch"


def item(kit: Any, n: int = 0, **changes: object) -> Any:
    return kit.infer_body(**({"timestamp": f"2026-01-31T18:{n % 60:02}:{n // 60:02}Z"} | changes))


async def send(service: Any, items: Any, **headers: str) -> Any:
    return await service.client.post(ROUTE, json={"items": items}, headers=headers)


async def test_items_are_answered_in_their_order_and_stored_in_one_commit(service: Any, kit: Any) -> None:
    items = [item(kit, n, appliance_id=("kettle", "microwave")[n % 2]) for n in range(6)]
    items = [one | {"window": [0.5] * service.appliances[one["appliance_id"]].window_size} for one in items]
    reply = await send(service, items)
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert (body["persisted"], body["answered"], body["refused"]) == (True, 6, 0)
    alone = [(await service.infer(one)).json() for one in items]
    together = [one["prediction"] for one in body["results"]]
    assert [one | {"request_id": ""} for one in together] == [one | {"request_id": ""} for one in alone]
    assert {one["request_id"] for one in together} == {body["request_id"]}
    (record_set, *_) = service.store.stored
    assert [point.appliance_id for point in record_set.points] == [one["appliance_id"] for one in items]


async def test_what_fails_fails_alone(service: Any, kit: Any) -> None:
    def answer(request: Any) -> Any:
        if request.window_kw[0] == 9:
            return InferenceRefused(InferenceRefusal.BAD_OUTPUT, "internal")
        return service.appliances["kettle"].inference(request)

    service.appliances["kettle"].answer = answer
    items = [
        item(kit, 0),
        item(kit, 1, building_id="other"),
        item(kit, 2, appliance_id="sauna"),
        item(kit, 3, window=[0.5] * 4),
        item(kit, 4, window=[9.0] * 5),
        item(kit, 0),
        item(kit, 6),
    ]
    body = (await send(service, items)).json()
    assert (body["answered"], body["refused"]) == (2, 5)
    told = [(one["status"], one["problem"] and one["problem"]["code"]) for one in body["results"]]
    assert told == [
        (200, None),
        (403, "forbidden_building"),
        (404, "unknown_appliance"),
        (422, "window_length"),
        (503, "model_unavailable"),
        (422, "validation"),
        (200, None),
    ]
    assert body["results"][5]["problem"]["errors"] == [{"pointer": "/timestamp", "detail": "as that of item 0"}]
    assert [one["prediction"] is None for one in body["results"]] == [status != 200 for status, _ in told]
    (record_set,) = service.store.stored
    assert len(record_set.points) == 2


async def test_a_call_of_which_nothing_is_answered_is_an_error(service: Any, kit: Any) -> None:
    items = [item(kit, n, building_id="other") for n in range(30)]
    body = problem(await send(service, items), 403, "forbidden_building", "/items/3")
    assert len(body["errors"]) == 20
    service.appliances["kettle"].answer = raises(RuntimeError())
    problem(await send(service, [item(kit, 0, building_id="other")]), 403, "forbidden_building")
    service.appliances["kettle"].answer = lambda _: InferenceRefused(InferenceRefusal.NO_MODEL, "")
    mixed = [item(kit, 0, building_id="other"), item(kit, 1)]
    problem(await send(service, mixed), 503, "model_unavailable")  # worth trying again
    assert service.store.stored == []


async def test_a_store_that_refuses_makes_nothing_of_it(service: Any, kit: Any) -> None:
    service.store.answer = lambda _: NotPersisted(PersistFailure.UNAVAILABLE, "away")
    problem(await send(service, [item(kit, n) for n in range(3)]), 503, "store_unavailable")
    assert service.store.stored == []


async def test_it_runs_once_under_a_key(service: Any, kit: Any) -> None:
    items = [item(kit, n, timestamp=None, attribution=("final", "provisional")[n]) for n in range(2)]
    items = [{name: value for name, value in one.items() if value is not None} for one in items]
    key = {"Idempotency-Key": "k-1"}
    first, second = await send(service, items, **key), await send(service, items, **key)
    assert first.status_code == 200
    assert first.content == second.content
    assert second.headers["idempotency-replayed"] == "true"
    problem(await send(service, items[:1], **key), 422, "idempotency_key_reused")
    assert len(service.store.stored) == 1
    assert len(service.appliances["kettle"].windows) == 2


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"items": []}, "/items"),
        ({}, "/items"),
        ({"items": {}}, "/items"),
        ({"items": [1]}, "/items/0"),
        ({"items": "x", "more": 1}, "/more"),
    ],
)
async def test_a_faulty_body_is_refused_whole(service: Any, body: object, pointer: str) -> None:
    problem(await service.client.post(ROUTE, json=body), 422, "validation", pointer)


async def test_faults_name_their_item(service: Any, kit: Any) -> None:
    items = [item(kit, 0), item(kit, 1, window=[0.5, 0.5, 2300, 0.5, 0.5]), item(kit, 2, timestamp="now")]
    body = problem(await send(service, items), 422, "validation", "/items/1/window/2")
    assert {fault["pointer"]: fault["detail"] for fault in body["errors"]}["/items/1/window/2"].endswith("not W")
    assert "/items/2/timestamp" in [fault["pointer"] for fault in body["errors"]]
    assert service.store.stored == []
    assert service.appliances["kettle"].windows == []


async def test_up_to_256_windows_in_few_calls(service: Any, kit: Any) -> None:
    items = [item(kit, n) for n in range(MAX_BATCH_ITEMS)]
    body = (await send(service, items)).json()
    assert body["answered"] == MAX_BATCH_ITEMS
    assert len(service.store.stored[0].points) == MAX_BATCH_ITEMS
    items.append(item(kit, 0, timestamp="2026-02-01T00:00:00Z"))
    problem(await send(service, items), 422, "validation", "/items")


async def test_its_body_may_be_larger_and_has_its_limit(service: Any, kit: Any) -> None:
    padding = " " * (1024 * 1024)
    content = '{"items": [' + padding + "]}"
    headers = {"content-type": "application/json"}
    problem(await service.client.post(ROUTE, content=content, headers=headers), 422, "validation")
    problem(await service.client.post("/infer", content=content, headers=headers), 413, "body_too_large")
    problem(await service.client.post(ROUTE, content=padding * 5, headers=headers), 413, "body_too_large")


async def test_it_has_a_quota_of_its_own(kit: Any) -> None:
    async with kit.start(rate_limit_batches_per_user=2, rate_limit_per_user=5) as service:
        for _ in range(2):
            reply = await send(service, [item(kit)])
            assert reply.status_code == 200
            assert '"batch";q=2' in reply.headers["ratelimit-policy"]
        refused = await send(service, [item(kit)])
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert (await service.infer()).status_code == 200


async def test_a_client_that_leaves_takes_its_waiting_windows_along(service: Any, kit: Any) -> None:
    service.store.release = asyncio.Event()
    call = asyncio.create_task(send(service, [item(kit, n) for n in range(3)]))
    await asyncio.wait_for(service.store.started.wait(), 5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    service.store.release.set()
    await asyncio.sleep(0.02)
    assert [len(one.points) for one in service.store.stored] == [3]  # on its way already, so it arrives whole
