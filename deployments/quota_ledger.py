"""What all ingress replicas together have granted: one moving window per key, counted by the `limits` library.

Owns the shared count of every quota, in this process's memory or in Redis. It refuses nobody: replicas grant first and
report what they granted, and learn here what is left. Knows neither Ray nor HTTP.

More than the quota may be reported, because replicas grant a little ahead of what they heard. The excess is kept
(up to as much again as the quota), so that a key in excess stays empty until its true count is below the quota;
forgotten excess could be granted again each time one place falls free.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limits import RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError

from deployments.contracts import QuotaState, QuotaUse

MAX_KEYS = 100_000
"""Keys in memory. A minute of 1,600 new users a second; an idle one is a few hundred bytes."""

LEAST_EXCESS = 20
"""Excess that is kept however small the quota: one grant ahead from each of twenty replicas."""

REDIS_CONNECTIONS = 16
REDIS_TIMEOUT_S = 1.0
"""For one whole report. Replicas stop waiting long before (see SharedQuotas); this only frees the connections."""


class LedgerUnavailable(Exception):
    """The shared count cannot be reached now. Part of the report may have been counted."""


@dataclass(frozen=True, slots=True)
class LedgerStats:
    """Figures of this ledger since it started. `kind` is `memory` or `redis`; `keys` is 0 with Redis."""

    kind: str
    keys: int
    evicted_total: int
    reports_total: int
    uses_total: int
    failures_total: int


class QuotaLedger:
    """Counts uses per key over a moving window: none of length `window_s` hides a second burst at its edge.

    With Redis several ledgers share one count; their hosts' clocks must agree, as the library stamps entries with the
    client's clock. In memory the count is lost with the process: every replica then starts from a full quota, and what
    its own window remembers is what still limits it.
    """

    def __init__(
        self,
        limits: Mapping[str, int],
        window_s: int = 60,
        redis_url: str | None = None,
        max_keys: int = MAX_KEYS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`limits`: requests per window by quota name. `clock` is for memory only; Redis keeps wall-clock time.

        Raises ValueError for unusable numbers or a URL Redis cannot read, ImportError when `redis` is not installed.
        Does not connect: a Redis that is down shows at the first report.
        """
        if min((window_s, max_keys, *limits.values())) < 1:
            raise ValueError("quotas, the window and the number of keys must be at least 1")
        self._limits = dict(limits)
        self._window_s = window_s
        self._items = {
            name: RateLimitItemPerSecond(limit + max(limit, LEAST_EXCESS), window_s, namespace="nilm-quota")
            for name, limit in limits.items()
        }
        self._pool: Any = None
        self._memory: BoundedMemoryStorage | None = None
        self._storage: RedisStorage | BoundedMemoryStorage
        if redis_url:
            self._pool = _redis_pool(redis_url)
            self._clock: Callable[[], float] = time.time
            self._storage = RedisStorage(
                redis_url, wrap_exceptions=True, implementation="redispy", connection_pool=self._pool
            )
        else:
            self._clock = clock
            self._storage = self._memory = BoundedMemoryStorage(max_keys, clock)
        self._limiter = MovingWindowRateLimiter(self._storage)
        self._reports_total = 0
        self._uses_total = 0
        self._failures_total = 0

    async def report(self, uses: Sequence[QuotaUse]) -> tuple[QuotaState, ...]:
        """Count `uses` and say what is left of each key, in the same order.

        Raises ValueError for a quota this ledger does not know or a negative use (nothing is counted then), and
        LedgerUnavailable when Redis fails or takes longer than a second.
        """
        for use in uses:
            if use.quota not in self._limits:
                raise ValueError(f"no quota is called {use.quota!r}")
            if use.used < 0:
                raise ValueError(f"{use.used} uses cannot be counted")
        self._reports_total += 1
        try:
            if self._pool is None:
                states = tuple([await self._count(use) for use in uses])
            else:
                async with asyncio.timeout(REDIS_TIMEOUT_S):
                    states = tuple(await asyncio.gather(*(self._count(use) for use in uses)))
        except (StorageError, TimeoutError, OSError) as error:
            self._failures_total += 1
            cause = error.storage_error if isinstance(error, StorageError) else error
            # The kind only: the text of a connection error can carry the URL.
            raise LedgerUnavailable(f"the shared count cannot be reached: {type(cause).__name__}") from None
        self._uses_total += sum(use.used for use in uses)
        return states

    async def _count(self, use: QuotaUse) -> QuotaState:
        item, limit = self._items[use.quota], self._limits[use.quota]
        key = (use.quota, use.key)
        left = min(use.used, item.amount)
        # A hit counts all or nothing. What does not fit is cut to what does, so that the key is full and not untouched;
        # another ledger on the same Redis may take places in between, hence the loop, shorter by one each time.
        while left > 0 and not await self._limiter.hit(item, *key, cost=left):
            left = min(left - 1, (await self._limiter.get_window_stats(item, *key)).remaining)
        resets_at, free = await self._limiter.get_window_stats(item, *key)
        counted = item.amount - free
        if counted >= limit:
            # The next place falls free when fewer than `limit` are left: with the oldest of the newest `limit`.
            started_at, _ = await self._storage.get_moving_window(item.key_for(*key), limit, self._window_s)
            resets_at = started_at + self._window_s
        reset_after_s = max(0.0, resets_at - self._clock()) if counted else 0.0
        return QuotaState(remaining=max(0, limit - counted), reset_after_s=reset_after_s)

    def stats(self) -> LedgerStats:
        """Figures for metrics and the admin's view."""
        return LedgerStats(
            kind="redis" if self._memory is None else "memory",
            keys=0 if self._memory is None else self._memory.keys,
            evicted_total=0 if self._memory is None else self._memory.evicted_total,
            reports_total=self._reports_total,
            uses_total=self._uses_total,
            failures_total=self._failures_total,
        )

    async def close(self) -> None:
        """Close the connections to Redis, if there are any."""
        if self._pool is not None:
            await self._pool.disconnect()


class BoundedMemoryStorage(MemoryStorage):
    """The library's moving window in memory, without its sweep and with a bound.

    The library's own storage walks through every key after each hit, one thread hop a key (measured: 0.12 ms of CPU
    per key, 0.6 s at 5,000 keys), and has no bound. Here keys leave in the order of their last use: those
    older than the window for free, and beyond `max_keys` the one idle longest. A key that is evicted early
    starts again from a full quota; that errs in the caller's favour, and stats() tells.
    """

    def __init__(self, max_keys: int, clock: Callable[[], float]) -> None:
        super().__init__()
        self._max_keys = max_keys
        self._clock = clock
        self._windows: OrderedDict[str, deque[float]] = OrderedDict()
        self.evicted_total = 0

    @property
    def keys(self) -> int:
        """Keys held now."""
        return len(self._windows)

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Add `amount` entries of now, oldest first, if at most `limit` are then in the window."""
        now = self._clock()
        times = self._current(key, now - expiry) or deque()
        if len(times) + amount > limit:
            return False
        times.extend([now] * amount)
        self._windows[key] = times
        self._windows.move_to_end(key)
        while self._windows:
            oldest = next(iter(self._windows.values()))
            expired = not oldest or oldest[-1] <= now - expiry
            if not expired and len(self._windows) <= self._max_keys:
                break
            self._windows.popitem(last=False)
            self.evicted_total += not expired
        return True

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """The time of the oldest, and the number, of the newest `limit` entries in the window."""
        now = self._clock()
        times = self._current(key, now - expiry)
        if not times:
            return now, 0
        count = min(len(times), limit)
        return times[-count], count

    async def clear(self, key: str) -> None:
        """Forget one key."""
        self._windows.pop(key, None)

    def _current(self, key: str, until: float) -> deque[float] | None:
        times = self._windows.get(key)
        while times and times[0] <= until:
            times.popleft()
        return times


def _redis_pool(url: str) -> Any:
    # Optional: only where REDIS_URL is set.
    from redis.asyncio import BlockingConnectionPool  # noqa: PLC0415

    # No retries inside the client: the caller reports again, and knows that a use may then be counted twice.
    try:
        return BlockingConnectionPool.from_url(
            url,
            max_connections=REDIS_CONNECTIONS,
            timeout=REDIS_TIMEOUT_S,
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
        )
    except ValueError:
        # Its text may quote a part of the password.
        raise ValueError("the Redis URL cannot be read") from None
