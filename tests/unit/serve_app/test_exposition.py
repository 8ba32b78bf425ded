"""One exposition of many nodes': sums, silence, sizes, and what Ray's own labels become."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import httpx
import pytest

from deployments.nodes import Node
from deployments.telemetry import Telemetry
from serve_app import exposition
from serve_app.exposition import Exposition, merged
from tests.told import Told
from tests.unit.node_agent import RAYS, NodeAgent

NODES = [Node("node-1", "http://192.0.2.1:1/metrics"), Node("node-2", "http://192.0.2.2:2/metrics")]


def counted(*stages: str) -> bytes:
    agent = NodeAgent()
    figures = Telemetry(agent.sink)
    requests = figures.counter("nilm_requests", "Requests", "stage")
    took = figures.histogram("nilm_took_seconds", "Took", (0.1, 1.0), "stage")
    for stage in stages:
        requests.add(stage)
        took.observe(0.5, stage)
    figures.flush()
    return agent.text().encode()


def ok(text: bytes) -> httpx.Response:
    return httpx.Response(200, stream=httpx.ByteStream(text))


def of_another_node(text: bytes) -> bytes:
    return text.replace(RAYS["NodeAddress"].encode(), b"192.0.2.2").replace(b"#abcdefgh", b"#ijklmnop")


def asking(answer: Any, nodes: list[Node] = NODES) -> Exposition:
    return Exposition(lambda: nodes, logging.Logger("quiet"), transport=httpx.MockTransport(answer))


async def told(answer: Any) -> Told:
    return Told((await asyncio.wait_for(asking(answer).text(), 5)).decode())


async def test_every_node_is_asked_and_every_replica_keeps_its_name() -> None:
    answers = {"192.0.2.1": counted("infer", "infer"), "192.0.2.2": of_another_node(counted("infer", "auth"))}
    everything = await told(lambda request: ok(answers[request.url.host]))
    assert everything.value("nilm_requests_total", stage="infer") == 3
    assert everything.value("nilm_requests_total", stage="infer", node="192.0.2.1") == 2
    assert everything.value("nilm_requests_total", replica="nilm#ingress#ijklmnop") == 2
    assert everything.value("nilm_took_seconds_bucket", stage="infer", le="0.1") == 0
    assert everything.value("nilm_took_seconds_bucket", stage="infer", le="1.0") == 3
    assert everything.value("nilm_took_seconds_sum", stage="infer") == 1.5
    assert everything.value("nilm_metrics_nodes", state="answered") == 2
    for foreign in ("ray_", "WorkerId", "SessionName", "Component", "otel_scope_name", "NodeAddress"):
        assert foreign not in everything.text


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500),
        ok(b'ray_nilm_requests_total{stage="a" 1.0\n'),
        ok(b"ray_nilm_requests_total many\n"),
        ok(b"ray_nilm_\xff 1.0\n"),
        ok(b"x" * 20_000),
        httpx.ConnectError("refused"),
    ],
)
async def test_a_node_that_does_not_answer_is_missing_and_counted(
    answer: httpx.Response | Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "MAX_NODE_BYTES", len(counted("infer")))

    def of(request: httpx.Request) -> httpx.Response:
        if request.url.host == "192.0.2.1":
            return ok(counted("infer"))
        if isinstance(answer, Exception):
            raise answer
        return answer

    rest = await told(of)
    assert rest.value("nilm_requests_total", stage="infer") == 1
    assert [rest.value("nilm_metrics_nodes", state=state) for state in ("answered", "silent")] == [1, 1]


async def test_a_node_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "TIMEOUT_S", 0.05)

    async def hang(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        raise AssertionError

    assert (await told(hang)).value("nilm_metrics_nodes", state="silent") == 2


async def test_while_rays_head_is_away_the_nodes_of_before_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(exposition, "FRESH_S", 0.0)
    head_is_back, behaviour = threading.Event(), ["told"]

    def nodes() -> list[Node]:
        if behaviour[0] == "raises":
            raise RuntimeError
        if behaviour[0] == "hangs":
            head_is_back.wait(20)
        return NODES

    transport = httpx.MockTransport(lambda _: ok(counted("infer")))
    one = Exposition(nodes, logging.Logger("quiet"), transport=transport)
    for behaviour[0] in ("told", "raises", "hangs", "hangs"):
        rest = Told((await asyncio.wait_for(one.text(), 5)).decode())
        assert rest.value("nilm_metrics_nodes", state="answered") == 2, behaviour
    head_is_back.set()

    behaviour[0] = "raises"
    rest = Told((await Exposition(nodes, logging.Logger("quiet"), transport=transport).text()).decode())
    assert [rest.value("nilm_metrics_nodes", state=state) for state in ("answered", "silent")] == [0, 1]


async def test_who_asks_at_the_same_time_or_soon_after_shares_the_answer() -> None:
    asked = 0

    def answer(_: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        return ok(counted("infer"))

    one = asking(answer)
    await asyncio.gather(*(one.text() for _ in range(50)))
    await one.text()
    assert asked == len(NODES)


async def test_a_scraper_that_leaves_takes_the_answer_from_nobody() -> None:
    gate = asyncio.Event()

    async def wait(_: httpx.Request) -> httpx.Response:
        await gate.wait()
        return ok(counted("infer"))

    one = asking(wait)
    leaves, stays = asyncio.create_task(one.text()), asyncio.create_task(one.text())
    await asyncio.sleep(0.05)
    leaves.cancel()
    gate.set()
    assert b"nilm_requests_total" in await asyncio.wait_for(stays, 5)


def test_a_report_in_the_middle_of_an_observation_makes_no_bucket_smaller_than_the_one_before() -> None:
    one_late = counted("infer").replace(b'le="+Inf"', b'le="x"').replace(b"} 1.0", b"} 2.0").replace(b'"x"', b'"+Inf"')
    lines = [line.replace(b"} 2.0", b"} 1.0") if b'le="+Inf"' in line else line for line in one_late.splitlines(True)]
    told = Told(merged([b"".join(lines)], 0).decode())
    assert told.value("nilm_took_seconds_bucket", le="1.0") == told.value("nilm_took_seconds_bucket", le="+Inf") == 2
    assert told.value("nilm_took_seconds_count") == 2
