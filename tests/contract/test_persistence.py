"""The Persistence replica on each store, without Ray: keys over a restart, and readings that harm no prediction."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from deployments.contracts import (
    Claim,
    Completion,
    KeyedRequest,
    NotPersisted,
    Persisted,
    PersistFailure,
    PersistResult,
    Readings,
    RecordSet,
    StoredReply,
)
from deployments.persistence import PersistenceReplica
from deployments.stores import StoreConfig

MakeSet = Callable[..., RecordSet]
T0 = 1_769_882_400 * 10**9
KEY, BODY = hashlib.sha256(b"key").hexdigest(), hashlib.sha256(b"body").hexdigest()


@pytest.fixture
async def open_replica() -> AsyncIterator[Callable[[StoreConfig], PersistenceReplica]]:
    opened: list[PersistenceReplica] = []

    def start(config: StoreConfig) -> PersistenceReplica:
        opened.append(PersistenceReplica(config))
        return opened[-1]

    yield start
    for replica in opened:
        await stop(replica)


async def stop(replica: PersistenceReplica) -> None:
    closing: Awaitable[None] | None = replica.__del__()
    if closing is not None:
        await closing


async def persist(replica: PersistenceReplica, record_set: RecordSet) -> PersistResult:
    """One in a call of its own."""
    (result,) = await replica.persist([record_set])
    return result


def request(wait_s: float = 5.0) -> KeyedRequest:
    return KeyedRequest(KEY, BODY, None, time.time() + wait_s)


def completed(record_set: RecordSet, claim: Any, body: bytes) -> RecordSet:
    assert isinstance(claim, Claim)
    return replace(record_set, completion=Completion(claim, body))


def readings(building_id: str = "home") -> RecordSet:
    return RecordSet((), time.time() + 5, readings=Readings.of([(building_id, T0, 1.0)]))


async def test_a_key_is_run_once_and_its_reply_is_recalled(backend: Any, open_replica: Any, make_set: MakeSet) -> None:
    replica = open_replica(backend.config())
    claim = await replica.claim(request())
    assert isinstance(await persist(replica, completed(make_set(), claim, b"first")), Persisted)
    assert await replica.claim(request()) == StoredReply(BODY, b"first")
    assert len(backend.points()) == 1


async def test_a_released_key_is_free(backend: Any, open_replica: Any, make_set: MakeSet) -> None:
    replica = open_replica(backend.config())
    first = await replica.claim(request())
    await replica.release_claim(first)
    second = await replica.claim(request())
    lost = await persist(replica, completed(make_set(), first, b"late"))
    assert isinstance(lost, NotPersisted)
    assert lost.failure is PersistFailure.CLAIM_LOST
    assert isinstance(await persist(replica, completed(make_set(), second, b"second")), Persisted)
    assert await replica.claim(request()) == StoredReply(BODY, b"second")


async def test_a_claim_of_a_replica_that_is_gone_gives_way_to_whoever_completed_since(
    backend: Any, open_replica: Any, make_set: MakeSet
) -> None:
    """Also where the store has no unique keys: the acknowledged reply must stay the one that is replayed."""
    before = open_replica(backend.config())
    slow = await before.claim(request())
    await stop(before)
    after = open_replica(backend.config())
    quick = await after.claim(request())
    assert isinstance(await persist(after, completed(make_set(), quick, b"acknowledged")), Persisted)
    late = make_set()
    assert await persist(after, completed(late, slow, b"late")) == StoredReply(BODY, b"acknowledged")
    assert late.points[0] not in backend.points()
    assert await after.claim(request()) == StoredReply(BODY, b"acknowledged")


async def test_a_claim_of_a_replica_that_is_gone_may_complete(
    backend: Any, open_replica: Any, make_set: MakeSet
) -> None:
    before = open_replica(backend.config())
    claim = await before.claim(request())
    await stop(before)
    after = open_replica(backend.config())
    assert isinstance(await persist(after, completed(make_set(), claim, b"kept")), Persisted)
    assert await after.claim(request()) == StoredReply(BODY, b"kept")


async def test_readings_without_a_bucket_do_not_keep_predictions_from_being_stored(
    influx_backend: Any, open_replica: Any, make_set: MakeSet
) -> None:
    replica = open_replica(dataclasses.replace(influx_backend.config(), influx_bucket_raw="missing"))
    for _ in range(3):
        refused = await persist(replica, readings())
        assert isinstance(refused, NotPersisted)
        assert refused.failure is PersistFailure.UNAVAILABLE
        assert isinstance(await persist(replica, make_set()), Persisted)
    assert (await replica.status()).reachable
    assert len(influx_backend.points()) == 3


async def test_a_hanging_store_is_not_asked_about_keys_by_everyone_in_turn(
    influx_backend: Any, open_replica: Any
) -> None:
    replica = open_replica(influx_backend.config())
    influx_backend.server.fault(latency_s=1.0)
    started = time.monotonic()
    results = [await replica.claim(KeyedRequest(f"{n:064x}", BODY, None, time.time() + 0.3)) for n in range(6)]
    assert all(not isinstance(result, Claim) for result in results)
    # The first waits out its time; the others are told at once for a second.
    assert time.monotonic() - started < 3
    assert len(influx_backend.server.requests()) <= 4
