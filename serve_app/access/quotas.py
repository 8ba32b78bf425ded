"""Quotas shared by all ingress replicas, without a round trip on the common path.

Owns the keys of one replica and the reports to the ledger, which counts for all. A replica grants at once and reports
in the background, all keys in one call, one call in flight. What is used up is refused from what is known here.

The bound: a key may have `ahead(quota)` = max(1, quota // 20) grants that the ledger has not confirmed; then its next
request waits for the answer. The ledger keeps what was granted beyond the quota, and a key that was empty is asked
for before it is granted again. So n replicas together grant at most quota + n * ahead(quota) - 1 in any window, and
each alone at most the quota: of 60, one replica 60, two 65, five 74. That holds while every report is answered within
PATIENCE_S.

When the ledger is gone (an error, or no answer in that time) limits go on per replica: at most quota * n together.
Logged once an outage, which ends with the next report that is answered in time. A ledger that starts anew without its
count is the same case for one window: what each replica remembers of its own grants still limits it.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from deployments.contracts import QuotaState, QuotaUse
from serve_app.access.quota_window import KeyWindow, Verdict
from serve_app.problems import Problem, Problems

__all__ = [
    "BATCH_QUOTA",
    "IP_QUOTA",
    "USER_QUOTA",
    "SharedQuotas",
    "Verdict",
    "policy_header",
    "rate_limited",
    "state_header",
]

USER_QUOTA = "user"
BATCH_QUOTA = "batch"
IP_QUOTA = "ip"
"""The names of the quotas, as clients read them in RateLimit-Policy."""

Report = Callable[[tuple[QuotaUse, ...]], Awaitable[tuple[QuotaState, ...]]]

MAX_KEYS = 20_000
"""Keys one replica remembers; beyond, the one idle longest starts anew, in its owner's favour."""

PATIENCE_S = 0.25
"""A report that takes longer is an outage: nobody waits for it any more, though its answer still counts."""

GIVE_UP_S = 5.0
"""Then the report is cancelled and its uses are reported again, so they may count twice (never too few)."""

PAUSE_S = 0.05
"""Between two reports that nobody waits for: a call costs the coordinator and us milliseconds of CPU."""

USES_PER_REPORT = 64
"""Bounds one call, also after an outage; Redis needs about 1.3 ms a key on a busy core, so a third of PATIENCE_S."""

FIRST_RETRY_S = 0.25
LONGEST_RETRY_S = 4.0


def policy_header(verdicts: Iterable[Verdict]) -> str:
    """RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-09): `"user";q=60;w=60`."""
    return ", ".join(f'"{v.quota}";q={v.limit};w={v.window_s}' for v in verdicts)


def state_header(verdicts: Iterable[Verdict]) -> str:
    """RateLimit of the same draft, `t` in whole seconds: `"user";r=59;t=12`."""
    return ", ".join(f'"{v.quota}";r={v.remaining};t={v.reset_after_whole_s}' for v in verdicts)


def rate_limited(verdict: Verdict) -> Problem:
    """The 429 for a refusal. Its Retry-After is the same number as `t` of the RateLimit header."""
    seconds = verdict.reset_after_whole_s
    return Problem(
        Problems.RATE_LIMITED,
        f"{verdict.limit} requests in {verdict.window_s} s are allowed; try again in {seconds} s.",
        headers={"Retry-After": str(seconds)},
    )


class SharedQuotas:
    """The quotas of one ingress replica. Use from one event loop; `close()` it at the end."""

    def __init__(
        self,
        report: Report,
        limits: Mapping[str, int],
        window_s: int = 60,
        *,
        logger: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
        max_keys: int = MAX_KEYS,
        pause_s: float = PAUSE_S,
    ) -> None:
        """`report` tells the ledger and brings its answers in the same order; anything it raises is an outage.

        `limits`: requests per window by quota name, which goes into headers as it is.
        """
        if any(not name.isascii() or not name.isalnum() for name in limits):
            raise ValueError("the names of quotas must be ASCII letters and digits")
        if min((window_s, max_keys, *limits.values())) < 1:
            raise ValueError("quotas, the window and the number of keys must be at least 1")
        self._report = report
        self._limits = dict(limits)
        self._window_s = window_s
        self._logger = logger
        self._clock = clock
        self._max_keys = max_keys
        self._pause_s = pause_s
        self._keys: OrderedDict[str, KeyWindow] = OrderedDict()
        self._dirty: OrderedDict[str, KeyWindow] = OrderedDict()
        """What the next reports carry: whom somebody waits for, then the oldest. Who waits is here or in flight."""
        self._reporter: asyncio.Task[None] | None = None
        self._urgent = asyncio.Event()
        self._not_before = 0.0
        self._failures = 0
        self._outage_since: float | None = None
        self._closed = False

    @property
    def keys(self) -> int:
        """Keys remembered now."""
        return len(self._keys)

    @property
    def alone(self) -> bool:
        """True while the ledger is gone and this replica limits by itself."""
        return self._outage_since is not None or self._closed

    def take(self, quota: str, key: str) -> Verdict | asyncio.Future[Verdict]:
        """Grant or refuse one request of `key`, any string that names who asks. Raises ValueError for another quota.

        Answers at once, except when the ledger must be heard first: then in the order of arrival, after at most
        21 reports (quota / ahead, and one that says it is used up), each PATIENCE_S at most. A caller that is cancelled
        after its grant has used it.
        """
        entry = self._entry(quota, key)
        verdict = entry.decide(self._clock(), alone=self.alone)
        if verdict is None:
            waiter: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
            entry.waiters.append(waiter)
            self._mark(entry, urgent=True)
            return waiter
        if entry.unreported:
            self._mark(entry, urgent=entry.unconfirmed >= entry.ahead)
        return verdict

    def _entry(self, quota: str, key: str) -> KeyWindow:
        if quota not in self._limits:
            raise ValueError(f"no quota is called {quota!r}")
        now = self._clock()
        # Hashed, so that neither the ledger nor Redis holds who called, and no key is long or odd.
        digest = hashlib.sha256(f"{quota}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
        entry = self._keys.get(digest)
        if entry is None:
            entry = self._keys[digest] = KeyWindow(quota, digest, self._limits[quota], self._window_s)
        else:
            self._keys.move_to_end(digest)
        entry.used_at = now
        while len(self._keys) > 1:
            oldest = next(iter(self._keys.values()))
            if oldest.used_at + self._window_s > now and len(self._keys) <= self._max_keys:
                break
            if oldest.waiters:
                break  # who waits for an answer must get one; the next key makes room
            del self._keys[oldest.digest]
            self._dirty.pop(oldest.digest, None)
        return entry

    def _mark(self, entry: KeyWindow, *, urgent: bool = False) -> None:
        """Have this key reported: with the next report, or with the one after the report it is in."""
        if not entry.in_report:
            self._dirty[entry.digest] = entry
            if entry.waiters:
                self._dirty.move_to_end(entry.digest, last=False)
        if urgent or len(self._dirty) >= USES_PER_REPORT:
            self._urgent.set()
        if (self._reporter is None or self._reporter.done()) and not self._closed:
            # In an empty context: Serve would take the report for a part of the request that happened to start it,
            # and cancel it when that client hangs up.
            self._reporter = asyncio.get_running_loop().create_task(self._report_all(), context=contextvars.Context())

    async def _report_all(self) -> None:
        while self._dirty:
            await self._turn()
            batch = self._batch()
            if batch:
                await self._send(batch)

    async def _turn(self) -> None:
        delay_s = self._not_before - asyncio.get_running_loop().time()
        if self._failures:
            await asyncio.sleep(delay_s)
        elif delay_s > 0:
            await _set_within(self._urgent, delay_s)

    def _batch(self) -> list[KeyWindow]:
        self._urgent.clear()
        now = self._clock()
        batch: list[KeyWindow] = []
        while self._dirty and len(batch) < USES_PER_REPORT:
            _, entry = self._dirty.popitem(last=False)
            if entry.sent(now):
                batch.append(entry)
        return batch

    async def _send(self, batch: list[KeyWindow]) -> None:
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        call = loop.create_task(self._call(tuple(QuotaUse(e.quota, e.digest, e.in_flight) for e in batch)))
        try:
            # wait(), unlike wait_for(), raises nothing of the call's own.
            await asyncio.wait({call}, timeout=PATIENCE_S)
            if not call.done():
                self._begin_outage(f"no answer within {PATIENCE_S:g} s", batch)
                await asyncio.wait({call}, timeout=GIVE_UP_S - PATIENCE_S)
        finally:
            call.cancel()
        if not call.done() or call.cancelled():
            self._failed(f"no answer within {GIVE_UP_S:g} s" if not call.done() else "the call was cancelled", batch)
        elif (error := call.exception()) is not None:
            self._failed(type(error).__name__, batch, error)
        else:
            took_s = loop.time() - started_at
            self._heard(batch, call.result(), in_time=took_s <= PATIENCE_S)

    async def _call(self, uses: tuple[QuotaUse, ...]) -> list[QuotaState]:
        """The answers, checked here, so that a wrong one is an outage like any other and not a dead reporter."""
        states = list(await self._report(uses))
        if len(states) != len(uses) or not all(s.remaining >= 0 and s.reset_after_s >= 0 for s in states):
            raise ValueError("the ledger's answer does not fit the report")
        return states

    def _heard(self, batch: Sequence[KeyWindow], states: Sequence[QuotaState], *, in_time: bool) -> None:
        loop_s, now = asyncio.get_running_loop().time(), self._clock()
        self._failures = 0
        self._not_before = loop_s + self._pause_s
        if in_time and self._outage_since is not None:
            fields = {"outage_s": round(loop_s - self._outage_since, 1)}
            self._logger.info("quota ledger back, limits shared again", extra={"fields": fields})
            self._outage_since = None
        for entry, state in zip(batch, states, strict=True):
            entry.heard(state, now)
        self._settle(batch, now)

    def _failed(self, why: str, batch: Sequence[KeyWindow], error: BaseException | None = None) -> None:
        self._failures += 1
        ceiling_s = min(FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 10), LONGEST_RETRY_S)
        jitter = random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
        self._not_before = asyncio.get_running_loop().time() + ceiling_s * jitter
        for entry in batch:
            entry.take_back()
        self._begin_outage(why, batch, error)

    def _begin_outage(self, why: str, batch: Sequence[KeyWindow], error: BaseException | None = None) -> None:
        if self._outage_since is None:
            self._outage_since = asyncio.get_running_loop().time()
            fields = {"cause": why, "limits": self._limits}
            self._logger.warning("quota ledger gone, limits per replica", extra={"fields": fields}, exc_info=error)
        self._settle([*batch, *self._dirty.values()], self._clock())

    def _settle(self, entries: Iterable[KeyWindow], now: float) -> None:
        """Answer who waits, as far as can be decided now; the rest is reported again."""
        for entry in entries:
            while entry.waiters:
                if entry.waiters[0].done():  # its request is gone
                    entry.waiters.popleft()
                    continue
                verdict = entry.decide(now, alone=self.alone)
                if verdict is None:
                    break
                entry.waiters.popleft().set_result(verdict)
            if entry.unreported or entry.waiters:
                self._mark(entry, urgent=bool(entry.waiters) or entry.unconfirmed >= entry.ahead)

    async def close(self) -> None:
        """Stop reporting. Requests that still come are limited by this replica alone. Safe to call twice."""
        self._closed = True
        self._settle([*self._keys.values(), *self._dirty.values()], self._clock())
        self._urgent.set()
        if self._reporter is not None:
            await asyncio.wait({self._reporter}, timeout=PATIENCE_S)
            self._reporter.cancel()


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiting}, timeout=seconds)
    finally:
        waiting.cancel()
