"""`Idempotency-Key` on `/infer` and `/disaggregate`: one run and one reply a key, whatever the client does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deployments.contracts import Claim, KeyedRequest, NotPersisted, PersistFailure, RecordSet, StoredReply
from deployments.stores.base import StoreUnavailable

ROUTES = ["/infer", "/disaggregate", "/api/infer"]


def body_of(kit: Any, route: str, **changes: object) -> dict[str, object]:
    return dict(kit.disaggregate_body(**changes) if "dis" in route else kit.infer_body(**changes))


@pytest.mark.parametrize("route", ROUTES)
async def test_sent_again_it_is_answered_byte_for_byte_and_not_run_again(service: Any, kit: Any, route: str) -> None:
    headers = {"Idempotency-Key": "key-1"}
    first = await service.client.post(route, json=body_of(kit, route), headers=headers)
    again = await service.client.post(route, json=body_of(kit, route), headers=headers)
    assert first.status_code == again.status_code == 200
    assert again.content == first.content
    assert again.headers["content-type"] == first.headers["content-type"] == "application/json"
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["x-request-id"] != first.headers["x-request-id"] == first.json()["request_id"]
    assert len(service.store.stored) == 1
    assert len(service.appliances["kettle"].windows) == 1


async def test_without_a_key_every_request_runs(service: Any) -> None:
    for _ in range(2):
        reply = await service.infer()
        assert "idempotency-replayed" not in reply.headers
    assert len(service.store.stored) == 2


async def test_a_key_is_one_of_its_user_and_its_route_is_part_of_the_request(service: Any, kit: Any) -> None:
    service.grants.buildings["user-2"] = {"home": {"*"}}
    mine = await service.infer(**{"Idempotency-Key": "k"})
    other = {"Idempotency-Key": "k", "Authorization": f"Bearer {kit.mint(sub='user-2')}"}
    assert (await service.infer(**other)).content != mine.content
    elsewhere = await service.client.post(
        "/disaggregate", json=kit.disaggregate_body(), headers={"Idempotency-Key": "k"}
    )
    assert elsewhere.status_code == 422
    same_route = await service.client.post("/api/infer", json=kit.infer_body(), headers={"Idempotency-Key": "k"})
    assert same_route.content == mine.content


@pytest.mark.parametrize(
    "change",
    [{"window": [0.1, 0.2, 0.3, 0.4, 0.6]}, {"timestamp": "2026-01-31T18:01:00+01:00"}, {"appliance_id": "microwave"}],
)
async def test_another_body_under_the_same_key_is_refused(service: Any, kit: Any, change: dict[str, object]) -> None:
    headers = {"Idempotency-Key": "k"}
    await service.infer(**headers)
    refused = await service.infer(kit.infer_body(**change), **headers)
    assert refused.status_code == 422
    problem = refused.json()
    assert problem["code"] == "idempotency_key_reused"
    assert problem["retryable"] is False
    assert problem["errors"][0]["pointer"] == "Idempotency-Key"
    assert len(service.store.stored) == 1


async def test_the_same_request_written_differently_is_the_same(service: Any, kit: Any) -> None:
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    first = await service.client.post("/infer", content=_json(kit.infer_body(window=[1, 2, 3, 4, 5])), headers=headers)
    spaced = _json(dict(reversed(kit.infer_body(window=[1.0, 2.0, 3.0, 4.0, 5.0]).items()))).replace(b", ", b" ,\n ")
    again = await service.client.post("/infer", content=spaced, headers=headers)
    assert again.content == first.content


def _json(document: object) -> bytes:
    import json

    return json.dumps(document).encode()


@pytest.mark.parametrize("key", ["k", '"k"', "!", "x" * 255, '"' + "x" * 255 + '"', "a,b", '"quo"ted"', "a=b;c"])
async def test_quoted_or_bare(service: Any, key: str) -> None:
    assert (await service.infer(**{"Idempotency-Key": key})).status_code == 200


async def test_quotes_are_not_part_of_the_key(service: Any) -> None:
    first = await service.infer(**{"Idempotency-Key": "abc"})
    assert (await service.infer(**{"Idempotency-Key": '"abc"'})).content == first.content


@pytest.mark.parametrize("key", ["", '""', "x" * 256, '"' + "x" * 256 + '"', "with space", "tab\there", "gr\xfc\xdf"])
async def test_what_is_no_key_is_refused_before_anything_runs(service: Any, key: str) -> None:
    headers = [("Idempotency-Key", key.encode("latin-1"))]
    refused = await service.client.post("/infer", json={}, headers=headers)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "Idempotency-Key"
    assert service.store.stored == []


async def test_two_keys_are_none(service: Any, kit: Any) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    assert (await service.client.post("/infer", json=kit.infer_body(), headers=headers)).status_code == 422


async def test_fifty_at_once_are_one_run(service: Any) -> None:
    service.store.release = asyncio.Event()
    calls = [asyncio.create_task(service.infer(**{"Idempotency-Key": "k"})) for _ in range(50)]
    await asyncio.wait_for(service.store.started.wait(), 5)
    await asyncio.sleep(0.05)
    service.store.release.set()
    replies = await asyncio.gather(*calls)
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.content for reply in replies}) == 1
    assert sum("idempotency-replayed" not in reply.headers for reply in replies) == 1
    assert len(service.store.stored) == 1
    assert len(service.appliances["kettle"].windows) == 1


async def test_the_first_still_running_at_the_deadline_is_a_conflict(kit: Any) -> None:
    async with kit.start(request_timeout_s=0.3) as service:
        service.store.release = asyncio.Event()
        first = asyncio.create_task(service.infer(**{"Idempotency-Key": "k"}))
        await asyncio.wait_for(service.store.started.wait(), 5)
        refused = await service.infer(**{"Idempotency-Key": "k"})
        assert refused.status_code == 409
        assert refused.json()["code"] == "idempotency_key_in_flight"
        assert refused.json()["retryable"] is True
        assert int(refused.headers["retry-after"]) >= 1
        service.store.release.set()
        await first


@pytest.mark.parametrize("failure", [f for f in PersistFailure if f is not PersistFailure.CLAIM_LOST])
async def test_a_failed_write_frees_the_key(service: Any, failure: PersistFailure) -> None:
    service.store.answer = lambda _: NotPersisted(failure, "")
    refused = await service.infer(**{"Idempotency-Key": "k"})
    assert refused.status_code in (422, 503)
    service.store.answer = None
    reply = await service.infer(**{"Idempotency-Key": "k"})
    assert reply.status_code == 200
    assert "idempotency-replayed" not in reply.headers


async def test_a_failed_model_frees_the_key(service: Any) -> None:
    def fail(_: Any) -> Any:
        raise ZeroDivisionError

    service.appliances["kettle"].answer = fail
    assert (await service.infer(**{"Idempotency-Key": "k"})).status_code == 500
    service.appliances["kettle"].answer = None
    assert (await service.infer(**{"Idempotency-Key": "k"})).status_code == 200


async def test_whoever_may_not_see_the_building_gets_no_stored_reply(service: Any) -> None:
    assert (await service.infer(**{"Idempotency-Key": "k"})).status_code == 200
    service.grants.buildings["user-1"] = {}
    service.services.grants.invalidate(None)
    assert (await service.infer(**{"Idempotency-Key": "k"})).status_code == 403


async def test_a_retry_without_a_timestamp_stands_for_the_first_instant(service: Any, kit: Any) -> None:
    body = kit.infer_body(timestamp=...)
    first_ns = 1_790_000_000_000_000_000

    async def recall(request: KeyedRequest) -> StoredReply | int | None:
        assert request.received_ns is not None
        return first_ns

    service.store.claims._look_up = recall
    reply = await service.infer(body, **{"Idempotency-Key": "k"})
    assert reply.json()["predicted_for"] == "2026-09-21T14:13:20Z"
    assert service.store.stored[0].points[0].time_ns == first_ns


async def test_a_request_that_names_its_instant_keeps_it(service: Any) -> None:
    await service.infer(**{"Idempotency-Key": "k"})
    assert service.store.stored[0].completion.claim.received_ns is None


async def test_a_client_that_leaves_while_it_claims_leaves_the_key_free(service: Any) -> None:
    gate = asyncio.Event()

    async def recall(request: KeyedRequest) -> StoredReply | int | None:
        await gate.wait()
        return request.received_ns

    service.store.claims._look_up = recall
    call = asyncio.create_task(service.infer(**{"Idempotency-Key": "k"}))
    await asyncio.sleep(0.05)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    gate.set()
    await asyncio.sleep(0.05)
    assert service.store.claims._held == {}


async def test_a_client_that_leaves_during_the_model_leaves_the_key_free(service: Any) -> None:
    running = asyncio.Event()

    async def hang(_: Any) -> Any:
        running.set()
        await asyncio.sleep(60)

    service.appliances["kettle"].answer = hang
    call = asyncio.create_task(service.infer(**{"Idempotency-Key": "k"}))
    await asyncio.wait_for(running.wait(), 5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0.05)
    assert service.store.claims._held == {}


async def test_a_client_that_leaves_during_the_write_finds_its_reply_later(service: Any) -> None:
    service.store.release = asyncio.Event()
    call = asyncio.create_task(service.infer(**{"Idempotency-Key": "k"}))
    await asyncio.wait_for(service.store.started.wait(), 5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    service.store.release.set()
    reply = await service.infer(**{"Idempotency-Key": "k"})
    assert reply.headers["idempotency-replayed"] == "true"
    assert len(service.store.stored) == 1


async def test_a_store_that_cannot_look_the_key_up_is_503(service: Any) -> None:
    service.store.recall_failure = StoreUnavailable("away", 4)
    refused = await service.infer(**{"Idempotency-Key": "k"})
    assert refused.status_code == 503
    assert refused.json()["code"] == "store_unavailable"
    assert refused.headers["retry-after"] == "4"
    assert service.appliances["kettle"].windows == []


async def test_a_lost_claim_is_a_conflict(service: Any) -> None:
    service.store.answer = lambda _: NotPersisted(PersistFailure.CLAIM_LOST, "")
    refused = await service.infer(**{"Idempotency-Key": "k"})
    assert refused.status_code == 409


async def test_the_reply_that_was_stored_first_is_the_one_given(service: Any) -> None:
    """After a restart of the store's replica two requests may run; the store takes one."""

    def earlier(record_set: RecordSet) -> StoredReply:
        assert record_set.completion is not None
        claim: Claim = record_set.completion.claim
        return StoredReply(claim.fingerprint, b'{"first": true}')

    service.store.answer = earlier
    reply = await service.infer(**{"Idempotency-Key": "k"})
    assert reply.json() == {"first": True}
    assert reply.headers["idempotency-replayed"] == "true"
    service.store.answer = lambda _: StoredReply("another request", b"{}")
    assert (await service.infer(**{"Idempotency-Key": "k2"})).status_code == 422


async def test_our_own_reply_found_again_is_no_replay(service: Any) -> None:
    service.store.answer = lambda record_set: record_set.completion.reply
    reply = await service.infer(**{"Idempotency-Key": "k"})
    assert reply.status_code == 200
    assert "idempotency-replayed" not in reply.headers
