"""The Coordinator deployment: what all ingress replicas have in common, in one small replica.

Counts the quotas and passes questions to every ingress. Most requests do not wait for it: ingresses report their grants
afterwards, and go on by themselves while it is away. Its memory is all it has; after a restart quotas start
anew, unless they are kept in Redis.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from deployments.contracts import QuotaState, QuotaUse
from deployments.noticeboard import Answers, Heard, Noticeboard
from deployments.quota_ledger import QuotaLedger

ANSWER_WAIT_S = 3.0
"""A replica answers from memory; one that needs longer is stuck."""
REDIS_VARIABLE = "REDIS_URL"


class Coordinator:
    """Hosts the ledger and the board; exactly one replica."""

    def __init__(self, requests_per_minute: Mapping[str, int]) -> None:
        # The URL may hold a password: read here, it is not pickled into the deployment's arguments.
        self._ledger = QuotaLedger(requests_per_minute, redis_url=os.environ.get(REDIS_VARIABLE) or None)
        self._board = Noticeboard()

    async def report(self, uses: tuple[QuotaUse, ...]) -> tuple[QuotaState, ...]:
        """Counts what an ingress granted and says what is left, in the order of `uses`."""
        return await self._ledger.report(uses)

    async def listen(self, replica: str, after: int | None) -> Heard:
        """An ingress replica waits here for questions."""
        return await self._board.listen(replica, after)

    async def answer(self, replica: str, number: int, said: Any) -> None:
        """What an ingress replica says to a question."""
        self._board.answer(replica, number, said)

    async def ask(self, asked: Any) -> Answers:
        """Asks every ingress replica."""
        return await self._board.ask(asked, ANSWER_WAIT_S)
