"""From raw outputs at one sample to what is served: calibrated probability, gated power, prediction intervals.

All of it is buffers, so it travels inside the weights file and its hash covers it. Fitted by
`models.training.calibrate` and `models.training.conformal`; applied here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

COVERAGES = (0.8, 0.9)
"""Share of true powers that each interval should hold."""
INTERVAL_EDGES = (0.02, 0.1, 0.3, 0.6, 0.9, 0.98)
"""On-probabilities that divide predictions into the groups whose errors are alike: surely off, unsure, surely on."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is served for n windows. `interval_w` is [n, len(COVERAGES), 2]: low and high, W."""

    on_probability: Tensor
    power_w: Tensor
    interval_w: Tensor


class Readout(nn.Module):
    """Raw outputs [n] -> `Estimate`. Neutral until fitted: sigmoid(logit), nothing gated, empty intervals."""

    calibration_slope: Tensor
    calibration_bias: Tensor
    power_gate: Tensor
    interval_offsets_w: Tensor
    _edges: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calibration_slope", torch.tensor(1.0))
        self.register_buffer("calibration_bias", torch.tensor(0.0))
        self.register_buffer("power_gate", torch.tensor(0.0))
        self.register_buffer("interval_offsets_w", torch.zeros(len(COVERAGES), len(INTERVAL_EDGES) + 1, 2))
        self.register_buffer("_edges", torch.tensor(INTERVAL_EDGES), persistent=False)

    def on_probability(self, on_logit: Tensor) -> Tensor:
        """Calibrated probability of being on, same shape: sigmoid(logit * slope + bias).

        slope is 1 / temperature; the bias undoes the balanced sampling of training, which shows activations
        far more often than a home does (Platt 1999; Guo et al. 2017).
        """
        return torch.sigmoid(on_logit * self.calibration_slope + self.calibration_bias)

    def forward(self, on_logit: Tensor, power_w: Tensor, max_power_w: float | None) -> Estimate:
        """Power is zero where the probability is below the gate: the regression alone never says a clean "off".

        Power and intervals are clamped to [0, max_power_w]; None: only to not negative.
        """
        probability = self.on_probability(on_logit)
        gated = torch.where(probability >= self.power_gate, power_w, torch.zeros_like(power_w))
        power = gated.clamp(min=0.0, max=max_power_w)
        # [coverages, n, 2] -> [n, coverages, 2]
        offsets = self.interval_offsets_w[:, torch.bucketize(probability, self._edges, right=True)].transpose(0, 1)
        interval = (power[:, None, None] + offsets).clamp(min=0.0, max=max_power_w)
        return Estimate(probability, power, interval)
