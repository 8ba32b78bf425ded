"""Carries the coordinator's orders out in one replica: prepares versions, switches, reports. Never raises.

While the coordinator is away the replica goes on with what it serves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from deployments.contracts import RefusedVersion
from deployments.rollout_contracts import Directive, Orders, Refusal, ReplicaReport
from deployments.rollout_control import LISTEN_S
from deployments.tally import Tally
from deployments.versions import VersionRefused, Versions

RETRY_S = 0.5
CALL_MARGIN_S = 5.0
"""Beyond what a call may wait for orders: then it hangs, and another is made."""
logger = logging.getLogger("ray.serve")


class Follower:
    """Of one replica. `coordinator` is its handle."""

    def __init__(
        self,
        coordinator: Any,
        replica: str,
        node: str,
        appliance_id: str,
        versions: Versions,
        tally: Tally,
    ) -> None:
        self._coordinator = coordinator
        self._replica = replica
        self._node = node
        self._appliance_id = appliance_id
        self._versions = versions
        self._tally = tally
        self._working_on: Directive | None = None
        self._refusal: Refusal | None = None
        self._work: asyncio.Task[None] | None = None
        self._peers = 0
        self.settled = asyncio.Event()
        """Set once it is decided what this replica serves, or that it serves nothing for now."""
        self.nothing = ""
        """Why it serves nothing; empty while that is not decided."""

    @property
    def refused(self) -> RefusedVersion | None:
        """What this replica was asked to serve last and could not."""
        return self._refusal.refused if self._refusal else None

    @property
    def peers(self) -> int:
        """Other replicas that serve something, when it was last heard of."""
        return self._peers

    @property
    def loading(self) -> bool:
        """Whether versions are being prepared."""
        return self._working_on is not None

    async def run(self) -> None:
        """Follows until cancelled."""
        away = False
        while True:
            try:
                async with asyncio.timeout(LISTEN_S + CALL_MARGIN_S):
                    orders: Orders = await self._coordinator.follow.remote(self._report())
                away = False
            except Exception as error:  # noqa: BLE001 - whatever a dead coordinator raises, following goes on
                if not away:
                    logger.warning("the coordinator is away: %s", type(error).__name__)
                away = True
                await asyncio.sleep(RETRY_S)
                continue
            try:
                self._obey(orders)
            except Exception:
                # A fault in one order must not end the following of all later ones.
                logger.exception("%s cannot obey", self._appliance_id)
                await asyncio.sleep(RETRY_S)

    def _obey(self, orders: Orders) -> None:
        self._peers = orders.peers
        if orders.active is None:
            if orders.nothing:
                self.nothing = orders.nothing
                self.settled.set()
            return
        serving = self._versions.current()
        # What it could not load may be what the next plan repairs.
        refused = self._refusal is not None and self._refusal.number == orders.active.number
        up_to_date = serving is not None and serving.directive.number == orders.active.number
        wanted = orders.prepare if up_to_date or refused else orders.active
        if wanted is None:
            self._stop_working()
            self._versions.forget_prepared()
            return
        done = {
            self._working_on.number if self._working_on else None,
            self._refusal.number if self._refusal else None,
            self._versions.prepared if wanted is orders.prepare else None,
        }
        if wanted.number in done:
            return
        self._stop_working()
        self._working_on = wanted
        self._work = asyncio.create_task(self._carry_out(wanted, activate=wanted is orders.active))

    def _stop_working(self) -> None:
        """There is a later word. A load that runs ends by itself, and nobody takes its result."""
        if self._work is not None and self._working_on is not None:
            self._work.cancel()
        self._working_on = None

    async def _carry_out(self, directive: Directive, activate: bool) -> None:
        try:
            if not activate:
                await self._versions.prepare(directive)
            elif not self._versions.switch(directive):
                await self._versions.prepare(directive)
                self._versions.switch(directive)
            if activate:
                await asyncio.sleep(max(0.0, directive.activate_at_s - time.time()))
                self._versions.current()  # also when no window comes
            self._refusal = None
        except VersionRefused as refused:
            self._refuse(directive, refused.refused)
        except Exception as error:
            # Whatever it is must not stop what serves, nor the following.
            logger.exception("%s cannot carry out %d", self._appliance_id, directive.number)
            self._refuse(directive, RefusedVersion(directive.plan.stable, "failed", type(error).__name__))
        self._working_on = None
        if activate:
            self.settled.set()
        await self._say()

    def _refuse(self, directive: Directive, refused: RefusedVersion) -> None:
        self._refusal = Refusal(directive.number, refused)
        self.nothing = f"{refused.reason}: {refused.detail}"
        logger.error("%s cannot load %s: %s", self._appliance_id, refused.model_version, self.nothing)

    async def _say(self) -> None:
        """At once: others wait for this replica. Should it be lost, the next call says it again."""
        try:
            async with asyncio.timeout(CALL_MARGIN_S):
                await self._coordinator.report_replica.remote(self._report())
        except Exception as error:  # noqa: BLE001 - see `run`
            logger.warning("the coordinator was not told: %s", type(error).__name__)

    def _report(self) -> ReplicaReport:
        serving = self._versions.current()
        return ReplicaReport(
            replica=self._replica,
            node=self._node,
            appliance_id=self._appliance_id,
            active=serving.directive if serving else None,
            loaded=serving.loaded if serving else (),
            working_on=self._working_on.number if self._working_on else None,
            prepared=self._versions.prepared,
            refusal=self._refusal,
            registry_sha256=self._versions.registry_sha256,
            counts=self._tally.counts,
        )
