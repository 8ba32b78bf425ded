"""The state machine of Idempotency-Keys, step by step and under random orders of events."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from deployments.contracts import (
    Claim,
    ClaimRefusal,
    ClaimRefused,
    Completion,
    KeyedRequest,
    NotPersisted,
    Persisted,
    PersistFailure,
    StoredReply,
)
from deployments.idempotency import KeyClaims, Start
from deployments.stores.base import StoreUnavailable

DURABLE = Persisted(commit_size=1, persist_ms=1.0)
FAILED = NotPersisted(PersistFailure.UNAVAILABLE, "")


class Shelf:
    """Completed keys, as a store keeps them."""

    def __init__(self) -> None:
        self.replies: dict[str, StoredReply] = {}
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = 0

    async def recall(self, request: KeyedRequest) -> StoredReply | int | None:
        self.asked += 1
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return self.replies.get(request.key, request.received_ns)


def request(key: str = "k", fingerprint: str = "f", wait_s: float = 5.0, received_ns: int | None = 7) -> KeyedRequest:
    return KeyedRequest(key, fingerprint, received_ns, time.time() + wait_s)


async def granted(claims: KeyClaims, asked: KeyedRequest | None = None) -> Claim:
    claim = await claims.claim(asked or request())
    assert isinstance(claim, Claim)
    return claim


async def waiting(task: asyncio.Task[Any]) -> bool:
    for _ in range(5):
        await asyncio.sleep(0)
    return not task.done()


async def complete(claims: KeyClaims, shelf: Shelf, claim: Claim, body: bytes = b"{}") -> None:
    assert claims.start(claim) is Start.GRANTED
    shelf.replies[claim.key] = StoredReply(claim.fingerprint, body)
    claims.settle(Completion(claim, body), DURABLE)


@pytest.fixture(autouse=True)
def _short_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.idempotency.ANSWER_MARGIN_S", 0.002)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def claims(shelf: Shelf) -> KeyClaims:
    return KeyClaims(shelf.recall)


async def test_the_first_is_granted_and_the_others_get_its_reply(claims: KeyClaims, shelf: Shelf) -> None:
    claim = await granted(claims)
    assert claim.received_ns == 7
    others = [asyncio.create_task(claims.claim(request())) for _ in range(49)]
    assert all([await waiting(task) for task in others])
    await complete(claims, shelf, claim, b"answer")
    assert set(await asyncio.gather(*others)) == {StoredReply("f", b"answer")}
    assert shelf.asked == 1
    assert await claims.claim(request()) == StoredReply("f", b"answer")


async def test_fifty_that_ask_at_once_are_one_claim(claims: KeyClaims, shelf: Shelf) -> None:
    shelf.gate.clear()
    tasks = [asyncio.create_task(claims.claim(request(wait_s=0.3))) for _ in range(50)]
    await asyncio.sleep(0)
    shelf.gate.set()
    results = await asyncio.gather(*tasks)
    assert sum(isinstance(result, Claim) for result in results) == 1


async def test_another_body_is_refused_at_every_stage(claims: KeyClaims, shelf: Shelf) -> None:
    claim = await granted(claims)
    other = request(fingerprint="other")
    refused = await claims.claim(other)
    assert isinstance(refused, ClaimRefused)
    assert refused.reason is ClaimRefusal.OTHER_REQUEST
    await complete(claims, shelf, claim)
    refused = await claims.claim(other)
    assert isinstance(refused, ClaimRefused)
    assert refused.reason is ClaimRefusal.OTHER_REQUEST


async def test_keys_do_not_know_each_other(claims: KeyClaims) -> None:
    assert (await granted(claims)).token != (await granted(claims, request("other"))).token


async def test_a_failure_frees_the_key_for_one_who_waits(claims: KeyClaims) -> None:
    claim = await granted(claims)
    others = [asyncio.create_task(claims.claim(request())) for _ in range(3)]
    assert all([await waiting(task) for task in others])
    claims.release(claim)
    done, pending = await asyncio.wait(others, timeout=0.05)
    assert len(done) == 1
    assert len(pending) == 2
    assert claims.start(claim) is Start.LOST
    for task in pending:
        task.cancel()


@pytest.mark.parametrize("result", [FAILED, NotPersisted(PersistFailure.DEADLINE, "")])
async def test_a_write_that_failed_frees_the_key(claims: KeyClaims, result: NotPersisted) -> None:
    claim = await granted(claims)
    assert claims.start(claim) is Start.GRANTED
    claims.settle(Completion(claim, b""), result)
    assert (await granted(claims)).token != claim.token


async def test_a_write_under_way_is_not_released(claims: KeyClaims, shelf: Shelf) -> None:
    claim = await granted(claims)
    assert claims.start(claim) is Start.GRANTED
    claims.release(claim)
    other = asyncio.create_task(claims.claim(request()))
    assert await waiting(other)
    claims.settle(Completion(claim, b"late"), DURABLE)
    assert await other == StoredReply("f", b"late")


async def test_whoever_waits_longer_than_its_deadline_is_told_so(claims: KeyClaims) -> None:
    await granted(claims)
    refused = await claims.claim(request(wait_s=0.03))
    assert isinstance(refused, ClaimRefused)
    assert refused.reason is ClaimRefusal.IN_FLIGHT


async def test_a_lease_ends_and_its_late_holder_can_write_nothing(claims: KeyClaims) -> None:
    vanished = await granted(claims, request(wait_s=0.05))
    heir = await granted(claims)
    assert heir.token != vanished.token
    assert claims.start(vanished) is Start.LOST
    claims.release(vanished)
    claims.settle(Completion(vanished, b""), DURABLE)
    assert claims.start(heir) is Start.GRANTED


async def test_a_write_under_way_outlasts_its_lease(claims: KeyClaims) -> None:
    claim = await granted(claims, request(wait_s=0.03))
    assert claims.start(claim) is Start.GRANTED
    await asyncio.sleep(0.05)
    refused = await claims.claim(request(wait_s=0.05))
    assert isinstance(refused, ClaimRefused)
    assert refused.reason is ClaimRefusal.IN_FLIGHT


async def test_a_claim_of_a_process_that_is_gone_may_still_write(claims: KeyClaims) -> None:
    claim = Claim("k", "f", "granted-before-the-restart", 7)
    assert claims.start(claim) is Start.ADOPTED
    assert claims.start(claim) is Start.RUNNING
    other = asyncio.create_task(claims.claim(request()))
    assert await waiting(other)
    claims.settle(Completion(claim, b"kept"), DURABLE)
    assert await other == StoredReply("f", b"kept")


async def test_a_claim_asked_for_again_is_the_same_claim(claims: KeyClaims, shelf: Shelf) -> None:
    """Its answer was lost on the way, while this process lives."""
    shelf.gate.clear()
    asked = request()
    first = asyncio.create_task(claims.claim(asked))
    again = asyncio.create_task(claims.claim(asked))
    assert await waiting(again)
    shelf.gate.set()
    claim = await first
    assert isinstance(claim, Claim)
    assert await again == claim == await claims.claim(asked)
    assert shelf.asked == 1
    assert claims.start(claim) is Start.GRANTED


async def test_a_write_sent_again_waits_for_the_first(claims: KeyClaims, shelf: Shelf) -> None:
    claim = await granted(claims)
    assert claims.start(claim) is Start.GRANTED
    assert claims.start(claim) is Start.RUNNING
    outcome = asyncio.create_task(claims.outcome(claim))
    assert await waiting(outcome)
    claims.settle(Completion(claim, b"once"), DURABLE)
    assert await outcome == StoredReply("f", b"once")
    assert await claims.outcome(claim) is None


async def test_without_time_a_free_key_is_not_said_to_be_running(claims: KeyClaims) -> None:
    refused = await claims.claim(request(wait_s=-1))
    assert isinstance(refused, ClaimRefused)
    assert refused.reason is ClaimRefusal.UNAVAILABLE


async def test_an_earlier_reply_of_the_store_goes_to_everyone(claims: KeyClaims) -> None:
    claim = await granted(claims)
    assert claims.start(claim) is Start.GRANTED
    other = asyncio.create_task(claims.claim(request()))
    assert await waiting(other)
    earlier = StoredReply("f", b"earlier")
    claims.settle(Completion(claim, b"late"), earlier)
    assert await other == earlier


async def test_a_store_that_is_away_is_said_and_holds_nothing(claims: KeyClaims, shelf: Shelf) -> None:
    shelf.failure = StoreUnavailable("away", retry_after_s=3)
    refused = await claims.claim(request())
    assert refused == ClaimRefused(ClaimRefusal.UNAVAILABLE, "away", 3)
    shelf.failure = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await claims.claim(request())
    shelf.failure = None
    await granted(claims)


async def test_a_cancelled_claim_holds_nothing(claims: KeyClaims, shelf: Shelf) -> None:
    shelf.gate.clear()
    first = asyncio.create_task(claims.claim(request()))
    second = asyncio.create_task(claims.claim(request()))
    assert await waiting(second)
    first.cancel()
    shelf.gate.set()
    assert isinstance(await second, Claim)


async def test_vanished_holders_do_not_pile_up(claims: KeyClaims) -> None:
    for n in range(200):
        await granted(claims, request(f"key-{n}", wait_s=0.5))
    await asyncio.sleep(0.6)
    await granted(claims)
    assert len(claims._held) == 1


@pytest.mark.parametrize("seed", range(20))
async def test_under_any_order_of_events_a_key_completes_once(seed: int) -> None:
    """Holders that finish, fail, vanish and come back late: never two completions, and one reply for all."""
    chance = random.Random(seed)  # noqa: S311
    shelf = Shelf()
    claims = KeyClaims(shelf.recall)
    completed: list[bytes] = []
    replies: set[bytes] = set()

    async def client(n: int) -> None:
        for _ in range(40):
            asked = request(wait_s=0.02)
            result = await claims.claim(asked)
            if isinstance(result, StoredReply):
                replies.add(result.body)
                return
            if not isinstance(result, Claim):
                continue
            await asyncio.sleep(chance.choice((0, 0, 0.005, 0.03)))
            fate = chance.random()
            if fate < 0.3:
                claims.release(result)
            elif fate < 0.5:
                pass  # vanished
            elif claims.start(result) in (Start.GRANTED, Start.ADOPTED):
                late = time.time() >= asked.deadline_s  # group commit sends nothing after the deadline
                await asyncio.sleep(chance.choice((0, 0.03)))
                if late or chance.random() < 0.5:
                    claims.settle(Completion(result, b""), FAILED)
                    continue
                body = f"{n}".encode()
                completed.append(body)
                shelf.replies["k"] = StoredReply("f", body)
                claims.settle(Completion(result, body), DURABLE)

    await asyncio.gather(*(client(n) for n in range(12)))
    assert len(completed) == 1
    assert replies == set(completed)
