"""One training run from recordings to a run folder: train, choose on validation, test, export, draw.

The folder is `registry.json` of one entry, its weights and golden outputs, pictures, and the log of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.appliances import Appliance, UnknownAppliance
from models.appliances import appliance as find_appliance
from models.architectures import ArchitectureError, SequenceModel
from models.attribution import Attribution
from models.figures import HELD_OUT_MONTH, SEEN_HOME, UNSEEN_HOME
from models.refusal import ArtifactRefused
from models.registry import RegistryEntry, RegistryError, TrainingSource
from models.training.calibrate import expected_calibration_error
from models.training.checkpoint import CHECKPOINT_NAME, LOG_NAME, CheckpointError, TrainingLog
from models.training.evaluate import Decision, HomeReport, RawOutputs, decide, only_valid, raw_outputs, report, served
from models.training.export import export
from models.training.loop import Recipe, StepReport, preferred_device, train
from models.training.meters import with_agreeing_meters
from models.training.metrics import f1, mae
from models.training.plots import example_day, reliability_diagram
from models.training.protocol import Fold, load_fold
from models.training.recordings import COLLECTION, KNOWN_RECORDINGS, Home, Recording, RecordingError
from models.training.sampling import BatchSampler

PROVISIONAL_LOOK_AHEAD = 10
"""Samples after the one a provisional answer stands for: what a kettle needs, and what a live view can wait for."""
STEPS = {"kettle": 1200, "microwave": 1200, "dishwasher": 1600, "washing_machine": 800, "electric_shower": 1000}
"""Steps of 64 windows; a third of a second each on one core. A kettle's F1 on the validation parts was .887 after 450
and .903 after 1350; a washing machine of 1600 is better on homes it knows (F1 .83, not .78) and not on one it does not.
"""

Progress = Callable[[str, int, int], None]
"""Called with (what is done, done so far, of how many)."""
EXPECTED = (
    OSError,
    UnknownAppliance,
    ArchitectureError,
    RecordingError,
    RegistryError,
    ArtifactRefused,
    CheckpointError,
    FloatingPointError,
)


class RunError(Exception):
    """The run could not be done; the message is one sentence for the user."""


def silent(_what: str, _done: int, _total: int) -> None:
    """For callers that show nothing."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What `nilm train` was asked for. `steps` defaults to the appliance's; homes are named as in `known_homes`."""

    appliance_id: str
    data: Path
    folder: Path
    seed: int = 1
    steps: int | None = None
    architecture: str = "TemporalPoolingUNet"
    test_home: str | None = None
    training_homes: tuple[str, ...] = ()
    threads: int = 1
    restart: bool = False


def run(request: RunRequest, progress: Progress = silent) -> RegistryEntry:
    """Trains and tests one network and leaves everything in the folder; continues a killed run. Raises `RunError`."""
    try:
        appliance = find_appliance(request.appliance_id)
        recipe = Recipe(
            seed=request.seed,
            steps=request.steps or STEPS[appliance.appliance_id],
            architecture=request.architecture,
            threads=request.threads,
        )
        prepare(request.folder, request.restart)
        fold = load_fold(request.data, appliance, request.test_home, request.training_homes)
        network = _train(request, appliance, recipe, fold, progress)
        return finish(request.folder, appliance, recipe, fold, network, progress, [recipe.seed])
    except EXPECTED as error:
        raise RunError(str(error)) from error
    except ValueError as error:
        # A sampler without windows, a window that an architecture does not take.
        raise RunError(str(error)) from error


def sample_indices(network: SequenceModel, window: int) -> dict[Attribution, int]:
    """The samples both answers of a network stand for; one that answers for a single sample gives it twice."""
    if network.answers_for is not None:
        return dict.fromkeys(Attribution, network.answers_for)
    return {Attribution.FINAL: window // 2, Attribution.PROVISIONAL: window - 1 - PROVISIONAL_LOOK_AHEAD}


def prepare(folder: Path, restart: bool) -> None:
    """Makes room in the folder, or raises `RunError` when it holds a finished run."""
    if (folder / "registry.json").exists() and not restart:
        raise RunError(f"{folder} holds a finished run; give another folder, or --restart to replace it")
    if restart:
        for name in ("registry.json", CHECKPOINT_NAME, LOG_NAME):
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def _train(request: RunRequest, appliance: Appliance, recipe: Recipe, fold: Fold, progress: Progress) -> SequenceModel:
    sampler = BatchSampler(fold.training, appliance, recipe.window, recipe.seed)
    identity: dict[str, object] = {
        "appliance_id": appliance.appliance_id,
        "training": [[home.recording.home, home.first_day, home.last_day, len(home)] for home in fold.training],
    }
    log = TrainingLog(request.folder, recipe, identity)

    def on_step(step: StepReport) -> None:
        progress(f"training, loss {step.loss:.3f}", step.step, recipe.steps)

    return train(sampler, recipe, preferred_device(), on_step, log)


def finish(
    folder: Path,
    appliance: Appliance,
    recipe: Recipe,
    fold: Fold,
    network: SequenceModel,
    progress: Progress,
    seeds: Sequence[int],
) -> RegistryEntry:
    """Chooses on the validation parts, tests on the others, draws, and writes the run folder."""
    indices = sample_indices(network, recipe.window)
    agreeing = tuple(with_agreeing_meters(home) for home in fold.validation)
    decisions, validation = choose(network, agreeing, appliance, recipe.window, indices, progress)
    for attribution, decision in decisions.items():
        decision.apply(network.readout(attribution))
    thresholds = {attribution: decision.state_threshold for attribution, decision in decisions.items()}
    homes = [(UNSEEN_HOME, fold.test)] if fold.test is not None else []
    homes += [(HELD_OUT_MONTH if fold.test is None else SEEN_HOME, home) for home in fold.seen_tests]
    tests = []
    for kind, home in homes:
        outputs = outputs_on(network, home, appliance, recipe.window, indices, progress)
        reports = report_both(network, outputs, thresholds, appliance)
        tests.append(test_json(kind, home, reports))
        if home is homes[0][1]:
            _draw(folder, appliance, network, home, outputs, reports)
    metrics: dict[str, Any] = {
        "on_threshold_w": appliance.on_threshold_w,
        "answers": {
            str(attribution): {
                "sample_index": indices[attribution],
                "on_probability_threshold": decision.state_threshold,
                "power_gate_probability": decision.power_gate,
                "calibration": {
                    "slope": round(decision.calibration.slope, 6),
                    "bias": round(decision.calibration.bias, 6),
                },
                "validation": validation[attribution],
            }
            for attribution, decision in decisions.items()
        },
        "validation_data": [
            {"home": home.recording.home, "from": home.first_day, "to": home.last_day} for home in fold.validation
        ],
        "tests": tests,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "recipe": {
            "seed": recipe.seed,
            "seeds": list(seeds),
            "steps": recipe.steps,
            "batch_size": recipe.batch_size,
            "training_homes": list(fold.training_names),
            "test_home": fold.test_name,
        },
    }
    training_data = tuple(
        TrainingSource(home.recording.home, home.first_day, home.last_day, _whose(home.recording))
        for home in fold.training
    )
    entry = export(network, appliance, recipe, indices, folder, training_data, metrics)
    (folder / CHECKPOINT_NAME).unlink(missing_ok=True)
    return entry


def _whose(recording: Recording) -> str:
    known = recording in KNOWN_RECORDINGS.values()
    return f"{recording.attribution}; {COLLECTION}" if known else recording.attribution


def choose(
    network: SequenceModel,
    validation: tuple[Home, ...],
    appliance: Appliance,
    window: int,
    indices: Mapping[Attribution, int],
    progress: Progress = silent,
) -> tuple[dict[Attribution, Decision], dict[Attribution, dict[str, float]]]:
    """Calibration, thresholds and intervals of each answer from the validation parts, and what they reach there."""
    per_home = [outputs_on(network, home, appliance, window, indices, progress) for home in validation]
    decisions: dict[Attribution, Decision] = {}
    reached: dict[Attribution, dict[str, float]] = {}
    for attribution in indices:
        together = only_valid([outputs[attribution] for outputs in per_home])
        decision = decide(together, appliance)
        decisions[attribution] = decision
        probability = decision.calibration.probability(together.logit)
        power_w = np.clip(together.power_w, 0.0, appliance.max_power_w)
        gated_w = np.where(probability >= decision.power_gate, power_w, 0.0).astype(np.float64)
        neutral = type(decision.calibration)(1.0, 0.0).probability(together.logit)
        true_w = together.true_w.astype(np.float64)
        reached[attribution] = {
            "f1": round(f1(together.state, probability >= decision.state_threshold), 4),
            "mae_w": round(mae(true_w, gated_w), 4),
            "always_off_mae_w": round(float(true_w.mean()), 4),
            "ece_before": round(expected_calibration_error(neutral, together.state), 5),
            "ece_after": round(expected_calibration_error(probability, together.state), 5),
        }
    return decisions, reached


def outputs_on(
    network: SequenceModel,
    home: Home,
    appliance: Appliance,
    window: int,
    indices: Mapping[Attribution, int],
    progress: Progress = silent,
) -> dict[Attribution, RawOutputs]:
    """Raw outputs of both answers for every minute of one home."""
    what = f"measuring on {home.recording.home} {home.first_day}"
    return raw_outputs(
        network, home, appliance, window, indices, progress=lambda done, total: progress(what, done, total)
    )


def report_both(
    network: SequenceModel,
    outputs: Mapping[Attribution, RawOutputs],
    thresholds: Mapping[Attribution, float],
    appliance: Appliance,
) -> dict[Attribution, HomeReport]:
    """All metrics of both answers on one home."""
    return {
        attribution: report(part, network.readout(attribution), thresholds[attribution], appliance)
        for attribution, part in outputs.items()
    }


def test_json(kind: str, home: Home, reports: Mapping[Attribution, HomeReport]) -> dict[str, Any]:
    """What the registry keeps of one test; `kind` is one of those in `models.figures`."""
    return {
        "kind": kind,
        "home": home.recording.home,
        "attribution": home.recording.attribution,
        "from": home.first_day,
        "to": home.last_day,
        **{str(attribution): report_json(one) for attribution, one in reports.items()},
    }


def report_json(one: HomeReport) -> dict[str, Any]:
    """One answer on one home, rounded to what is meaningful."""
    return {
        **one.scores.as_dict(),
        "beats_always_off": one.scores.beats_always_off,
        "ece_before": round(one.ece_before, 5),
        "ece_after": round(one.ece_after, 5),
        "coverage": {f"{100 * level:.0f}": _rounded(share) for level, share in one.coverages.items()},
        "coverage_on": {f"{100 * level:.0f}": _rounded(share) for level, share in one.coverages_on.items()},
        "reliability": [
            [one_bin.samples, round(one_bin.mean_probability, 4), round(one_bin.share_on, 4)]
            for one_bin in one.reliability
        ],
    }


def _rounded(share: float) -> float | None:
    return round(share, 4) if np.isfinite(share) else None


def _draw(
    folder: Path,
    appliance: Appliance,
    network: SequenceModel,
    home: Home,
    outputs: Mapping[Attribution, RawOutputs],
    reports: Mapping[Attribution, HomeReport],
) -> None:
    final = outputs[Attribution.FINAL]
    said = served(final, network.readout(Attribution.FINAL), appliance)
    reliability_diagram(
        folder / "reliability.png", {str(name): asdict(one)["reliability"] for name, one in reports.items()}
    )
    example_day(folder / "example-day.png", home, appliance, final, said)
