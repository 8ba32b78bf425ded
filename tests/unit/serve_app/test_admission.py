"""Too many requests at a time: the rest is refused at once, and nothing of it sticks."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.unit.serve_app.failures import problem


async def test_what_there_is_no_room_for_is_refused_at_once_and_probes_are_answered(kit: Any) -> None:
    async with kit.start(max_requests_in_flight=3) as service:
        service.store.release = asyncio.Event()
        running = [asyncio.create_task(service.infer()) for _ in range(3)]
        await asyncio.wait_for(service.store.started.wait(), 5)
        for path in ("/infer", "/api/infer"):
            refused = await service.client.post(path, json=kit.infer_body())
            problem(refused, 503, "overloaded")
        problem(await service.client.get("/models"), 503, "overloaded")
        assert (await service.client.get("/live")).status_code == 200
        assert (await service.client.get("/api/ready")).status_code in (200, 503)
        headers = {"Authorization": f"Bearer {kit.ADMIN_TOKEN}"}
        assert (await service.client.get("/metrics", headers=headers)).status_code == 200
        service.store.release.set()
        assert {reply.status_code for reply in await asyncio.gather(*running)} == {200}
        assert (await service.infer()).status_code == 200
        assert len(service.store.stored) == 4


async def test_clients_that_leave_make_room(kit: Any) -> None:
    async with kit.start(max_requests_in_flight=1) as service:
        service.store.release = asyncio.Event()
        for _ in range(3):
            leaving = asyncio.create_task(service.infer())
            await asyncio.sleep(0.02)
            problem(await service.infer(), 503, "overloaded")
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
        service.store.release.set()
        assert (await service.infer()).status_code == 200


async def test_a_refusal_takes_nothing_from_a_quota(kit: Any) -> None:
    async with kit.start(max_requests_in_flight=1, rate_limit_per_ip=2) as service:
        service.store.release = asyncio.Event()
        running = asyncio.create_task(service.infer())
        await asyncio.wait_for(service.store.started.wait(), 5)
        for _ in range(5):
            problem(await service.infer(), 503, "overloaded")
        service.store.release.set()
        await running
        assert (await service.infer()).status_code == 200
