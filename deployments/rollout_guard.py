"""Whether a canary may go on answering: counts in, broken bounds out. Pure.

Every bound that is a share is held against the lower end of a Wilson interval, so that few windows decide nothing:
E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), 209-212.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from deployments.rollout_contracts import VersionCounts
from deployments.rollout_plan import GuardBounds

CONFIDENCE_Z = 2.576
"""Of the normal distribution, two-sided 99 %."""
MIN_ON_WINDOWS = 30
"""Energy is that of a few windows in which the appliance runs; fewer say nothing about it."""
BREACHES_IN_A_ROW = 3
"""Looks, each with windows that the one before had not seen, that must agree before a canary is demoted."""


@dataclass
class RecentCounts:
    """The counts of about the latest `over_windows` windows, from increments in their order."""

    over_windows: int
    _increments: deque[VersionCounts] = field(default_factory=deque)
    total: VersionCounts = field(default_factory=VersionCounts)

    def add(self, increment: VersionCounts) -> None:
        """Takes an increment in, and lets the oldest go as soon as there are enough without them."""
        if self._increments and increment.windows == 0:
            # It would push nothing out: reports of a service without traffic would pile up for ever.
            self._increments[-1] += increment
        else:
            self._increments.append(increment)
        self.total += increment
        while self.total.windows - self._increments[0].windows >= self.over_windows:
            self.total -= self._increments.popleft()


@dataclass
class Guard:
    """Judges one canary, look by look."""

    bounds: GuardBounds
    _in_a_row: int = 0
    _seen_windows: int = 0

    def look(self, canary: VersionCounts, stable: VersionCounts, windows_ever: int) -> str | None:
        """Why the canary must be demoted now, with the numbers, or None. `windows_ever`: all it has run so far."""
        if windows_ever == self._seen_windows:
            return None
        self._seen_windows = windows_ever
        broken = breaches(self.bounds, canary, stable)
        self._in_a_row = self._in_a_row + 1 if broken else 0
        return "; ".join(broken) if self._in_a_row >= BREACHES_IN_A_ROW else None


def breaches(bounds: GuardBounds, canary: VersionCounts, stable: VersionCounts) -> list[str]:
    """The bounds that the canary breaks, one sentence each."""
    found: list[str] = []
    if canary.windows >= bounds.min_windows:
        found += _share("errors", canary.errors, canary.windows, bounds.max_error_share)
        found += _share("implausible powers", canary.implausible, canary.windows, bounds.max_implausible_share)
        stable_slow = stable.slow / stable.windows if stable.windows else 0.0
        what = f"windows slower than {bounds.slow_ms:g} ms"
        found += _share(what, canary.slow, canary.windows, bounds.max_slow_share + stable_slow)
    if canary.compared >= bounds.min_windows:
        what = "other states than the stable version's"
        found += _share(what, canary.disagreements, canary.compared, bounds.max_disagreement_share)
        found += _energy(bounds, canary)
    return found


def wilson_lower(count: int, total: int) -> float:
    """The lower end of the 99 % interval of a share of which `count` of `total` were seen; 0 without any."""
    if total == 0:
        return 0.0
    z2 = CONFIDENCE_Z**2
    share = count / total
    spread = CONFIDENCE_Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(0.0, (share + z2 / (2 * total) - spread) / (1 + z2 / total))


def _share(what: str, count: int, total: int, bound: float) -> list[str]:
    if wilson_lower(count, total) <= bound:
        return []
    return [f"{what}: {count} of {total} windows ({count / total:.2%}), bound {bound:.2%}"]


def _energy(bounds: GuardBounds, canary: VersionCounts) -> list[str]:
    if canary.compared_on < MIN_ON_WINDOWS:
        return []
    mean_w, stable_w = canary.compared_power_w / canary.compared, canary.stable_power_w / canary.compared
    if stable_w / bounds.max_power_ratio <= mean_w <= stable_w * bounds.max_power_ratio:
        return []
    return [
        f"mean power: {mean_w:.1f} W where the stable version says {stable_w:.1f} W, "
        f"over {canary.compared} windows ({canary.compared_on} on), bound {bounds.max_power_ratio:g} times"
    ]
