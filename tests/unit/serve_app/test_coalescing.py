"""Windows that wait together travel together, and each keeps its own deadline, client and fate."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.blocks import InferenceBlock
from deployments.contracts import InferenceRefusal, InferenceRefused, InferenceRequest
from models.attribution import Attribution
from serve_app import inference
from serve_app.inference import CALLS_PER_REPLICA, ModelClient
from serve_app.problems import Problem
from tests.unit.handles import Method


class Calls:
    """A deployment that keeps the blocks it is sent until `open` lets it answer."""

    def __init__(self, kettle: Any) -> None:
        self.blocks: list[InferenceBlock] = []
        self.open = asyncio.Event()
        self.infer = Method(self._infer)
        self._kettle = kettle

    @property
    def sizes(self) -> list[int]:
        return [len(block.lengths) for block in self.blocks]

    async def _infer(self, block: InferenceBlock) -> list[Any]:
        self.blocks.append(block)
        await self.open.wait()
        return [self._answer(one) for one in block.requests()]

    def _answer(self, request: InferenceRequest) -> Any:
        if request.building_id == "odd":
            return InferenceRefused(InferenceRefusal.BAD_OUTPUT, "")
        return self._kettle.inference(request)


@pytest.fixture
def calls(service: Any) -> Calls:
    return Calls(service.appliances["kettle"])


def run(client: ModelClient, building: str = "home", wait_s: float = 5.0, size: int = 5) -> asyncio.Task[Any]:
    window = np.full(size, 0.5, dtype=np.float32)
    return asyncio.create_task(client.run_window(building, window, Attribution.FINAL, time.time() + wait_s))


async def fill(client: ModelClient, replicas: int = 1) -> list[asyncio.Task[Any]]:
    """As many calls as may be on their way."""
    running = []
    for _ in range(CALLS_PER_REPLICA * replicas):
        running.append(run(client))
        await asyncio.sleep(0.001)
    return running


async def test_what_waits_travels_as_one_call_that_says_how_much_more_there_is(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "CALL_SAMPLES", 20)
    client = ModelClient(calls, lambda: 1, "ingress")
    running = await fill(client)
    waiting = [run(client) for _ in range(6)]
    await asyncio.sleep(0.005)
    assert calls.sizes == [1] * CALLS_PER_REPLICA
    calls.open.set()
    await asyncio.gather(*running, *waiting)
    assert calls.sizes[CALLS_PER_REPLICA:] == [4, 2]
    assert [block.waiting for block in calls.blocks[CALLS_PER_REPLICA:]] == [2, 0]


async def test_each_replica_hears_of_its_share_of_what_waits(calls: Calls) -> None:
    client = ModelClient(calls, lambda: 3, "ingress-7")
    running = await fill(client, replicas=3)
    waiting = [run(client) for _ in range(6)]
    await asyncio.sleep(0.005)
    calls.open.set()
    await asyncio.gather(*running, *waiting)
    assert {block.sender for block in calls.blocks} == {"ingress-7"}
    # Whatever travels, what stays is a third for each: three replicas that hear of it add it up to what there is.
    left = 6
    for block in calls.blocks[CALLS_PER_REPLICA * 3 :]:
        left -= len(block.lengths)
        assert block.waiting == pytest.approx(left / 3)


async def test_more_replicas_get_more_calls_at_once(calls: Calls) -> None:
    client = ModelClient(calls, lambda: 3, "ingress")
    running = await fill(client, replicas=3)
    assert calls.sizes == [1] * CALLS_PER_REPLICA * 3
    calls.open.set()
    await asyncio.gather(*running)


async def test_a_window_that_fails_fails_alone(calls: Calls) -> None:
    client = ModelClient(calls, lambda: 0, "ingress")
    running = await fill(client)
    odd, even = run(client, "odd"), run(client, "even")
    calls.open.set()
    outcomes = await asyncio.gather(*running, odd, even, return_exceptions=True)
    assert [isinstance(one, Problem) for one in outcomes] == [False] * CALLS_PER_REPLICA + [True, False]


async def test_a_deadline_and_a_client_that_leaves_concern_one_window(calls: Calls) -> None:
    client = ModelClient(calls, lambda: 1, "ingress")
    running = await fill(client)
    late, gone, patient = run(client, wait_s=0.03), run(client), run(client)
    await asyncio.sleep(0.005)
    gone.cancel()
    with pytest.raises(Problem, match="did not answer in time"):
        await late
    calls.open.set()
    await asyncio.gather(*running, patient)
    assert calls.sizes[CALLS_PER_REPLICA:] == [1]


async def test_who_comes_when_too_many_wait_is_refused_at_once(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "WAITING_WINDOWS", 3)
    client = ModelClient(calls, lambda: 1, "ingress")
    running = await fill(client)
    waiting = [run(client) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Problem, match="Too many windows"):
        await run(client)
    calls.open.set()
    await asyncio.gather(*running, *waiting)


async def test_requests_of_many_clients_share_calls_and_commits(service: Any, kit: Any) -> None:
    blocks, writes = [], []
    kettle, store = service.appliances["kettle"], service.store
    infer, persist = kettle._infer, store._persist

    async def count_blocks(block: InferenceBlock) -> Any:
        blocks.append(len(block.lengths))
        await asyncio.sleep(0.01)
        return await infer(block)

    async def count_writes(record_sets: Any) -> Any:
        writes.append(len(record_sets))
        await asyncio.sleep(0.01)
        return await persist(record_sets)

    kettle._infer, store._persist = count_blocks, count_writes
    replies: list[httpx.Response] = await asyncio.gather(*(service.infer() for _ in range(40)))
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.json()["request_id"] for reply in replies}) == 40
    assert sum(blocks) == sum(writes) == len(store.stored) == 40
    assert max(blocks) > 5
    assert max(writes) > 5
