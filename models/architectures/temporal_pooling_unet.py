"""TemporalPoolingUNet: a compact convolutional sequence model, about 0.3 million parameters.

A U-Net (Ronneberger et al. 2015) along time whose deepest level sees pooled summaries of the whole window, as
in TPNILM (Massidda et al. 2020). Two heads: on-logit and power.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures.base import SequenceModel, register, with_difference
from models.architectures.reach import decoder_slices
from models.architectures.time_convolution import TimeConvolution

INPUT_CHANNELS = 2
POOL_PARTS = (1, 2, 4, 8)
"""The window is summarised whole and in halves, quarters and eighths: hours of context at little cost."""


class Convolution(nn.Sequential):
    """Convolution of `kernel_size`, batch norm and ReLU: [n, in, W] -> [n, out, W]."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int) -> None:
        super().__init__(
            TimeConvolution(channels_in, channels_out, kernel_size, padding=kernel_size // 2, bias=False),
            nn.BatchNorm1d(channels_out),
            nn.ReLU(inplace=True),
        )

    def on_slices(self, features: Tensor, slices: int) -> Tensor:
        """The same of slices that lie side by side, [n, in, slices * L] -> [n, out, slices * L], each padded alone."""
        convolution, norm, activation = self
        joined = cast(TimeConvolution, convolution).on_slices(features, slices)
        return cast(Tensor, activation(norm(joined)))


class TemporalPooling(nn.Module):
    """Adds averages over parts of the window to every position: [n, c, L] -> [n, c + 4 * (c // 4), L], L `length`."""

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        self._length = length
        self.projections = nn.ModuleList(TimeConvolution(channels, channels // 4, 1) for _ in POOL_PARTS)

    def forward(self, features: Tensor) -> Tensor:
        length = self._length
        averages = [F.avg_pool2d(features.unsqueeze(2), (1, length // parts)).squeeze(2) for parts in POOL_PARTS]
        summaries = [
            F.interpolate(F.relu(project(average)), size=length, mode="nearest")
            for average, project in zip(averages, self.projections, strict=True)
        ]
        return torch.cat((features, *summaries), dim=1)


@register("TemporalPoolingUNet")
class TemporalPoolingUNet(SequenceModel):
    """Mains [n, W] -> (on_logit [n, W], power_w [n, W]).

    W must be a multiple of 128: four halvings, and eight parts at the deepest level.
    """

    def __init__(self, input_window_size: int, channels: Sequence[int] = (16, 32, 48, 80, 128)) -> None:
        super().__init__()
        levels = len(channels)
        multiple = 2 ** (levels - 1) * max(POOL_PARTS)
        if levels < 2 or min(channels) < 4:
            raise ValueError(f"channels must be two or more widths of at least 4, not {list(channels)}")
        if input_window_size < multiple or input_window_size % multiple:
            raise ValueError(f"the window must be a multiple of {multiple} samples, not {input_window_size}")
        self.encoders = nn.ModuleList(
            nn.Sequential(
                Convolution(channels_in, channels_out, 5 if level == 0 else 3),
                Convolution(channels_out, channels_out, 5 if level == 0 else 3),
            )
            for level, (channels_in, channels_out) in enumerate(
                zip((INPUT_CHANNELS, *channels), channels, strict=False)
            )
        )
        self._lengths = tuple(input_window_size // 2**level for level in range(levels))
        deepest = channels[-1]
        self.pooling = TemporalPooling(deepest, self._lengths[-1])
        self.bottleneck = nn.Sequential(
            Convolution(deepest + len(POOL_PARTS) * (deepest // 4), deepest, 3),
            nn.Dropout(0.1),
        )
        # Skips are added, not concatenated: concatenation would triple the cost at full resolution.
        self.projections = nn.ModuleList(
            TimeConvolution(channels[level + 1], channels[level], 1) for level in reversed(range(levels - 1))
        )
        self.decoders = nn.ModuleList(
            Convolution(channels[level], channels[level], 3) for level in reversed(range(levels - 1))
        )
        self.heads = TimeConvolution(channels[0], 2, 1)

    def forward(self, mains: Tensor) -> tuple[Tensor, Tensor]:
        skips = self._encoded(mains)
        features = self.bottleneck(self.pooling(skips.pop()))
        for project, decoder in zip(self.projections, self.decoders, strict=True):
            raised = F.interpolate(project(features), scale_factor=2.0, mode="nearest")
            features = decoder(raised + skips.pop())
        return self._said(self.heads(features))

    def at(self, mains: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        levels = self._encoded(mains)
        slices, wanted = decoder_slices(tuple(samples), self._lengths, mains.device)
        deepest = self.pooling(levels[-1]).index_select(-1, slices[-1].of_level)
        features = cast(Convolution, self.bottleneck[0]).on_slices(deepest, len(samples))
        upwards = zip(self.projections, self.decoders, levels[-2::-1], slices[-2::-1], strict=True)
        for project, decoder, level, here in upwards:
            raised = project(features).index_select(-1, here.of_deeper)
            joined = raised + level.index_select(-1, here.of_level)
            features = cast(Convolution, decoder).on_slices(joined, len(samples))
        return self._said(self.heads(features.index_select(-1, wanted)))

    def _encoded(self, mains: Tensor) -> list[Tensor]:
        """What each level of the encoder gives, the whole window's length first."""
        features = with_difference(mains, INPUT_CHANNELS)
        levels: list[Tensor] = []
        for level, encoder in enumerate(self.encoders):
            features = encoder(features if level == 0 else _halved(features))
            levels.append(features)
        return levels

    def _said(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        return heads[:, 0], F.softplus(heads[:, 1]) * self.power_scale_w


def _halved(features: Tensor) -> Tensor:
    """The larger of each two samples."""
    if features.stride(1) == 1:
        # Several times as fast as pooling where a sample's channels lie together: `prepare_for_serving`.
        return torch.maximum(features[..., ::2], features[..., 1::2])
    return F.max_pool1d(features, 2)
