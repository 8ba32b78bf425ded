"""A refusal at the door says what the application behind it would say, and only to those that it would refuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from serve_app.door import Door, door
from tests.told import Told
from tests.unit.serve_app.failures import problem

HOSTILE_PATH = '/its/path/its-request-id"é'


@asynccontextmanager
async def full(kit: Any, limit: int = 1) -> AsyncIterator[tuple[Any, httpx.AsyncClient, list[asyncio.Task[Any]]]]:
    """A service with no room left, a client in front of its door, and the requests that took the room."""
    async with kit.start(max_requests_in_flight=limit) as service:
        service.store.release = asyncio.Event()
        running = [asyncio.create_task(service.infer()) for _ in range(limit)]
        await asyncio.wait_for(service.store.started.wait(), 5)
        await asyncio.sleep(0.02)
        (middleware,) = door()
        transport = httpx.ASGITransport(app=middleware.cls(service.app, *middleware.args, **middleware.kwargs))
        headers = {"Authorization": f"Bearer {kit.mint()}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://nilm.test", headers=headers) as client:
            yield service, client, running
        service.store.release.set()
        assert {reply.status_code for reply in await asyncio.gather(*running)} == {200}


def said(reply: httpx.Response) -> tuple[dict[str, Any], dict[str, str]]:
    """Document and headers without what differs from request to request."""
    document = reply.json()
    assert document.pop("request_id") == reply.headers["x-request-id"]
    changing = {"x-request-id", "traceparent", "content-length"}
    return document, {name: value for name, value in reply.headers.items() if name not in changing}


@pytest.mark.parametrize("origin", [None, "allowed", "https://elsewhere.example"])
@pytest.mark.parametrize("path", ["/infer", "/api/infer", "/nowhere", HOSTILE_PATH])
async def test_it_says_what_the_application_says(kit: Any, path: str, origin: str | None) -> None:
    headers = {} if origin is None else {"Origin": kit.ORIGIN if origin == "allowed" else origin}
    async with full(kit) as (service, client, _):
        at_the_door = await client.post(path, json=kit.infer_body(), headers=headers)
        inside = await service.client.post(path, json=kit.infer_body(), headers=headers)
        problem(at_the_door, 503, "overloaded")
        assert said(at_the_door) == said(inside)
        assert at_the_door.headers["retry-after"] == "1"
        assert len(at_the_door.headers["traceparent"]) == len(inside.headers["traceparent"])
        assert ("access-control-allow-origin" in at_the_door.headers) is (origin == "allowed")


async def test_the_clients_ids_come_back(kit: Any) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    given = {"X-Request-ID": "mine-1", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    async with full(kit) as (_, client, _running):
        refused = await client.post("/infer", json=kit.infer_body(), headers=given)
        assert refused.json()["request_id"] == refused.headers["x-request-id"] == "mine-1"
        assert refused.headers["traceparent"].split("-")[1] == trace


async def test_probes_pass_and_so_does_everybody_once_there_is_room(kit: Any) -> None:
    async with full(kit, limit=2) as (service, client, running):
        for path in ("/live", "/ready", "/api/health", "/-/healthz"):
            assert (await client.get(path)).json().get("code") != "overloaded", path
        problem(await client.get("/models"), 503, "overloaded")
        service.store.release.set()
        await asyncio.gather(*running)
        assert (await client.post("/infer", json=kit.infer_body())).status_code == 200


async def test_refusals_are_counted_one_by_one_and_logged_together(kit: Any) -> None:
    async with full(kit) as (service, client, _):
        service.log.clear()
        for _ in range(5):
            problem(await client.post("/infer", json=kit.infer_body()), 503, "overloaded")
        told = Told((await service.services.exposition.text()).decode())
        assert told.value("nilm_http_requests_total", route="refused", status_class="5xx") == 5
        (line,) = service.log
        assert (line["message"], line["level"], line["code"], line["requests"]) == (
            "refused",
            "warning",
            "overloaded",
            1,
        )


async def test_without_an_application_behind_it_everybody_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Door, "_admission", None)
    seen = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    for kind in ("lifespan", "http", "websocket"):
        await Door(application)({"type": kind, "path": "/"}, None, None)  # type: ignore[arg-type]
    assert seen == ["lifespan", "http", "websocket"]
