"""What a network is worth on a home: outputs of every window, and the choices made from the validation split.

Evaluates exactly the served sample, at every window (stride 1), and the centred one beside it for information.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.appliances import Appliance
from models.architectures import SequenceModel
from models.loader import LoadedModel
from models.signal import MAINS_CLIP_W, MAINS_MEAN_W, MAINS_STD_W, normalise, sliding_windows
from models.training.calibrate import Calibration, expected_calibration_error, fit
from models.training.labels import on_state
from models.training.metrics import Scores, f1, mae, score
from models.training.recordings import SAMPLE_PERIOD_S, Home

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Progress = Callable[[int, int], None]
"""Called with (windows done, windows to do)."""

THRESHOLDS = np.round(np.arange(0.05, 0.96, 0.05), 2)
GATES = np.concatenate(([0.01, 0.02, 0.03], THRESHOLDS))
"""Finer below: a kettle's first half minute is under its on-threshold, yet it is power that should not be lost."""
PROGRAMME_S = 600.0
"""Appliances that run at least this long have programmes. A wrongly found one costs an hour of power, and a home
not seen before has other machines that resemble it: power is then given only where the state is on."""
VALIDATION_STRIDE = 4
"""Every fourth minute: neighbouring windows say nearly the same, and this is only to choose, not to report."""


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

    def served(self, logit: FloatArray, power_w: FloatArray, appliance: Appliance) -> tuple[DoubleArray, FloatArray]:
        """Raw outputs, shapes (n,), to (on_probability, predicted power in W) as the service gives them."""
        probability = self.calibration.probability(logit)
        gated = np.where(probability >= self.power_gate, power_w, 0.0)
        return probability, np.clip(gated, 0.0, appliance.max_power_w).astype(np.float32)


def decision_of(model: LoadedModel) -> Decision:
    """The choices a registered model carries: in its weights, and the state threshold in its entry."""
    network = model.network
    return Decision(
        calibration=Calibration(float(network.calibration_slope), float(network.calibration_bias)),
        power_gate=float(network.power_gate),
        state_threshold=float(model.entry.metrics.get("on_probability_threshold", 0.5)),
    )


@dataclass(frozen=True, slots=True)
class RawOutputs:
    """Raw outputs of n scored samples with their truth, all shapes (n,). `position` is the sample in its home."""

    logit: FloatArray
    power_w: FloatArray
    true_w: FloatArray
    state: BoolArray
    valid: BoolArray
    position: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class HomeReport:
    """One network on one home at one sample of the window."""

    sample_index: int
    scores: Scores
    ece_before: float
    ece_after: float


def raw_outputs(
    network: SequenceModel,
    home: Home,
    appliance: Appliance,
    window: int,
    indices: Sequence[int],
    stride: int = 1,
    progress: Progress = ignore_progress,
    batch_size: int = 128,
) -> list[RawOutputs]:
    """Outputs at each of `indices` for every `stride`-th window of `home`; one forward serves all indices.

    Raises `ValueError` for a home shorter than one window.
    """
    series = normalise(home.aggregate_w, MAINS_MEAN_W, MAINS_STD_W, clip_w=MAINS_CLIP_W)
    windows = sliding_windows(series, window, stride)
    device = next(network.parameters()).device
    columns = torch.tensor(list(indices), device=device)
    starts = np.arange(len(windows)) * stride
    # Windows whose every asked sample is missing are not scored, so they are not computed; their outputs stay 0.
    needed = np.flatnonzero(np.any([home.valid[starts + index] for index in indices], axis=0))
    logit = np.zeros((len(windows), len(indices)), dtype=np.float32)
    power = np.zeros_like(logit)
    with torch.inference_mode():
        for first in range(0, len(needed), batch_size):
            chosen = needed[first : first + batch_size]
            on_logit, power_w = network(torch.from_numpy(windows[chosen]).to(device))
            logit[chosen] = on_logit[:, columns].cpu().numpy()
            power[chosen] = power_w[:, columns].cpu().numpy()
            progress(first + len(chosen), len(needed))
    true_w = home.appliances_w[appliance.appliance_id]
    state = on_state(true_w, appliance, SAMPLE_PERIOD_S)
    return [
        RawOutputs(
            logit=logit[:, column],
            power_w=power[:, column],
            true_w=true_w[starts + index],
            state=state[starts + index],
            valid=home.valid[starts + index],
            position=starts + index,
        )
        for column, index in enumerate(indices)
    ]


def only_valid(parts: Sequence[RawOutputs]) -> RawOutputs:
    """The valid samples of several homes as one, for choices that need no order in time."""
    return RawOutputs(
        logit=np.concatenate([part.logit[part.valid] for part in parts]),
        power_w=np.concatenate([part.power_w[part.valid] for part in parts]),
        true_w=np.concatenate([part.true_w[part.valid] for part in parts]),
        state=np.concatenate([part.state[part.valid] for part in parts]),
        valid=np.concatenate([part.valid[part.valid] for part in parts]),
        position=np.concatenate([part.position[part.valid] for part in parts]),
    )


def decide(outputs: RawOutputs, appliance: Appliance) -> Decision:
    """Calibration, power gate and state threshold from validation outputs."""
    calibration = fit(outputs.logit, outputs.state)
    probability = calibration.probability(outputs.logit)
    power_w = np.clip(outputs.power_w, 0.0, appliance.max_power_w)
    true_w = outputs.true_w.astype(np.float64)
    states = [f1(outputs.state, probability >= threshold) for threshold in THRESHOLDS]
    state_threshold = float(THRESHOLDS[int(np.argmax(states))])
    # "On, 0 W" would contradict itself, so the gate is never above the threshold of the state.
    gates = [float(gate) for gate in GATES if gate <= state_threshold]
    errors = [mae(true_w, np.where(probability >= gate, power_w, 0.0)) for gate in gates]
    power_gate = gates[int(np.argmin(errors))]
    if appliance.min_on_s >= PROGRAMME_S:
        power_gate = state_threshold
    return Decision(calibration, power_gate, state_threshold)


def validation_summary(outputs: RawOutputs, appliance: Appliance) -> dict[str, float]:
    """F1 and MAE on the validation split after the best choices there, to compare look-aheads."""
    decision = decide(outputs, appliance)
    probability, predicted_w = decision.served(outputs.logit, outputs.power_w, appliance)
    return {
        "f1": round(f1(outputs.state, probability >= decision.state_threshold), 4),
        "mae_w": round(mae(outputs.true_w.astype(np.float64), predicted_w.astype(np.float64)), 4),
        "always_off_mae_w": round(float(np.mean(outputs.true_w)), 4),
    }


def report(outputs: RawOutputs, decision: Decision, appliance: Appliance, sample_index: int) -> HomeReport:
    """All metrics of one home; `outputs` must be of stride 1, because cycles and days need unbroken time."""
    probability, predicted_w = decision.served(outputs.logit, outputs.power_w, appliance)
    scores = score(
        true_w=outputs.true_w,
        true_state=outputs.state,
        predicted_w=predicted_w,
        predicted_state=probability >= decision.state_threshold,
        valid=outputs.valid,
        appliance=appliance,
        sample_period_s=SAMPLE_PERIOD_S,
    )
    neutral = Calibration(1.0, 0.0).probability(outputs.logit)
    return HomeReport(
        sample_index=sample_index,
        scores=scores,
        ece_before=expected_calibration_error(neutral[outputs.valid], outputs.state[outputs.valid]),
        ece_after=expected_calibration_error(probability[outputs.valid], outputs.state[outputs.valid]),
    )
