"""Synthetic mains for golden outputs: made from a seed, so that no household's recording is published."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.appliances import Appliance
from models.signal import w_to_kw

FloatArray = npt.NDArray[np.float32]


def synthetic_windows_kw(
    appliance: Appliance, window: int, sample_index: int, count: int, seed: int = 20
) -> FloatArray:
    """Float32 [count, window] in kW: base load, a fridge, random pulses, and in every other window the appliance.

    The appliance is a pulse of 0.9 of its maximum around `sample_index`; a recognisable load is wanted there,
    not a realistic one.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(window)
    mains_w = rng.uniform(60.0, 250.0, (count, 1)) + rng.normal(0.0, 5.0, (count, window))
    period = rng.integers(40, 80, (count, 1))
    mains_w += 80.0 * (((time + rng.integers(0, 80, (count, 1))) % period) < period // 3)
    for row in range(count):
        for _ in range(4):
            start, length = int(rng.integers(0, window)), int(rng.integers(1, 12))
            mains_w[row, start : start + length] += rng.uniform(300.0, 2500.0)
        if row % 2 == 0:
            length = int(rng.integers(2, 4)) if appliance.min_on_s < 600 else int(rng.integers(10, 20))
            start = max(sample_index - length // 2, 0)
            mains_w[row, start : start + length] += 0.9 * appliance.max_power_w
    return w_to_kw(np.clip(mains_w, 1.0, None).astype(np.float32))
