"""Idempotency keys as a small state machine: one execution a key, however often and through whichever ingress.

  absent  --claim---> claimed   its holder runs the model; the lease ends with the holder's deadline
  claimed --release-> absent    the holder failed, and the key is free
  claimed --(lease ends)        the next who asks takes over with a token of its own, and the old one is worth nothing
  claimed --start---> running   the write is on its way: nobody takes over, whatever becomes of the holder
  running --settle--> completed durable in the store, together with the points, and no longer here
  running --settle--> absent    known not to be stored

Whoever else asks meanwhile waits, and is given the stored reply or the free key. Only completed keys have to survive
this process: a claim that died with it is adopted at `start`, after another look at the store.
Use from one event loop. Knows neither Ray nor any particular store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from deployments.contracts import (
    Claim,
    ClaimRefusal,
    ClaimRefused,
    ClaimResult,
    Completion,
    KeyedRequest,
    Persisted,
    PersistResult,
    StoredReply,
)
from deployments.stores.base import StoreUnavailable

ANSWER_MARGIN_S = 0.1
"""Whoever waits for another's reply is told before its deadline that there is none: the answer has to travel."""

LookUp = Callable[[KeyedRequest], Awaitable[StoredReply | int | None]]
"""What the store knows of a key: see `PredictionStore.recall`."""


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


class Start(StrEnum):
    """What `KeyClaims.start` says of a write that is about to be handed to the store."""

    GRANTED = "granted"
    ADOPTED = "adopted"
    """Granted by a process that is gone: the key may have been completed since, which the store knows."""
    RUNNING = "running"
    """The same write came before, and its answer got lost."""
    LOST = "lost"
    """The key is another's: nothing may be written."""


@dataclass(slots=True, eq=False)
class _Held:
    """A key that is claimed or running. `known` ends with the stored reply, or None when the key is free again.

    `answered`: what its own claim was told.
    """

    key: str
    fingerprint: str
    token: str
    lease_until_s: float
    known: asyncio.Future[StoredReply | None] = field(default_factory=_future)
    answered: asyncio.Future[ClaimResult] = field(default_factory=_future)
    running: bool = False

    def expired(self) -> bool:
        return not self.running and time.time() >= self.lease_until_s


class KeyClaims:
    """Who may run the request of each key."""

    def __init__(self, look_up: LookUp) -> None:
        """`look_up` is asked once for each claim, while the key is already held."""
        self._look_up = look_up
        self._held: dict[str, _Held] = {}

    async def claim(self, request: KeyedRequest) -> ClaimResult:
        """The right to run this request, its stored reply, or why neither; answers by the request's deadline."""
        while True:
            held = self._held.get(request.key)
            if held is not None and held.expired():
                held = None
            if held is not None and held.fingerprint != request.fingerprint:
                return _other_request()
            if held is not None and held.token == request.token:
                # Asked again because the answer was lost on its way.
                await asyncio.wait({held.answered}, timeout=max(0.0, request.deadline_s - time.time()))
                return held.answered.result() if held.answered.done() else _in_flight()
            remaining_s = request.deadline_s - ANSWER_MARGIN_S - time.time()
            if not remaining_s > 0:
                return _in_flight() if held is not None else ClaimRefused(ClaimRefusal.UNAVAILABLE, "no time is left")
            if held is None:
                return await self._take(request)
            lease_left_s = remaining_s if held.running else max(0.0, held.lease_until_s - time.time())
            # wait(), unlike wait_for(), leaves the future alone when this caller is cancelled. A lease may become a
            # write while we wait, so its end is looked at again.
            await asyncio.wait({held.known}, timeout=min(remaining_s, lease_left_s))
            reply = held.known.result() if held.known.done() else None
            if reply is not None:
                return _replay(reply, request)

    async def _take(self, request: KeyedRequest) -> ClaimResult:
        self._forget_expired()
        # Held before the store is asked: between asking and holding, a second request would find the key free too.
        held = _Held(request.key, request.fingerprint, request.token, request.deadline_s)
        self._held[request.key] = held
        answer: ClaimResult = ClaimRefused(ClaimRefusal.UNAVAILABLE, "the look-up was given up")
        reply: StoredReply | None = None
        granted = False
        try:
            found = await self._look_up(request)
            if isinstance(found, StoredReply):
                reply, answer = found, _replay(found, request)
            else:
                granted, answer = True, Claim(request.key, request.fingerprint, held.token, found)
        except StoreUnavailable as failure:
            answer = ClaimRefused(ClaimRefusal.UNAVAILABLE, failure.detail, failure.retry_after_s)
        finally:
            held.answered.set_result(answer)
            if not granted:
                self._drop(held, reply)
        return answer

    def start(self, claim: Claim) -> Start:
        """The claim's write is about to be handed to the store; after GRANTED or ADOPTED it must be settled."""
        held = self._held.get(claim.key)
        adopted = held is None
        if held is None:
            held = self._held[claim.key] = _Held(claim.key, claim.fingerprint, claim.token, 0.0)
            held.answered.set_result(claim)
        if held.token != claim.token:
            return Start.LOST
        if held.running:
            return Start.RUNNING
        held.running = True
        return Start.ADOPTED if adopted else Start.GRANTED

    async def outcome(self, claim: Claim) -> StoredReply | None:
        """Waits for a write that is running: its reply, or None when it was not stored."""
        held = self._held.get(claim.key)
        return None if held is None else await asyncio.shield(held.known)

    def settle(self, completion: Completion, result: PersistResult) -> None:
        """What became of a write that was started, once that is known."""
        held = self._held.get(completion.claim.key)
        if held is None or held.token != completion.claim.token:
            return
        if isinstance(result, Persisted):
            self._drop(held, completion.reply)
        else:
            self._drop(held, result if isinstance(result, StoredReply) else None)

    def release(self, claim: Claim) -> None:
        """The holder will not write: the key is free. A write that was started is not touched."""
        held = self._held.get(claim.key)
        if held is not None and held.token == claim.token and not held.running:
            self._drop(held, None)

    def _drop(self, held: _Held, reply: StoredReply | None) -> None:
        if self._held.get(held.key) is held:
            del self._held[held.key]
        if not held.known.done():
            held.known.set_result(reply)

    def _forget_expired(self) -> None:
        """Claims whose holder vanished, the oldest first; leases are about equally long, so they end in order."""
        while self._held:
            oldest = next(iter(self._held.values()))
            if not oldest.expired():
                return
            self._drop(oldest, None)


def _in_flight() -> ClaimRefused:
    return ClaimRefused(ClaimRefusal.IN_FLIGHT, "the first request with this key is still running")


def _other_request() -> ClaimRefused:
    return ClaimRefused(ClaimRefusal.OTHER_REQUEST, "this key was used for a request with another body")


def _replay(reply: StoredReply, request: KeyedRequest) -> StoredReply | ClaimRefused:
    return reply if reply.fingerprint == request.fingerprint else _other_request()
