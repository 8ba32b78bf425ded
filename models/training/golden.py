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

    The appliance is on at `sample_index`. The export keeps the windows that the model recognises best.
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
            draw = _programme if appliance.has_programme else _pulse
            power_w = draw(rng, appliance.max_power_w)[:window]
            start = int(np.clip(sample_index - rng.integers(0, power_w.size), 0, window - power_w.size))
            mains_w[row, start : start + power_w.size] += power_w
    return w_to_kw(np.clip(mains_w, 1.0, None).astype(np.float32))


def _pulse(rng: np.random.Generator, max_power_w: float) -> npt.NDArray[np.float64]:
    """One to four minutes of one power."""
    return np.full(int(rng.integers(1, 5)), rng.uniform(0.2, 0.95) * max_power_w)


def _programme(rng: np.random.Generator, max_power_w: float) -> npt.NDArray[np.float64]:
    """Heating, a restless motor, and then heating or spinning: one to two hours, as washing machines do."""
    heating_w, motor_w = rng.uniform(0.7, 0.9) * max_power_w, rng.uniform(50.0, 200.0)
    last_w = heating_w if rng.random() < 0.5 else rng.uniform(200.0, 500.0)
    minutes = (int(rng.integers(8, 22)), int(rng.integers(25, 70)), int(rng.integers(5, 15)), 10)
    power_w = np.repeat([heating_w, motor_w, last_w, motor_w], minutes)
    return np.where(power_w < 0.5 * heating_w, power_w * rng.uniform(0.3, 1.7, power_w.size), power_w)
