"""Group commit over a store the test holds in its hand."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deployments.contracts import (
    NotPersisted,
    Persisted,
    PersistFailure,
    PersistResult,
    RecordSet,
)
from deployments.group_commit import GroupCommit
from deployments.stores.base import StoreUnavailable

MakeSet = Callable[..., RecordSet]


class HeldStore:
    """Every write waits at a gate; `failure` is raised instead of an outcome."""

    kind = "held"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Semaphore(0)
        self.commits: list[list[RecordSet]] = []
        self.failure: Exception | None = None
        self.outcomes: list[NotPersisted | None] | None = None
        self.ping_failure: Exception | None = None
        self.ping_gate = threading.Event()
        self.ping_gate.set()
        self.pings = 0
        self.closed = False

    def write(self, record_sets: Sequence[RecordSet]) -> list[NotPersisted | None]:
        assert not self.closed
        self.started.release()
        self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        self.commits.append(list(record_sets))
        return self.outcomes if self.outcomes is not None else [None] * len(record_sets)

    def ping(self, *, readings: bool = False) -> None:
        self.pings += 1
        self.ping_gate.wait(10)
        if self.ping_failure is not None:
            raise self.ping_failure

    def close(self) -> None:
        self.closed = True


class Recorder:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.commits: list[tuple[bool, int]] = []
        self.answers: list[PersistResult] = []

    def committed(self, *, succeeded: bool, record_sets: int, seconds: float) -> None:
        assert seconds >= 0
        self.commits.append((succeeded, record_sets))

    def answered(self, result: PersistResult) -> None:
        self.answers.append(result)


@asynccontextmanager
async def _commits(store: HeldStore, **settings: Any) -> AsyncIterator[GroupCommit]:
    commits = GroupCommit(store, settings.pop("observer", Recorder()), **settings)
    try:
        yield commits
    finally:
        store.gate.set()
        store.ping_gate.set()
        await commits.close()


async def _begun(store: HeldStore) -> None:
    """Until the store has been entered once more."""
    assert await asyncio.to_thread(store.started.acquire, timeout=5)


def _failure(result: PersistResult) -> PersistFailure:
    assert isinstance(result, NotPersisted)
    return result.failure


@pytest.fixture
def store() -> HeldStore:
    return HeldStore()


async def test_nothing_is_answered_before_the_commit_ended(store: HeldStore, make_set: MakeSet) -> None:
    async with _commits(store) as commits:
        store.gate.clear()
        answer = asyncio.create_task(commits.persist(make_set()))
        await _begun(store)
        await asyncio.sleep(0.05)
        assert not answer.done()
        store.gate.set()
        result = await answer
        assert isinstance(result, Persisted)
        assert result.persist_ms >= 50


async def test_what_arrives_during_a_commit_becomes_one_commit(store: HeldStore, make_set: MakeSet) -> None:
    recorder = Recorder()
    async with _commits(store, observer=recorder) as commits:
        store.gate.clear()
        first = asyncio.create_task(commits.persist(make_set()))
        await _begun(store)
        others = [asyncio.create_task(commits.persist(make_set())) for _ in range(20)]
        await asyncio.sleep(0)
        assert commits.queued == 20
        store.gate.set()
        assert (await first).commit_size == 1  # type: ignore[union-attr]
        assert {r.commit_size for r in await asyncio.gather(*others)} == {20}  # type: ignore[union-attr]
    assert recorder.commits == [(True, 1), (True, 20)]
    assert len(recorder.answers) == 21


async def test_one_turn_of_the_loop_is_one_commit(store: HeldStore, make_set: MakeSet) -> None:
    async with _commits(store) as commits:
        results = await asyncio.gather(*(commits.persist(make_set()) for _ in range(8)))
    assert {r.commit_size for r in results} == {8}  # type: ignore[union-attr]


async def test_a_lone_request_is_written_without_a_timer(store: HeldStore, make_set: MakeSet) -> None:
    """No clock is read: when the writer is idle, the store is entered after two turns of the loop."""
    async with _commits(store) as commits:
        store.gate.clear()
        answer = asyncio.create_task(commits.persist(make_set()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert store.started.acquire(timeout=5)  # blocks the loop: no timer of its could have run
        store.gate.set()
        assert isinstance(await answer, Persisted)


async def test_a_full_queue_refuses_at_once(store: HeldStore, make_set: MakeSet) -> None:
    async with _commits(store, queue_limit=3) as commits:
        store.gate.clear()
        taken = [asyncio.create_task(commits.persist(make_set()))]
        await _begun(store)
        taken += [asyncio.create_task(commits.persist(make_set())) for _ in range(3)]
        await asyncio.sleep(0)
        assert _failure(await asyncio.wait_for(commits.persist(make_set()), 0.2)) is PersistFailure.QUEUE_FULL
        store.gate.set()
        assert all(isinstance(result, Persisted) for result in await asyncio.gather(*taken))


@pytest.mark.parametrize("wait_s", [-1.0, 0.0, float("nan")])
async def test_a_passed_deadline_is_not_written(store: HeldStore, make_set: MakeSet, wait_s: float) -> None:
    async with _commits(store) as commits:
        assert _failure(await commits.persist(make_set(wait_s=wait_s))) is PersistFailure.DEADLINE
    assert store.commits == []


async def test_a_deadline_that_passes_in_the_queue_is_not_written(store: HeldStore, make_set: MakeSet) -> None:
    async with _commits(store) as commits:
        store.gate.clear()
        first = asyncio.create_task(commits.persist(make_set()))
        await _begun(store)
        late, patient = make_set(wait_s=0.1), make_set()
        answers = [asyncio.create_task(commits.persist(record_set)) for record_set in (late, patient)]
        result = await answers[0]
        assert _failure(result) is PersistFailure.DEADLINE
        assert "not written" in result.detail  # type: ignore[union-attr]
        assert commits.queued == 1
        store.gate.set()
        assert isinstance(await first, Persisted)
        assert isinstance(await answers[1], Persisted)
    assert [late in commit for commit in store.commits] == [False, False]


async def test_a_deadline_that_passes_in_the_commit_leaves_it_open(store: HeldStore, make_set: MakeSet) -> None:
    async with _commits(store) as commits:
        store.gate.clear()
        impatient = make_set(wait_s=0.1)
        result = await commits.persist(impatient)
        assert _failure(result) is PersistFailure.DEADLINE
        assert "may be stored" in result.detail  # type: ignore[union-attr]
        store.gate.set()
        assert isinstance(await commits.persist(make_set()), Persisted)
    assert store.commits[0] == [impatient]


@pytest.mark.parametrize("while_sent", [True, False])
async def test_a_cancelled_caller_does_not_undo_the_write(
    store: HeldStore, make_set: MakeSet, while_sent: bool
) -> None:
    async with _commits(store) as commits:
        store.gate.clear()
        blocker = asyncio.create_task(commits.persist(make_set()))
        await _begun(store)
        if while_sent:
            blocker.cancel()
        waiting = make_set()
        caller = asyncio.create_task(commits.persist(waiting))
        neighbour = asyncio.create_task(commits.persist(make_set()))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        store.gate.set()
        assert isinstance(await neighbour, Persisted)
    assert len(store.commits[0]) == 1
    assert waiting in store.commits[1]


@pytest.mark.parametrize("failure", [StoreUnavailable("down", 7), RuntimeError("a bug"), ValueError("secret")])
async def test_a_failing_store_answers_everyone_and_the_writer_lives(
    store: HeldStore, make_set: MakeSet, failure: Exception
) -> None:
    async with _commits(store) as commits:
        store.gate.clear()
        store.failure = failure
        answers = [asyncio.create_task(commits.persist(make_set()))]
        await _begun(store)
        answers += [asyncio.create_task(commits.persist(make_set())) for _ in range(3)]
        await asyncio.sleep(0)
        store.gate.set()
        results = await asyncio.gather(*answers)
        assert {_failure(result) for result in results} == {PersistFailure.UNAVAILABLE}
        assert not any("secret" in repr(result) for result in results)
        if isinstance(failure, StoreUnavailable):
            assert {(r.detail, r.retry_after_s) for r in results} == {("down", 7)}  # type: ignore[union-attr]
        store.failure = None
        await _until_usable(commits)
        assert isinstance(await commits.persist(make_set()), Persisted)


async def _until_usable(commits: GroupCommit) -> None:
    async with asyncio.timeout(5):
        while not (await commits.status()).reachable:  # noqa: ASYNC110 - the status is what is looked at
            await asyncio.sleep(0.02)


async def test_an_open_breaker_costs_no_call_until_a_ping_succeeds(store: HeldStore, make_set: MakeSet) -> None:
    recorder = Recorder()
    async with _commits(store, observer=recorder) as commits:
        store.failure = store.ping_failure = StoreUnavailable("down")
        await commits.persist(make_set())
        assert store.started.acquire(blocking=False)
        started = time.monotonic()
        for _ in range(500):
            assert _failure(await commits.persist(make_set())) is PersistFailure.UNAVAILABLE
        assert time.monotonic() - started < 1
        assert not store.started.acquire(blocking=False)
        status = await commits.status()
        assert (status.reachable, status.detail, recorder.commits) == (False, "down", [(False, 1)])
        store.failure = store.ping_failure = None
        await _until_usable(commits)
        assert store.pings >= 1
        assert isinstance(await commits.persist(make_set()), Persisted)


async def test_a_store_that_pings_but_cannot_write_is_probed_less_and_less(store: HeldStore, make_set: MakeSet) -> None:
    async with _commits(store) as commits:
        store.failure = StoreUnavailable("cannot write")
        waits = []
        for _ in range(3):
            await commits.persist(make_set())
            started = time.monotonic()
            await _until_usable(commits)
            waits.append(time.monotonic() - started)
        # 0.25, 0.5 and 1 s, each with jitter down to half.
        assert waits[2] > waits[0]
        store.failure = None


async def test_outcomes_go_to_their_own_callers(store: HeldStore, make_set: MakeSet) -> None:
    rejected = NotPersisted(PersistFailure.REJECTED, "bad")
    store.outcomes = [None, rejected, None]
    async with _commits(store) as commits:
        results = await asyncio.gather(*(commits.persist(make_set()) for _ in range(3)))
        assert results[1] is rejected
        assert [r.commit_size for r in (results[0], results[2])] == [2, 2]  # type: ignore[union-attr]
        assert len(store.commits[0]) == 3


async def test_a_store_that_forgets_an_outcome_acknowledges_nobody(store: HeldStore, make_set: MakeSet) -> None:
    store.outcomes = [None]
    async with _commits(store) as commits:
        results = await asyncio.gather(*(commits.persist(make_set()) for _ in range(2)))
    assert {_failure(result) for result in results} == {PersistFailure.UNAVAILABLE}


async def test_a_status_is_bounded_and_single_flight(store: HeldStore) -> None:
    async with _commits(store) as commits:
        store.ping_gate.clear()
        started = time.monotonic()
        statuses = await asyncio.gather(*(commits.status() for _ in range(5)))
        assert time.monotonic() - started < 2
        assert not any(status.reachable for status in statuses)
        assert store.pings == 1


async def test_a_status_is_remembered_for_a_second(store: HeldStore) -> None:
    async with _commits(store) as commits:
        assert (await commits.status()).reachable
        assert (await commits.status()).reachable
        assert store.pings == 1


async def test_closing_finishes_what_was_taken_and_takes_no_more(store: HeldStore, make_set: MakeSet) -> None:
    async with _commits(store) as commits:
        store.gate.clear()
        first = asyncio.create_task(commits.persist(make_set()))
        await _begun(store)
        second = asyncio.create_task(commits.persist(make_set()))
        await asyncio.sleep(0)
        closing = asyncio.create_task(commits.close())
        await asyncio.sleep(0)
        assert _failure(await commits.persist(make_set())) is PersistFailure.UNAVAILABLE
        store.gate.set()
        await closing
        assert isinstance(await first, Persisted)
        assert isinstance(await second, Persisted)
        assert not store.closed  # its owner closes it; others may still write


async def test_a_commit_takes_so_many_rows_and_leaves_the_rest_for_the_next(
    store: HeldStore, make_set: MakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.group_commit.COMMIT_RECORDS", 5)
    async with _commits(store) as commits:
        sets = [make_set(points=size) for size in (3, 2, 1, 9, 1, 4)]
        await asyncio.gather(*(commits.persist(record_set) for record_set in sets))
    assert [[len(one.points) for one in commit] for commit in store.commits] == [[3, 2], [1], [9], [1, 4]]


async def test_so_many_rows_may_wait(store: HeldStore, make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.group_commit.WAITING_RECORDS", 10)
    async with _commits(store) as commits:
        store.gate.clear()
        running = asyncio.create_task(commits.persist(make_set()))
        await _begun(store)
        waiting = asyncio.create_task(commits.persist(make_set(points=10)))
        await asyncio.sleep(0)
        assert _failure(await commits.persist(make_set())) is PersistFailure.QUEUE_FULL
        store.gate.set()
        assert isinstance(await running, Persisted)
        assert isinstance(await waiting, Persisted)
        assert isinstance(await commits.persist(make_set()), Persisted)
