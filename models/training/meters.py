"""Makes a home's mains agree with its sub-meters, where training and calibration need both to say the same.

Only for homes that teach. A home that tests is taken as it was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from models.appliances import appliance
from models.training.labels import runs
from models.training.recordings import Home

FloatArray = npt.NDArray[np.float32]

LEFTOVER_SHARE = 0.35
"""A rise of the residual by less than this share of an appliance's power while it is on is what its sub-meter missed;
by more, another load."""
LEFTOVER_MIN_W = 50.0
"""Above what a plug draws in standby."""
LEFTOVER_EDGE = 5
"""Samples on either side whose median is the residual without it."""


def without_leftovers(residual_w: FloatArray, powers_w: Sequence[FloatArray]) -> FloatArray:
    """The mains that no sub-meter explains, [n], without what sub-meters missed of short activations, W.

    In REFIT the mains rise by some 200 W more than a kettle's or microwave's sub-meter says while it is on (both are
    read every few seconds, not at once): median rise of the residual +193 and +244 W (kettle), +224 and +178 W
    (microwave) in House 2 and House 20. In UK-DALE House 2 it is -39 and +18 W. A network that learns from such mains
    learns to report a tenth less than a kettle draws.
    """
    cleaned = residual_w.copy()
    for power_w in powers_w:
        for start, end in runs(power_w >= LEFTOVER_MIN_W):
            first, last = start - 1, end + 1
            if first < LEFTOVER_EDGE or last + LEFTOVER_EDGE > residual_w.size:
                continue
            before = np.median(residual_w[first - LEFTOVER_EDGE : first])
            after = np.median(residual_w[last : last + LEFTOVER_EDGE])
            between = np.linspace(before, after, last - first, dtype=np.float32)
            small = residual_w[first:last] - between < LEFTOVER_SHARE * power_w[start:end].max()
            cleaned[first:last] = np.where(small, between, residual_w[first:last])
    return cleaned


def with_agreeing_meters(home: Home) -> Home:
    """`home` with mains that are the sum of its sub-meters and a residual without leftovers; never less than the sum.

    Also for choosing thresholds: where the mains say 2.2 kW while a kettle's sub-meter says 2.0 kW, the threshold that
    is best is 2.2 kW of mains, and wrong in every home whose meters agree.
    """
    together = np.sum(list(home.appliances_w.values()), axis=0, dtype=np.float32)
    residual = np.maximum(home.aggregate_w - together, 0.0).astype(np.float32)
    short = [power for name, power in home.appliances_w.items() if not appliance(name).has_programme]
    return replace(home, aggregate_w=without_leftovers(residual, short) + together)
