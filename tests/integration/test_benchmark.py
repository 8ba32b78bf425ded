"""The systems of the benchmark are honest: each knows its callers and has stored what it acknowledges. And it runs."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.registry import Registry
from serve_app.access.development import mint_development_token
from serve_app.cli.ports import free_port
from serve_app.settings import DEVELOPMENT_ISSUER
from tests.bench.serving.closed_loop import closed_loop
from tests.bench.serving.markdown import BEGIN, END
from tests.bench.serving.open_loop import open_loop
from tests.bench.serving.request_set import JSON, RequestSet
from tests.bench.serving.running import Running
from tests.bench.serving.systems import SYSTEMS, USER, access_token
from tests.integration.service import ROOT, SECRET
from tests.servers.packages import PartsMissing, apt_install, do_without

pytestmark = pytest.mark.integration
KETTLE = Registry.load().active("kettle")
BURST = 40


@pytest.fixture(scope="module")
def wrk() -> None:
    if shutil.which("wrk") is None:
        try:
            apt_install(["wrk"])
        except PartsMissing as missing:
            do_without(missing)


def rows(database: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM prediction")]


def body(building_id: str, samples: int = KETTLE.input_window_size) -> dict[str, Any]:
    return {"building_id": building_id, "appliance_id": "kettle", "window": [0.25] * samples}


@pytest.mark.parametrize("key", ["naive", "tuned", "litserve", "serve"])
def test_a_baseline_knows_its_callers_and_stores_before_it_answers(key: str, tmp_path: Path) -> None:
    assert SYSTEMS[key].missing == []
    token = access_token()
    with SYSTEMS[key].start(tmp_path, KETTLE.model_version) as running:
        refuses_strangers(running)
        known = httpx.Client(
            base_url=running.url, headers={"Authorization": f"Bearer {token}"}, timeout=30, trust_env=False
        )
        with known as client:
            assert client.post("/infer", json=body("home-1", samples=7)).status_code in {422, 500}
            assert rows(running.database) == []
            reply = client.post("/infer", json=body("home-1"))
            assert reply.status_code == 200, reply.text
            answer = reply.json()
            (row,) = rows(running.database)
        assert answer["persisted"] is True
        assert answer["model_version"] == row["model_version"] == KETTLE.model_version
        assert (answer["predicted_kw"], answer["confidence"]) == (row["predicted_kw"], row["confidence"])
        assert (row["building_id"], row["aggregate_kw"]) == ("home-1", 0.25)
        asyncio.run(burst(running, token))
        assert {row["building_id"] for row in rows(running.database)} >= {f"burst-{n}" for n in range(BURST)}


def refuses_strangers(running: Running) -> None:
    forged = mint_development_token("not" + SECRET, USER, 60, DEVELOPMENT_ISSUER)
    for headers in ({}, {"Authorization": "Bearer nothing"}, {"Authorization": f"Bearer {forged}"}):
        reply = httpx.post(f"{running.url}/infer", json=body("home-1"), headers=headers, timeout=30, trust_env=False)
        assert reply.status_code == 401, reply.text
    assert rows(running.database) == []


async def burst(running: Running, token: str) -> None:
    """Each on a connection of its own, so that every worker of a system gets some."""

    async def ask(n: int) -> int:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            headers = {"Authorization": f"Bearer {token}"}
            reply = await client.post(f"{running.url}/infer", json=body(f"burst-{n}"), headers=headers)
        return reply.status_code

    assert await asyncio.gather(*(ask(n) for n in range(BURST))) == [200] * BURST


def test_a_quick_run_measures_prints_and_writes(wrk: None, tmp_path: Path) -> None:
    document, figures = tmp_path / "performance.md", tmp_path / "figures.json"
    document.write_text(f"Prose.\n{BEGIN}\n{END}\n")
    command = [sys.executable, "-m", "tests.bench.serving", "--quick", "--systems", "naive", "--concurrency", "4"]
    command += ["--folder", str(tmp_path), "--json", str(figures), "--markdown", str(document)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = json.loads(figures.read_text())
    assert [sample["load"] for sample in measured["samples"]] == [
        "c=4",
        "open, 50% of capacity",
        "open, 80% of capacity",
    ]
    for one in measured["samples"]:
        assert one["result"]["acknowledged"] > 0
        assert (one["result"]["failures"], one["lost"]) == (0, 0)
        assert one["cpu_s"]["naive"] > 0
    assert {one["batch"] for one in measured["engine"]} == {1, 8, 32, 64}
    written = document.read_text()
    assert written.startswith(f"Prose.\n{BEGIN}\n\n")
    assert "### Every system under every load" in written
    assert "| c=4 | naive monolith |" in written
    assert str(tmp_path) not in written


Answer = Callable[[float], Awaitable[int]]
"""Given the seconds since the server began, waits as long as it likes and returns a status."""


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    """An HTTP server whose every delay is known."""
    loop, port, began_s = asyncio.new_event_loop(), free_port(), time.monotonic()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            status = await answer(time.monotonic() - began_s)
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nok" % status)
        writer.close()

    listening = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", port))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{port}"
    loop.call_soon_threadsafe(listening.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


@pytest.fixture
def requests_file(tmp_path: Path) -> Path:
    RequestSet("token", JSON, (("/infer", b"{}"), ("/infer", b"[1]"))).write(tmp_path / "requests")
    return tmp_path / "requests"


async def in_20_ms(_: float) -> int:
    await asyncio.sleep(0.02)
    return 200


def test_the_open_loop_sees_a_known_delay_and_keeps_its_rate(requests_file: Path) -> None:
    with server(in_20_ms) as url:
        result = open_loop(url, requests_file, 200.0, 3.0, seed=1)
    assert result.failures == 0
    assert result.acknowledged == pytest.approx(600, rel=0.15)
    assert 20 <= result.p50_ms < 30
    assert result.late_ms < 20


def test_the_open_loop_charges_a_stall_to_all_who_would_have_come_meanwhile(requests_file: Path) -> None:
    """A second's stall in three delays a third of the arrivals, by half a second on average. A closed loop of one
    client would have noticed a single slow reply.
    """
    stalled: list[float] = []

    async def stalls(now_s: float) -> int:
        stalled.append(now_s)
        first_s = stalled[0]
        if first_s + 1 <= now_s < first_s + 2:
            await asyncio.sleep(first_s + 2 - now_s)
        return 200

    with server(stalls) as url:
        result = open_loop(url, requests_file, 200.0, 3.0, seed=1)
    assert result.failures == 0
    assert result.p50_ms < 50
    assert 900 < result.p99_ms < 1200


@pytest.mark.parametrize("generator", ["closed", "open"])
def test_both_generators_count_refusals_as_failures(wrk: None, requests_file: Path, generator: str) -> None:
    count = itertools.count()

    async def every_fourth_is_refused(_: float) -> int:
        return 503 if next(count) % 4 == 0 else 200

    with server(every_fourth_is_refused) as url:
        if generator == "closed":
            result = closed_loop(url, requests_file, 4, 1.0)
        else:
            result = open_loop(url, requests_file, 300.0, 1.0, seed=1)
    asked = result.acknowledged + result.failures
    assert result.failures / asked == pytest.approx(0.25, abs=0.01)


def test_wrk_and_the_open_loop_agree_on_an_idle_server(wrk: None, requests_file: Path) -> None:
    with server(in_20_ms) as url:
        closed, opened = closed_loop(url, requests_file, 1, 2.0), open_loop(url, requests_file, 50.0, 2.0, seed=1)
    assert opened.p50_ms == pytest.approx(closed.p50_ms, abs=3.0)
