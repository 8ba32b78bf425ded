"""Units, gaps, normalisation and windows."""

from __future__ import annotations

import numpy as np
import pytest

from models.signal import kw_to_w, normalise, resample_mean, sliding_windows, valid_mask, w_to_kw


def test_kw_and_w_are_inverse():
    power_kw = np.array([0.0, 0.35, 6.0], dtype=np.float32)
    np.testing.assert_allclose(kw_to_w(power_kw), [0.0, 350.0, 6000.0])
    np.testing.assert_allclose(w_to_kw(kw_to_w(power_kw)), power_kw)


def test_zero_negative_and_nan_mains_are_missing():
    aggregate = np.array([100.0, 0.0, -3.0, np.nan, 101.0], dtype=np.float32)
    assert valid_mask(aggregate, 60.0).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize(("samples", "kept"), [(59, True), (60, False)])
def test_an_hour_without_any_change_is_missing(samples, kept):
    aggregate = np.concatenate(([90.0], np.full(samples, 200.0), [91.0])).astype(np.float32)
    valid = valid_mask(aggregate, 60.0)
    assert valid[1:-1].all() == kept
    assert valid[0]
    assert valid[-1]


def test_resampling_means_and_leaves_empty_periods_missing():
    times = np.array([60.0, 70.0, 119.9, 240.0])
    starts, power = resample_mean(times, np.array([1.0, 2.0, 6.0, 5.0], dtype=np.float32), 60.0)
    assert starts.tolist() == [60.0, 120.0, 180.0, 240.0]
    np.testing.assert_array_equal(power, np.array([3.0, np.nan, np.nan, 5.0], dtype=np.float32))


def test_resampling_refuses_time_going_backwards():
    with pytest.raises(ValueError, match="backwards"):
        resample_mean(np.array([60.0, 0.0]), np.zeros(2, dtype=np.float32), 60.0)


def test_normalise_clips_first():
    power = np.array([-5.0, 522.0, 9000.0], dtype=np.float32)
    np.testing.assert_allclose(normalise(power, 522.0, 814.0, 6000.0), [-522 / 814, 0.0, (6000 - 522) / 814], rtol=1e-6)
    with pytest.raises(ValueError, match="std"):
        normalise(power, 0.0, 0.0)


def test_sliding_windows():
    series = np.arange(6, dtype=np.float32)
    assert sliding_windows(series, 4).tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]
    assert sliding_windows(series, 4, stride=2).tolist() == [[0, 1, 2, 3], [2, 3, 4, 5]]
    with pytest.raises(ValueError, match="no window"):
        sliding_windows(series, 7)
