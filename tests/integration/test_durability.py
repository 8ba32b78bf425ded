"""Acknowledged means durable: every process killed under load, a client that hangs up, a store that fails."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.service import ROOT, SECRET, Service, running_service, shape_of

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

    with running_service(tmp_path) as service:
        with service.client() as client:
            window = kettle_window(client)
        asyncio.run(load(service, window))
        stored = {row["request_id"] for row in service.rows()}
        lost = set(acknowledged) - stored
        print(f"attempts {attempted}, acknowledged {len(acknowledged)}, stored {len(stored)}, lost {len(lost)}")
        assert not lost
    with running_service(tmp_path) as again:
        assert set(acknowledged) <= {row["request_id"] for row in again.rows()}


@pytest.fixture
def influx(tmp_path: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.servers.influx2", "--log", str(tmp_path / "influx.log")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = json.loads(server.stdout.readline())["port"]
        yield f"http://127.0.0.1:{port}"
        server.kill()


def control(influx: str, **fault: Any) -> None:
    httpx.post(f"{influx}/__control", json=fault, trust_env=False).raise_for_status()


def influx_rows(influx: str) -> str:
    return httpx.get(f"{influx}/__rows", trust_env=False).text


def test_influxdb_a_hang_up_and_an_outage(tmp_path: Path, influx: str) -> None:
    environment = {
        "INFLUX_URL": influx,
        "INFLUX_TOKEN": "test-token",
        "INFLUX_ORG": "test-org",
        "INFLUX_BUCKET_PRED": "predictions",
        "INFLUX_BUCKET_RAW": "raw",
        "SUPABASE_JWT_SECRET": SECRET,
    }
    with running_service(tmp_path, environment=environment) as service, service.client() as client:
        window = kettle_window(client)
        body = {"building_id": "steady", "appliance_id": "kettle", "window": window}
        reply = client.post("/infer", json=body)
        assert reply.status_code == 200, reply.text
        assert reply.json()["request_id"] in influx_rows(influx)

        # The store takes a second; the client hangs up while the write is under way.
        control(influx, kind="none", latency_s=1.5)
        _send_and_hang_up(service, body | {"building_id": "hung-up"}, after_s=1.0)
        end = time.monotonic() + 15
        while "hung-up" not in influx_rows(influx) and time.monotonic() < end:
            time.sleep(0.2)
        assert "hung-up" in influx_rows(influx)

        # An outage: refused with a time to come back, never a false `persisted`; then it recovers by itself.
        control(influx, kind="status", status=503, retry_after_s=1, latency_s=0.0)
        refused = client.post("/infer", json=body | {"building_id": "outage"})
        assert refused.status_code == 503, refused.text
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["code"] == "store_unavailable"
        assert "persisted" not in refused.json()
        assert "outage" not in influx_rows(influx)
        control(influx, kind="none")
        started = time.monotonic()
        while client.post("/infer", json=body | {"building_id": "back"}).status_code != 200:
            assert time.monotonic() - started < 30
            time.sleep(0.2)
        print(f"first success {time.monotonic() - started:.1f} s after the store came back")
        assert "back" in influx_rows(influx)


def _send_and_hang_up(service: Service, body: dict[str, Any], after_s: float) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    raw = json.dumps(body).encode()
    head = (
        f"POST /infer HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {service.token()}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + raw)
        time.sleep(after_s)
