"""The synthetic household: seeded, physical, and honest about what it is."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from serve_app.demo.household import synthetic_household
from serve_app.demo.recording import mask_missing

START = datetime(2026, 3, 1, tzinfo=UTC)


def test_same_seed_same_watts() -> None:
    one, two = (synthetic_household(5, START, 480, 1440) for _ in range(2))
    np.testing.assert_array_equal(one.aggregate_w, two.aggregate_w)
    other = synthetic_household(6, START, 480, 1440)
    assert not np.array_equal(one.aggregate_w, other.aggregate_w)


def test_more_history_leaves_the_day_as_it_was() -> None:
    short, long = synthetic_household(5, START, 0, 1440), synthetic_household(5, START, 2000, 1440)
    np.testing.assert_array_equal(short.aggregate_w, long.aggregate_w[2000:])
    assert long.instant(2000) == START


@pytest.mark.parametrize("seed", range(12))
def test_power_is_bounded_and_the_mains_are_the_sum_of_the_loads(seed: int) -> None:
    home = synthetic_household(seed, START, 480, 3 * 1440)
    loads = np.sum(list(home.appliances_w.values()), axis=0)
    assert len(home) == 480 + 3 * 1440
    assert all((watts >= 0).all() for watts in home.appliances_w.values())
    assert (home.aggregate_w > loads).all()
    assert home.aggregate_w.max() < 10_000


@pytest.mark.parametrize("seed", range(12))
def test_the_first_day_runs_everything_and_nothing_counts_as_missing(seed: int) -> None:
    home = synthetic_household(seed, START, 0, 1440)
    assert all(watts.max() > 70 for watts in home.appliances_w.values())
    assert np.isfinite(mask_missing(home.aggregate_w, np.arange(1440) * 60.0)).all()


def test_programmes_have_their_phases() -> None:
    home = synthetic_household(1, START, 0, 1440)
    for name in ("dishwasher", "washingmachine"):
        watts = home.appliances_w[name]
        assert (watts > 1800).sum() >= 10, name
        assert ((watts > 0) & (watts < 300)).sum() >= 30, name
    boils = home.appliances_w["kettle"]
    assert 2500 < boils.max() < 6200
    assert 0 < (boils > 2000).sum() < 40


def test_it_says_that_it_is_synthetic() -> None:
    home = synthetic_household(3, START, 0, 10)
    assert home.title == "Synthetic household (seed 3)"
    assert home.truth == "synthetic"
