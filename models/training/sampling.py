"""Training batches: windows of real mains, and windows composed from the parts of several homes.

A model that has seen two homes learns their base load and their one kettle. Composed windows put the activations
of one home into the background of another, beside other appliances' activations, warped in time and scaled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.appliances import Appliance
from models.appliances import appliance as find_appliance
from models.training.labels import on_state, runs
from models.training.meters import with_agreeing_meters
from models.training.recordings import SAMPLE_PERIOD_S, Home

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

MIN_VALID_SHARE = 0.8
"""Windows with more missing mains than a fifth teach little but "zero mains"."""
LOW_POWER_W = 600.0
"""Below: motors, pumps, electronics. Above: heating. The two vary apart from each other between machines."""
LOW_POWER_FACTORS = (0.7, 2.0)
"""Motors differ in size."""
APPARENT_FACTORS = {"washing_machine": (1.0, 2.0)}
"""VA over W below `LOW_POWER_W`: some mains meters record VA while sub-meters record W, a factor of up to two for a
drum motor. On IDEAL Home 65, which no fold uses, it raised a washing machine's F1 from .43 to .52."""
STRETCH_FACTORS = {"washing_machine": (0.6, 1.7)}
"""Programmes differ in length between machines."""
WARP_SAMPLES = 24
WARP_SPEEDS = {"dishwasher": (0.4, 1.8)}
"""And in the length of each phase: a dishwasher of UK-DALE heats for 24 minutes on end, REFIT's for 6 to 14. One factor
for the whole programme cannot show that; a speed of its own for every `WARP_SAMPLES` can. On UK-DALE 2 a dishwasher's
F1 rose from .756 (one seed) to .822 to .830 (three), its MAE fell from 16.3 to 10.3 to 11.3 W. A washing machine lost:
F1 .734 to .663 (one seed each)."""
POWER_FACTORS = {"microwave": (0.65, 1.5), "kettle": (0.75, 1.2)}
DEFAULT_POWER_FACTORS = (0.85, 1.12)
"""Rated powers differ: UK kettles 2.2 to 3.1 kW and microwaves 0.8 to 1.7 kW at the plug, heaters less."""


@dataclass(frozen=True, slots=True)
class Batch:
    """b windows of W samples: float32 [b, W]. `weight` is zero where the mains were not measured."""

    mains_w: FloatArray
    power_w: FloatArray
    state: FloatArray
    weight: FloatArray


class BatchSampler:
    """Endless batches for one appliance from the training parts of the homes; the same seed, the same batches."""

    def __init__(self, homes: Sequence[Home], target: Appliance, window: int, seed: int) -> None:
        self.target = target
        self.window = window
        self._rng = np.random.default_rng(seed)
        self._names = sorted(set.intersection(*(set(home.appliances_w) for home in homes)))
        if target.appliance_id not in self._names:
            raise ValueError(f"not every training home has a {target.appliance_id}")
        self._valid = np.concatenate([home.valid for home in homes])
        self._power = {name: np.concatenate([home.appliances_w[name] for home in homes]) for name in self._names}
        self._mains = np.concatenate([with_agreeing_meters(home).aggregate_w for home in homes])
        self._residual = np.maximum(self._mains - sum(self._power.values()), 0.0).astype(np.float32)
        states = {
            name: np.concatenate(
                [on_state(home.appliances_w[name], find_appliance(name), SAMPLE_PERIOD_S) for home in homes]
            )
            for name in self._names
        }
        self._state = states[target.appliance_id].astype(np.float32)
        self._activations = {name: runs(state) for name, state in states.items()}
        self._starts = self._usable_starts(homes)
        if self._starts.size == 0 or self._activations[target.appliance_id].size == 0:
            raise ValueError(f"the training homes hold no usable window or no {target.appliance_id} cycle")
        self._usable = np.zeros(self._mains.size, dtype=np.bool_)
        self._usable[self._starts] = True

    def random_state(self) -> str:
        """Where the random numbers are, as text for a checkpoint."""
        return json.dumps(self._rng.bit_generator.state)

    def restore_random_state(self, state: str) -> None:
        """Goes on from what `random_state` gave."""
        self._rng.bit_generator.state = json.loads(state)

    def batch(self, size: int, answers_for: int | None = None) -> Batch:
        """The next `size` windows, the first half real and the second half composed.

        `answers_for` is the only sample of a window that the network answers for, None if it answers for each. Half of
        the windows with a cycle of the target then have it on that sample, half just beside it.
        """
        real = self._real(size - size // 2, answers_for)
        composed = self._composed(size // 2, answers_for)
        return Batch(*(np.concatenate(pair) for pair in zip(real, composed, strict=True)))

    def _real(self, size: int, answers_for: int | None) -> tuple[FloatArray, ...]:
        starts = self._mixed_starts(self.target.appliance_id, size, 0.6, answers_for)
        positions = starts[:, None] + np.arange(self.window)
        factor = self._rng.uniform(0.9, 1.1, (size, 1)).astype(np.float32)
        power = self._power[self.target.appliance_id][positions] * factor
        return (
            np.clip(self._mains[positions] * factor, 0.0, self.target.mains_clip_w),
            power,
            self._state_of(power, positions),
            self._valid[positions].astype(np.float32),
        )

    def _composed(self, size: int, answers_for: int | None) -> tuple[FloatArray, ...]:
        background = self._random_starts(size)[:, None] + np.arange(self.window)
        mains = self._residual[background] * self._rng.uniform(0.7, 1.4, (size, 1)).astype(np.float32)
        target_w = np.zeros_like(mains)
        state = np.zeros_like(mains)
        for name in self._names:
            is_target = name == self.target.appliance_id
            starts = self._mixed_starts(name, size, *((0.6, answers_for) if is_target else (0.5, None)))
            offsets = self._offsets(name, size)
            positions = np.clip(np.rint(starts[:, None] + offsets).astype(np.int64), 0, self._mains.size - 1)
            power = self._varied(name, self._power[name][positions])
            if is_target:
                target_w, state = power, self._state_of(power, positions)
            if name in APPARENT_FACTORS:
                power = np.where(power < LOW_POWER_W, power * self._log_uniform(APPARENT_FACTORS[name], size), power)
            if not is_target:
                # Not every background has every machine.
                power = power * (self._rng.random((size, 1)) < 0.7)
            mains = mains + power
        return (
            np.clip(mains, 0.0, self.target.mains_clip_w).astype(np.float32),
            target_w.astype(np.float32),
            state,
            self._valid[background].astype(np.float32),
        )

    def _state_of(self, power_w: FloatArray, positions: IntArray) -> FloatArray:
        """The target's state at a power that was varied, [b, W] like its arguments.

        A 2.3 kW kettle is on in a minute of which it boils 52 s, a 3 kW one from 40 s: a state taken from before the
        power was varied teaches the wrong threshold. A programme's state hardly depends on its power.
        """
        if self.target.has_programme:
            return self._state[positions]
        return (power_w >= self.target.on_threshold_w).astype(np.float32)

    def _varied(self, name: str, power_w: FloatArray) -> FloatArray:
        size = power_w.shape[0]
        low, high = POWER_FACTORS.get(name, DEFAULT_POWER_FACTORS)
        factor = self._rng.uniform(low, high, (size, 1)).astype(np.float32)
        if not find_appliance(name).has_programme:
            return power_w * factor
        return np.where(power_w < LOW_POWER_W, power_w * self._log_uniform(LOW_POWER_FACTORS, size), power_w * factor)

    def _offsets(self, name: str, size: int) -> npt.NDArray[np.float64]:
        """Which sample stands at each place of the window, [size or 1, W]; the middle stays where it is."""
        centre = self.window // 2
        if name in STRETCH_FACTORS:
            stretch = self._log_uniform(STRETCH_FACTORS[name], size).astype(np.float64)
            return np.asarray(centre + (np.arange(self.window) - centre) * stretch)
        if name not in WARP_SPEEDS:
            return np.arange(self.window, dtype=np.float64)[None]
        segments = self.window // WARP_SAMPLES + 2
        speeds = self._log_uniform(WARP_SPEEDS[name], size, segments).repeat(WARP_SAMPLES, axis=1)
        places = self._rng.integers(0, WARP_SAMPLES, (size, 1)) + np.arange(self.window)
        offsets = np.cumsum(np.take_along_axis(speeds, places, axis=1), axis=1, dtype=np.float64)
        return np.asarray(offsets - offsets[:, centre : centre + 1] + centre)

    def _log_uniform(self, bounds: tuple[float, float], size: int, count: int = 1) -> FloatArray:
        """Factors [size, count] between the bounds, halving as likely as doubling."""
        least, most = (float(np.log(bound)) for bound in bounds)
        return np.exp(self._rng.uniform(least, most, (size, count))).astype(np.float32)

    def _usable_starts(self, homes: Sequence[Home]) -> IntArray:
        usable: list[IntArray] = []
        offset = 0
        for home in homes:
            if len(home) >= self.window:
                total = np.concatenate(([0], np.cumsum(home.valid)))
                share = (total[self.window :] - total[: -self.window]) / self.window
                usable.append(np.flatnonzero(share >= MIN_VALID_SHARE) + offset)
            offset += len(home)
        return np.concatenate(usable) if usable else np.empty(0, dtype=np.int64)

    def _random_starts(self, size: int) -> IntArray:
        return self._rng.choice(self._starts, size)

    def _mixed_starts(self, name: str, size: int, share_active: float, answers_for: int | None) -> IntArray:
        """Window starts, `share_active` of them with an activation of `name`: at a random place or by `answers_for`."""
        starts = self._random_starts(size)
        activations = self._activations[name]
        if activations.size == 0:
            return starts
        chosen = activations[self._rng.integers(0, len(activations), size)]
        share, place = self._rng.random(size), self._rng.integers(0, self.window, size)
        if answers_for is not None:
            # From half a cycle before it to half a cycle after: what is beside a cycle is hardest to tell from it.
            share, place = 2.0 * share - 0.5, np.full(size, answers_for)
        # Else a random sample of the cycle at a random place of the window: every output position learns alike.
        sample = chosen[:, 0] + np.floor(share * (chosen[:, 1] - chosen[:, 0])).astype(np.int64)
        candidate = np.clip(sample - place, 0, self._mains.size - self.window)
        take = self._usable[candidate] & (self._rng.random(size) < share_active)
        return np.where(take, candidate, starts)
