"""Which part of a U-Net's decoder a few samples of the window depend on.

A served window is asked for two of its 512 samples. The encoder must see all of it; of the decoder a few samples a
level are enough: a third less to compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Slices:
    """Of one level, a slice for each of k wanted samples, all of one width, laid side by side as k * width columns.

    `of_level`: where in the level each column lies; `of_deeper`: which of the next level's columns is raised to it.
    """

    of_level: Tensor
    of_deeper: Tensor | None


@lru_cache(maxsize=64)
def decoder_slices(
    samples: tuple[int, ...], lengths: tuple[int, ...], device: torch.device
) -> tuple[list[Slices], Tensor]:
    """Each level's slices, the whole window's length first, and which columns of that one are the wanted samples.

    `lengths` of the levels, each half of the one before. Each level is a convolution of three samples over what the
    next one gives, raised to twice its length by repetition. So a slice has a sample more at each end than it must get
    right, unless the window ends there: padding with zeros at a slice's ends spoils nothing that is used, and at the
    window's ends it is what the whole decoder does.
    """
    levels: list[tuple[list[int], int]] = []
    starts, width = list(samples), 1
    for length in lengths:
        width = min(width + 2, length)
        starts = [min(max(start - 1, 0), length - width) for start in starts]
        levels.append((starts, width))
        # What they are raised from: one more than half of them, where they begin with an odd sample.
        width = min(width // 2 + 1, length // 2)
        starts = [min(start // 2, length // 2 - width) for start in starts]
    # Kept beyond a call that may be in inference mode, whose tensors could not be used outside of it.
    with torch.inference_mode(False):
        slices = []
        for (starts, width), deeper in zip(levels, [*levels[1:], None], strict=True):
            rows = [range(start, start + width) for start in starts]
            raised = None if deeper is None else _columns([[at // 2 for at in row] for row in rows], *deeper)
            slices.append(Slices(torch.tensor([at for row in rows for at in row], device=device), _on(raised, device)))
        wanted = torch.tensor(_columns([[sample] for sample in samples], *levels[0]), device=device)
    return slices, wanted


def _columns(rows: Sequence[Sequence[int]], starts: Sequence[int], width: int) -> list[int]:
    """Where each sample of a row lies among the slices that begin at `starts`."""
    return [
        slice_ * width + at - start for slice_, (row, start) in enumerate(zip(rows, starts, strict=True)) for at in row
    ]


def _on(columns: list[int] | None, device: torch.device) -> Tensor | None:
    return None if columns is None else torch.tensor(columns, device=device)
