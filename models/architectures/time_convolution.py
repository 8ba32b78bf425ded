"""A convolution along time whose channels may lie side by side in memory, and what makes a network lie like that."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval


class TimeConvolution(nn.Conv1d):
    """`nn.Conv1d` of stride 1, [n, in, L] -> [n, out, L]; with `channels_together` it leaves memory as it finds it.

    `nn.Conv1d` brings its input into the other order first, each time: twice the time.
    """

    channels_together = False

    def forward(self, features: Tensor) -> Tensor:
        """As `nn.Conv1d`."""
        if self.channels_together:
            return self._convolve(features.unsqueeze(2)).squeeze(2)
        return super().forward(features)

    def on_slices(self, features: Tensor, slices: int) -> Tensor:
        """The same of slices that lie side by side, [n, in, slices * L] -> [n, out, slices * L], each padded alone."""
        return self._convolve(features.reshape(*features.shape[:2], slices, -1)).flatten(2)

    def _convolve(self, rows: Tensor) -> Tensor:
        padding = (0, self.kernel_size[0] // 2)
        return F.conv2d(rows, self.weight.unsqueeze(2), self.bias, padding=padding)


def prepare_for_serving(network: nn.Module) -> None:
    """The same function in evaluation, computed faster, in place; nothing can be learnt or saved with it any more.

    Each batch norm goes into the convolution before it, and a sample's channels lie together in the weights, and so in
    all features (`torch.channels_last`).
    """
    for parent in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for index in range(len(parent) - 1):
            convolution, norm = parent[index], parent[index + 1]
            if isinstance(convolution, nn.Conv1d) and isinstance(norm, nn.BatchNorm1d):
                parent[index], parent[index + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    for module in network.modules():
        if isinstance(module, TimeConvolution):
            together = module.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
            module.weight = nn.Parameter(together.squeeze(2), requires_grad=False)
            module.channels_together = True
