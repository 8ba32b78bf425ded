"""What every appliance deployment and the store say of themselves, polled beside the request path.

Readiness, `/models` and the window plan of `/disaggregate` read the last answers, so no probe waits for a model.
An answer older than `MAX_AGE_S` counts as none: a silent deployment is not a ready one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol

from deployments.contracts import ApplianceStatus, StoreStatus
from deployments.rollout_contracts import ApplianceRollout, RolloutOverview

POLL_PERIOD_S = 1.0
CALL_TIMEOUT_S = 3.0
MAX_AGE_S = 10.0


class StatusSource(Protocol):
    """A deployment handle, as far as the catalogue needs it."""

    @property
    def status(self) -> Any: ...


class Catalogue:
    """The last known status of each appliance and of the store."""

    def __init__(
        self,
        appliances: Mapping[str, StatusSource],
        persistence: StatusSource,
        coordinator: StatusSource,
        logger: logging.Logger,
    ) -> None:
        self._appliance_handles = dict(appliances)
        self._persistence = persistence
        self._coordinator = coordinator
        self._logger = logger
        self._appliances: dict[str, tuple[ApplianceStatus, float]] = {}
        self._store: tuple[StoreStatus, float] | None = None
        self._rollouts = RolloutOverview((), None, 0, 0)

    @property
    def appliance_ids(self) -> tuple[str, ...]:
        """The configured appliances, in the order of serve_config.yaml."""
        return tuple(self._appliance_handles)

    def appliance(self, appliance_id: str) -> ApplianceStatus | None:
        """The appliance's status, or None when it has not answered lately."""
        known = self._appliances.get(appliance_id)
        return known[0] if known and time.monotonic() - known[1] <= MAX_AGE_S else None

    def appliances(self) -> list[ApplianceStatus]:
        """The statuses known now."""
        return [status for a in self._appliance_handles if (status := self.appliance(a)) is not None]

    def last_known(self) -> list[ApplianceStatus]:
        """The last status of each appliance, however old: the window of `/disaggregate` is a contract with clients
        and must not change its length because one model is away."""
        return [self._appliances[a][0] for a in self._appliance_handles if a in self._appliances]

    def store(self) -> StoreStatus | None:
        """The store's status, or None when persistence has not answered lately."""
        known = self._store
        return known[0] if known and time.monotonic() - known[1] <= MAX_AGE_S else None

    def rollouts(self) -> RolloutOverview:
        """What the coordinator last said; however old, because versions go on serving while it is away."""
        return self._rollouts

    def rollout(self, appliance_id: str) -> ApplianceRollout | None:
        """That of one appliance, once it is known."""
        return next((one for one in self._rollouts.appliances if one.appliance_id == appliance_id), None)

    def replicas(self, appliance_id: str) -> int:
        """How many the coordinator last heard of."""
        rollout = self.rollout(appliance_id)
        return 0 if rollout is None else len(rollout.replicas)

    def not_ready(self) -> list[str]:
        """Why the service cannot take traffic; empty when it can."""
        reasons = []
        for appliance_id in self._appliance_handles:
            status = self.appliance(appliance_id)
            if status is None:
                reasons.append(f"{appliance_id}: no answer")
            elif not status.ready:
                reasons.append(
                    f"{appliance_id}: refused: {status.nothing}" if status.nothing else f"{appliance_id}: loading"
                )
        store = self.store()
        if store is None:
            reasons.append("store: no answer")
        elif not store.reachable:
            reasons.append(f"store: not reachable ({store.kind})")
        return reasons

    async def refresh(self) -> None:
        """Ask everyone once, all at the same time, each bounded."""
        appliances = (self._refresh_appliance(a) for a in self._appliance_handles)
        await asyncio.gather(self._refresh_store(), self._refresh_rollouts(), *appliances)

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(POLL_PERIOD_S)

    async def _refresh_appliance(self, appliance_id: str) -> None:
        status = await self._ask(appliance_id, self._appliance_handles[appliance_id])
        if isinstance(status, ApplianceStatus):
            self._appliances[appliance_id] = (status, time.monotonic())

    async def _refresh_store(self) -> None:
        status = await self._ask("persistence", self._persistence)
        if isinstance(status, StoreStatus):
            self._store = (status, time.monotonic())

    async def _refresh_rollouts(self) -> None:
        overview = await self._ask("coordinator", self._coordinator)
        if isinstance(overview, RolloutOverview):
            self._rollouts = overview

    async def _ask(self, name: str, handle: StatusSource) -> object:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await handle.status.remote()
        except Exception as error:  # noqa: BLE001 - whatever a dead replica raises, the poll goes on
            self._logger.warning("no status", extra={"fields": {"deployment": name, "error": type(error).__name__}})
            return None
