"""Clients that hang up: what was on its way to the store still arrives, and nothing counts as our error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from deployments.contracts import RecordSet
from serve_app.store_client import CALLS, StoreClient
from tests.told import Told


async def cancel_while_storing(service: Any, kit: Any, route: str) -> None:
    """A client that hangs up while its prediction is on its way to the store; the store then goes on."""
    service.store.release = asyncio.Event()
    body = kit.infer_body() if route == "/infer" else kit.disaggregate_body()
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


async def store_three_and_leave_the_last(service: Any) -> None:
    """The last waits for a call of its own, because as many as may are on their way, and its client hangs up."""
    service.store.release = asyncio.Event()
    waiting = service.app.state.services.predictor.store._predictions
    calls = []
    for n in range(CALLS + 1):
        calls.append(asyncio.create_task(service.infer()))
        await until(lambda n=n: waiting.waiting == int(n == CALLS) and service.store.calls == min(n + 1, CALLS))
    calls[-1].cancel()
    await asyncio.gather(calls[-1], return_exceptions=True)
    service.store.release.set()
    await asyncio.gather(*calls[:-1])
    await until(lambda: not waiting._waiting and not waiting._began)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - the stand-in tells nobody
            await asyncio.sleep(0.001)


async def test_a_prediction_that_waits_for_the_store_arrives_as_well(service: Any) -> None:
    await store_three_and_leave_the_last(service)
    assert len(service.store.stored) == CALLS + 1


async def test_without_the_shield_that_test_fails(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unshielded(self: StoreClient, record_set: RecordSet) -> Any:
        return await self._put(record_set)

    monkeypatch.setattr(StoreClient, "persist", unshielded)
    await store_three_and_leave_the_last(service)
    assert len(service.store.stored) == CALLS


async def test_a_client_that_leaves_is_no_error_of_ours(service: Any, kit: Any) -> None:
    await cancel_while_storing(service, kit, "/infer")
    assert [line["level"] for line in service.log] == ["info"]
    assert service.log[0]["status"] == 499
    scraper = {"Authorization": f"Bearer {kit.ADMIN_TOKEN}"}
    reply = await service.client.get("/metrics", headers=scraper)
    told = Told(reply.text)
    assert told.value("nilm_http_requests_total", status_class="5xx") == 0
    assert told.value("nilm_http_requests_total", route="/infer", status_class="4xx") == 1


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
