"""The tally: what counts as slow, implausible, on, an error, and what two versions disagree about."""

from __future__ import annotations

import math

import pytest

from deployments.rollout_contracts import Role, VersionCounts
from deployments.tally import NAMEPLATE_TOLERANCE_W, Said, Tally
from models.appliances import APPLIANCES

MAX_W = APPLIANCES["kettle"].max_power_w
PLAN = 7


@pytest.fixture
def tally() -> Tally:
    one = Tally("kettle")
    one.begin(PLAN, slow_ms=100.0)
    return one


def counts(tally: Tally, role: Role = Role.CANARY) -> VersionCounts:
    return dict(tally.counts).get(role, VersionCounts())


def test_windows_are_summed_by_role(tally: Tally) -> None:
    tally.ran(PLAN, Role.STABLE, Said(10.0, 0.1), 0.01)
    tally.ran(PLAN, Role.CANARY, Said(1000.0, 0.9), 0.02)
    tally.ran(PLAN, Role.CANARY, Said(500.0, 0.5), 0.03)
    assert counts(tally, Role.STABLE) == VersionCounts(windows=1, power_w=10.0, time_s=0.01)
    assert counts(tally) == VersionCounts(windows=2, on=2, power_w=1500.0, time_s=0.05)


@pytest.mark.parametrize(("time_s", "slow"), [(0.1, 0), (0.1001, 1), (5.0, 1)])
def test_slow_is_longer_than_the_bound(tally: Tally, time_s: float, slow: int) -> None:
    tally.ran(PLAN, Role.CANARY, Said(0.0, 0.0), time_s)
    assert counts(tally).slow == slow


@pytest.mark.parametrize(
    ("power_w", "implausible"),
    [(0.0, 0), (-0.001, 1), (MAX_W, 0), (MAX_W + NAMEPLATE_TOLERANCE_W, 0), (MAX_W + 1.01, 1), (math.nan, 1)],
)
def test_implausible_is_negative_or_more_than_the_nameplate(tally: Tally, power_w: float, implausible: int) -> None:
    tally.ran(PLAN, Role.CANARY, Said(power_w, 0.0), 0.0)
    assert counts(tally).implausible == implausible


def test_an_appliance_without_a_nameplate_may_draw_anything() -> None:
    tally = Tally("sauna")
    tally.begin(PLAN, 100.0)
    tally.ran(PLAN, Role.CANARY, Said(1e9, 0.9), 0.0)
    assert counts(tally).implausible == 0


def test_a_window_that_failed_is_a_window_and_an_error(tally: Tally) -> None:
    tally.failed(PLAN, Role.CANARY, 3)
    tally.failed(PLAN, Role.CANARY, 0)
    tally.dropped(PLAN, Role.CANARY, 2)
    assert counts(tally) == VersionCounts(windows=3, errors=3, dropped=2)


@pytest.mark.parametrize(
    ("said", "stable", "disagreements", "on"),
    [
        (Said(100.0, 0.9), Said(90.0, 0.8), 0, 1),
        (Said(100.0, 0.9), Said(90.0, 0.4), 1, 1),
        (Said(1.0, 0.1), Said(90.0, 0.5), 1, 1),
        (Said(1.0, 0.1), Said(0.0, 0.49), 0, 0),
    ],
)
def test_two_versions_on_one_window(tally: Tally, said: Said, stable: Said, disagreements: int, on: int) -> None:
    tally.compared(PLAN, Role.CANARY, said, stable)
    assert counts(tally) == VersionCounts(
        compared=1,
        disagreements=disagreements,
        compared_on=on,
        compared_power_w=said.power_w,
        stable_power_w=stable.power_w,
    )


def test_a_new_plan_counts_from_zero_and_what_was_begun_under_the_old_one_is_not_its(tally: Tally) -> None:
    tally.failed(PLAN, Role.CANARY, 1)
    tally.begin(PLAN + 1, slow_ms=5000.0)
    assert tally.counts == ()
    tally.failed(PLAN, Role.CANARY, 64)
    tally.ran(PLAN, Role.STABLE, Said(0.0, 0.0), 1.0)
    tally.compared(PLAN, Role.CANARY, Said(0.0, 0.0), Said(0.0, 0.0))
    tally.dropped(PLAN, Role.SHADOW, 1)
    assert tally.counts == ()
    tally.ran(PLAN + 1, Role.STABLE, Said(0.0, 0.0), 1.0)
    assert counts(tally, Role.STABLE) == VersionCounts(windows=1, time_s=1.0)


def test_the_same_plan_again_goes_on(tally: Tally) -> None:
    tally.failed(PLAN, Role.CANARY, 1)
    tally.begin(PLAN, slow_ms=100.0)
    assert counts(tally).errors == 1


def test_sums_add_and_subtract_by_field() -> None:
    one, two = VersionCounts(windows=5, errors=1, power_w=2.5), VersionCounts(windows=2, slow=1, power_w=0.5)
    assert one + two == VersionCounts(windows=7, errors=1, slow=1, power_w=3.0)
    assert one + two - two == one
