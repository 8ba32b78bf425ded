"""From an appliance's power to its on/off state and its cycles. Pure numpy.

Order matters and is Kelly & Knottenbelt's: threshold, merge off-gaps up to `min_off_s`, then drop on-periods
shorter than `min_on_s`. Dropping first would delete a dishwasher's cycle that pauses between heating phases.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from models.appliances import Appliance

BoolArray = npt.NDArray[np.bool_]
Runs = npt.NDArray[np.int64]


def runs(state: BoolArray) -> Runs:
    """On-periods as [k, 2] of (first sample, one past the last)."""
    edges = np.diff(np.concatenate(([0], state.astype(np.int8), [0])))
    return np.stack((np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)), axis=1)


def merge_and_drop(state: BoolArray, min_on_s: float, min_off_s: float, sample_period_s: float) -> BoolArray:
    """Merges off-gaps of at most `min_off_s`, then drops on-periods under `min_on_s`. Shape (n,) kept.

    Gaps at the ends of the series are not between two on-periods and stay off.
    """
    merged = state.copy()
    periods = runs(merged)
    for (_, end), (start, _) in itertools.pairwise(periods):
        if (start - end) * sample_period_s <= min_off_s:
            merged[end:start] = True
    for start, end in runs(merged):
        if (end - start) * sample_period_s < min_on_s:
            merged[start:end] = False
    return merged


def on_state(power_w: npt.NDArray[np.float32], appliance: Appliance, sample_period_s: float) -> BoolArray:
    """True where the appliance is on, shape (n,), by the constants of `models.appliances`."""
    return merge_and_drop(power_w >= appliance.on_threshold_w, appliance.min_on_s, appliance.min_off_s, sample_period_s)
