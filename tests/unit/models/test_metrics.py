"""Metrics against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models.appliances import appliance
from models.training import metrics

Y = np.array([0.0, 0.0, 100.0, 200.0, 0.0, 50.0])


def state(text: str) -> np.ndarray:
    return np.array([character == "1" for character in text])


def test_predicting_nothing():
    p = np.zeros_like(Y)
    assert metrics.nde(Y, p) == 1
    assert metrics.sae(Y, p) == 1
    assert metrics.matching_ratio(Y, p) == 0
    assert metrics.teca(Y, p) == 0.5
    assert metrics.f1(Y > 0, p > 0) == 0


def test_predicting_twice_the_truth():
    p = 2 * Y
    assert metrics.nde(Y, p) == 1
    assert metrics.sae(Y, p) == 1
    assert metrics.matching_ratio(Y, p) == 0.5
    assert metrics.teca(Y, p) == 0.5


def test_predicting_the_truth():
    assert (metrics.mae(Y, Y), metrics.nde(Y, Y), metrics.sae(Y, Y)) == (0, 0, 0)
    assert (metrics.matching_ratio(Y, Y), metrics.teca(Y, Y), metrics.f1(Y > 0, Y > 0)) == (1, 1, 1)


def test_f1_by_hand():
    # 2 hits, 1 false alarm, 1 miss: 2*2 / (2*2 + 1 + 1).
    assert metrics.f1(state("011100"), state("001110")) == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("true", "found", "expected"),
    [
        ("0111100", "0111100", 1.0),
        ("0111100", "0110000", 1.0),  # 2 of 4: exactly one half
        ("0111100", "0100000", 0.0),
        ("0111100", "1111111", 1.0),  # 4 of 7
        ("1100110", "1100000", 2 / 3),
        ("1111000", "1101000", 2 / 3),  # 2 of 4 matches once, the other part is a false cycle
        ("0000000", "0000000", 0.0),
    ],
)
def test_cycles_match_at_half_their_union(true, found, expected):
    assert metrics.cycle_f1(state(true), state(found)) == pytest.approx(expected)


def test_energy_per_day_error():
    y = np.array([60.0, 60.0, 0.0, 0.0])
    p = np.array([0.0, 0.0, 30.0, 90.0])
    # One-minute samples: day 0 is short of 2 Wh, day 1 has 2 Wh too much.
    assert metrics.energy_per_day_error_wh(y, p, np.array([3, 3, 4, 4]), 60.0) == pytest.approx(2.0)
    # Within one day the two errors cancel.
    assert metrics.energy_per_day_error_wh(y, p, np.zeros(4, dtype=np.int64), 60.0) == pytest.approx(0.0)


def test_scores_leave_out_what_was_not_measured_and_carry_the_reference():
    true_w = np.array([0, 2500, 2500, 0, 2500], dtype=np.float32)
    predicted_w = np.array([0, 2400, 2500, 0, 0], dtype=np.float32)
    on = true_w > 0
    valid = np.array([True, True, True, True, False])
    scores = metrics.score(true_w, on, predicted_w, predicted_w > 0, valid, appliance("kettle"), 60.0)
    assert scores.samples == 4
    assert scores.mae_w == pytest.approx(25.0)
    assert scores.mae_on_w == pytest.approx(50.0)
    assert scores.always_off_mae_w == pytest.approx(1250.0)
    assert (scores.f1, scores.cycle_f1) == (1.0, 1.0)
    assert scores.beats_always_off
    silent = metrics.score(true_w, on, 0 * predicted_w, predicted_w < 0, valid, appliance("kettle"), 60.0)
    assert not silent.beats_always_off


def test_never_on_is_null_not_nan():
    zero = np.zeros(3, dtype=np.float32)
    row = metrics.score(zero, zero > 0, zero, zero > 0, zero == 0, appliance("kettle"), 60.0).as_dict()
    assert (row["sae"], row["mae_on_w"], row["mae_w"]) == (None, None, 0.0)
