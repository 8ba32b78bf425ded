"""The registered models as the ingress replicas know them, and reading them again: everywhere, on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deployments.noticeboard import Answers
from deployments.rollout_contracts import RolloutOverview
from models.registry import Registry, RegistryEntry, RegistryError
from serve_app.problems import Problem, Problems
from serve_app.questions import Answering, Asker

INGRESSES_S = 4.0
"""Of the request's time, for the ingresses: they only read the registry, and load nothing."""


@dataclass(frozen=True, slots=True)
class RereadRegistry:
    """Read the registry again, and say what it holds."""


class KnownModels:
    """Of one ingress replica. `read` may block; raises RegistryError when there is no registry at the start."""

    def __init__(self, read: Callable[[], Registry]) -> None:
        self._read = read
        self._registry = read()

    @property
    def entries(self) -> tuple[RegistryEntry, ...]:
        """Every registered version, as last read."""
        return self._registry.entries

    async def reread(self) -> dict[str, Any]:
        """What is registered now; one that cannot be read leaves what was known."""
        try:
            self._registry = await asyncio.to_thread(self._read)
        except RegistryError as error:
            return {"registry_sha256": self._registry.sha256, "error": str(error)}
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
        """What the replicas of models, and those of ingresses, say afterwards. Raises Problem 503."""
        models_s = max(0.0, wait_s - INGRESSES_S)
        try:
            async with asyncio.timeout(wait_s):
                overview: RolloutOverview = await self._coordinator.reload.remote(models_s)
        except Exception as error:
            detail = "The replicas of the models could not be reached; what serves goes on."
            raise Problem(Problems.COORDINATION_UNAVAILABLE, detail, retry_after_s=2) from error
        return overview, await self._asker.ask(RereadRegistry(), INGRESSES_S)
