"""Mains and sub-meters that disagree, and what a varied power means for the state that is taught."""

from __future__ import annotations

import dataclasses

import numpy as np

from models.appliances import appliance
from models.training.meters import with_agreeing_meters
from models.training.sampling import WARP_SAMPLES, WARP_SPEEDS, BatchSampler
from tests.unit.models.synthetic import synthetic_home

HOME = synthetic_home(1)
KETTLE = appliance("kettle")


def with_mains(change: np.ndarray) -> object:
    return dataclasses.replace(HOME, aggregate_w=HOME.aggregate_w + change.astype(np.float32))


def test_what_a_kettles_meter_missed_is_taken_off_the_mains() -> None:
    kettle = HOME.appliances_w["kettle"]
    agreeing = with_agreeing_meters(with_mains(0.08 * kettle))
    error = agreeing.aggregate_w - HOME.aggregate_w
    on = kettle > 0
    assert np.abs(np.median(error[on])) < 30
    assert np.abs(error[~on]).mean() < 10
    # Untouched: the recording itself, and what is not near a short appliance.
    assert agreeing.appliances_w is HOME.appliances_w


def test_another_load_beside_a_kettle_stays() -> None:
    kettle = HOME.appliances_w["kettle"]
    agreeing = with_agreeing_meters(with_mains(1500.0 * (kettle > 0)))
    on = kettle > 0
    assert np.median(agreeing.aggregate_w[on] - HOME.aggregate_w[on]) > 1400


def test_mains_are_never_less_than_the_sub_meters_say() -> None:
    together = HOME.appliances_w["kettle"] + HOME.appliances_w["washing_machine"]
    agreeing = with_agreeing_meters(dataclasses.replace(HOME, aggregate_w=together * np.float32(0.9)))
    assert np.all(agreeing.aggregate_w >= together)


def test_the_state_follows_a_power_that_was_varied() -> None:
    """A kettle of 2.2 kW scaled to 1.9 kW is off by definition: its threshold is 2 kW."""
    weak = 0.8 * HOME.appliances_w["kettle"]
    home = dataclasses.replace(HOME, appliances_w=HOME.appliances_w | {"kettle": weak})
    batch = BatchSampler((home,), KETTLE, 128, seed=3).batch(256)
    assert np.array_equal(batch.state > 0, batch.power_w >= KETTLE.on_threshold_w)
    drawn = batch.power_w[batch.power_w > 0]
    assert (drawn < KETTLE.on_threshold_w).any()
    assert (drawn >= KETTLE.on_threshold_w).any()


def test_a_programmes_state_is_its_recorded_one() -> None:
    """A washing machine is on while its drum rests, whatever its power is scaled to."""
    machine = appliance("washing_machine")
    batch = BatchSampler((HOME, synthetic_home(2)), machine, 128, seed=3).batch(256)
    assert set(np.unique(batch.state)) == {0.0, 1.0}
    assert (batch.power_w[batch.state > 0] > 0).all()


def test_a_programmes_phases_are_warped_each_for_itself_and_the_middle_stays() -> None:
    sampler = BatchSampler((HOME, synthetic_home(2)), KETTLE, 128, seed=3)
    offsets = sampler._offsets("dishwasher", 200)
    assert offsets.shape == (200, 128)
    assert np.allclose(offsets[:, 64], 64)
    speeds, (slowest, fastest) = np.diff(offsets, axis=1), WARP_SPEEDS["dishwasher"]
    assert slowest * 0.999 <= speeds.min() < 0.6
    assert 1.4 < speeds.max() <= fastest * 1.001
    changes = (np.abs(np.diff(speeds, axis=1)) > 1e-6).sum(axis=1)
    assert set(changes) <= {128 // WARP_SAMPLES - 1, 128 // WARP_SAMPLES, 128 // WARP_SAMPLES + 1}


def test_a_washing_machine_is_stretched_as_a_whole_and_a_kettle_not_at_all() -> None:
    sampler = BatchSampler((HOME, synthetic_home(2)), KETTLE, 128, seed=3)
    speeds = np.diff(sampler._offsets("washing_machine", 50), axis=1)
    assert np.allclose(speeds, speeds[:, :1], atol=1e-4)
    assert speeds.min() < 0.8
    assert speeds.max() > 1.3
    assert np.array_equal(sampler._offsets("kettle", 50), np.arange(128)[None])
