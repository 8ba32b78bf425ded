"""The Coordinator deployment: what all replicas have in common, in one small replica.

Counts the quotas, passes questions to every ingress, and leads the appliances' replicas from version to version. Most
requests do not wait for it: ingresses report their grants afterwards, replicas of models go on with what they serve,
while it is away. Its memory is all it has; after a restart quotas start anew, unless they are kept in Redis, replicas
tell what they serve, and the store which canaries were demoted.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import Mapping
from typing import Any

from deployments.contracts import QuotaState, QuotaUse
from deployments.figures import watch_rollouts
from deployments.noticeboard import Answers, Heard, Noticeboard
from deployments.quota_ledger import QuotaLedger
from deployments.rollout_contracts import Offer, OfferOutcome, Orders, ReplicaReport, RolloutOverview
from deployments.rollout_control import RolloutControl
from deployments.rollout_journal import RolloutJournal
from deployments.telemetry import Telemetry

ANSWER_WAIT_S = 3.0
"""A replica answers from memory; one that needs longer is stuck."""
REDIS_VARIABLE = "REDIS_URL"
logger = logging.getLogger("ray.serve")


class Coordinator:
    """Hosts the ledger, the board and the rollouts; exactly one replica."""

    def __init__(
        self, requests_per_minute: Mapping[str, int], appliances: tuple[str, ...], persistence: Any, history: Any
    ) -> None:
        # The URL may hold a password: read here, it is not pickled into the deployment's arguments.
        self._ledger = QuotaLedger(requests_per_minute, redis_url=os.environ.get(REDIS_VARIABLE) or None)
        self._board = Noticeboard()
        self._journal = RolloutJournal(persistence, history)
        self._rollouts = RolloutControl(appliances, self._journal.note)
        self._telemetry = Telemetry()
        watch_rollouts(self._telemetry, self._rollouts.overview)
        self._background: list[asyncio.Task[None]] = []

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

    async def offer(self, offer: Offer, wait_s: float) -> OfferOutcome:
        """The gate brings a configuration that it found good."""
        return await self._rollouts.offer(offer, wait_s)

    async def refuse_config(self, reason: str, document: str) -> None:
        """The gate tells of one that it did not."""
        await self._rollouts.refuse_config(reason, document)

    async def follow(self, report: ReplicaReport) -> Orders:
        """A replica of an appliance reports, and waits here for orders."""
        if not self._background:
            work = (self._rollouts.run(), self._telemetry.run(), self._remember())
            # In a context of their own: Serve would cancel what they ask together with the call that began them.
            self._background = [asyncio.create_task(one, context=contextvars.Context()) for one in work]
        return await self._rollouts.follow(report)

    async def report_replica(self, report: ReplicaReport) -> None:
        """A replica of an appliance has news."""
        await self._rollouts.report(report)

    async def status(self) -> RolloutOverview:
        """What every appliance serves, and how it goes."""
        return self._rollouts.overview()

    async def reload(self, wait_s: float) -> RolloutOverview:
        """Every replica of every appliance reads the registry again."""
        return await self._rollouts.reload(wait_s)

    async def _remember(self) -> None:
        try:
            self._rollouts.remember(await self._journal.read())
        except Exception:
            # Without a past a canary is judged anew, which is better than no rollouts at all.
            logger.exception("the journal of rollouts holds what cannot be understood")
