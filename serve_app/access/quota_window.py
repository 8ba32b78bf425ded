"""What one ingress replica knows about one key of a quota, and the verdicts that follow from it.

Owns the replica's own moving window and the arithmetic of what may be granted ahead of the ledger. No clock, no task
and no network: SharedQuotas brings the times (seconds of any one monotonic clock) and the ledger's answers.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field

from deployments.contracts import QuotaState


def ahead(limit: int) -> int:
    """Grants of one key that may be unconfirmed at a time: a twentieth of the quota, so 20 replicas add one."""
    return max(1, limit // 20)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one request was told. `reset_after_s`: seconds until `remaining` grows; refused: until one is granted."""

    quota: str
    allowed: bool
    limit: int
    remaining: int
    reset_after_s: float
    window_s: int

    @property
    def reset_after_whole_s(self) -> int:
        """Whole seconds for headers: rounded up, because a client that comes early is refused again."""
        return max(1, math.ceil(self.reset_after_s))


@dataclass(slots=True, eq=False)
class KeyWindow:
    """One key as this replica sees it. A grant is unreported -> in flight -> heard, part of what the ledger says."""

    quota: str
    digest: str
    limit: int
    window_s: int
    used_at: float = 0.0
    grants: deque[float] = field(default_factory=deque)
    """When this replica granted, within the last window: its own moving window."""
    unreported: int = 0
    in_flight: int = 0
    in_report: bool = False
    left: int = -1
    """What the ledger last said is left; a full quota before the first answer."""
    resets_at: float = -math.inf
    waiters: deque[asyncio.Future[Verdict]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.left = self.limit

    @property
    def ahead(self) -> int:
        return ahead(self.limit)

    @property
    def unconfirmed(self) -> int:
        return self.unreported + self.in_flight

    def decide(self, now: float, *, alone: bool) -> Verdict | None:
        """Grant or refuse; None when the ledger must be heard first, which is never when `alone`."""
        self._forget_old(now)
        empty = self.left == 0 and now < self.resets_at
        if not empty and not alone and self.unconfirmed >= min(self.ahead, self.left):
            return None
        allowed = not empty and len(self.grants) < self.limit
        if allowed:
            self.grants.append(now)
            self.unreported += 1
        own = (self.limit - len(self.grants), self.grants[0] + self.window_s if self.grants else now)
        shared = (max(0, self.left - self.unconfirmed), self.resets_at if self.resets_at > now else own[1])
        # The scarcer of the two counts; when both are used up, the one that is used up longer.
        remaining, at = own if alone and not empty else min(own, shared, key=lambda count: (count[0], -count[1]))
        # Bounded, as (now + window) - now can round to more than the window, which headers would show as a second more.
        reset_after_s = min(max(0.0, at - now), self.window_s)
        return Verdict(self.quota, allowed, self.limit, remaining, reset_after_s, self.window_s)

    def sent(self, now: float) -> bool:
        """Move what is unreported into a report. False when there is nothing to say and nobody asks."""
        self._forget_old(now)
        self.in_flight = min(self.unreported, len(self.grants))  # what is older than the window counts no more
        self.unreported = 0
        self.in_report = bool(self.in_flight or self.waiters)
        return self.in_report

    def heard(self, state: QuotaState, now: float) -> None:
        """Take in the ledger's answer to the report in flight."""
        self.in_report = False
        self.in_flight = 0
        self.left = min(state.remaining, self.limit)
        # At least a moment, so that an empty key is refused before it is asked for again.
        self.resets_at = now + min(max(state.reset_after_s, 0.001), self.window_s)

    def take_back(self) -> None:
        """The report failed: its uses wait for the next one."""
        self.in_report = False
        self.unreported += self.in_flight
        self.in_flight = 0

    def _forget_old(self, now: float) -> None:
        while self.grants and self.grants[0] <= now - self.window_s:
            self.grants.popleft()
