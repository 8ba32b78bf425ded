"""From a trained network to a registered version: choose on validation, test once, export, card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.appliances import Appliance
from models.appliances import appliance as find_appliance
from models.architectures import SequenceModel
from models.registry import RegistryEntry, TrainingSource
from models.training.calibrate import expected_calibration_error
from models.training.card import card
from models.training.evaluate import (
    VALIDATION_STRIDE,
    Decision,
    HomeReport,
    decide,
    only_valid,
    raw_outputs,
    report,
    validation_summary,
)
from models.training.export import apply_decision, export, model_id_of, register, write_atomically
from models.training.loop import Recipe, preferred_device, train
from models.training.recordings import (
    COLLECTION,
    TEST_RECORDING,
    TRAINING_RECORDINGS,
    Home,
    load_home,
    split,
)
from models.training.sampling import BatchSampler

LOOK_AHEADS = (0, 5, 10, 12, 15, 20, 30, 60)
"""Samples after the served one; compared on the validation split."""

SERVED_LOOK_AHEAD = 60
"""One look-ahead for all appliances, so that one mains window is disaggregated at one instant. An hour, because
the validation split says so: a kettle needs five minutes, but a washing machine or dishwasher is only told from
other loads once more of its programme has been seen. The table is in every model card."""

STEPS = {"washing_machine": 1000, "dishwasher": 900, "kettle": 400, "microwave": 500}
"""Steps of 64 windows: the programmes of washing machines and dishwashers take longer to learn."""

Progress = Callable[[str, int, int], None]
"""Called with (what is done, done so far, of how many)."""


def silent(_what: str, _done: int, _total: int) -> None:
    """For callers that show nothing."""


@dataclass(frozen=True, slots=True)
class Split:
    """The training and the validation parts of the training homes, in the same order."""

    training: tuple[Home, ...]
    validation: tuple[Home, ...]


def load_split(data: Path) -> Split:
    """Raises `RecordingError` when a recording is missing."""
    pairs = [split(load_home(data, recording)) for recording in TRAINING_RECORDINGS]
    return Split(tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs))


def train_network(homes: Split, appliance: Appliance, recipe: Recipe, progress: Progress) -> SequenceModel:
    """Trains on the training parts only."""
    sampler = BatchSampler(homes.training, appliance, recipe.window, recipe.seed)
    return train(
        sampler,
        recipe,
        preferred_device(),
        lambda step, loss: progress(f"training, loss {loss:.3f}", step, recipe.steps),
    )


def choose(
    network: SequenceModel, homes: Split, appliance: Appliance, recipe: Recipe, look_ahead: int
) -> tuple[Decision, dict[str, Any]]:
    """Calibration and thresholds at `look_ahead`, and what the validation split says of all look-aheads."""
    last = recipe.window - 1
    look_aheads = sorted({*LOOK_AHEADS, look_ahead})
    indices = [last - ahead for ahead in look_aheads]
    per_home = [
        raw_outputs(network, home, appliance, recipe.window, indices, VALIDATION_STRIDE) for home in homes.validation
    ]
    by_look_ahead = {
        ahead: only_valid([outputs[column] for outputs in per_home]) for column, ahead in enumerate(look_aheads)
    }
    served = by_look_ahead[look_ahead]
    decision = decide(served, appliance)
    neutral = Decision(type(decision.calibration)(1.0, 0.0), 0.0, 0.5)
    return decision, {
        "look_aheads": {str(ahead): validation_summary(outputs, appliance) for ahead, outputs in by_look_ahead.items()},
        "ece_before": round(expected_calibration_error(neutral.calibration.probability(served.logit), served.state), 5),
        "ece_after": round(expected_calibration_error(decision.calibration.probability(served.logit), served.state), 5),
    }


def test_on(
    network: SequenceModel,
    home: Home,
    appliance: Appliance,
    recipe: Recipe,
    decision: Decision,
    look_ahead: int,
    progress: Progress,
) -> tuple[HomeReport, HomeReport]:
    """The unseen home, every window: (served sample, centred sample), with the same decision for both."""
    indices = (recipe.window - 1 - look_ahead, recipe.window // 2)
    outputs = raw_outputs(
        network,
        home,
        appliance,
        recipe.window,
        indices,
        progress=lambda done, total: progress(f"testing on {home.recording.home}", done, total),
    )
    served, centred = (report(part, decision, appliance, index) for part, index in zip(outputs, indices, strict=True))
    return served, centred


def report_json(home: Home, reports: tuple[HomeReport, HomeReport]) -> dict[str, Any]:
    """What the registry and the card keep of one test home."""
    served, centred = reports
    return {
        "home": home.recording.home,
        "attribution": home.recording.attribution,
        "from": home.first_day,
        "to": home.last_day,
        "beats_always_off": served.scores.beats_always_off,
        "served": {"sample_index": served.sample_index, **served.scores.as_dict()},
        "centred": {"sample_index": centred.sample_index, **centred.scores.as_dict()},
        "ece_before": round(served.ece_before, 5),
        "ece_after": round(served.ece_after, 5),
    }


def release(
    network: SequenceModel,
    homes: Split,
    appliance_id: str,
    data: Path,
    recipe: Recipe,
    root: Path,
    version: str,
    look_ahead: int = SERVED_LOOK_AHEAD,
    is_active: bool = True,
    replace: bool = False,
    progress: Progress = silent,
) -> RegistryEntry:
    """Chooses on validation, tests on the unseen homes, writes the artifacts and registers them."""
    appliance = find_appliance(appliance_id)
    decision, validation = choose(network, homes, appliance, recipe, look_ahead)
    apply_decision(network, decision)
    home = load_home(data, TEST_RECORDING)
    tests = [report_json(home, test_on(network, home, appliance, recipe, decision, look_ahead, progress))]
    metrics: dict[str, Any] = {
        "on_threshold_w": appliance.on_threshold_w,
        "on_probability_threshold": decision.state_threshold,
        "power_gate_probability": decision.power_gate,
        "calibration": {
            "slope": round(decision.calibration.slope, 6),
            "bias": round(decision.calibration.bias, 6),
        },
        "validation": validation,
        "tests": tests,
        "recipe": {"seed": recipe.seed, "steps": recipe.steps, "batch_size": recipe.batch_size},
    }
    entry = export(
        network=network,
        appliance=appliance,
        recipe=recipe,
        sample_index=recipe.window - 1 - look_ahead,
        version=version,
        root=root,
        training_data=tuple(
            TrainingSource(
                home.recording.home, home.first_day, home.last_day, f"{home.recording.attribution}; {COLLECTION}"
            )
            for home in homes.training
        ),
        metrics=metrics,
        is_active=is_active,
    )
    parameters = sum(parameter.numel() for parameter in network.parameters())
    text = card(entry, appliance, homes.validation, parameters)
    write_atomically(root / "artifacts" / model_id_of(appliance) / version / "card.md", text.encode())
    register(entry, root, replace)
    return entry
