"""The grants cache of every ingress replica, reached from any of them: drop entries, ask for figures.

`CacheListener` runs in each replica and answers; `CacheControl` asks all of them, through the coordinator.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict, dataclass
from typing import Any

from deployments.noticeboard import LISTEN_S, Answers, Heard
from serve_app.access.grants import GrantCache
from serve_app.problems import Problem, Problems

RETRY_S = 1.0
CALL_MARGIN_S = 5.0
"""Beyond what a call may wait for a question: then it hangs, and what is asked meanwhile passes this replica by."""
ASK_TIMEOUT_S = 5.0
"""Above the coordinator's own wait for answers."""


@dataclass(frozen=True, slots=True)
class DropGrants:
    """Forget what one user may use; None: what anybody may."""

    user_id: str | None


@dataclass(frozen=True, slots=True)
class TellStats:
    """Say the cache's figures."""


class CacheListener:
    """Answers for one replica's cache. Drops it whole whenever a question may have been missed: fail closed."""

    def __init__(self, coordinator: Any, replica: str, cache: GrantCache, logger: logging.Logger) -> None:
        self._coordinator = coordinator
        self._replica = replica
        self._cache = cache
        self._logger = logger
        self._heard_until: int | None = None

    async def run(self) -> None:
        """Listens until cancelled."""
        connected = True
        while True:
            try:
                await self.listen_once()
                connected = True
            except Exception as error:  # noqa: BLE001 - whatever a dead coordinator raises, listening goes on
                if connected:
                    fields = {"error": type(error).__name__}
                    self._logger.warning("the coordinator is away", extra={"fields": fields})
                connected = False
                # What is asked while nobody listens would be missed, so nothing of before may stay.
                self._heard_until = None
                self._cache.invalidate(None)
                await asyncio.sleep(RETRY_S)

    async def listen_once(self) -> None:
        """One call: waits for questions, answers them."""
        async with asyncio.timeout(LISTEN_S + CALL_MARGIN_S):
            heard: Heard = await self._coordinator.listen.remote(self._replica, self._heard_until)
        if heard.missed or self._heard_until is None:
            self._cache.invalidate(None)
        self._heard_until = heard.last_number
        for question in heard.questions:
            await self._coordinator.answer.remote(self._replica, question.number, self._answer(question.asked))

    def _answer(self, asked: object) -> dict[str, int]:
        if isinstance(asked, DropGrants):
            return {"removed": self._cache.invalidate(asked.user_id)}
        if isinstance(asked, TellStats):
            return asdict(self._cache.stats())
        return {}  # of a newer version of us, which knows how to read that


class CacheControl:
    """Asks every replica. Raises Problem 503 when the coordinator is away."""

    def __init__(self, coordinator: Any, replica: str) -> None:
        """`replica`: the one this stands in, which always listens."""
        self._coordinator = coordinator
        self._replica = replica

    async def drop(self, user_id: str | None, wait_s: float) -> Answers:
        """Every replica forgets this user's grants, or all of them. Waits `wait_s` at most."""
        return await self._ask(DropGrants(user_id), wait_s)

    async def stats(self, wait_s: float) -> Answers:
        """The figures of every replica's cache. Waits `wait_s` at most."""
        return await self._ask(TellStats(), wait_s)

    async def _ask(self, asked: object, wait_s: float) -> Answers:
        try:
            async with asyncio.timeout(min(wait_s, ASK_TIMEOUT_S)):
                answers: Answers = await self._coordinator.ask.remote(asked)
        except Exception as error:
            # Also TimeoutError, and whatever Ray raises for a replica that died.
            raise _unreachable() from error
        if self._replica not in {*answers.by_replica, *answers.silent}:
            # The coordinator has just started and does not know us again yet, so it may not know others either.
            raise _unreachable()
        return answers


def _unreachable() -> Problem:
    detail = "Not every ingress replica could be reached; caches still end by themselves within their lifetime."
    return Problem(Problems.COORDINATION_UNAVAILABLE, detail, retry_after_s=2)
