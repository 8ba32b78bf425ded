"""Intervals: coverage where the assumption holds, groups kept apart, too little data is the widest interval."""

from __future__ import annotations

import numpy as np
import pytest

from models.training.conformal import coverage, interval_offsets_w


def intervals(offsets_w, probability, predicted_w, edges):
    group = np.digitize(probability, edges)
    return predicted_w[None, :, None] + offsets_w[:, group]


def test_measured_coverage_on_fresh_data_is_the_nominal_one_in_each_group():
    rng = np.random.default_rng(1)
    probability = rng.random(40_000)
    predicted_w = np.where(probability > 0.5, 1000.0, 0.0)
    # Errors differ by group, and are skewed.
    true_w = predicted_w + rng.exponential(np.where(probability > 0.5, 200.0, 5.0))
    half = 20_000
    offsets = interval_offsets_w(probability[:half], predicted_w[:half], true_w[:half], (0.5,), (0.8, 0.9), 3000.0)
    fresh = intervals(offsets, probability[half:], predicted_w[half:], (0.5,))
    for level, nominal in enumerate((0.8, 0.9)):
        for where in (probability[half:] > 0.5, probability[half:] <= 0.5):
            # The low bound may not be above the prediction, so a one-sided error is covered a little more.
            measured = coverage(fresh[level][where], true_w[half:][where], tolerance_w=0.0)
            assert nominal - 0.02 < measured < nominal + (1 - nominal) / 2 + 0.02
    assert offsets[0, 1, 1] > 10 * offsets[0, 0, 1]


def test_ranks_by_hand():
    # 9 errors 1..9 and one new: at 80 % the tails hold one tenth each, so ranks 1 and 9.
    errors = np.arange(-4.0, 5.0)
    offsets = interval_offsets_w(np.full(9, 0.1), np.zeros(9), errors, (0.5,), (0.8,), 100.0)
    assert offsets[0, 0].tolist() == [-4.0, 4.0]
    # No sample in the other group.
    assert offsets[0, 1].tolist() == [-100.0, 100.0]


def test_too_few_samples_for_a_coverage_give_the_widest_interval():
    offsets = interval_offsets_w(np.full(9, 0.1), np.zeros(9), np.arange(9.0), (0.5,), (0.8, 0.9), 100.0)
    assert offsets[1, 0].tolist() == [-100.0, 100.0]


def test_offsets_are_never_inside_out():
    offsets = interval_offsets_w(np.full(99, 0.1), np.zeros(99), np.full(99, 50.0), (0.5,), (0.8,), 100.0)
    assert offsets[0, 0].tolist() == [0.0, 50.0]


def test_coverage_counts_the_bounds_in_and_nothing_is_nan():
    interval_w = np.array([[0.0, 10.0], [0.0, 10.0], [5.0, 6.0]], dtype=np.float32)
    assert coverage(interval_w, np.array([10.0, 12.0, 5.0]), tolerance_w=0.0) == pytest.approx(2 / 3)
    assert np.isnan(coverage(interval_w[:0], np.array([])))
