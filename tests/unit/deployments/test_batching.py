"""Batches form while others run; each item keeps its own fate."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest

from deployments.batching import Batcher, QueueFull


class Work:
    """Doubles its items, batch by batch, each when `open` lets it."""

    def __init__(self, max_items: int = 8, **options: Any) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None
        self.batcher: Batcher[int, int] = Batcher(self._run, max_items, **options)

    async def _run(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        await self.open.wait()
        if self.error is not None:
            raise self.error
        return [2 * item for item in items]

    def submit(self, *items: int) -> list[asyncio.Future[int]]:
        return [self.batcher.put(item) for item in items]


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_lone_item_waits_for_no_company() -> None:
    work = Work()
    assert await work.batcher.put(3) == 6
    assert work.batches == [[3]]


async def test_what_arrives_while_a_batch_runs_is_the_next_batch_up_to_its_limit() -> None:
    work = Work(max_items=4)
    work.open.clear()
    first = work.submit(0)
    await turns()
    later = []
    for n in range(1, 7):  # one after the other, as requests come
        later += work.submit(n)
        await turns()
    assert work.batches == [[0]]
    work.open.set()
    assert await asyncio.gather(*first, *later) == [0, 2, 4, 6, 8, 10, 12]
    assert work.batches == [[0], [1, 2, 3, 4], [5, 6]]


async def test_who_leaves_is_not_run_and_takes_nobody_along() -> None:
    work = Work()
    work.open.clear()
    running, *waiting = work.submit(0, 1, 2)
    await turns()
    assert work.batches == [[0, 1, 2]]
    late = work.submit(3, 4)
    await turns()
    running.cancel()
    late[0].cancel()
    work.open.set()
    assert await asyncio.gather(*waiting, late[1]) == [2, 4, 8]
    assert work.batches[1:] == [[4]]
    for gone in (running, late[0]):
        with pytest.raises(asyncio.CancelledError):
            await gone


async def test_a_batch_of_which_all_left_is_not_run() -> None:
    work = Work()
    work.open.clear()
    running = work.submit(0)
    await turns()
    (gone,) = work.submit(1)
    await turns()
    gone.cancel()
    work.open.set()
    await asyncio.gather(*running)
    assert await work.batcher.put(2) == 4
    assert work.batches == [[0], [2]]


async def test_a_batch_that_fails_fails_alone() -> None:
    work = Work()
    work.error = ValueError("on purpose")
    outcomes = await asyncio.gather(*work.submit(1, 2), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ValueError, ValueError]
    work.error = None
    assert await work.batcher.put(3) == 6


async def test_results_that_belong_to_nobody_are_an_error() -> None:
    async def short(items: list[int]) -> list[int]:
        return items[1:]

    batcher: Batcher[int, int] = Batcher(short, 8)
    with pytest.raises(ValueError, match="shorter"):
        await batcher.put(1)


async def test_the_work_is_in_no_requests_context() -> None:
    whose: contextvars.ContextVar[str] = contextvars.ContextVar("whose", default="nobody's")
    seen = []

    async def look(items: list[int]) -> list[int]:
        seen.append(whose.get())
        return items

    whose.set("a request's")
    await Batcher(look, 8).put(1)
    assert seen == ["nobody's"]


async def test_a_batch_is_full_by_the_size_of_its_items_and_one_that_is_larger_goes_alone() -> None:
    work = Work(max_items=10, size_of=lambda item: item)
    work.open.clear()
    first = work.submit(1)
    await turns()
    later = work.submit(4, 6, 1, 50, 9)
    work.open.set()
    await asyncio.gather(*first, *later)
    assert work.batches == [[1], [4, 6], [1], [50], [9]]


async def test_as_many_batches_run_side_by_side_as_are_allowed_at_the_time() -> None:
    allowed = 2
    work = Work(at_once=lambda: allowed)
    work.open.clear()
    futures = []
    for n in range(4):
        futures += work.submit(n)
        await turns()
    assert work.batches == [[0], [1]]
    assert work.batcher.waiting == 2
    allowed = 3
    futures += work.submit(4)
    await turns()
    assert work.batches[2:] == [[2, 3, 4]]
    work.open.set()
    assert await asyncio.gather(*futures) == [0, 2, 4, 6, 8]


async def test_only_so_many_may_wait() -> None:
    work = Work(limit=2)
    work.open.clear()
    running = work.submit(0)
    await turns()
    waiting = work.submit(1, 2)
    with pytest.raises(QueueFull):
        work.batcher.put(3)
    work.open.set()
    assert await asyncio.gather(*running, *waiting) == [0, 2, 4]


async def test_a_batch_that_runs_late_gives_its_place_to_spare_ones_and_takes_it_back() -> None:
    work = Work(spare=2, late_s=0.05)
    work.open.clear()
    futures = work.submit(0)
    await turns()
    futures += work.submit(1)
    await turns()
    assert work.batches == [[0]]
    await asyncio.sleep(0.1)  # nothing is put meanwhile
    assert work.batches == [[0], [1]]
    futures += work.submit(2)
    await asyncio.sleep(0.1)
    assert work.batches == [[0], [1], [2]]
    futures += work.submit(3)
    await asyncio.sleep(0.15)
    assert work.batches == [[0], [1], [2]]  # all spare ones are late, too
    work.open.set()
    assert await asyncio.gather(*futures) == [0, 2, 4, 6]
    work.open.clear()
    futures = []
    for n in range(4, 7):
        futures += work.submit(n)
        await turns()
    assert work.batches[4:] == [[4]]  # one at a time again
    work.open.set()
    await asyncio.gather(*futures)
    assert work.batches[4:] == [[4], [5, 6]]
