"""Ensemble: several networks of one architecture that differ in their seed, and the median of what they say.

Lakshminarayanan et al. 2017 average; the median is taken here because the error that costs most is one member that
sees a whole programme which is not there: it is outvoted, where an average would keep a third of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.architectures.base import SequenceModel, build, register


@register("Ensemble")
class Ensemble(SequenceModel):
    """Mains [n, W] -> (on_logit [n, W], power_w [n, W]), each the median over `members` networks called `member`."""

    def __init__(
        self, input_window_size: int, member: str, members: int, member_params: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        if members not in (3, 5, 7, 9) or not isinstance(members, int):
            # An even number has no middle one.
            raise ValueError(f"members must be 3, 5, 7 or 9, not {members}")
        if member == "Ensemble":
            raise ValueError("an ensemble of ensembles is not one more opinion")
        networks = [build(member, member_params or {}, input_window_size) for _ in range(members)]
        self.answers_for = networks[0].answers_for
        for network in networks:
            # What is served is read out of the median, not of a member.
            network.readouts = nn.ModuleDict()
        self.members = nn.ModuleList(networks)

    def forward(self, mains: Tensor) -> tuple[Tensor, Tensor]:
        return _medians([member(mains) for member in self._networks])

    def at(self, mains: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        return _medians([member.at(mains, samples) for member in self._networks])

    @property
    def _networks(self) -> Iterator[SequenceModel]:
        return (cast(SequenceModel, member) for member in self.members)

    def load_members(self, weights: list[dict[str, Tensor]]) -> None:
        """Takes the weights of trained networks, without their readouts. Raises `RuntimeError` if one does not fit."""
        for member, state in zip(self.members, weights, strict=True):
            member.load_state_dict({name: value for name, value in state.items() if not name.startswith("readouts.")})


def _medians(outputs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return median([logit for logit, _ in outputs]), median([power for _, power in outputs])


def median(values: Sequence[Tensor]) -> Tensor:
    """Element by element the middle one of an odd number of tensors of one shape; NaN where any of them is NaN.

    Neighbours change places until all are in order (odd-even transposition sort). `torch.median` says the same, takes
    many times as long over so few, and other engines do not know it.
    """
    ordered = list(values)
    for turn in range(len(ordered)):
        for left in range(turn % 2, len(ordered) - 1, 2):
            low, high = ordered[left], ordered[left + 1]
            ordered[left], ordered[left + 1] = torch.minimum(low, high), torch.maximum(low, high)
    return ordered[len(ordered) // 2]
