"""The one protocol of all architectures, and the table of their names.

Every architecture maps normalised mains [n, W] to two sequences of the same length: the logit that the
appliance is on, and its power in W. Calibration and the power gate are buffers, so they travel inside the
weights file and its hash covers them.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn


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

    calibration_slope: Tensor
    calibration_bias: Tensor
    power_gate: Tensor
    power_scale_w: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Neutral until fitted: probability = sigmoid(logit), nothing gated away, one unit of the head = 1 kW.
        self.register_buffer("calibration_slope", torch.tensor(1.0))
        self.register_buffer("calibration_bias", torch.tensor(0.0))
        self.register_buffer("power_gate", torch.tensor(0.0))
        self.register_buffer("power_scale_w", torch.tensor(1000.0))

    @abstractmethod
    def forward(self, mains: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised mains [n, W] -> (on_logit [n, W], power_w [n, W], not negative)."""

    def check_answers_for(self, sample_index: int) -> None:
        """Raises `ValueError` when the network has no answer for that sample of the window."""
        if self.answers_for not in (None, sample_index):
            raise ValueError(
                f"{type(self).__name__} answers for sample {self.answers_for} of the window only, not {sample_index}"
            )

    def on_probability(self, on_logit: Tensor) -> Tensor:
        """Calibrated probability of being on, same shape: sigmoid(logit * slope + bias).

        slope is 1 / temperature; the bias undoes the balanced sampling of training, which shows activations
        far more often than a home does (Platt 1999; Guo et al. 2017).
        """
        return torch.sigmoid(on_logit * self.calibration_slope + self.calibration_bias)

    def estimate(self, mains: Tensor, sample_index: int) -> tuple[Tensor, Tensor]:
        """What is served for one sample of each window: mains [n, W] -> (on_probability [n], power_w [n]).

        Power is zero where the probability is below the gate: the regression alone never says a clean "off".
        Raises `ValueError` for a sample the network does not answer for.
        """
        self.check_answers_for(sample_index)
        on_logit, power_w = self(mains)
        probability = self.on_probability(on_logit[:, sample_index])
        power = power_w[:, sample_index]
        return probability, torch.where(probability >= self.power_gate, power, torch.zeros_like(power))


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
    difference = torch.diff(mains, dim=1, prepend=mains[:, :1])
    return torch.stack((mains, difference), dim=1)
