"""The versions a replica holds: loads and verifies what a directive names beside what serves, then switches.

Owns models in memory and the instant of a switch; decides nothing. What serves is one immutable value, so a request
never meets half a switch, and a version is freed when the last batch that took it is done.
"""

from __future__ import annotations

import asyncio
import logging
import os
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from deployments.contracts import RefusedVersion
from deployments.rollout_contracts import Directive, LoadedVersion, Role
from deployments.rollout_plan import PlanRefused, check_against, is_canary
from models.engines import Engine
from models.loader import LoadedModel, load_verified
from models.refusal import ArtifactRefused
from models.registry import Registry, RegistryEntry, RegistryError
from models.source import RegistrySource

Result = TypeVar("Result")
Key = tuple[str, str, Engine]
BACKGROUND_NICE = 10
"""Loading and comparing use what live windows leave of the core."""
DETAIL_CHARACTERS = 400
logger = logging.getLogger("ray.serve")


class VersionRefused(Exception):
    """A directive cannot be carried out; `refused` says which version failed which step."""

    def __init__(self, refused: RefusedVersion) -> None:
        super().__init__(refused)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Serving:
    """What answers: `models` has the stable version, the canary while it may answer, and the shadow, if any."""

    appliance_id: str
    directive: Directive
    models: Mapping[Role, LoadedModel]

    @property
    def stable(self) -> LoadedModel:
        """The version that answers for most, and for everybody when another fails."""
        return self.models[Role.STABLE]

    def role_for(self, building_id: str) -> Role:
        """Which version answers for this building."""
        canary = self.directive.plan.canary
        if Role.CANARY in self.models and canary and is_canary(self.appliance_id, building_id, canary.percent):
            return Role.CANARY
        return Role.STABLE

    @property
    def loaded(self) -> tuple[LoadedVersion, ...]:
        """Its versions by role."""
        return tuple(
            LoadedVersion(role, model.entry.model_version, model.entry.artifact_sha256)
            for role, model in self.models.items()
        )


class Versions:
    """Of one replica.

    `switched` is told what serves from now on.
    """

    def __init__(
        self,
        appliance_id: str,
        source: RegistrySource,
        device: str,
        switched: Callable[[Serving], None],
    ) -> None:
        self._appliance_id = appliance_id
        self._source = source
        self._device = device
        self._switched = switched
        self._serving: Serving | None = None
        self._next: Serving | None = None
        self._prepared: Serving | None = None
        self.registry_sha256 = ""

    def current(self) -> Serving | None:
        """What serves at this instant."""
        if self._next is not None and time.time() >= self._next.directive.activate_at_s:
            self._serving, self._next = self._next, None
            self._switched(self._serving)
        return self._serving

    @property
    def prepared(self) -> int | None:
        """The number of the directive that `switch` could carry out at once."""
        return self._prepared.directive.number if self._prepared else None

    async def prepare(self, directive: Directive) -> None:
        """Loads and verifies every version of the directive that is not loaded yet. Raises `VersionRefused`."""
        held = [s for s in (self.current(), self._next, self._prepared) if s is not None]
        known = {_key(m.entry): m for s in held for m in s.models.values()}
        models = await in_background(lambda: self._load(directive, known))
        self._prepared = Serving(self._appliance_id, directive, models)

    def switch(self, directive: Directive) -> bool:
        """From the directive's instant on, it serves. False when its versions have to be prepared first.

        A directive that only takes the canary away needs no preparation.
        """
        serving = self._next or self.current()
        if self._prepared is not None and self._prepared.directive.number == directive.number:
            models, self._prepared = self._prepared.models, None
        elif serving is not None and serving.directive.plan_number == directive.plan_number:
            models = serving.models
        else:
            return False
        if directive.demoted is not None:
            models = {role: model for role, model in models.items() if role is not Role.CANARY}
        self._next = Serving(self._appliance_id, directive, models)
        return True

    def forget_prepared(self) -> None:
        """What was prepared will not come."""
        self._prepared = None

    def _load(self, directive: Directive, known: Mapping[Key, LoadedModel]) -> dict[Role, LoadedModel]:
        plan, wanted = directive.plan, directive.versions
        try:
            registry = self._source.registry()
        except RegistryError as error:
            raise VersionRefused(RefusedVersion(", ".join(wanted.values()), "no_registry", str(error))) from error
        try:
            entries = {role: registry.resolve(self._appliance_id, version) for role, version in wanted.items()}
            check_against(registry, {self._appliance_id: plan})
        except (RegistryError, PlanRefused) as error:
            raise VersionRefused(RefusedVersion(", ".join(wanted.values()), "not_registered", str(error))) from error
        models = dict(known)
        loaded = {}
        for role, entry in entries.items():
            key = _key(entry)
            if key not in models:
                models[key] = self._load_one(entry, registry)
            loaded[role] = models[key]
        self.registry_sha256 = registry.sha256
        return loaded

    def _load_one(self, entry: RegistryEntry, registry: Registry) -> LoadedModel:
        try:
            return load_verified(entry, self._source.fetch(entry, registry), self._device)
        except ArtifactRefused as error:
            refused = RefusedVersion(entry.model_version, str(error.reason), _one_line(error.detail))
            raise VersionRefused(refused) from error
        except RegistryError as error:
            refused = RefusedVersion(entry.model_version, "not_fetched", _one_line(str(error)))
            raise VersionRefused(refused) from error
        except Exception as error:
            # An architecture may fail in any way; whatever it is must not stop the version that serves.
            logger.exception("loading %s %s failed", entry.appliance_id, entry.model_version)
            refused = RefusedVersion(entry.model_version, "load_failed", type(error).__name__)
            raise VersionRefused(refused) from error


def _key(entry: RegistryEntry) -> Key:
    """What makes a loaded model another one."""
    return entry.model_version, entry.artifact_sha256, entry.engine


def _one_line(detail: str) -> str:
    """Torch names every tensor that does not fit, on a hundred lines; the first say it."""
    return textwrap.shorten(detail, DETAIL_CHARACTERS, placeholder=" ...")


async def in_background(function: Callable[[], Result]) -> Result:
    """Its result, from a thread of its own at low priority.

    Not from a pool: a load that hangs would keep one of its threads, and the process from ending.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def tell(result: Result | None, error: BaseException | None) -> None:
        if done.done():
            return  # nobody waits any more
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        lower_priority()
        result, failure = None, None
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits for it
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, result, failure)

    threading.Thread(target=work, name="load", daemon=True).start()
    return await done


def lower_priority() -> None:
    """Of this thread alone, as Linux has it."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICE)
