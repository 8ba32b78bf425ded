"""Which buildings a canary answers for: a fixed share, always the same ones, others for each appliance."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deployments.rollout_plan import is_canary

BUILDINGS = [f"building-{n}" for n in range(20_000)]
APPLIANCE = st.sampled_from(["kettle", "dishwasher", "washing_machine", "x" * 64])
PERCENT = st.floats(0.0, 100.0)


def chosen(percent: float, appliance: str = "kettle") -> set[str]:
    return {building for building in BUILDINGS if is_canary(appliance, building, percent)}


@pytest.mark.parametrize("percent", [0.1, 1.0, 5.0, 25.0, 50.0, 90.0, 99.9])
@pytest.mark.parametrize("appliance", ["kettle", "washing_machine"])
def test_the_share_of_buildings_is_the_percentage(percent: float, appliance: str) -> None:
    share = percent / 100
    # Five standard deviations of a binomial; the choice is fixed, so this never flickers.
    spread = 5 * math.sqrt(share * (1 - share) * len(BUILDINGS))
    assert abs(len(chosen(percent, appliance)) - share * len(BUILDINGS)) <= spread


@given(APPLIANCE, st.text(), PERCENT, PERCENT)
@example("kettle", "", 0.0, 100.0)
@example("kettle", "a\x00b", 50.0, 50.0)
def test_a_larger_percentage_only_adds_buildings(appliance: str, building: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert is_canary(appliance, building, low) <= is_canary(appliance, building, high)


@given(APPLIANCE, st.text())
@example("kettle", "🔥" * 1000)
@example("kettle", "' OR 1=1 --")
def test_no_building_at_0_and_every_one_at_100(appliance: str, building: str) -> None:
    assert not is_canary(appliance, building, 0.0)
    assert is_canary(appliance, building, 100.0)


def test_each_appliance_tries_its_canary_on_other_buildings() -> None:
    kettle, microwave = chosen(50.0), chosen(50.0, "microwave")
    # Of two independent halves a quarter is in both.
    assert len(kettle & microwave) == pytest.approx(len(BUILDINGS) / 4, rel=0.05)


def test_the_choice_is_the_same_in_every_process_and_release() -> None:
    """Places computed apart, as `blake2b(b"home-1", digest_size=8, key=b"kettle")`: a change moves buildings."""
    for building, place in (("home-1", 0.12268899518784034), ("home-2", 0.3571105599760598)):
        assert not is_canary("kettle", building, 100 * place - 1e-6)
        assert is_canary("kettle", building, 100 * place + 1e-6)
    first = [n for n in range(200) if is_canary("dishwasher", f"home-{n}", 5.0)]
    assert first == [19, 27, 48, 50, 59, 65, 70, 88, 90, 115, 124, 141, 168]


def test_ids_that_look_alike_are_different_buildings() -> None:
    alike = ["home-1", "home-1 ", "Home-1", "home-01", "home-1\n", "hоme-1"]
    assert len({is_canary("kettle", one, percent) for one in alike for percent in range(0, 100, 10)}) == 2
    assert len({tuple(is_canary("kettle", one, p / 10) for p in range(1000)) for one in alike}) == len(alike)
