"""What a network is worth on a home: outputs of every minute, and the choices made from the validation split.

Both answers of a version are measured, each at its own sample of the window. One window answers for a block of
neighbouring samples around that one, which costs a fraction of a window for every minute and changes nothing that
a metric shows; `block=1` is exactly what the service says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.appliances import Appliance
from models.architectures import COVERAGES, INTERVAL_EDGES, Readout, SequenceModel
from models.attribution import Attribution
from models.signal import MAINS_MEAN_W, MAINS_STD_W, normalise, sliding_windows
from models.training.calibrate import Calibration, ReliabilityBin, expected_calibration_error, fit, reliability
from models.training.conformal import coverage, interval_offsets_w
from models.training.labels import on_state
from models.training.metrics import Scores, f1, mae, score
from models.training.recordings import SAMPLE_PERIOD_S, Home

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Progress = Callable[[int, int], None]
"""Called with (windows done, windows to do)."""

THRESHOLDS = np.round(np.arange(0.05, 0.96, 0.05), 2)
GATES = np.concatenate(([0.0003, 0.001, 0.003, 0.01, 0.02, 0.03], THRESHOLDS))
"""Finer below: a kettle's first half minute is under its on-threshold, yet it is power that should not be lost. Not
zero: the power head alone says a dozen watts where there is nothing."""
EVALUATION_BLOCK = 8


def ignore_progress(_done: int, _total: int) -> None:
    """For callers that show nothing."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What turns raw outputs into served ones; all of it chosen on the validation split."""

    calibration: Calibration
    power_gate: float
    """Probability below which power is zero: the gate with the least MAE, never above the state threshold."""
    state_threshold: float
    """Probability from which the appliance counts as on: the threshold with the best F1."""
    interval_offsets_w: FloatArray
    """[coverages, groups, 2], see `conformal`."""

    def apply(self, readout: Readout) -> None:
        """Puts it into the network's buffers, hence into the weights file."""
        readout.calibration_slope.fill_(self.calibration.slope)
        readout.calibration_bias.fill_(self.calibration.bias)
        readout.power_gate.fill_(self.power_gate)
        readout.interval_offsets_w.copy_(torch.from_numpy(self.interval_offsets_w))


@dataclass(frozen=True, slots=True)
class RawOutputs:
    """Raw outputs for n consecutive minutes of a home with their truth, all shapes (n,)."""

    logit: FloatArray
    power_w: FloatArray
    true_w: FloatArray
    state: BoolArray
    valid: BoolArray
    """False where the mains were not measured, and where no window reaches."""


@dataclass(frozen=True, slots=True)
class Served:
    """What the service says for n minutes: probability, power in W, and intervals [n, coverages, 2] in W."""

    on_probability: FloatArray
    power_w: FloatArray
    interval_w: FloatArray


@dataclass(frozen=True, slots=True)
class HomeReport:
    """One answer of a network on one home."""

    scores: Scores
    ece_before: float
    ece_after: float
    coverages: dict[float, float]
    """Measured share of true powers inside the interval of each nominal coverage."""
    coverages_on: dict[float, float]
    """The same over the minutes in which the appliance was on: overall, an off appliance flatters."""
    reliability: tuple[ReliabilityBin, ...]


def raw_outputs(
    network: SequenceModel,
    home: Home,
    appliance: Appliance,
    window: int,
    sample_indices: Mapping[Attribution, int],
    block: int = EVALUATION_BLOCK,
    progress: Progress = ignore_progress,
    batch_size: int = 128,
) -> dict[Attribution, RawOutputs]:
    """Outputs of each answer for every minute of `home`; one forward pass serves all of them.

    Raises `ValueError` for a home shorter than one window.
    """
    if network.answers_for is not None:
        block = 1
    series = normalise(home.aggregate_w, MAINS_MEAN_W, MAINS_STD_W, clip_w=appliance.mains_clip_w)
    windows = sliding_windows(series, window, block)
    starts = np.arange(len(windows)) * block
    firsts = {name: min(max(index - block // 2, 0), window - block) for name, index in sample_indices.items()}
    device = network.power_scale_w.device
    measured = np.concatenate(([0], np.cumsum(home.valid)))
    # Blocks without a measured sample are not scored, so they are not computed.
    needed = np.flatnonzero(
        np.any([measured[starts + first + block] > measured[starts + first] for first in firsts.values()], axis=0)
    )
    size = len(home)
    logits = {name: np.full(size, np.nan, dtype=np.float32) for name in firsts}
    powers = {name: np.full(size, np.nan, dtype=np.float32) for name in firsts}
    with torch.inference_mode():
        for begin in range(0, len(needed), batch_size):
            chosen = needed[begin : begin + batch_size]
            on_logit, power_w = network(torch.from_numpy(windows[chosen]).to(device))
            for name, first in firsts.items():
                positions = starts[chosen, None] + np.arange(first, first + block)
                logits[name][positions] = on_logit[:, first : first + block].cpu().numpy()
                powers[name][positions] = power_w[:, first : first + block].cpu().numpy()
            progress(begin + len(chosen), len(needed))
    true_w = home.appliances_w[appliance.appliance_id]
    state = on_state(true_w, appliance, SAMPLE_PERIOD_S)
    return {
        name: RawOutputs(
            logit=np.nan_to_num(logits[name]),
            power_w=np.nan_to_num(powers[name]),
            true_w=true_w,
            state=state,
            valid=home.valid & np.isfinite(logits[name]),
        )
        for name in firsts
    }


def only_valid(parts: Sequence[RawOutputs]) -> RawOutputs:
    """The valid samples of several homes as one, for choices that need no order in time."""
    return RawOutputs(
        logit=np.concatenate([part.logit[part.valid] for part in parts]),
        power_w=np.concatenate([part.power_w[part.valid] for part in parts]),
        true_w=np.concatenate([part.true_w[part.valid] for part in parts]),
        state=np.concatenate([part.state[part.valid] for part in parts]),
        valid=np.concatenate([part.valid[part.valid] for part in parts]),
    )


def decide(outputs: RawOutputs, appliance: Appliance) -> Decision:
    """Calibration, power gate, state threshold and intervals from validation outputs."""
    calibration = fit(outputs.logit, outputs.state)
    probability = calibration.probability(outputs.logit)
    power_w = np.clip(outputs.power_w, 0.0, appliance.max_power_w).astype(np.float64)
    true_w = outputs.true_w.astype(np.float64)
    states = [f1(outputs.state, probability >= threshold) for threshold in THRESHOLDS]
    state_threshold = float(THRESHOLDS[int(np.argmax(states))])
    # "On, 0 W" would contradict itself, so the gate is never above the threshold of the state.
    gates = [float(gate) for gate in GATES if gate <= state_threshold]
    errors = [mae(true_w, np.where(probability >= gate, power_w, 0.0)) for gate in gates]
    power_gate = gates[int(np.argmin(errors))]
    if appliance.has_programme:
        # A wrongly found programme costs an hour of power, and a home not seen before has other machines that
        # resemble it: power is given only where the state is on.
        power_gate = state_threshold
    gated_w = np.where(probability >= power_gate, power_w, 0.0)
    offsets = interval_offsets_w(probability, gated_w, true_w, INTERVAL_EDGES, COVERAGES, appliance.max_power_w)
    return Decision(calibration, power_gate, state_threshold, offsets)


def served(outputs: RawOutputs, readout: Readout, appliance: Appliance) -> Served:
    """What the service says for these raw outputs: the very module that it runs."""
    with torch.inference_mode():
        estimate = readout.cpu()(
            torch.from_numpy(outputs.logit), torch.from_numpy(outputs.power_w), appliance.max_power_w
        )
    return Served(estimate.on_probability.numpy(), estimate.power_w.numpy(), estimate.interval_w.numpy())


def report(outputs: RawOutputs, readout: Readout, state_threshold: float, appliance: Appliance) -> HomeReport:
    """All metrics of one home; `outputs` must be consecutive minutes, because cycles and days need unbroken time."""
    said = served(outputs, readout, appliance)
    scores = score(
        true_w=outputs.true_w,
        true_state=outputs.state,
        predicted_w=said.power_w,
        predicted_state=said.on_probability >= state_threshold,
        valid=outputs.valid,
        appliance=appliance,
        sample_period_s=SAMPLE_PERIOD_S,
    )
    valid, on = outputs.valid, outputs.valid & outputs.state
    neutral = Calibration(1.0, 0.0).probability(outputs.logit[valid])
    probability = said.on_probability[valid].astype(np.float64)

    def covered(where: BoolArray) -> dict[float, float]:
        return {
            level: coverage(said.interval_w[where, number], outputs.true_w[where])
            for number, level in enumerate(COVERAGES)
        }

    return HomeReport(
        scores=scores,
        ece_before=expected_calibration_error(neutral, outputs.state[valid]),
        ece_after=expected_calibration_error(probability, outputs.state[valid]),
        coverages=covered(valid),
        coverages_on=covered(on),
        reliability=reliability(probability, outputs.state[valid]),
    )
