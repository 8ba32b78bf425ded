"""The Persistence deployment as an ingress sees it: calls inside the request's deadline, outcomes as problems.

Calls run in tasks of their own, in an empty context: Serve cancels a request's whole call tree when the client hangs
up, and a prediction that was to be stored must still arrive there whole, a claim must not be lost on its way back.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from deployments.batching import Batcher, QueueFull
from deployments.contracts import (
    Claim,
    ClaimRefusal,
    ClaimRefused,
    ClaimResult,
    KeyedRequest,
    NotPersisted,
    Persisted,
    PersistFailure,
    PersistResult,
    RecordSet,
    StoredReply,
)
from serve_app.instants import from_ns
from serve_app.logs import LOGGER_NAME
from serve_app.problems import FieldError, Problem, Problems

_logger = logging.getLogger(LOGGER_NAME)
MAX_ATTEMPTS = 3
"""A record set and a claim overwrite themselves, so a call lost with its replica is made again. Its successor starts
within seconds, and the next call waits for it."""
LONGEST_PAUSE_S = 0.5
CALL_RECORDS = 5000
"""Rows of one call, as many as of one commit; an upload may be that large by itself."""
CALLS = 2
"""In flight: what one commit takes is on its way while the one before it runs; the rest waits here for the next."""
WAITING_RECORD_SETS = 1024
"""As many as may wait for the commit."""
KEY_HEADER = "Idempotency-Key"
NOT_IN_TIME = "The store did not answer in time."
TOO_MANY = "Too much is waiting for the store."

T = TypeVar("T")


class TooOld(Problem):
    """What was to be stored is of a time whose rows have left the store."""

    def __init__(self, oldest_kept_ns: int) -> None:
        detail = f"It is older than what is kept: the oldest is of {from_ns(oldest_kept_ns).isoformat()}."
        super().__init__(Problems.RECORD_REJECTED, detail)
        self.oldest_kept_ns = oldest_kept_ns


class StoreClient:
    """Writes record sets and claims keys. Raises Problem when the store cannot promise what was asked."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        # The loop itself keeps tasks only weakly: one whose client hung up would have no other owner.
        self._running: set[asyncio.Task[Any]] = set()
        self._writing: set[str] = set()
        # Apart: a meter's upload of thousands of readings must not keep predictions waiting.
        self._predictions: Batcher[RecordSet, PersistResult] = self._writes()
        self._readings: Batcher[RecordSet, PersistResult] = self._writes()

    async def persist(self, record_set: RecordSet) -> Persisted | StoredReply:
        """Make a record set durable; returns only after the commit, whoever made it."""
        write = self._put(record_set)
        if record_set.completion is not None:
            token = record_set.completion.claim.token
            self._writing.add(token)
            write.add_done_callback(lambda _: self._writing.discard(token))
        # wait() leaves the write alone when the client hangs up, and when the time is over.
        await asyncio.wait({write}, timeout=max(0.0, record_set.deadline_s - time.time()))
        if not write.done():
            raise Problem(Problems.STORE_UNAVAILABLE, NOT_IN_TIME)
        failure = write.exception()
        if isinstance(failure, Problem):
            raise replace(failure)  # a new one for each: one that is raised by many would collect all their tracebacks
        result = write.result()
        if not isinstance(result, NotPersisted):
            return result
        _logger.warning("not stored", extra={"fields": {"failure": str(result.failure), "reason": result.detail}})
        if result.oldest_kept_ns is not None:
            raise TooOld(result.oldest_kept_ns)
        raise _not_persisted(result)

    def _put(self, record_set: RecordSet) -> asyncio.Future[PersistResult]:
        writes = self._predictions if record_set.readings is None else self._readings
        try:
            write = writes.put(record_set)
        except QueueFull:
            raise Problem(Problems.OVERLOADED, TOO_MANY) from None
        # If nobody waits any more when it fails, that is no fault to log.
        write.add_done_callback(lambda done: done.cancelled() or done.exception())
        return write

    def _writes(self) -> Batcher[RecordSet, PersistResult]:
        return Batcher(
            self._send, CALL_RECORDS, size_of=lambda one: one.records, at_once=lambda: CALLS, limit=WAITING_RECORD_SETS
        )

    async def _send(self, record_sets: list[RecordSet]) -> Sequence[PersistResult]:
        until_s = max(one.deadline_s for one in record_sets)
        results: Sequence[PersistResult] = await call(lambda: self._handle.persist.remote(tuple(record_sets)), until_s)
        return results

    async def claim(self, request: KeyedRequest) -> Claim | StoredReply:
        """The right to run this request, or the reply it had before."""
        claiming = self._detached(self._claim(request))
        try:
            result = await asyncio.shield(claiming)
        except asyncio.CancelledError:
            claiming.add_done_callback(self._release_unheard)
            raise
        if not isinstance(result, ClaimRefused):
            return result
        raise _claim_refused(result)

    async def _claim(self, request: KeyedRequest) -> ClaimResult:
        result: ClaimResult = await call(lambda: self._handle.claim.remote(request), request.deadline_s)
        return result

    def _release_unheard(self, claiming: asyncio.Task[ClaimResult]) -> None:
        """Whoever asked for this claim has gone."""
        if claiming.cancelled() or claiming.exception() is not None:
            return
        result = claiming.result()
        if isinstance(result, Claim):
            self.release(result)

    def release(self, claim: Claim) -> None:
        """Free the key of a request that failed, unless its write is under way, which frees it itself.

        A release that overtook its write would let another request write in between.
        """
        if claim.token not in self._writing:
            self._detached(self._release(claim))

    async def _release(self, claim: Claim) -> None:
        try:
            await self._handle.release_claim.remote(claim)
        except (RayError, RayServeException) as error:
            _logger.warning("a key was not released", extra={"fields": {"error": type(error).__name__}})

    def _detached(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work, context=contextvars.Context())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


async def call(start: Callable[[], Any], deadline_s: float, unavailable: Problems = Problems.STORE_UNAVAILABLE) -> Any:
    """One call that may be made twice; made again when its replica was lost and there is time.

    Raises Problem, of the kind `unavailable` when there was no answer.
    """
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            async with asyncio.timeout(max(0.0, deadline_s - time.time())):
                return await start()
        except TimeoutError:
            raise Problem(unavailable, NOT_IN_TIME) from None
        except BackPressureError:
            raise Problem(Problems.OVERLOADED, TOO_MANY) from None
        except RayTaskError:
            # The replica lives and its code failed (it logged why): it would fail again.
            _logger.warning("a store call failed")
            raise Problem(unavailable, "The store failed on this request.") from None
        except (RayError, RayServeException) as error:
            fields = {"error": type(error).__name__, "attempt": attempt}
            _logger.warning("a store call was lost", extra={"fields": fields})
        if attempt < MAX_ATTEMPTS:
            await asyncio.sleep(random.uniform(0.0, LONGEST_PAUSE_S))  # noqa: S311 - jitter, not a secret
    raise Problem(unavailable, "The store's replica was lost; try again.")


def _not_persisted(outcome: NotPersisted) -> Problem:
    match outcome.failure:
        case PersistFailure.REJECTED | PersistFailure.TOO_OLD:
            return Problem(Problems.RECORD_REJECTED, "The store refused what was to be stored.")
        case PersistFailure.QUEUE_FULL:
            detail = "Too much is waiting to be stored."
            return Problem(Problems.OVERLOADED, detail, retry_after_s=outcome.retry_after_s)
        case PersistFailure.CLAIM_LOST:
            return _in_flight()
        case PersistFailure.UNAVAILABLE | PersistFailure.DEADLINE:
            detail = "It could not be stored, so it is not acknowledged."
            return Problem(Problems.STORE_UNAVAILABLE, detail, retry_after_s=outcome.retry_after_s)


def _claim_refused(refused: ClaimRefused) -> Problem:
    match refused.reason:
        case ClaimRefusal.OTHER_REQUEST:
            return other_request()
        case ClaimRefusal.IN_FLIGHT:
            return _in_flight()
        case ClaimRefusal.UNAVAILABLE:
            detail = "Whether this Idempotency-Key was used before cannot be looked up now."
            return Problem(Problems.STORE_UNAVAILABLE, detail, retry_after_s=refused.retry_after_s)


def other_request() -> Problem:
    """The key was used for another body."""
    detail = "This Idempotency-Key was used with another body; take a new key for a new request."
    return Problem(Problems.IDEMPOTENCY_KEY_REUSED, detail, [FieldError(KEY_HEADER, "used with another body")])


def _in_flight() -> Problem:
    detail = "The first request with this Idempotency-Key is still running; try again for its reply."
    return Problem(Problems.IDEMPOTENCY_KEY_IN_FLIGHT, detail, retry_after_s=1)
