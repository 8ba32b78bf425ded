"""Prediction intervals for power by a conformal method: what the errors were on homes' later parts is what they may be.

Split conformal prediction (Vovk, Gammerman & Shafer 2005; Lei et al. 2018) in groups (Mondrian): errors are ranked
apart for each range of on-probability, because "surely off" is nearly always exact and "unsure" is not. Both tails
are ranked apart too, since an appliance cannot draw less than nothing. The guarantee needs the new home to resemble
the homes of the validation split, and minutes of one cycle are not independent: the coverage that counts is the one
measured on an unseen home, which every card reports. Pure numpy.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

DoubleArray = npt.NDArray[np.float64]
FloatArray = npt.NDArray[np.float32]


def interval_offsets_w(
    probability: DoubleArray,
    predicted_w: DoubleArray,
    true_w: DoubleArray,
    edges: tuple[float, ...],
    coverages: tuple[float, ...],
    max_power_w: float,
) -> FloatArray:
    """What to add to a prediction for its low and high bound: float32 [coverages, len(edges) + 1, 2], W.

    Arrays are [n]. Never inside out: low offsets are at most 0 and high ones at least 0. A group with too few
    samples for a coverage gets the widest interval, +-`max_power_w`.
    """
    group = np.digitize(probability, edges)
    offsets = np.empty((len(coverages), len(edges) + 1, 2), dtype=np.float32)
    for number in range(len(edges) + 1):
        error_w = np.sort((true_w - predicted_w)[group == number])
        for level, coverage in enumerate(coverages):
            tail = (1.0 - coverage) / 2.0
            # Ranks with the finite-sample correction: of n errors and a new one, n + 1 are exchangeable.
            # Rounded first: (1 - 0.8) / 2 is a little less than a tenth in floating point.
            low_rank = math.floor(round((error_w.size + 1) * tail, 6))
            high_rank = math.ceil(round((error_w.size + 1) * (1.0 - tail), 6))
            low_w = error_w[low_rank - 1] if low_rank >= 1 else -max_power_w
            high_w = error_w[high_rank - 1] if high_rank <= error_w.size else max_power_w
            offsets[level, number] = min(low_w, 0.0), max(high_w, 0.0)
    return offsets


def coverage(interval_w: FloatArray, true_w: FloatArray, tolerance_w: float = 1.0) -> float:
    """Share of true powers [n] inside their interval [n, 2]; a meter's last watt is no miss. NaN for n = 0."""
    if true_w.size == 0:
        return float("nan")
    inside = (true_w >= interval_w[:, 0] - tolerance_w) & (true_w <= interval_w[:, 1] + tolerance_w)
    return float(inside.mean())
