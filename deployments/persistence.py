"""The Persistence deployment: the one place where predictions become durable.

Bind it in the composition root with `Persistence.bind(store_config)`. It runs as exactly one replica, the old one
stopped before the new one starts: an SQLite file has one owner, and Idempotency-Keys in flight are known here only.
When its node leaves a cluster there are two for a moment. A key that runs in the old one may then run again in the
new one: InfluxDB, the store of clusters, knows when the first was received, and both write the same point.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ray import serve

from deployments import memory
from deployments.contracts import (
    Claim,
    ClaimResult,
    Completion,
    KeyedRequest,
    NotPersisted,
    Persisted,
    PersistFailure,
    PersistResult,
    RecordSet,
    StoredReply,
    StoreStatus,
)
from deployments.figures import StoreFigures
from deployments.group_commit import GroupCommit
from deployments.idempotency import KeyClaims, Start
from deployments.journal_contracts import JournalEntry
from deployments.nodes import refuse_a_file_on_several_nodes
from deployments.stores import StoreConfig, StoreUnavailable, open_store
from deployments.telemetry import Telemetry
from deployments.tracing import Tracing

logger = logging.getLogger("ray.serve")
RECALL_THREADS = 2
"""Beside the writer, so that a key is looked up while a commit runs."""
_NOT_IN_TIME = "the store did not say in time whether this key was used"
RECALL_PAUSE_S = 1.0
"""After a failure."""


class PersistenceReplica:
    """Writes record sets in group commits.

    There is no `check_health`: the store is a shared dependency, and a health check that looked at it would have
    every replica killed in an outage no restart can mend.
    """

    def __init__(self, store_config: StoreConfig) -> None:
        """Open the store. Raises StoreUnavailable when a SQLite file cannot be used, or on more than one node."""
        refuse_a_file_on_several_nodes(store_config)
        self._store = open_store(store_config)
        telemetry = Telemetry()
        self._figures = StoreFigures(telemetry, lambda: self._predictions.queued + self._readings.queued)
        # Two queues: a meter's upload of thousands of readings, or a bucket of readings that is missing, must not keep
        # predictions waiting.
        self._predictions = GroupCommit(self._store, self._figures)
        self._readings = GroupCommit(self._store, self._figures, readings=True)
        self._recalls = ThreadPoolExecutor(RECALL_THREADS, thread_name_prefix="store-reader")
        self._recall_failure: tuple[float, StoreUnavailable] | None = None
        self._claims = KeyClaims(self._recall)
        self._closed = False
        self._tracing = Tracing("persistence", "persistence")
        self._counting = asyncio.create_task(telemetry.run())
        memory.settle()

    async def _recall(self, request: KeyedRequest) -> StoredReply | int | None:
        """What the store knows of a key, by the request's deadline. Raises StoreUnavailable."""
        self._predictions.raise_outage()
        if self._recall_failure is not None and time.monotonic() < self._recall_failure[0]:
            raise self._recall_failure[1]
        work = asyncio.get_running_loop().run_in_executor(self._recalls, self._recall_in_time, request)
        await asyncio.wait({work}, timeout=max(0.0, request.deadline_s - time.time()))
        if not work.done():
            work.add_done_callback(lambda late: late.exception())
            raise self._recall_failed(StoreUnavailable(_NOT_IN_TIME))
        try:
            return work.result()
        except StoreUnavailable as failure:
            raise self._recall_failed(failure) from None

    def _recall_failed(self, failure: StoreUnavailable) -> StoreUnavailable:
        """Not asked again at once: those who wait in the queue of the threads would all learn the same."""
        self._recall_failure = (time.monotonic() + RECALL_PAUSE_S, failure)
        return failure

    def _recall_in_time(self, request: KeyedRequest) -> StoredReply | int | None:
        if time.time() >= request.deadline_s:
            raise StoreUnavailable(_NOT_IN_TIME)
        return self._store.recall(request)

    async def claim(self, request: KeyedRequest) -> ClaimResult:
        """The right to run a keyed request, the reply of its first run, or why neither; answers by its deadline."""
        return await self._claims.claim(request)

    async def release_claim(self, claim: Claim) -> None:
        """Give back a claim whose request failed before its record set was sent here."""
        self._claims.release(claim)

    async def persist(self, record_sets: Sequence[RecordSet]) -> list[PersistResult]:
        """Make record sets durable, each for itself, or say why they are not known to be; each by its deadline.

        A caller that is cancelled after its record sets were taken does not undo the write.
        """
        results = await asyncio.gather(*map(self._persist, record_sets), return_exceptions=True)
        return [self._failed(one) if isinstance(one, BaseException) else one for one in results]

    def _failed(self, error: BaseException) -> PersistResult:
        logger.error("a record set failed in a way it should not", exc_info=error)
        return NotPersisted(PersistFailure.UNAVAILABLE, "the store failed unexpectedly")

    async def _persist(self, record_set: RecordSet) -> PersistResult:
        if record_set.readings is not None:
            return await self._readings.persist(record_set)
        if record_set.completion is None:
            result = await self._predictions.persist(record_set)
        else:
            result = await self._complete(record_set, record_set.completion)
        if record_set.trace is not None and isinstance(result, Persisted):
            said = {"nilm.commit_record_sets": result.commit_size}
            self._tracing.past(record_set.trace, "commit", time.time_ns(), result.persist_ms, said)
        return result

    async def record(self, entry: JournalEntry, deadline_s: float) -> PersistResult:
        """Make one entry of the journal durable, or say why it is not known to be; answers by its deadline.

        It shares the queue, the commits and the writer of predictions. An entry that no store takes is `REJECTED`.
        """
        return await self._predictions.persist(RecordSet((), deadline_s, journal_entry=entry))

    async def _complete(self, record_set: RecordSet, completion: Completion) -> PersistResult:
        claim = completion.claim

        def settle(result: PersistResult) -> None:
            self._claims.settle(completion, result)

        match self._claims.start(claim):
            case Start.LOST:
                lost = NotPersisted(PersistFailure.CLAIM_LOST, "another request runs under this key meanwhile")
                self._figures.answered(lost)
                return lost
            case Start.RUNNING:
                reply = await self._claims.outcome(claim)
                return reply or NotPersisted(PersistFailure.UNAVAILABLE, "the first write of this request failed")
            case Start.ADOPTED:
                try:
                    asked = KeyedRequest(claim.key, claim.fingerprint, None, record_set.deadline_s, claim.token)
                    earlier = await self._recall(asked)
                except BaseException as failure:
                    settle(NotPersisted(PersistFailure.UNAVAILABLE, "the store could not be asked"))
                    if isinstance(failure, StoreUnavailable):
                        return NotPersisted(PersistFailure.UNAVAILABLE, failure.detail, failure.retry_after_s)
                    raise
                if isinstance(earlier, StoredReply):
                    settle(earlier)
                    return earlier
            case Start.GRANTED:
                pass
        return await self._predictions.persist(record_set, settle)

    async def status(self) -> StoreStatus:
        """Whether the store is usable, known for a second at most."""
        return await self._predictions.status()

    def __del__(self) -> Awaitable[None] | None:
        """Serve's shutdown hook, which it awaits: finish what was taken, then close the store.

        Python calls it again when the object goes, and must then find nothing to do.
        """
        if getattr(self, "_closed", True):
            return None
        self._closed = True
        self._recalls.shutdown(wait=False)
        return self._close()

    async def _close(self) -> None:
        await self._readings.close()
        await self._predictions.close()
        self._counting.cancel()  # passes on what it has
        await asyncio.get_running_loop().run_in_executor(None, self._store.close)
        await asyncio.to_thread(self._tracing.close)


Persistence = serve.deployment(
    name="Persistence",
    num_replicas=1,
    # Above the queue's bound, so that a full queue is answered by us, with words, and not by Serve.
    max_ongoing_requests=2048,
    max_queued_requests=2048,
    # A surge would start the new owner of the SQLite file while the old one still holds it.
    max_surge_percent=0,
    graceful_shutdown_timeout_s=20,
    # A dead replica is noticed at the next health check, and until then nothing can be acknowledged; at Serve's
    # default of 10 s that was 12 s without a store.
    health_check_period_s=1,
    ray_actor_options={"num_cpus": 0.2},
)(PersistenceReplica)
