"""The grants cache of every ingress replica, reached from any of them: drop entries, ask for figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from deployments.noticeboard import Answers
from serve_app.access.grants import GrantCache
from serve_app.questions import Answering, Asker


@dataclass(frozen=True, slots=True)
class DropGrants:
    """Forget what one user may use; None: what anybody may."""

    user_id: str | None


@dataclass(frozen=True, slots=True)
class TellStats:
    """Say the cache's figures."""


def answers_of(cache: GrantCache) -> Answering:
    """What a replica says for its cache. It must drop it whole when it may have missed a question: fail closed."""

    async def drop(asked: DropGrants) -> dict[str, int]:
        return {"removed": cache.invalidate(asked.user_id)}

    async def stats(_: TellStats) -> dict[str, int]:
        return asdict(cache.stats())

    return {DropGrants: drop, TellStats: stats}


class CacheControl:
    """Asks every replica. Every method waits `wait_s` at most, and raises Problem 503 when the coordinator is away."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker

    async def drop(self, user_id: str | None, wait_s: float) -> Answers:
        """Every replica forgets this user's grants, or all of them."""
        return await self._asker.ask(DropGrants(user_id), wait_s)

    async def stats(self, wait_s: float) -> Answers:
        """The figures of every replica's cache."""
        return await self._asker.ask(TellStats(), wait_s)
