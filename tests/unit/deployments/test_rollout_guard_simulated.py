"""The guard against simulated canaries: good ones stay for as long as one likes, bad ones are found in time."""

from __future__ import annotations

import numpy as np
import pytest

from deployments.rollout_contracts import VersionCounts
from deployments.rollout_guard import Guard, RecentCounts
from deployments.rollout_plan import GuardBounds

RUNS, WINDOWS, LOOK = 200, 20_000, 50
"""50 windows a look: 100 windows a second, two looks."""
ON_SHARE, ON_W = 0.05, 2000.0
BOUNDS = GuardBounds()


def looks(
    rng: np.random.Generator, nan_share: float = 0.0, disagreement: float = 0.02, ratio: float = 1.05
) -> tuple[list[VersionCounts], list[VersionCounts]]:
    """Increments of a canary and of the stable version beside it, drawn look by look.

    Latency is lognormal about 60 ms for both, so 1 in 400 is slow. The appliance is on in 5 % of the windows, and the
    canary's power there is `ratio` times the stable one's with 30 % of noise; off windows have a few watts of noise.
    """
    shape = (WINDOWS // LOOK, LOOK)
    slow = rng.lognormal(np.log(0.06), 0.75, (2, *shape)) > BOUNDS.slow_ms / 1000
    nan = rng.random(shape) < nan_share
    on = rng.random(shape) < ON_SHARE
    other = (rng.random(shape) < disagreement) & ~nan
    stable_w = np.where(on, ON_W * rng.lognormal(0, 0.2, shape), rng.exponential(3.0, shape))
    canary_w = np.where(on, stable_w * ratio * rng.lognormal(0, 0.3, shape), rng.exponential(3.0, shape))
    canary, stable = [], []
    for n in range(shape[0]):
        good = ~nan[n]
        canary.append(
            VersionCounts(
                windows=LOOK,
                errors=int(nan[n].sum()),
                slow=int((slow[0, n] & good).sum()),
                power_w=float(canary_w[n][good].sum()),
                compared=int(good.sum()),
                disagreements=int(other[n].sum()),
                compared_on=int((on[n] & good).sum()),
                compared_power_w=float(canary_w[n][good].sum()),
                stable_power_w=float(stable_w[n][good].sum()),
            )
        )
        stable.append(VersionCounts(windows=LOOK, slow=int(slow[1, n].sum())))
    return canary, stable


def demoted_after(canary: list[VersionCounts], stable: list[VersionCounts]) -> tuple[int, str] | None:
    """Windows until the guard demotes, and why."""
    guard, ever = Guard(BOUNDS), 0
    recent = [RecentCounts(BOUNDS.over_windows) for _ in range(2)]
    for mine, its in zip(canary, stable, strict=True):
        recent[0].add(mine)
        recent[1].add(its)
        ever += mine.windows
        reason = guard.look(recent[0].total, recent[1].total, ever)
        if reason is not None:
            return ever, reason
    return None


def test_a_good_canary_is_never_demoted() -> None:
    verdicts = [demoted_after(*looks(np.random.default_rng(seed))) for seed in range(RUNS)]
    assert [verdict for verdict in verdicts if verdict is not None] == []


@pytest.mark.parametrize(
    ("change", "word", "within"),
    [
        ({"nan_share": 0.01}, "errors", 2500),
        ({"nan_share": 0.1}, "errors", 400),
        ({"disagreement": 0.3}, "other states", 1500),
        ({"ratio": 2.0}, "mean power", 2500),
        ({"ratio": 0.4}, "mean power", 2500),
    ],
    ids=["nan-1%", "nan-10%", "disagrees-30%", "twice-the-power", "two-fifths-of-the-power"],
)
def test_a_bad_canary_is_found_in_time(change: dict[str, float], word: str, within: int) -> None:
    verdicts = [demoted_after(*looks(np.random.default_rng(seed), **change)) for seed in range(40)]
    assert all(verdict is not None and word in verdict[1] for verdict in verdicts)
    spent = [verdict[0] for verdict in verdicts if verdict is not None]
    print(f"{change}: found after {int(np.median(spent))} windows in the median, {max(spent)} at most, of 40 runs")
    assert max(spent) <= within
