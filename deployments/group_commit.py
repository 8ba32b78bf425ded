"""Group commit: everything that waits becomes one commit, and a commit starts as soon as the last one ended.

No timer: a lone request is written at once, and the time one commit takes is what lets the next one fill.
Owns the bounded queue, deadlines, the circuit breaker and the one writer thread. Knows neither Ray nor any
particular store.

A record set is taken -> sent -> known. Until it is sent it can still be dropped (deadline); once sent, its
fate is the store's, whether or not the caller still listens.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from deployments.contracts import (
    NotPersisted,
    Persisted,
    PersistFailure,
    PersistResult,
    RecordSet,
    StoreStatus,
)
from deployments.stores.base import PredictionStore, StoreUnavailable, WriteOutcome

logger = logging.getLogger(__name__)

COMMIT_RECORDS = 5000
"""Rows of one commit, more only if one record set has more: an upload of readings waits for the next one."""
WAITING_RECORDS = 50_000
"""Rows that may wait; ten commits of readings."""
QUEUE_LIMIT = 1024
"""Record sets that may wait. At 500 a second and 20 ms a commit ten wait; a thousand means a store in trouble."""

LONGEST_WAIT_S = 60.0
"""No caller waits longer, whatever deadline it brought."""

PING_TTL_S = 1.0
PING_TIMEOUT_S = 1.0
FIRST_PROBE_S = 0.25
LONGEST_PROBE_S = 4.0
"""The breaker's probes start soon (most outages are a restart) and become rare (no hammering in a long one)."""


_LATE = NotPersisted(PersistFailure.DEADLINE, "the deadline passed in the queue; not written")


class CommitObserver(Protocol):
    """Who is told what happened; the Persistence deployment turns it into metrics."""

    def committed(self, *, succeeded: bool, record_sets: int, seconds: float) -> None:
        """One commit ended."""
        ...

    def answered(self, result: PersistResult) -> None:
        """One record set has its answer."""
        ...


@dataclass(slots=True, eq=False)
class _Waiting:
    record_set: RecordSet
    answer: asyncio.Future[PersistResult]
    taken_at: float
    sent: bool = False


class GroupCommit:
    """Makes record sets durable through one store. Use from one event loop; `close()` it at the end."""

    def __init__(
        self,
        store: PredictionStore,
        observer: CommitObserver,
        *,
        queue_limit: int = QUEUE_LIMIT,
        readings: bool = False,
    ) -> None:
        """`readings`: what will be written, so that a ping looks at their place."""
        self._store = store
        self._readings = readings
        self._observer = observer
        self._queue_limit = queue_limit
        self._queue: deque[_Waiting] = deque()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        # Apart from the writer: a status must not wait behind a commit that hangs.
        self._prober = ThreadPoolExecutor(1, thread_name_prefix="store-prober")
        self._commits: asyncio.Task[None] | None = None
        self._breaker = _Breaker()
        self._probe: asyncio.Task[None] | None = None
        self._ping: asyncio.Future[None] | None = None
        self._pinged_at = float("-inf")
        self._ping_failure: StoreUnavailable | None = None
        self._closing = False

    async def persist(
        self, record_set: RecordSet, known: Callable[[PersistResult], None] | None = None
    ) -> PersistResult:
        """The answer for one record set, by its deadline. A failing store is an answer, not an exception.

        `known` is called once with what really became of it, which may be after the deadline, or after the caller
        was cancelled.
        """
        result = await self._persist(record_set, known)
        self._observer.answered(result)
        return result

    async def _persist(self, record_set: RecordSet, known: Callable[[PersistResult], None] | None) -> PersistResult:
        loop = asyncio.get_running_loop()
        waiting = _Waiting(record_set, loop.create_future(), time.monotonic())
        if known is not None:
            waiting.answer.add_done_callback(lambda answer: known(answer.result()))
        remaining_s = record_set.deadline_s - time.time()
        refused = self._refused_at_once(remaining_s)
        if refused is not None:
            _answer(waiting, refused)
            return refused
        self._queue.append(waiting)
        if self._commits is None or self._commits.done():
            # The task starts after everything that is ready in this turn of the loop has joined the queue.
            self._commits = loop.create_task(self._commit_all())
        # wait(), unlike wait_for(), leaves the future alone when this caller is cancelled.
        await asyncio.wait({waiting.answer}, timeout=min(remaining_s, LONGEST_WAIT_S))
        if waiting.answer.done():
            return waiting.answer.result()
        if waiting.sent:
            return NotPersisted(PersistFailure.DEADLINE, "the deadline passed during the commit; it may be stored")
        self._queue.remove(waiting)
        _answer(waiting, _LATE)
        return _LATE

    def _refused_at_once(self, remaining_s: float) -> NotPersisted | None:
        if not remaining_s > 0:  # also refuses NaN
            return NotPersisted(PersistFailure.DEADLINE, "the deadline had passed; not written")
        if self._closing:
            return NotPersisted(PersistFailure.UNAVAILABLE, "the store is being closed")
        if self._breaker.outage is not None:
            return _unavailable(self._breaker.outage)
        if len(self._queue) >= self._queue_limit:
            return NotPersisted(PersistFailure.QUEUE_FULL, f"{self._queue_limit} record sets are waiting")
        if sum(waiting.record_set.records for waiting in self._queue) >= WAITING_RECORDS:
            return NotPersisted(PersistFailure.QUEUE_FULL, f"{WAITING_RECORDS} rows are waiting")
        return None

    async def _commit_all(self) -> None:
        while batch := self._take():
            await self._commit(batch)

    def _take(self) -> list[_Waiting]:
        """What waits and still has time, up to `COMMIT_RECORDS`; whose time is up is answered here and not written."""
        now = time.time()
        batch: list[_Waiting] = []
        records = 0
        while self._queue and (not batch or records + self._queue[0].record_set.records <= COMMIT_RECORDS):
            waiting = self._queue.popleft()
            records += waiting.record_set.records
            if waiting.record_set.deadline_s > now:
                waiting.sent = True
                batch.append(waiting)
            else:
                _answer(waiting, _LATE)
        return batch

    async def _commit(self, batch: list[_Waiting]) -> None:
        started_at = time.monotonic()
        record_sets = [waiting.record_set for waiting in batch]
        try:
            outcomes = await asyncio.get_running_loop().run_in_executor(self._writer, self._store.write, record_sets)
            answers = _answers(batch, outcomes)
        except StoreUnavailable as failure:
            outage: StoreUnavailable | None = failure
        except Exception:
            # A bug of the store. Its callers get an answer, and the next commit gets its chance.
            logger.exception("the store failed in a way it should not")
            outage = StoreUnavailable("the store failed unexpectedly")
        else:
            outage = next((_as_outage(a) for a in answers if _is_unavailable(a)), None)
            for waiting, answer in zip(batch, answers, strict=True):
                _answer(waiting, answer)
        self._observer.committed(
            succeeded=outage is None, record_sets=len(batch), seconds=time.monotonic() - started_at
        )
        if outage is None:
            self._breaker.succeeded()
            self._pinged_at, self._ping_failure = time.monotonic(), None
        else:
            self._fail_everything(batch, outage)

    def _fail_everything(self, batch: list[_Waiting], outage: StoreUnavailable) -> None:
        """Answer everyone now: who waits behind a dead store would only wait to learn the same."""
        logger.warning("commit of %d record sets failed: %s", len(batch), outage.detail)
        for waiting in (*batch, *self._queue):
            _answer(waiting, _unavailable(outage))
        self._queue.clear()
        self._breaker.failed(outage)
        if self._probe is None or self._probe.done():
            self._probe = asyncio.get_running_loop().create_task(self._probe_until_usable())

    async def _probe_until_usable(self) -> None:
        """Half-open without a victim: the probe is a ping, never somebody's record set."""
        while self._breaker.outage is not None:
            await asyncio.sleep(self._breaker.next_probe_s())
            failure = await self._ping_store()
            if failure is None:
                self._breaker.outage = None
            else:
                self._breaker.failed(failure)

    def _ping_once(self) -> None:
        self._store.ping(readings=self._readings)

    async def _ping_store(self) -> StoreUnavailable | None:
        """What keeps the store from being used, or None. Single flight, bounded even when the store hangs."""
        if self._ping is None or self._ping.done():
            self._ping = asyncio.get_running_loop().run_in_executor(self._prober, self._ping_once)
        ping = self._ping
        await asyncio.wait({ping}, timeout=PING_TIMEOUT_S)
        if not ping.done():
            failure: StoreUnavailable | None = StoreUnavailable(f"no answer within {PING_TIMEOUT_S:g} s")
        else:
            error = ping.exception()
            if error is None or isinstance(error, StoreUnavailable):
                failure = error
            else:
                logger.error("the store's ping failed in a way it should not", exc_info=error)
                failure = StoreUnavailable("the store failed unexpectedly")
        self._pinged_at, self._ping_failure = time.monotonic(), failure
        return failure

    def raise_outage(self) -> None:
        """Raise StoreUnavailable while the store is known to be away, so that nobody waits to learn it again."""
        if self._breaker.outage is not None:
            raise self._breaker.outage

    @property
    def queued(self) -> int:
        """Record sets that wait."""
        return len(self._queue)

    async def status(self) -> StoreStatus:
        """Whether the store is usable: known for a second at most, or asked for a second at most."""
        failure = self._breaker.outage
        if failure is None and time.monotonic() - self._pinged_at <= PING_TTL_S:
            failure = self._ping_failure
        elif failure is None:
            failure = await self._ping_store()
        return StoreStatus(
            kind=self._store.kind,
            reachable=failure is None and not self._closing,
            detail=failure.detail if failure is not None else "",
        )

    async def close(self) -> None:
        """Take nothing more and finish what was taken. The store stays open. Safe to call twice."""
        if self._closing:
            return
        self._closing = True
        if self._commits is not None:
            await asyncio.wait({self._commits})
        if self._probe is not None:
            self._probe.cancel()
        if self._ping is not None:
            await asyncio.wait({self._ping}, timeout=PING_TIMEOUT_S)
        self._writer.shutdown(wait=False)
        self._prober.shutdown(wait=False)


class _Breaker:
    """Open while `outage` is set. Probes become rarer until a commit, not merely a probe, succeeds."""

    def __init__(self) -> None:
        self.outage: StoreUnavailable | None = None
        self._failures = 0

    def failed(self, outage: StoreUnavailable) -> None:
        self.outage = outage
        self._failures += 1

    def succeeded(self) -> None:
        self.outage = None
        self._failures = 0

    def next_probe_s(self) -> float:
        ceiling = min(FIRST_PROBE_S * 2.0 ** min(self._failures - 1, 10), LONGEST_PROBE_S)
        return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret


def _answers(batch: list[_Waiting], outcomes: Sequence[WriteOutcome]) -> list[PersistResult]:
    if len(outcomes) != len(batch):
        raise ValueError(f"the store gave {len(outcomes)} outcomes for {len(batch)} record sets")
    now = time.monotonic()
    durable = sum(outcome is None for outcome in outcomes)
    return [
        Persisted(commit_size=durable, persist_ms=(now - waiting.taken_at) * 1000) if outcome is None else outcome
        for waiting, outcome in zip(batch, outcomes, strict=True)
    ]


def _answer(waiting: _Waiting, result: PersistResult) -> None:
    if not waiting.answer.done():
        waiting.answer.set_result(result)


def _unavailable(outage: StoreUnavailable) -> NotPersisted:
    return NotPersisted(PersistFailure.UNAVAILABLE, outage.detail, max(1, outage.retry_after_s))


def _is_unavailable(answer: PersistResult) -> bool:
    return isinstance(answer, NotPersisted) and answer.failure is PersistFailure.UNAVAILABLE


def _as_outage(answer: PersistResult) -> StoreUnavailable:
    return (
        StoreUnavailable(answer.detail, answer.retry_after_s)
        if isinstance(answer, NotPersisted)
        else StoreUnavailable("")
    )
