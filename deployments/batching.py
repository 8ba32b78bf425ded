"""Dynamic batching: while a batch runs, everything that arrives forms the next.

Serve's own `@serve.batch` takes its batches before there is time to run them: each is what came within a wait, and a
busy model gets many batches of one window. Here a batch is taken when there is room to run it, so batches grow with
the load by themselves, and a lone item waits for no company.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFull(Exception):
    """Too many items wait already."""


def _one(_: Any = None) -> int:
    return 1


class Batcher(Generic[Item, Result]):
    """Runs items through `run`, which gives a result per item in their order.

    A batch holds items of `max_size` in all, by `size_of`, or one larger item; `at_once()` batches run side by side;
    `limit` items may wait.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        max_size: int,
        *,
        size_of: Callable[[Item], int] = _one,
        at_once: Callable[[], int] = _one,
        limit: int | None = None,
    ) -> None:
        self._run = run
        self._max_size = max_size
        self._size_of = size_of
        self._at_once = at_once
        self._limit = limit
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._working: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Items that are not in a batch yet."""
        return len(self._waiting)

    def put(self, item: Item) -> asyncio.Future[Result]:
        """Its result, or what `run` raised for the batch. Cancelled before its batch, an item leaves alone.

        Raises `QueueFull`.
        """
        if self._limit is not None and len(self._waiting) >= self._limit:
            raise QueueFull
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if len(self._working) < self._at_once():
            # A context of its own: the work is not that of the request which happens to come first.
            self._working.add(asyncio.create_task(self._work(), context=contextvars.Context()))
        return future

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
        # Here and not in a callback: whoever puts an item from now on must start another.
        self._working.discard(asyncio.current_task())

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        size = 0
        while self._waiting and (not batch or size + self._size_of(self._waiting[0][0]) <= self._max_size):
            one = self._waiting.popleft()
            if not one[1].done():
                size += self._size_of(one[0])
                batch.append(one)
        return batch
