"""What a disaggregation is worth. Pure numpy; y is true and p predicted power in W, shape (n,).

Hand checks: p = 0 gives NDE 1, SAE 1, MR 0, TECA 0.5; p = 2y gives NDE 1, SAE 1, MR 0.5, TECA 0.5.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from models.appliances import Appliance
from models.training.labels import merge_and_drop, runs

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
DoubleArray = npt.NDArray[np.float64]

SECONDS_PER_HOUR = 3600.0
SECONDS_PER_DAY = 86400.0
CYCLE_IOU = 0.5


def mae(y: DoubleArray, p: DoubleArray) -> float:
    """Mean absolute error, W."""
    return float(np.mean(np.abs(y - p)))


def sae(y: DoubleArray, p: DoubleArray) -> float:
    """Signal aggregate error: |sum p - sum y| / sum y. NaN when the appliance was never on."""
    return _ratio(abs(float(p.sum() - y.sum())), float(y.sum()))


def nde(y: DoubleArray, p: DoubleArray) -> float:
    """Normalised disaggregation error, without the root that NILMTK takes: sum (y-p)^2 / sum y^2."""
    return _ratio(float(np.square(y - p).sum()), float(np.square(y).sum()))


def matching_ratio(y: DoubleArray, p: DoubleArray) -> float:
    """MR: sum min(y, p) / sum max(y, p)."""
    return _ratio(float(np.minimum(y, p).sum()), float(np.maximum(y, p).sum()))


def teca(y: DoubleArray, p: DoubleArray) -> float:
    """Total energy correctly assigned (Kolter & Johnson 2011), for one load: 1 - sum|y-p| / (2 sum y)."""
    return 1.0 - _ratio(float(np.abs(y - p).sum()), 2.0 * float(y.sum()))


def f1(y_state: BoolArray, p_state: BoolArray) -> float:
    """F1 of the state per sample; 0 when nothing is found, as for always-off."""
    hits = int(np.sum(y_state & p_state))
    wrong = int(np.sum(y_state ^ p_state))
    return _ratio(2.0 * hits, 2.0 * hits + wrong) if hits else 0.0


def cycle_f1(y_state: BoolArray, p_state: BoolArray, iou: float = CYCLE_IOU) -> float:
    """F1 of whole cycles: a true and a predicted cycle match when they overlap by IoU >= `iou`, at least 0.5.

    Matches are one to one by themselves: a cycle that touches two others also covers the gap between them, so
    it cannot share half of its union with both.
    """
    true_cycles, found_cycles = runs(y_state), runs(p_state)
    matched = 0
    for start, end in true_cycles:
        first = int(np.searchsorted(found_cycles[:, 1], start, side="right"))
        for found_start, found_end in found_cycles[first:]:
            if found_start >= end:
                break
            overlap = min(end, found_end) - max(start, found_start)
            matched += overlap / (max(end, found_end) - min(start, found_start)) >= iou
    return _ratio(2.0 * matched, float(len(true_cycles) + len(found_cycles))) if matched else 0.0


def energy_per_day_error_wh(
    y: DoubleArray, p: DoubleArray, day: npt.NDArray[np.int64], sample_period_s: float
) -> float:
    """Mean over days of |E_pred - E_true|, Wh; `day` [n] numbers the day of each sample."""
    difference = np.bincount(day - day.min(), weights=p - y) * sample_period_s / SECONDS_PER_HOUR
    present = np.bincount(day - day.min()) > 0
    return float(np.mean(np.abs(difference[present])))


@dataclass(frozen=True, slots=True)
class Scores:
    """One model on one home at one sample of the window. Powers in W, energies in Wh."""

    samples: int
    mae_w: float
    mae_on_w: float
    sae: float
    nde: float
    mr: float
    teca: float
    f1: float
    cycle_f1: float
    energy_per_day_error_wh: float
    always_off_mae_w: float
    always_off_energy_per_day_error_wh: float

    @property
    def beats_always_off(self) -> bool:
        """Always-off has F1 0, so any found activation beats that; MAE is the hard half."""
        return self.mae_w < self.always_off_mae_w and self.f1 > 0.0

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON: rounded to what is meaningful; NaN (never on) becomes null."""
        return {
            name: value if isinstance(value, int) else (round(value, 4) if np.isfinite(value) else None)
            for name, value in asdict(self).items()
        }


def score(
    true_w: FloatArray,
    true_state: BoolArray,
    predicted_w: FloatArray,
    predicted_state: BoolArray,
    valid: BoolArray,
    appliance: Appliance,
    sample_period_s: float,
) -> Scores:
    """All metrics over the valid samples of a regular series, all shapes (n,).

    Cycles are compared on the whole series, where time is contiguous, after the same merging and dropping as
    the truth; everything else on the valid samples only. Days are counted from the first sample.
    """
    y, p = true_w[valid].astype(np.float64), predicted_w[valid].astype(np.float64)
    on = true_state[valid]
    day = (np.flatnonzero(valid) * sample_period_s // SECONDS_PER_DAY).astype(np.int64)
    cycles = merge_and_drop(predicted_state & valid, appliance.min_on_s, appliance.min_off_s, sample_period_s)
    nothing = np.zeros_like(y)
    return Scores(
        samples=int(valid.sum()),
        mae_w=mae(y, p),
        mae_on_w=mae(y[on], p[on]) if on.any() else float("nan"),
        sae=sae(y, p),
        nde=nde(y, p),
        mr=matching_ratio(y, p),
        teca=teca(y, p),
        f1=f1(on, predicted_state[valid]),
        cycle_f1=cycle_f1(true_state & valid, cycles),
        energy_per_day_error_wh=energy_per_day_error_wh(y, p, day, sample_period_s),
        always_off_mae_w=mae(y, nothing),
        always_off_energy_per_day_error_wh=energy_per_day_error_wh(y, nothing, day, sample_period_s),
    )


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")
