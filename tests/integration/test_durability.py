"""Acknowledged means durable: every process killed under load. Single faults are in `tests/fault`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.integration.service import Service, running_service, service_config, shape_of

pytestmark = pytest.mark.integration


def kettle_window(client: httpx.Client) -> list[float]:
    return [0.2] * int(shape_of(client, "kettle")["input_window_size"])


def test_kill_9_of_every_process_loses_nothing_acknowledged_and_a_restart_keeps_it(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    attempted = 0

    async def load(service: Service, window: list[float]) -> None:
        nonlocal attempted
        headers = {"Authorization": f"Bearer {service.token()}"}
        async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=5, trust_env=False) as client:
            stop = asyncio.Event()

            async def worker(n: int) -> None:
                nonlocal attempted
                i = 0
                while not stop.is_set():
                    i += 1
                    attempted += 1
                    body = {"building_id": f"w{n}-{i}", "appliance_id": "kettle", "window": window}
                    try:
                        reply = await client.post("/infer", json=body)
                    except httpx.TransportError:
                        await asyncio.sleep(0.05)
                        continue
                    if reply.status_code == 200:
                        acknowledged.append(reply.json()["request_id"])

            workers = [asyncio.create_task(worker(n)) for n in range(8)]
            while len(acknowledged) < 60:  # noqa: ASYNC110 - the workers know no event for "enough"
                await asyncio.sleep(0.02)
            killed = await asyncio.to_thread(service.kill_everything)
            print(f"killed {killed} processes after {len(acknowledged)} acknowledgements of {attempted} attempts")
            assert killed > 5
            await asyncio.sleep(0.5)
            stop.set()
            await asyncio.gather(*workers)

    config = service_config(tmp_path / "serve_config.yaml", appliances=["kettle"])
    with running_service(tmp_path, config) as service:
        with service.client() as client:
            window = kettle_window(client)
        asyncio.run(load(service, window))
        stored = {row["request_id"] for row in service.rows()}
        lost = set(acknowledged) - stored
        print(f"attempts {attempted}, acknowledged {len(acknowledged)}, stored {len(stored)}, lost {len(lost)}")
        assert not lost
    with running_service(tmp_path, config) as again:
        assert set(acknowledged) <= {row["request_id"] for row in again.rows()}
