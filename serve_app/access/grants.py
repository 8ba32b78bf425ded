"""Which buildings and appliances a caller may use: the answer, where it comes from, and how long it is believed.

Knows nothing of where grants are kept (see supabase.py and development_grants.py). Never takes a failed look-up for
"no buildings", and never believes an answer for longer than the time it was given.

    grants = await cache.grants(principal, timeout_s=2.0)
    grants.may_use("home-1")
    grants.appliances_of("home-1", ("kettle", "fridge"))
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from serve_app.access.principal import Principal, Role
from serve_app.logs import LOGGER_NAME
from serve_app.problems import FieldError, Problem, Problems

ALL = "*"
"""As a building's or appliance's id: every one. Not a requestable id, and only the development file may say it."""
RETRY_AFTER_S = 2
"""A fetch's own time (supabase.FETCH_TIMEOUT_S): asking again sooner would mostly join the fetch that is failing."""

_REQUESTABLE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOKEN_ROLES: tuple[Role | None, ...] = (None, *Role)
_logger = logging.getLogger(LOGGER_NAME)

_Key = tuple[str, Role | None]


class GrantSourceError(Exception):
    """The source could not tell what a caller may use. The text is for the log: it names no secret."""


def is_requestable_id(value: str) -> bool:
    """Whether a route accepts this text as a building's or an appliance's id."""
    return _REQUESTABLE_ID.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Grants:
    """What one caller may use. `buildings`: building id -> appliance ids. Read-only, since requests share it."""

    role: Role
    buildings: Mapping[str, frozenset[str]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "buildings", MappingProxyType(dict(self.buildings)))

    def may_use(self, building_id: str) -> bool:
        """Whether the caller may use this building; a super admin may use every one."""
        return self.role is Role.SUPER_ADMIN or building_id in self.buildings or ALL in self.buildings

    def appliances_of(self, building_id: str, served: Sequence[str]) -> tuple[str, ...]:
        """Those of `served` that the caller may use in this building, in that order; all of them for a super admin."""
        granted = self.granted_appliances(building_id)
        return tuple(appliance_id for appliance_id in served if granted is None or appliance_id in granted)

    def granted_appliances(self, building_id: str) -> frozenset[str] | None:
        """Those the caller may see in this building; None for every one there is."""
        nothing: frozenset[str] = frozenset()
        granted = self.buildings.get(building_id, nothing) | self.buildings.get(ALL, nothing)
        return None if self.role is Role.SUPER_ADMIN or ALL in granted else granted

    def check_building(self, building_id: str, pointer: str) -> None:
        """Raises Problem when the caller may not use it; `pointer`: where the request named it."""
        if not self.may_use(building_id):
            detail = "Your account does not grant this building."
            raise Problem(Problems.FORBIDDEN_BUILDING, detail, [FieldError(pointer, "not granted")])

    def check_appliance(self, building_id: str, appliance_id: str, pointer: str) -> None:
        """Raises Problem when the caller may not see it in this building."""
        if not self.appliances_of(building_id, (appliance_id,)):
            detail = "This building has no such appliance, or it is not yours to see."
            raise Problem(Problems.FORBIDDEN_APPLIANCE, detail, [FieldError(pointer, "not granted")])


class GrantSource(Protocol):
    """Where grants are kept."""

    async def fetch(self, principal: Principal) -> Grants:
        """What the caller may use now. Raises GrantSourceError when that cannot be told."""
        ...

    async def aclose(self) -> None:
        """Let go of connections."""
        ...


@dataclass(frozen=True, slots=True)
class GrantCacheStats:
    """`entries` held now; everything else counted since the start."""

    entries: int
    hits: int
    misses: int
    """Calls that found no valid entry. Many of them can wait for one fetch."""
    fetches: int
    failures: int
    invalidated: int
    evictions: int


@dataclass(frozen=True, slots=True)
class _Entry:
    grants: Grants
    expires_at_s: float


class GrantCache:
    """Remembers grants for `ttl_s` seconds and asks the source once for all who ask at the same time.

    The key is the user and the token's role: a token with another role is another question. An entry's time counts
    from when its fetch began, so access that was taken away ends within `ttl_s`. At most `max_entries` are held; the
    least recently used goes first. `ttl_s=0` remembers nothing. For one event loop.
    """

    def __init__(
        self,
        source: GrantSource,
        ttl_s: float = 60.0,
        max_entries: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if ttl_s < 0 or max_entries < 1:
            raise ValueError("ttl_s must not be negative and max_entries must be at least 1")
        self._source = source
        self._ttl_s = ttl_s
        self._max_entries = max_entries
        self._clock = clock
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._fetches: dict[_Key, asyncio.Task[Grants]] = {}
        # Every fetch that runs, disowned ones too: the event loop alone would not keep them from being collected.
        self._running: set[asyncio.Task[Grants]] = set()
        self._hits = self._misses = self._fetched = self._failures = self._invalidated = self._evictions = 0

    async def grants(self, principal: Principal, timeout_s: float) -> Grants:
        """What the caller may use, from memory or the source.

        Waits at most `timeout_s` seconds. Raises Problem (503 GRANTS_UNAVAILABLE) when the source fails or is not done
        by then; giving up, by time or by cancellation, leaves the fetch to the others who wait for it.
        """
        key = (principal.user_id, principal.token_role)
        entry = self._entries.get(key)
        if entry is not None and self._clock() < entry.expires_at_s:
            self._hits += 1
            self._entries.move_to_end(key)
            return entry.grants
        self._misses += 1
        fetch = self._fetches.get(key) or self._start_fetch(key, principal)
        # Unlike wait_for, asyncio.wait leaves the task alone when this caller is cancelled or runs out of time.
        await asyncio.wait((fetch,), timeout=timeout_s)
        if not fetch.done():
            raise _unavailable("The look-up of your buildings did not finish in time.")
        if fetch.cancelled() or fetch.exception() is not None:
            # A new Problem for each caller: one exception raised by many would collect all their tracebacks.
            raise _unavailable("Your buildings cannot be looked up now.")
        return fetch.result()

    def _start_fetch(self, key: _Key, principal: Principal) -> asyncio.Task[Grants]:
        started_at_s = self._clock()
        fetch = asyncio.create_task(self._source.fetch(principal), name="grants")
        self._fetches[key] = fetch
        self._running.add(fetch)
        self._fetched += 1
        fetch.add_done_callback(lambda done: self._settle(key, done, started_at_s + self._ttl_s))
        return fetch

    def _settle(self, key: _Key, fetch: asyncio.Task[Grants], expires_at_s: float) -> None:
        self._running.discard(fetch)
        current = self._fetches.get(key) is fetch
        if current:
            del self._fetches[key]
        if fetch.cancelled():
            return
        error = fetch.exception()
        if error is not None:
            self._failures += 1
            expected = isinstance(error, GrantSourceError)
            _logger.log(
                logging.WARNING if expected else logging.ERROR,
                "grants could not be fetched",
                exc_info=None if expected else error,
                extra={"fields": {"user_id": key[0], "reason": str(error)}},
            )
        elif current and self._ttl_s > 0:
            # Not current: invalidated while it ran, so what it read may be from before the change.
            self._remember(key, _Entry(fetch.result(), expires_at_s))

    def _remember(self, key: _Key, entry: _Entry) -> None:
        self._entries[key] = entry
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
            self._evictions += 1

    def invalidate(self, user_id: str | None) -> int:
        """Forget one user's grants, or with None everyone's; returns how many entries were dropped.

        A fetch under way is disowned: its answer goes to those who already wait for it and to nobody after.
        """
        if user_id is None:
            dropped = len(self._entries)
            self._entries.clear()
            self._fetches.clear()
        else:
            keys = [(user_id, role) for role in _TOKEN_ROLES]
            dropped = sum(self._entries.pop(key, None) is not None for key in keys)
            for key in keys:
                self._fetches.pop(key, None)
        self._invalidated += dropped
        return dropped

    def stats(self) -> GrantCacheStats:
        """The figures now. Entries whose time is over count until they are replaced or evicted."""
        return GrantCacheStats(
            entries=len(self._entries),
            hits=self._hits,
            misses=self._misses,
            fetches=self._fetched,
            failures=self._failures,
            invalidated=self._invalidated,
            evictions=self._evictions,
        )

    async def aclose(self) -> None:
        """End the fetches under way (who waits for one is told 503), then close the source."""
        running = tuple(self._running)
        for fetch in running:
            fetch.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._source.aclose()


def _unavailable(detail: str) -> Problem:
    return Problem(Problems.GRANTS_UNAVAILABLE, detail, retry_after_s=RETRY_AFTER_S)
