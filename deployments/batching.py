"""Dynamic batching: while one batch runs, everything that arrives forms the next.

Serve's own `@serve.batch` takes its batches before there is time to run them: each is what came within a wait, and a
busy model gets many batches of one window. Here a batch is taken when the one before it is done, so batches grow with
the load by themselves, and a lone window waits for no company.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Runs items through `run`, which gives a result per item in their order, one batch at a time."""

    def __init__(self, run: Callable[[list[Item]], Awaitable[list[Result]]], max_items: int) -> None:
        self._run = run
        self._max_items = max_items
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._working: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Its result. Raises what `run` raised for the batch. Whoever is cancelled while waiting leaves alone."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._working is None or self._working.done():
            # A context of its own: the work is not that of the request which happens to come first.
            self._working = asyncio.create_task(self._work(), context=contextvars.Context())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            batch = self._take()
            if not batch:
                continue
            try:
                results = await self._run([item for item, _ in batch])
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)
            except Exception as error:  # noqa: BLE001 - it is for those who wait
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._max_items:
            one = self._waiting.popleft()
            if not one[1].done():
                batch.append(one)
        return batch
