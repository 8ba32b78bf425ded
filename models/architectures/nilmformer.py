"""NILMFormer: a transformer that sees the shape of the window apart from its level and spread.

Petralia, Charpentier, Kadhi and Palpanas, "NILMFormer: Non-Intrusive Load Monitoring that Accounts for
Non-Stationarity", KDD 2025, arXiv:2506.05880; checked against github.com/adrienpetralia/NILMFormer. Homes differ
in level and spread of their mains more than in the shape of a cycle, so each window is made stationary first;
its mean and standard deviation come back as one token, and as scale and offset of the estimated power.

Three differences from the paper:

- Positions. TimeRPE encodes minute, hour, weekday and month of every sample as eight sinusoids. Our windows carry
  no timestamps, so eight sinusoids of the place in the window take their channels.
- Outputs. A second channel of the head is the on-logit, and softplus keeps the power from being negative. The
  power alone has the published 383,283 parameters; the on-logit adds 289.
- Dropout. Attention weights are not dropped: with that, the CPU's attention writes out every weight, and a training
  step takes 3.3 times as long. What attention gives, and the feed-forward, are dropped as published.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures.base import SequenceModel, register

DILATIONS = (1, 2, 4, 8)
"""One residual unit each; together a sample sees 15 neighbours on either side."""

CONVOLUTION_KERNEL = 3

POSITION_PERIODS = (2.0, 1 / 2, 1 / 8, 1 / 32)
"""Of the sinusoids, in windows. The longest is two windows, so that no two samples of a window look alike."""

FEED_FORWARD_RATIO = 4

DROPOUT = 0.2

VARIANCE_FLOOR = 1e-6
"""Added to the variance: a constant window has none to divide by."""


class ResidualUnit(nn.Module):
    """Dilated convolution with GELU and batch norm, added to its input: [n, in, W] -> [n, out, W].

    One input channel is added to every output channel.
    """

    def __init__(self, channels_in: int, channels_out: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(channels_in, channels_out, CONVOLUTION_KERNEL, padding=dilation, dilation=dilation),
            nn.GELU(),
            nn.BatchNorm1d(channels_out),
        )

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = features + self.layers(features)
        return result


class DiagonallyMaskedAttention(nn.Module):
    """Multi-head attention of every token to all others but not to itself, [n, L, d] -> [n, L, d].

    `others` [L, L] is true where a token may look.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)

    def forward(self, tokens: Tensor, others: Tensor) -> Tensor:
        batch, length, d_model = tokens.shape
        query, key, value = (
            project(tokens).view(batch, length, self.n_heads, -1).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=others)
        merged: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, d_model))
        return merged


class EncoderLayer(nn.Module):
    """Attention, then feed-forward, [n, L, d] -> [n, L, d].

    As in the authors' code, each is added to the normalised tokens, not to the tokens before the norm.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = DiagonallyMaskedAttention(d_model, n_heads)
        self.attention_dropout = nn.Dropout(DROPOUT)
        self.feed_norm = nn.LayerNorm(d_model)
        self.feed = nn.Sequential(
            nn.Linear(d_model, FEED_FORWARD_RATIO * d_model),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(FEED_FORWARD_RATIO * d_model, d_model),
            nn.Dropout(DROPOUT),
        )

    def forward(self, tokens: Tensor, others: Tensor) -> Tensor:
        tokens = self.attention_norm(tokens)
        tokens = self.feed_norm(tokens + self.attention_dropout(self.attention(tokens, others)))
        result: Tensor = tokens + self.feed(tokens)
        return result


@register("NILMFormer")
class NILMFormer(SequenceModel):
    """Mains [n, W] -> (on_logit [n, W], power_w [n, W]), any W of at least 1; its cost grows with the square of W.

    `d_model` must be a multiple of 4 and of `n_heads`: three quarters of a token are the mains, one is its position.
    """

    others: Tensor
    positions: Tensor

    def __init__(self, input_window_size: int, d_model: int = 96, n_heads: int = 8, n_layers: int = 3) -> None:
        super().__init__()
        if min(d_model, n_heads, n_layers) < 1 or d_model % 4 or d_model % n_heads:
            raise ValueError(
                f"d_model {d_model} must be a positive multiple of 4 and of n_heads {n_heads}, n_layers >= 1"
            )
        if input_window_size < 1:
            raise ValueError(f"the window must be at least 1 sample, not {input_window_size}")
        d_mains = 3 * d_model // 4
        self.embedding = nn.Sequential(
            *(ResidualUnit(1 if index == 0 else d_mains, d_mains, dilation) for index, dilation in enumerate(DILATIONS))
        )
        self.project_positions = nn.Conv1d(2 * len(POSITION_PERIODS), d_model - d_mains, 1)
        self.stats_token = nn.Linear(2, d_model)
        self.layers = nn.ModuleList(EncoderLayer(d_model, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)
        self.heads = nn.Conv1d(d_model, 2, CONVOLUTION_KERNEL, padding="same", padding_mode="replicate")
        self.restore_stats = nn.Linear(d_model, 2)
        # Both follow from the window alone, so they are no part of the weights.
        self.register_buffer("positions", _sinusoids(input_window_size), persistent=False)
        self.register_buffer("others", ~torch.eye(input_window_size + 1, dtype=torch.bool), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, mains: Tensor) -> tuple[Tensor, Tensor]:
        stats = torch.stack((mains.mean(1), (mains.var(1, correction=0) + VARIANCE_FLOOR).sqrt()), dim=1)
        mean, std = stats.unsqueeze(2).unbind(1)
        shape = self.embedding(((mains - mean) / std).unsqueeze(1))
        positions = self.project_positions(self.positions).expand(mains.shape[0], -1, -1)
        stats_token = self.stats_token(stats).unsqueeze(1)
        tokens = torch.cat((torch.cat((shape, positions), dim=1).transpose(1, 2), stats_token), dim=1)
        for layer in self.layers:
            tokens = layer(tokens, self.others)
        on_logit, power = self.heads(self.norm(tokens)[:, :-1].transpose(1, 2)).unbind(1)
        power_mean, power_std = self.restore_stats(stats_token).unbind(2)
        return on_logit, F.softplus(power * power_std + power_mean) * self.power_scale_w


def _sinusoids(window: int) -> Tensor:
    """Sine and cosine of each period at every sample of the window, [1, 2 * periods, W]."""
    angles = 2 * math.pi * torch.arange(window) / (torch.tensor(POSITION_PERIODS).unsqueeze(1) * window)
    return torch.cat((angles.sin(), angles.cos())).unsqueeze(0)
