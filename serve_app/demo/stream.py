"""Sends the windows of a plan with a few in flight and hands the outcomes back in order of time.

Stops on request within `GRACE_S`; what was answered by then is still handed back.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from serve_app.demo.errors import ServiceError, WindowFailed
from serve_app.demo.recording import WindowRequest
from serve_app.demo.replies import Disaggregation

IN_FLIGHT = 4  # enough to hide the commit's latency behind the next windows, few enough to stay a polite client
GRACE_S = 2.0
_FAILURES_IN_A_ROW = 10  # by then it is the service, not the window


@dataclass(frozen=True)
class Outcome:
    """What became of one window: a stored reply, or the reason there is none."""

    window: WindowRequest
    reply: Disaggregation | None
    failure: str | None = None


class Disaggregates(Protocol):
    """The part of the client a stream needs."""

    async def disaggregate(self, building_id: str, window: WindowRequest) -> Disaggregation:
        """Send one window; raises `WindowFailed` or `ServiceError`."""
        ...


@dataclass(frozen=True)
class Pace:
    """When a window may go: `interval_s` apart, 0 for as fast as the service answers."""

    interval_s: float = 0.0

    @classmethod
    def parse(cls, rate: str, sample_period_s: int) -> Pace:
        """`max`, `realtime`, or how many times real time (`60` is an hour a minute).

        Raises:
            ValueError: none of these.
        """
        word = rate.strip().lower()
        if word == "max":
            return cls()
        factor = 1.0 if word == "realtime" else float(word)
        if not 0 < factor < float("inf"):
            raise ValueError(rate)
        return cls(sample_period_s / factor)


async def stream(
    client: Disaggregates, building_id: str, windows: Sequence[WindowRequest], pace: Pace, stop: asyncio.Event
) -> AsyncIterator[Outcome]:
    """Yield one outcome a window, oldest first, until all are done or `stop` is set.

    Raises:
        ServiceError: the service cannot be used any more; the outcomes before it were yielded.
    """
    began = time.monotonic()
    pending: deque[asyncio.Task[Outcome]] = deque()
    stopped = asyncio.ensure_future(stop.wait())
    error: BaseException | None = None
    failures = 0
    sent = 0
    try:
        while (pending or sent < len(windows)) and not stop.is_set() and error is None:
            while sent < len(windows) and len(pending) < IN_FLIGHT:
                due = began + sent * pace.interval_s
                pending.append(asyncio.create_task(_send_at(due, client, building_id, windows[sent])))
                sent += 1
            await asyncio.wait({pending[0], stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not pending[0].done():
                continue
            task = pending.popleft()
            error = task.exception()
            if error is None:
                outcome = task.result()
                yield outcome
                failures = failures + 1 if outcome.reply is None else 0
                if failures >= _FAILURES_IN_A_ROW:
                    error = ServiceError(f"{failures} windows in a row failed: {outcome.failure}.")
        if pending:  # they may be stored already: count them
            await asyncio.wait(pending, timeout=GRACE_S)
        for task in pending:
            if task.done() and task.exception() is None:
                yield task.result()
    finally:
        stopped.cancel()
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, stopped, return_exceptions=True)
    if error is not None:
        raise error


async def _send_at(due: float, client: Disaggregates, building_id: str, window: WindowRequest) -> Outcome:
    if (delay_s := due - time.monotonic()) > 0:
        await asyncio.sleep(delay_s)
    try:
        return Outcome(window, await client.disaggregate(building_id, window))
    except WindowFailed as error:
        return Outcome(window, None, str(error))
