"""The guard: what breaks a bound, when that is sure, and how long it takes; good canaries are left alone."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from deployments.rollout_contracts import VersionCounts
from deployments.rollout_guard import (
    BREACHES_IN_A_ROW,
    CONFIDENCE_Z,
    MIN_ON_WINDOWS,
    Guard,
    RecentCounts,
    breaches,
    wilson_lower,
)
from deployments.rollout_plan import GuardBounds

BOUNDS = GuardBounds()
GOOD = VersionCounts(
    windows=1000,
    on=100,
    power_w=1e5,
    time_s=10.0,
    compared=1000,
    disagreements=20,
    compared_on=100,
    compared_power_w=1e5,
    stable_power_w=1e5,
)
STABLE = VersionCounts(windows=1000, on=100, power_w=1e5, time_s=10.0)


@pytest.mark.parametrize(
    ("count", "total", "lower"),
    [
        (0, 0, 0.0),
        (0, 10, 0.0),
        (0, 10**6, 0.0),
        # For all of n the formula is n / (n + z^2), z^2 = 6.635776.
        (1, 1, 0.130963),
        (100, 100, 0.937772),
        # (0.05 + 0.033179 - 2.576 * sqrt(0.000475 + 0.000165894)) / 1.066358
        (5, 100, 0.016847),
        # (0.5 + 0.033179 - 2.576 * sqrt(0.0025 + 0.000165894)) / 1.066358
        (50, 100, 0.375272),
        # (0.001 + 0.003318 - 2.576 * sqrt(0.000000999 + 0.000001658944)) / 1.006636
        (1, 1000, 0.000117),
        (5000, 100000, 0.048255),
    ],
)
def test_wilson_by_hand(count: int, total: int, lower: float) -> None:
    assert wilson_lower(count, total) == pytest.approx(lower, abs=1e-6)


def test_wilson_is_below_the_share_and_comes_nearer_with_more_windows() -> None:
    lowers = [wilson_lower(n // 10, n) for n in (10, 100, 1000, 10_000, 100_000)]
    assert lowers == sorted(lowers)
    assert lowers[-1] < 0.1
    assert 0.1 - lowers[-1] < 0.0025
    assert CONFIDENCE_Z == 2.576


def first_breach(name: str, canary: VersionCounts = GOOD, stable: VersionCounts = STABLE) -> int:
    """The least count of `name` that breaks a bound."""
    return next(n for n in range(2000) if breaches(BOUNDS, replace(canary, **{name: n}), stable))


@pytest.mark.parametrize(
    ("name", "bound", "word"),
    [
        ("errors", BOUNDS.max_error_share, "errors"),
        ("implausible", BOUNDS.max_implausible_share, "implausible"),
        ("slow", BOUNDS.max_slow_share, "slower than 500 ms"),
        ("disagreements", BOUNDS.max_disagreement_share, "other states"),
    ],
)
def test_each_share_just_above_its_bound_and_just_not(name: str, bound: float, word: str) -> None:
    count = first_breach(name)
    assert wilson_lower(count, 1000) > bound >= wilson_lower(count - 1, 1000)
    (sentence,) = breaches(BOUNDS, replace(GOOD, **{name: count}), STABLE)
    assert word in sentence
    assert f"{count} of 1000 windows ({count / 1000:.2%}), bound {bound:.2%}" in sentence
    assert breaches(BOUNDS, replace(GOOD, **{name: count - 1}), STABLE) == []


def test_slow_windows_are_held_against_the_stable_versions() -> None:
    slow_machine = replace(STABLE, slow=300)
    assert first_breach("slow", stable=slow_machine) > first_breach("slow") + 250
    # A stable version that nobody asked yet excuses nothing.
    assert first_breach("slow", stable=VersionCounts()) == first_breach("slow")


@pytest.mark.parametrize(("power_w", "broken"), [(1.49e5, 0), (1.51e5, 1), (1e5 / 1.49, 0), (1e5 / 1.51, 1), (0.0, 1)])
def test_the_energy_over_the_same_windows(power_w: float, broken: int) -> None:
    assert len(breaches(BOUNDS, replace(GOOD, compared_power_w=power_w), STABLE)) == broken


def test_energy_of_a_few_windows_says_nothing() -> None:
    wild = replace(GOOD, compared_power_w=1e9)
    assert breaches(BOUNDS, replace(wild, compared_on=MIN_ON_WINDOWS - 1), STABLE) == []
    assert len(breaches(BOUNDS, replace(wild, compared_on=MIN_ON_WINDOWS), STABLE)) == 1


def test_a_stable_version_that_says_nothing_at_all_is_compared_too() -> None:
    assert len(breaches(BOUNDS, replace(GOOD, stable_power_w=0.0), STABLE)) == 1
    assert breaches(BOUNDS, replace(GOOD, stable_power_w=0.0, compared_power_w=0.0), STABLE) == []


def test_too_few_windows_decide_nothing() -> None:
    few = BOUNDS.min_windows - 1
    awful = VersionCounts(windows=few, errors=few, slow=few, implausible=few, compared=few, disagreements=few)
    awful = replace(awful, compared_on=few, compared_power_w=1e9, stable_power_w=1.0)
    assert breaches(BOUNDS, awful, STABLE) == []
    assert len(breaches(BOUNDS, replace(awful, windows=few + 1), STABLE)) == 3
    assert len(breaches(BOUNDS, replace(awful, compared=few + 1), STABLE)) == 2


def test_several_looks_with_new_windows_must_agree() -> None:
    guard, bad = Guard(BOUNDS), replace(GOOD, errors=500)
    assert [guard.look(bad, STABLE, 1000) for _ in range(10)] == [None] * 10, "no new window, no new look"
    verdicts = [guard.look(bad, STABLE, 1000 + n) for n in range(1, BREACHES_IN_A_ROW)]
    assert verdicts[:-1] == [None] * (BREACHES_IN_A_ROW - 2)
    assert verdicts[-1] == "errors: 500 of 1000 windows (50.00%), bound 0.20%"


def test_one_good_look_between_starts_the_count_anew() -> None:
    guard, bad = Guard(BOUNDS), replace(GOOD, errors=500)
    looks = [bad, bad, GOOD, bad, bad]
    assert [guard.look(counts, STABLE, n) for n, counts in enumerate(looks, start=1)] == [None] * 5
    assert guard.look(bad, STABLE, 6) is not None


def test_all_broken_bounds_are_told() -> None:
    guard = Guard(BOUNDS)
    bad = replace(GOOD, errors=500, disagreements=500)
    reason = next(r for n in range(10) if (r := guard.look(bad, STABLE, n + 1)) is not None)
    assert reason.count("; ") == 1
    assert "errors" in reason
    assert "other states" in reason


def window(errors: int = 0) -> VersionCounts:
    return VersionCounts(windows=1, errors=errors)


def test_recent_counts_forget_what_is_older_than_the_latest_windows() -> None:
    recent = RecentCounts(100)
    for n in range(1000):
        recent.add(window(errors=int(n < 500)))
    assert recent.total == VersionCounts(windows=100)
    recent.add(VersionCounts(windows=60, errors=1))
    recent.add(VersionCounts(windows=60, errors=1))
    assert recent.total == VersionCounts(windows=120, errors=2), "whole increments, never fewer than asked for"


def test_recent_counts_of_a_service_without_traffic_do_not_grow() -> None:
    """A replica reports every second or so, whether it ran a window or not."""
    recent = RecentCounts(100)
    recent.add(VersionCounts(windows=1))
    before = sys.getsizeof(recent._increments)
    for _ in range(10_000):
        recent.add(VersionCounts())
        recent.add(VersionCounts(dropped=1))
    assert len(recent._increments) <= 2
    assert sys.getsizeof(recent._increments) == before
    assert recent.total == VersionCounts(windows=1, dropped=10_000)


def test_what_is_compared_after_its_window_was_counted_leaves_with_the_windows() -> None:
    recent = RecentCounts(10)
    for _ in range(100):
        recent.add(VersionCounts(windows=1))
        recent.add(VersionCounts(compared=1))
    assert recent.total.windows == 10
    assert recent.total.compared <= 12


def test_a_canary_that_turns_bad_after_a_million_good_windows_is_found_within_the_recent_ones() -> None:
    bounds = GuardBounds()
    guard, recent, ever = Guard(bounds), RecentCounts(bounds.over_windows), 0
    for _ in range(1000):
        recent.add(VersionCounts(windows=1000))
        ever += 1000
        assert guard.look(recent.total, STABLE, ever) is None
    rng = np.random.default_rng(3)
    for spent in range(50, bounds.over_windows + 1, 50):
        recent.add(VersionCounts(windows=50, errors=int(rng.binomial(50, 0.05))))
        ever += 50
        if guard.look(recent.total, STABLE, ever):
            print(f"5 % of errors after a million good windows: found after {spent} windows")
            break
    else:
        pytest.fail("never found")
