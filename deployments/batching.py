"""Dynamic batching: while a batch runs, everything that arrives forms the next.

Serve's own `@serve.batch` takes its batches before there is time to run them: each is what came within a wait, and a
busy model gets many batches of one window. Here a batch is taken when there is room to run it, so batches grow with
the load by themselves, and a lone item waits for no company.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
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

    A batch holds items of `max_size` in all, by `size_of`, or one larger item; `at_once()` batches run side by side,
    and `spare` more in place of those that have been running for longer than `late_s`; `limit` items may wait.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        max_size: int,
        *,
        size_of: Callable[[Item], int] = _one,
        at_once: Callable[[], int] = _one,
        spare: int = 0,
        late_s: float = 0.0,
        limit: int | None = None,
    ) -> None:
        self._run = run
        self._max_size = max_size
        self._size_of = size_of
        self._at_once = at_once
        self._spare = spare
        self._late_s = late_s
        self._limit = limit
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._began: dict[asyncio.Task[None], float] = {}
        self._look_again: asyncio.TimerHandle | None = None

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
        self._begin()
        return future

    def _begin(self) -> None:
        """Start what there is room for; while something waits behind a batch that may run late, look again later."""
        if self._has_room():
            # A context of its own: the work is not that of the request which happens to come first.
            task = asyncio.create_task(self._work(), context=contextvars.Context())
            self._began[task] = time.monotonic()
        elif self._spare and self._look_again is None:
            self._look_again = asyncio.get_running_loop().call_later(self._late_s, self._begin_again)

    def _begin_again(self) -> None:
        self._look_again = None
        if self._waiting:
            self._begin()

    def _has_room(self) -> bool:
        running = len(self._began)
        if self._spare:
            late_since = time.monotonic() - self._late_s
            running -= min(self._spare, sum(began < late_since for began in self._began.values()))
        return running < self._at_once()

    async def _work(self) -> None:
        me = asyncio.current_task()
        assert me is not None  # noqa: S101 - a coroutine that runs has a task
        while True:
            batch = self._take()
            if batch:
                await self._finish(batch)
            # Here and not in a callback: whoever puts an item from now on must start another.
            del self._began[me]
            if not self._waiting or not self._has_room():
                return
            self._began[me] = time.monotonic()

    async def _finish(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
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
        size = 0
        while self._waiting and (not batch or size + self._size_of(self._waiting[0][0]) <= self._max_size):
            one = self._waiting.popleft()
            if not one[1].done():
                size += self._size_of(one[0])
                batch.append(one)
        return batch
