"""The one protocol of all architectures, and the table of their names.

Every architecture maps normalised mains [n, W] to two sequences of the same length: the logit that the
appliance is on, and its power in W. How these become what is served is `readout`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from models.architectures.readout import Estimate, Readout
from models.attribution import Attribution


class ArchitectureError(ValueError):
    """No such architecture, or parameters it does not take."""


class SequenceModel(nn.Module, ABC):
    """Base of all architectures: mains [n, W] (normalised) -> (on_logit [n, W], power_w [n, W]).

    A subclass takes `input_window_size` and its own parameters by keyword, and raises `ValueError` for bad ones.
    """

    answers_for: int | None = None
    """The one sample of the window this network answers for; `None` is every sample.

    Where it does not answer, `forward` gives NaN: no answer is not "off".
    """

    power_scale_w: Tensor

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "forward" in vars(cls) and "at" not in vars(cls):
            # An inherited `at` is short for another `forward`: what is served would not be what was trained.
            cls.at = SequenceModel.at  # type: ignore[method-assign]

    def __init__(self) -> None:
        super().__init__()
        # One unit of the power head; training sets it to the appliance's typical power.
        self.register_buffer("power_scale_w", torch.tensor(1000.0))
        self.readouts = nn.ModuleDict({str(attribution): Readout() for attribution in Attribution})

    @abstractmethod
    def forward(self, mains: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised mains [n, W] -> (on_logit [n, W], power_w [n, W], not negative)."""

    def at(self, mains: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        """`forward` at k samples of the window alone: normalised mains [n, W] -> (on_logit [n, k], power_w [n, k]).

        For a network in evaluation mode. Overridden by those that can leave out what these samples do not depend on.
        """
        on_logit, power_w = self(mains)
        chosen = list(samples)
        return on_logit[:, chosen], power_w[:, chosen]

    def check_answers_for(self, sample_index: int) -> None:
        """Raises `ValueError` when the network has no answer for that sample of the window."""
        if self.answers_for not in (None, sample_index):
            raise ValueError(
                f"{type(self).__name__} answers for sample {self.answers_for} of the window only, not {sample_index}"
            )

    def readout(self, attribution: Attribution) -> Readout:
        """The fitted calibration, gate and intervals of one of the two answers."""
        return cast(Readout, self.readouts[str(attribution)])

    def estimate(
        self, mains: Tensor, sample_indices: Mapping[Attribution, int], max_power_w: float | None = None
    ) -> dict[Attribution, Estimate]:
        """What is served: normalised mains [n, W] -> for each attribution its `Estimate` of n windows.

        One forward pass for all. Raises `ValueError` for a sample the network does not answer for.
        """
        for sample_index in sample_indices.values():
            self.check_answers_for(sample_index)
        on_logit, power_w = self.at(mains, tuple(sample_indices.values()))
        return {
            attribution: self.readout(attribution)(on_logit[:, column], power_w[:, column], max_power_w)
            for column, attribution in enumerate(sample_indices)
        }


ModelType = TypeVar("ModelType", bound=SequenceModel)

_ARCHITECTURES: dict[str, Callable[..., SequenceModel]] = {}


def register(name: str) -> Callable[[type[ModelType]], type[ModelType]]:
    """Class decorator: makes the class known as `name`. Raises `ArchitectureError` for a name taken."""

    def add(model_class: type[ModelType]) -> type[ModelType]:
        if name in _ARCHITECTURES:
            raise ArchitectureError(f"the name {name!r} is taken")
        _ARCHITECTURES[name] = model_class
        return model_class

    return add


def names() -> tuple[str, ...]:
    """All known names, sorted."""
    return tuple(sorted(_ARCHITECTURES))


def build(name: str, params: Mapping[str, Any], input_window_size: int) -> SequenceModel:
    """A freshly initialised model. Raises `ArchitectureError` when the name or the parameters are unknown."""
    model_class = _ARCHITECTURES.get(name)
    if model_class is None:
        raise ArchitectureError(f"there is no architecture {name!r}; known are {', '.join(names())}")
    accepted = set(inspect.signature(model_class).parameters) - {"input_window_size"}
    unknown = sorted(set(params) - accepted)
    if unknown:
        raise ArchitectureError(
            f"{name} takes no {', '.join(unknown)}; it takes {', '.join(sorted(accepted)) or 'nothing'}"
        )
    try:
        return model_class(input_window_size=input_window_size, **params)
    except (TypeError, ValueError) as error:
        raise ArchitectureError(f"{name} refuses its parameters: {error}") from error


def with_difference(mains: Tensor, channels: int) -> Tensor:
    """Input channels [n, channels, W] from mains [n, W]: the level, and with two its first difference.

    Switching events are steps; the difference shows them without the home's base load.
    """
    if channels == 1:
        return mains.unsqueeze(1)
    # Not torch.diff, which other engines do not know.
    before = torch.cat((mains[:, :1], mains[:, :-1]), dim=1)
    return torch.stack((mains, mains - before), dim=1)
