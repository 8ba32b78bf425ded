"""Three builds that break the promise on purpose: each must be caught by the checks that the real build passes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from deployments.contracts import (
    Claim,
    ClaimResult,
    Completion,
    KeyedRequest,
    Persisted,
    PersistResult,
    RecordSet,
    StoredReply,
)
from deployments.group_commit import GroupCommit
from deployments.idempotency import KeyClaims, Start
from deployments.stores.base import WriteOutcome
from serve_app import store_client
from serve_app.store_client import StoreClient

BUILDS = pytest.mark.parametrize("build", ["ours", "broken"])


class Silent:
    """Nobody is told."""

    def committed(self, **_: Any) -> None: ...
    def answered(self, _: PersistResult) -> None: ...


class SlowDisk:
    """What reached it before the power failed is stored."""

    kind = "slow"

    def __init__(self) -> None:
        self.stored: list[RecordSet] = []
        self.power = True

    def write(self, record_sets: list[RecordSet]) -> list[WriteOutcome]:
        time.sleep(0.05)
        if self.power:
            self.stored += record_sets
        return [None] * len(record_sets)

    def ping(self, *, readings: bool = False) -> None: ...
    def close(self) -> None: ...


class AcknowledgesBeforeTheCommit(GroupCommit):
    """Answers when a record set is taken."""

    async def persist(
        self, record_set: RecordSet, known: Callable[[PersistResult], None] | None = None
    ) -> PersistResult:
        self._late = asyncio.create_task(super().persist(record_set, known))
        await asyncio.sleep(0)
        return Persisted(commit_size=1, persist_ms=0.0)


@BUILDS
async def test_an_acknowledgement_before_the_commit_is_lost(build: str, make_point: Callable[..., Any]) -> None:
    disk = SlowDisk()
    commits = (GroupCommit if build == "ours" else AcknowledgesBeforeTheCommit)(disk, Silent())
    record_set = RecordSet((make_point(),), time.time() + 5)
    acknowledged = [record_set] if isinstance(await commits.persist(record_set), Persisted) else []
    disk.power = False
    await asyncio.sleep(0.1)
    lost = [one for one in acknowledged if one not in disk.stored]
    assert bool(lost) == (build == "broken")


class NoShield(StoreClient):
    """The write is part of the request's own call tree."""

    async def persist(self, record_set: RecordSet) -> Persisted | StoredReply:
        result: Any = await self._put(record_set)
        return result  # type: ignore[no-any-return]


class Handle:
    """A deployment that takes a moment; a cancelled call is cancelled there too, as Serve does."""

    def __init__(self) -> None:
        self.stored: list[RecordSet] = []
        self.persist = self

    def remote(self, record_sets: Sequence[RecordSet]) -> asyncio.Task[list[PersistResult]]:
        return asyncio.create_task(self._write(record_sets))

    async def _write(self, record_sets: Sequence[RecordSet]) -> list[PersistResult]:
        await asyncio.sleep(0.05)
        self.stored += record_sets
        return [Persisted(commit_size=1, persist_ms=50.0) for _ in record_sets]


@BUILDS
async def test_without_the_shield_a_client_that_leaves_takes_its_prediction_along(
    build: str, make_point: Callable[..., Any]
) -> None:
    handle = Handle()
    client = (StoreClient if build == "ours" else NoShield)(handle)

    def persist() -> asyncio.Task[Any]:
        return asyncio.create_task(client.persist(RecordSet((make_point(),), time.time() + 5)))

    # As many calls as may be on their way, and one request that waits for the next.
    others = []
    for _ in range(store_client.CALLS):
        others.append(persist())
        await asyncio.sleep(0.005)
    request = persist()
    await asyncio.sleep(0.005)
    request.cancel()
    await asyncio.gather(*others)
    await asyncio.sleep(0.15)
    assert len(handle.stored) == len(others) + (1 if build == "ours" else 0)


class ClaimNotAtomic(KeyClaims):
    """Asks the store first and holds the key then."""

    async def _take(self, request: KeyedRequest) -> ClaimResult:
        found = await self._look_up(request)
        if isinstance(found, StoredReply):
            return found
        return await super()._take(request)


@BUILDS
async def test_a_claim_that_is_not_atomic_runs_a_request_more_than_once(build: str) -> None:
    replies: dict[str, StoredReply] = {}

    async def recall(request: KeyedRequest) -> StoredReply | int | None:
        await asyncio.sleep(0.001)
        return replies.get(request.key)

    claims = (KeyClaims if build == "ours" else ClaimNotAtomic)(recall)
    runs = 0

    async def client() -> None:
        nonlocal runs
        result = await claims.claim(KeyedRequest("key", "body", None, time.time() + 5))
        if isinstance(result, Claim):
            runs += 1
            await asyncio.sleep(0.01)
            assert claims.start(result) is Start.GRANTED
            replies["key"] = StoredReply("body", b"{}")
            claims.settle(Completion(result, b"{}"), Persisted(1, 1.0))

    await asyncio.gather(*(client() for _ in range(50)), return_exceptions=True)
    assert (runs > 1) == (build == "broken")
