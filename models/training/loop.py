"""The training loop: seeded, with weight averaging, on a GPU if there is one; a killed run goes on where it was.

Knows batches and a network; where batches come from is `sampling`, what a network is worth is `evaluate`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.architectures import SequenceModel, build
from models.signal import MAINS_MEAN_W, MAINS_STD_W, normalise
from models.training.sampling import BatchSampler

if TYPE_CHECKING:
    from models.training.checkpoint import TrainingLog

AVERAGE_DECAY = 0.995
"""Average over about the last 200 steps: evens out the noise of small batches."""
DRAWN_WEIGHTS = {"kettle": 2.5, "microwave": 2.5, "washing_machine": 2.5}
DRAWN_W = 10.0
"""How much more an error of power counts where the appliance draws more than this. A median of mostly zeros is shy:
from one REFIT home to the other, energy came out 34 % too low without and 18 % with this weight (kettle), 24 % and 12 %
(washing machine), 77 % and 68 % (microwave). A dishwasher gained nothing."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights, besides the recordings. Learning rate per step of AdamW."""

    seed: int = 1
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 3e-3
    architecture: str = "TemporalPoolingUNet"
    architecture_params: tuple[tuple[str, Any], ...] = ()
    window: int = 512
    threads: int = 1
    """One thread: small convolutions gain nothing from more, and the sum order stays the same everywhere."""

    def params(self) -> dict[str, Any]:
        """`architecture_params` as the registry stores them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.architecture_params}


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of training; losses are means over the batch, dimensionless."""

    step: int
    loss: float
    state_loss: float
    power_loss: float
    learning_rate: float
    elapsed_s: float


class TrainingState:
    """All that changes while a network is trained; `state_dict` and `load_state_dict` make it resumable."""

    def __init__(self, sampler: BatchSampler, recipe: Recipe, device: str) -> None:
        torch.manual_seed(recipe.seed)
        torch.set_num_threads(recipe.threads)
        self.step = 0
        self.sampler = sampler
        self.network = build(recipe.architecture, recipe.params(), recipe.window)
        self.network.power_scale_w.fill_(sampler.target.typical_power_w)
        self.network.to(device).train()
        self.average = copy.deepcopy(self.network).eval()
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=recipe.learning_rate, weight_decay=1e-3)
        # A schedule of fewer steps has no room for its rise.
        total_steps = max(recipe.steps, 20)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, max_lr=recipe.learning_rate, total_steps=total_steps, pct_start=0.1
        )

    def state_dict(self) -> dict[str, object]:
        """Tensors and plain values only, so that it loads without running code from the file."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "torch_random": torch.get_rng_state(),
            "sampler_random": self.sampler.random_state(),
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continues exactly there. Raises `KeyError` or `RuntimeError` for a state of another network."""
        self.step = int(state["step"])  # type: ignore[call-overload]
        for name in ("network", "average", "optimiser", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["torch_random"])  # type: ignore[arg-type]
        self.sampler.restore_random_state(str(state["sampler_random"]))


def preferred_device() -> str:
    """`cuda` when there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def train(
    sampler: BatchSampler,
    recipe: Recipe,
    device: str,
    on_step: Callable[[StepReport], None],
    log: TrainingLog | None = None,
) -> SequenceModel:
    """Trains one network; returns the averaged weights in evaluation mode, on `device`.

    `on_step` is called after every step. With `log`, the run is recorded there and continues where it stopped.
    Raises `FloatingPointError` when the loss is not finite.
    """
    state = TrainingState(sampler, recipe, device)
    if log is not None:
        log.resume(state, device)
    started = time.perf_counter()
    while state.step < recipe.steps:
        state_loss, power_loss = _losses(state.network, sampler, recipe.batch_size, device)
        loss = state_loss + power_loss
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is not finite at step {state.step}")
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), 5.0)
        learning_rate = float(state.schedule.get_last_lr()[0])
        state.optimiser.step()
        state.schedule.step()
        _update_average(state.average, state.network, min(AVERAGE_DECAY, (1 + state.step) / (10 + state.step)))
        state.step += 1
        report = StepReport(
            step=state.step,
            loss=float(loss.detach()),
            state_loss=float(state_loss.detach()),
            power_loss=float(power_loss.detach()),
            learning_rate=learning_rate,
            elapsed_s=time.perf_counter() - started,
        )
        if log is not None:
            log.record(report, state)
        on_step(report)
    return state.average


def _losses(network: SequenceModel, sampler: BatchSampler, size: int, device: str) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the state, and absolute error of the power in units of its typical power.

    Absolute rather than squared error: its optimum is a quantile, which is exactly zero for a rare load.
    """
    batch = sampler.batch(size, network.answers_for)
    mains = torch.from_numpy(normalise(batch.mains_w, MAINS_MEAN_W, MAINS_STD_W)).to(device)
    power_w = torch.from_numpy(batch.power_w).to(device)
    state = torch.from_numpy(batch.state).to(device)
    weight = torch.from_numpy(batch.weight).to(device)
    on_logit, estimated_w = network(mains)
    if network.answers_for is not None:
        only = slice(network.answers_for, network.answers_for + 1)
        on_logit, estimated_w = on_logit[:, only], estimated_w[:, only]
        power_w, state, weight = power_w[:, only], state[:, only], weight[:, only]
    total = weight.sum().clamp(min=1.0)
    cross_entropy = F.binary_cross_entropy_with_logits(on_logit, state, reduction="none")
    drawn = 1.0 + (DRAWN_WEIGHTS.get(sampler.target.appliance_id, 1.0) - 1.0) * (power_w > DRAWN_W)
    absolute = (estimated_w - power_w).abs() / network.power_scale_w * drawn
    return (cross_entropy * weight).sum() / total, (absolute * weight).sum() / total


@torch.no_grad()
def _update_average(average: SequenceModel, network: SequenceModel, decay: float) -> None:
    for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        # Running statistics are averaged too; counters are integers.
        if kept.is_floating_point():
            kept.lerp_(new, 1.0 - decay)
        else:
            kept.copy_(new)
