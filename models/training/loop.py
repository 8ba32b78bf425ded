"""The training loop: seeded, with weight averaging, on a GPU if there is one.

Knows batches and a network; where batches come from is `sampling`, what a network is worth is `evaluate`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.architectures import SequenceModel, build
from models.signal import MAINS_MEAN_W, MAINS_STD_W, normalise
from models.training.sampling import BatchSampler

AVERAGE_DECAY = 0.995
"""Average over about the last 200 steps: evens out the noise of small batches."""
EDGE_SAMPLES = 40
EDGE_WEIGHT = 4.0
"""The last samples of a window are the ones a live service can answer for, so they weigh more."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights, besides the recordings. Learning rate per step of AdamW."""

    seed: int = 1
    steps: int = 1400
    batch_size: int = 64
    learning_rate: float = 3e-3
    architecture: str = "TemporalPoolingUNet"
    architecture_params: tuple[tuple[str, tuple[int, ...]], ...] = ()
    window: int = 512
    threads: int = 1
    """One thread: small convolutions gain nothing from more, and the sum order stays the same everywhere."""

    def params(self) -> dict[str, list[int]]:
        """`architecture_params` as the registry stores them."""
        return {name: list(values) for name, values in self.architecture_params}


def preferred_device() -> str:
    """`cuda` when there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def train(sampler: BatchSampler, recipe: Recipe, device: str, on_step: Callable[[int, float], None]) -> SequenceModel:
    """Trains one network; returns the averaged weights in evaluation mode, on `device`.

    `on_step(step, loss)` is called after every step. Raises `FloatingPointError` when the loss is not finite.
    """
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    network = build(recipe.architecture, recipe.params(), recipe.window)
    network.power_scale_w.fill_(sampler.target.typical_power_w)
    network.to(device).train()
    average = copy.deepcopy(network).eval()
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=recipe.learning_rate, total_steps=max(recipe.steps, 2), pct_start=0.1
    )
    position_weight = torch.ones(recipe.window, device=device)
    position_weight[-EDGE_SAMPLES:] = EDGE_WEIGHT
    for step in range(recipe.steps):
        loss = _loss(network, sampler, recipe.batch_size, position_weight)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is not finite at step {step}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        _update_average(average, network, min(AVERAGE_DECAY, (1 + step) / (10 + step)))
        on_step(step + 1, float(loss.detach()))
    return average


def _loss(network: SequenceModel, sampler: BatchSampler, size: int, position_weight: Tensor) -> Tensor:
    """Cross-entropy of the state plus absolute error of the power (in units of its typical power).

    Absolute rather than squared error: its optimum is the median, which is exactly zero for a rare load.
    """
    device = position_weight.device
    batch = sampler.batch(size)
    mains = torch.from_numpy(normalise(batch.mains_w, MAINS_MEAN_W, MAINS_STD_W)).to(device)
    power_w = torch.from_numpy(batch.power_w).to(device)
    state = torch.from_numpy(batch.state).to(device)
    weight = torch.from_numpy(batch.weight).to(device) * position_weight
    on_logit, estimated_w = network(mains)
    cross_entropy = F.binary_cross_entropy_with_logits(on_logit, state, reduction="none")
    absolute = (estimated_w - power_w).abs() / network.power_scale_w
    loss: Tensor = ((cross_entropy + absolute) * weight).sum() / weight.sum().clamp(min=1.0)
    return loss


@torch.no_grad()
def _update_average(average: SequenceModel, network: SequenceModel, decay: float) -> None:
    for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        # Running statistics are averaged too; counters are integers.
        if kept.is_floating_point():
            kept.lerp_(new, 1.0 - decay)
        else:
            kept.copy_(new)
