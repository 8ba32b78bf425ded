"""Threshold, merge, drop: in that order, with durations in seconds."""

from __future__ import annotations

import numpy as np
import pytest

from models.appliances import UnknownAppliance, appliance
from models.training.labels import merge_and_drop, on_state, runs


def state(text: str) -> np.ndarray:
    return np.array([character == "1" for character in text])


def text(values: np.ndarray) -> str:
    return "".join("1" if value else "0" for value in values)


@pytest.mark.parametrize(
    ("before", "min_on_s", "min_off_s", "after"),
    [
        ("0110010", 0, 0, "0110010"),
        ("0110010", 0, 120, "0111110"),
        ("0110010", 0, 119, "0110010"),
        ("0110010", 120, 0, "0110000"),
        # Merged first: two minutes, a gap, one minute are one on-period of five minutes, so nothing is dropped.
        ("0110010", 300, 120, "0111110"),
        ("0110010", 301, 120, "0000000"),
        # Gaps at the ends are not between on-periods.
        ("0010000", 0, 600, "0010000"),
        ("1000001", 0, 300, "1111111"),
        ("", 60, 60, ""),
    ],
)
def test_merge_then_drop(before, min_on_s, min_off_s, after):
    assert text(merge_and_drop(state(before), min_on_s, min_off_s, 60.0)) == after


def test_durations_follow_the_sample_period():
    assert text(merge_and_drop(state("0110"), 60, 0, 30.0)) == "0110"
    assert text(merge_and_drop(state("0110"), 61, 0, 30.0)) == "0000"


def test_runs():
    assert runs(state("1101")).tolist() == [[0, 2], [3, 4]]
    assert runs(state("000")).tolist() == []


def test_a_dishwasher_pausing_for_half_an_hour_is_one_cycle():
    power = np.concatenate(
        (np.zeros(5), np.full(20, 2000.0), np.zeros(30), np.full(15, 60.0), np.zeros(40), np.full(5, 900.0))
    ).astype(np.float32)
    assert runs(on_state(power, appliance("dishwasher"), 60.0)).tolist() == [[5, 70]]


def test_a_kettle_is_on_from_its_threshold():
    power = np.array([1999.0, 2000.0, 2800.0, 0.0], dtype=np.float32)
    assert text(on_state(power, appliance("kettle"), 60.0)) == "0110"


def test_an_unknown_appliance_names_the_known_ones():
    with pytest.raises(UnknownAppliance, match="kettle"):
        appliance("toaster")
