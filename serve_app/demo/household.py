"""A synthetic household: invented loads with realistic programme shapes, seeded, one sample every 60 s.

Nothing here is measured or copied. It shows what the service does with a plausible day; how well a model
does is told by real recordings only. The fridge and the base load have no model and belong to "unattributed".
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np

from serve_app.demo.recording import FloatArray, Recording

SAMPLE_PERIOD_S = 60
_DAY = 24 * 60  # samples a day

# (minutes, watts) phases: the heating element draws its rated power, pump and drum draw little.
_DISHWASHER = (
    (4, 25),
    (6, 85),
    (17, 2050),
    (22, 80),
    (3, 25),
    (8, 75),
    (3, 25),
    (14, 2020),
    (9, 70),
    (3, 25),
    (20, 8),
)
_WASHING_HEAT = ((4, 35), (3, 160), (15, 2080), (6, 140))
_WASHING_SPIN_W = (260, 180, 320, 220, 430, 520, 480, 190)


def synthetic_household(seed: int, start: datetime, history_samples: int, samples: int) -> Recording:
    """A household around the days from `start`.

    Args:
        seed: same seed, same loads relative to the day of `start`.
        start: first instant that should get a prediction.
        history_samples: samples to have before `start`.
        samples: samples to have from `start` on.

    Returns:
        A recording at 60 s that begins `history_samples` before `start`, with every load as ground truth.
    """
    start = start.astimezone(UTC)
    midnight = start.replace(hour=0, minute=0, second=0, microsecond=0)
    begin = start - timedelta(minutes=history_samples)
    end = start + timedelta(minutes=samples)
    days = range((begin - midnight).days, (end - midnight).days + 1)
    loads = [_day_w(seed, day) for day in days]
    offset = int((begin - midnight - timedelta(days=days[0])).total_seconds()) // SAMPLE_PERIOD_S
    cut = slice(offset, offset + history_samples + samples)
    appliances = {name: np.concatenate([load[name] for load in loads])[cut] for name in loads[0]}
    base = appliances.pop("base")
    return Recording(
        title=f"Synthetic household (seed {seed})",
        start=begin,
        sample_period_s=SAMPLE_PERIOD_S,
        aggregate_w=np.maximum(base + np.sum(list(appliances.values()), axis=0), 1.0),
        appliances_w=appliances,
        truth="synthetic",
    )


def _day_w(seed: int, day: int) -> dict[str, FloatArray]:
    """One day's loads in W, each of shape (1440,); day 0 runs every programme, so a picture has them all."""
    random = np.random.default_rng([seed, day + 10_000])  # entropy must not be negative; history has days below 0
    runs_dishwasher = day == 0 or random.random() < 0.8
    runs_washing_machine = day == 0 or random.random() < 0.6
    silent = np.zeros(_DAY)
    return {
        "base": _base_w(random),
        "fridge": _fridge_w(random),
        "kettle": _kettle_w(random),
        "microwave": _microwave_w(random),
        "dishwasher": _dishwasher_w(random) if runs_dishwasher else silent,
        "washingmachine": _washing_machine_w(random) if runs_washing_machine else silent.copy(),
    }


def _base_w(random: np.random.Generator) -> FloatArray:
    """Standby, router, lights and screens: a floor with two humps and the meter's noise."""
    hour = np.arange(_DAY) / 60
    floor = random.uniform(70, 95)
    morning = random.uniform(30, 70) * np.exp(-0.5 * ((hour - random.uniform(7, 8)) / 0.8) ** 2)
    screen_on, screen_off = random.uniform(17.5, 19), random.uniform(22.3, 23.4)
    evening = np.where((hour >= screen_on) & (hour < screen_off), random.uniform(110, 170), 0.0)
    drift = np.convolve(random.normal(0, 6, _DAY + 60), np.ones(61) / 61, mode="valid")
    return np.asarray(np.maximum(floor + morning + evening + 3 * drift + random.normal(0, 2.5, _DAY), 20.0))


def _fridge_w(random: np.random.Generator) -> FloatArray:
    """Compressor cycles of about 17 minutes on, 30 off, with a short inrush."""
    watts = np.zeros(_DAY)
    running_w = random.uniform(78, 95)
    at = int(random.integers(0, 30))
    while at < _DAY:
        on = int(random.integers(14, 21))
        cycle = running_w * (1 - 0.08 * np.linspace(0, 1, on))
        cycle[0] *= 1.25
        _add(watts, at, cycle)
        at += on + int(random.integers(25, 37))
    return watts


def _kettle_w(random: np.random.Generator) -> FloatArray:
    """Boils of two to four minutes around the usual hours; the first and last minute are only partly on."""
    watts = np.zeros(_DAY)
    rated_w = random.uniform(2650, 2950)
    for hour, probability in (
        (6.9, 1),
        (8.6, 0.7),
        (10.8, 0.8),
        (13.1, 0.8),
        (15.9, 0.8),
        (18.2, 0.9),
        (21.1, 0.6),
    ):
        boils = random.random() < probability
        at = int(60 * random.normal(hour, 0.3))
        whole = int(random.integers(1, 4))
        share = np.concatenate(([random.uniform(0.2, 1)], np.ones(whole), [random.uniform(0.1, 0.9)]))
        if boils:
            _add(watts, at, rated_w * share)
    return watts


def _microwave_w(random: np.random.Generator) -> FloatArray:
    """Reheating at full power, and now and then a defrost that switches the magnetron on and off."""
    watts = np.zeros(_DAY)
    rated_w = random.uniform(1150, 1350)
    for hour, probability in ((7.4, 0.6), (12.6, 1), (18.9, 1)):
        heats = random.random() < probability
        at = int(60 * random.normal(hour, 0.25))
        if random.random() < 0.25:
            share = random.uniform(0.35, 0.5) + random.uniform(-0.1, 0.1, 8)
        else:
            share = np.concatenate((np.ones(int(random.integers(1, 4))), [random.uniform(0.2, 0.9)]))
        if heats:
            _add(watts, at, rated_w * share)
    return watts


def _dishwasher_w(random: np.random.Generator) -> FloatArray:
    """Pre-rinse, main wash with a heating phase, rinses, a second heating phase, drying."""
    watts = np.zeros(_DAY)
    phases = [(max(2, minutes + int(random.integers(-1, 2))), float(power)) for minutes, power in _DISHWASHER]
    _add(watts, int(60 * random.uniform(19.3, 21.3)), _programme(random, phases))
    return watts


def _washing_machine_w(random: np.random.Generator) -> FloatArray:
    """Fill, heat, a reversing drum for half an hour, rinses, and a spin that speeds up."""
    watts = np.zeros(_DAY)
    phases: list[tuple[int, float]] = [(minutes, float(power)) for minutes, power in _WASHING_HEAT]
    for _ in range(int(random.integers(9, 13))):
        phases += [(2, random.uniform(130, 210)), (1, random.uniform(25, 60))]
    for _ in range(2):
        phases += [(3, 40.0), (5, random.uniform(120, 190)), (2, random.uniform(250, 330)), (1, 30.0)]
    phases += [(1, float(power)) for power in _WASHING_SPIN_W]
    _add(watts, int(60 * random.uniform(9.3, 14.5)), _programme(random, phases))
    return watts


def _programme(random: np.random.Generator, phases: list[tuple[int, float]]) -> FloatArray:
    """The phases one after the other; mains voltage makes every minute differ by about 1.5 %."""
    watts = np.concatenate([np.full(minutes, power) for minutes, power in phases])
    return np.asarray(watts * random.normal(1, 0.015, watts.size).clip(0.9, 1.1))


def _add(watts: FloatArray, at: int, shape: FloatArray) -> None:
    """Add a run at minute `at`; what would run past midnight is cut, what begins before it too."""
    begin, end = max(at, 0), min(at + shape.size, watts.size)
    if begin < end:
        watts[begin:end] += shape[begin - at : end - at]
