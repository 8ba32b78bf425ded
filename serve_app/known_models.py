"""The registered models as the ingress replicas know them, and reading them again: everywhere, on demand."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deployments.noticeboard import Answers
from deployments.rollout_contracts import RolloutOverview
from models.registry import Registry, RegistryEntry, RegistryError
from serve_app.problems import Problem, Problems
from serve_app.questions import Answering, Asker

MODELS_SHARE = 0.6
"""Of the request's time, for the replicas of models; the ingresses only read the registry, and load nothing."""
LOOK_S = 1.0
RETRY_S = 10.0
"""A registry that is away, or does not hold what serves, is not asked for all the time."""


@dataclass(frozen=True, slots=True)
class RereadRegistry:
    """Read the registry again, and say what it holds."""


class KnownModels:
    """Of one ingress replica. `read` may block, and raise RegistryError: only what is listed needs the registry."""

    def __init__(self, read: Callable[[], Registry], logger: logging.Logger) -> None:
        self._read = read
        self._logger = logger
        self._registry: Registry | None = None

    @property
    def entries(self) -> tuple[RegistryEntry, ...]:
        """Every registered version, as last read. Raises Problem 503 before the registry could be read once."""
        if self._registry is None:
            raise Problem(Problems.MODEL_UNAVAILABLE, "The registry could not be read yet.", retry_after_s=5)
        return self._registry.entries

    async def run(self, rollouts: Callable[[], RolloutOverview]) -> None:
        """Reads it, and again when replicas serve what was not in it. Until cancelled."""
        while True:
            if self._is_behind(rollouts()):
                said = await self.reread()
                if "error" in said:
                    self._logger.warning("the registry cannot be read", extra={"fields": {"error": said["error"]}})
                await asyncio.sleep(RETRY_S if self._is_behind(rollouts()) else LOOK_S)
            else:
                await asyncio.sleep(LOOK_S)

    def _is_behind(self, overview: RolloutOverview) -> bool:
        if self._registry is None:
            return True
        known = {(entry.appliance_id, entry.model_version) for entry in self._registry.entries}
        plans = ((one.appliance_id, one.active.plan) for one in overview.appliances if one.active is not None)
        return any((appliance, version) not in known for appliance, plan in plans for version in plan.versions)

    async def reread(self) -> dict[str, Any]:
        """What is registered now; one that cannot be read leaves what was known."""
        try:
            self._registry = await asyncio.to_thread(self._read)
        except RegistryError as error:
            return {"registry_sha256": self._registry.sha256 if self._registry else None, "error": str(error)}
        return {"registry_sha256": self._registry.sha256}

    def answering(self) -> Answering:
        """What this replica says when it is asked by another."""

        async def reread(_: RereadRegistry) -> dict[str, Any]:
            return await self.reread()

        return {RereadRegistry: reread}


class Reload:
    """Every replica, of models and of ingresses, reads the registry again."""

    def __init__(self, coordinator: Any, asker: Asker) -> None:
        self._coordinator = coordinator
        self._asker = asker

    async def everywhere(self, wait_s: float) -> tuple[RolloutOverview, Answers]:
        """What the replicas of models, and those of ingresses, say afterwards, within `wait_s`. Raises Problem 503."""
        until = time.monotonic() + wait_s
        try:
            async with asyncio.timeout(wait_s):
                overview: RolloutOverview = await self._coordinator.reload.remote(wait_s * MODELS_SHARE)
        except Exception as error:
            detail = "The replicas of the models could not be reached; what serves goes on."
            raise Problem(Problems.COORDINATION_UNAVAILABLE, detail, retry_after_s=2) from error
        return overview, await self._asker.ask(RereadRegistry(), max(0.0, until - time.monotonic()))
