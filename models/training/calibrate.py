"""Makes the on-logit a probability: slope and bias fitted on the validation split of the training homes.

Slope is 1 / temperature (Guo et al. 2017); the bias (Platt 1999) undoes the balanced sampling of training. Pure
numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DoubleArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

ECE_BINS = 15
"""As in Guo et al. 2017, so that figures compare."""
MIN_SLOPE = 0.05
"""A slope of zero or less would say that the logit carries nothing or the opposite."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """probability = sigmoid(slope * logit + bias)."""

    slope: float
    bias: float

    def probability(self, logit: npt.NDArray[np.float32]) -> DoubleArray:
        """Same shape as `logit`, in [0, 1]."""
        return sigmoid(self.slope * logit.astype(np.float64) + self.bias)


def sigmoid(x: DoubleArray) -> DoubleArray:
    """Logistic function; the exponent is bounded, so that it cannot overflow."""
    result: DoubleArray = 1.0 / (1.0 + np.exp(-np.clip(x, -60.0, 60.0)))
    return result


def fit(logit: npt.NDArray[np.float32], on: BoolArray, steps: int = 100) -> Calibration:
    """Maximum likelihood by Newton's method with halved steps, shapes (n,). Neutral when only one class is there.

    Platt's targets, (n+ + 1)/(n+ + 2) and 1/(n- + 2), keep separable data from an infinite slope.
    """
    positive, negative = int(on.sum()), int((~on).sum())
    if positive == 0 or negative == 0:
        return Calibration(1.0, 0.0)
    target = np.where(on, (positive + 1.0) / (positive + 2.0), 1.0 / (negative + 2.0))
    x = np.stack((logit.astype(np.float64), np.ones(logit.size)), axis=1)
    parameters = np.array([1.0, 0.0])

    def loss(candidate: DoubleArray) -> float:
        z = x @ candidate
        return float(np.mean(np.logaddexp(0.0, z) - target * z))

    current = loss(parameters)
    for _ in range(steps):
        p = sigmoid(x @ parameters)
        gradient = x.T @ (p - target) / logit.size
        hessian = (x * (p * (1 - p))[:, None]).T @ x / logit.size + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        while loss(parameters - step) > current and np.abs(step).max() > 1e-9:
            step = step / 2
        parameters = parameters - step
        current = loss(parameters)
        if np.abs(step).max() < 1e-7:
            break
    return Calibration(max(float(parameters[0]), MIN_SLOPE), float(parameters[1]))


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One bin of a reliability diagram: what was said, what was, and of how many samples."""

    samples: int
    mean_probability: float
    share_on: float


def reliability(probability: DoubleArray, on: BoolArray, bins: int = ECE_BINS) -> tuple[ReliabilityBin, ...]:
    """Equal-width bins that hold samples, lowest first; arrays are [n]."""
    index = np.minimum((probability * bins).astype(np.int64), bins - 1)
    samples = np.bincount(index, minlength=bins)
    said = np.bincount(index, weights=probability, minlength=bins)
    was = np.bincount(index, weights=on.astype(np.float64), minlength=bins)
    return tuple(
        ReliabilityBin(int(count), float(total / count), float(hits / count))
        for count, total, hits in zip(samples, said, was, strict=True)
        if count
    )


def expected_calibration_error(probability: DoubleArray, on: BoolArray, bins: int = ECE_BINS) -> float:
    """ECE: mean over equal-width bins, weighted by their samples, of |mean probability - share on|."""
    weighted = sum(one.samples * abs(one.mean_probability - one.share_on) for one in reliability(probability, on, bins))
    return weighted / probability.size if probability.size else float("nan")
