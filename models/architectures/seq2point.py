"""Seq2Point: five convolutions and two dense layers that estimate the middle sample of the window.

Zhang, Zhong, Wang, Goddard and Sutton, "Sequence-to-point learning with neural networks for non-intrusive load
monitoring", AAAI 2018, doi:10.1609/aaai.v32i1.11873. The published network has one output, the power; its
30,708,249 parameters at a window of 599 say that its convolutions keep the window's length. Ours has a second
output, the on-logit (1,025 parameters more), and softplus keeps its power from being negative.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures.base import SequenceModel, register

CONVOLUTIONS = ((30, 10), (30, 8), (40, 6), (50, 5), (50, 5))
"""(filters, kernel size) of each layer, in order."""

DENSE_UNITS = 1024


@register("Seq2Point")
class Seq2Point(SequenceModel):
    """Mains [n, W] -> (on_logit [n, W], power_w [n, W]), NaN but for the middle sample, W // 2.

    Any W of at least 1. The middle of an even window has one sample more before it than after it. The first dense
    layer holds 51,200 parameters for each sample of the window.
    """

    def __init__(self, input_window_size: int) -> None:
        super().__init__()
        if input_window_size < 1:
            raise ValueError(f"the window must be at least 1 sample, not {input_window_size}")
        self.answers_for = input_window_size // 2
        layers: list[nn.Module] = []
        channels = 1
        for filters, kernel_size in CONVOLUTIONS:
            # An even kernel cannot be centred: the sample it has too many goes after the window, as in Keras.
            before, after = (kernel_size - 1) // 2, kernel_size // 2
            layers += [nn.ConstantPad1d((before, after), 0.0), nn.Conv1d(channels, filters, kernel_size), nn.ReLU()]
            channels = filters
        self.convolutions = nn.Sequential(*layers)
        self.dense = nn.Linear(channels * input_window_size, DENSE_UNITS)
        self.heads = nn.Linear(DENSE_UNITS, 2)

    def forward(self, mains: Tensor) -> tuple[Tensor, Tensor]:
        features = self.convolutions(mains.unsqueeze(1)).flatten(1)
        on_logit, power = self.heads(F.relu(self.dense(features))).unbind(1)
        return self._in_window(on_logit, mains), self._in_window(F.softplus(power) * self.power_scale_w, mains)

    def _in_window(self, answer: Tensor, mains: Tensor) -> Tensor:
        """The answer [n] at its sample of a window [n, W] that is NaN elsewhere."""
        window = answer.new_full(mains.shape, torch.nan)
        window[:, self.answers_for] = answer
        return window
