"""CNNTransformer: a strided convolutional stem, transformer layers over the tokens, and two heads.

Its parameters and window of 1000 samples are those of registries written before the U-Net existed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.architectures.base import SequenceModel, register, with_difference

STEM_STRIDE = 4
"""Four samples to a token: attention costs the square of the tokens, and a token still spans four minutes."""


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens, [n, L, d] -> [n, L, d]."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query_key_value = nn.Linear(d_model, 3 * d_model)
        self.output = nn.Linear(d_model, d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, d_model = tokens.shape
        split = self.query_key_value(tokens).view(batch, length, 3, self.n_heads, d_model // self.n_heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        merged: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, d_model))
        return merged


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer, [n, L, d] -> [n, L, d]."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = SelfAttention(d_model, n_heads)
        self.feed_norm = nn.LayerNorm(d_model)
        self.feed = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens))
        result: Tensor = tokens + self.feed(self.feed_norm(tokens))
        return result


@register("CNNTransformer")
class CNNTransformer(SequenceModel):
    """Mains [n, W] -> (on_logit [n, W], power_w [n, W]); W must be a multiple of 4.

    `input_channels`: 1 (level) or 2 (level and first difference).
    """

    def __init__(
        self,
        input_window_size: int,
        input_channels: int = 1,
        d_model: int = 64,
        n_heads: int = 4,
        n_layers: int = 2,
    ) -> None:
        super().__init__()
        if input_channels not in (1, 2):
            raise ValueError(f"input_channels must be 1 or 2, not {input_channels}")
        if min(d_model, n_heads, n_layers) < 1 or d_model % n_heads:
            raise ValueError(f"d_model {d_model} must be a positive multiple of n_heads {n_heads}, n_layers >= 1")
        if input_window_size < STEM_STRIDE or input_window_size % STEM_STRIDE:
            raise ValueError(f"the window must be a multiple of {STEM_STRIDE} samples, not {input_window_size}")
        self.input_channels = input_channels
        self.stem = nn.Sequential(
            nn.Conv1d(input_channels, d_model // 2, 7, padding=3),
            nn.GELU(),
            nn.Conv1d(d_model // 2, d_model, 2 * STEM_STRIDE, stride=STEM_STRIDE, padding=STEM_STRIDE // 2),
            nn.GELU(),
        )
        self.position = nn.Parameter(torch.zeros(input_window_size // STEM_STRIDE, d_model))
        nn.init.normal_(self.position, std=0.02)
        self.layers = nn.ModuleList(TransformerLayer(d_model, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)
        # Every token answers for its own four samples.
        self.heads = nn.Linear(d_model, 2 * STEM_STRIDE)

    def forward(self, mains: Tensor) -> tuple[Tensor, Tensor]:
        batch, window = mains.shape
        tokens = self.stem(with_difference(mains, self.input_channels)).transpose(1, 2) + self.position
        for layer in self.layers:
            tokens = layer(tokens)
        heads = self.heads(self.norm(tokens)).view(batch, -1, STEM_STRIDE, 2).reshape(batch, window, 2)
        return heads[..., 0], F.softplus(heads[..., 1]) * self.power_scale_w
