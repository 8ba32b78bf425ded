"""The two jobs of the command line, each one call that either succeeds or raises `JobError` with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from models.appliances import UnknownAppliance, appliance
from models.loader import ArtifactRefused, load_verified
from models.registry import PACKAGED_REGISTRY, Registry, RegistryEntry, RegistryError
from models.training.evaluate import HomeReport, decision_of
from models.training.export import VersionExists, ensure_free
from models.training.loop import Recipe, preferred_device
from models.training.recordings import UNSEEN_RECORDINGS, Home, RecordingError, load_home
from models.training.release import STEPS, load_split, release, test_on, train_network

Progress = Callable[[str, int, int], None]
"""Called with (what is done, done so far, of how many)."""

EXPECTED = (
    UnknownAppliance,
    RecordingError,
    RegistryError,
    VersionExists,
    ArtifactRefused,
    FloatingPointError,
)


class JobError(Exception):
    """The job could not be done; the message is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One registered model on one home, at the served and at the centred sample."""

    entry: RegistryEntry
    served: HomeReport
    centred: HomeReport


def train_and_register(
    appliance_id: str,
    data: Path,
    progress: Progress,
    root: Path | None = None,
    seed: int = 1,
    steps: int | None = None,
    version: str = "1.0.0",
    threads: int = 1,
    replace: bool = False,
    is_active: bool = True,
) -> RegistryEntry:
    """Trains, chooses on validation, tests on the unseen home, exports and registers under `root`.

    `root` defaults to this package's own folder; `steps` to the appliance's. Raises `JobError`.
    """
    root = PACKAGED_REGISTRY.parent if root is None else root
    try:
        target = appliance(appliance_id)
        if appliance_id not in STEPS:
            raise JobError(f"the training homes have no {appliance_id}; they have {', '.join(sorted(STEPS))}")
        if not replace:
            # Asked now, because the answer after the training would waste it.
            ensure_free(root, appliance_id, version)
        recipe = Recipe(seed=seed, steps=steps or STEPS[appliance_id], threads=threads)
        homes = load_split(data)
        network = train_network(homes, target, recipe, progress)
        return release(
            network,
            homes,
            appliance_id,
            data,
            recipe,
            root,
            version,
            is_active=is_active,
            replace=replace,
            progress=progress,
        )
    except EXPECTED as error:
        raise JobError(str(error)) from error


def evaluate_active(
    data: Path,
    progress: Progress,
    appliance_id: str | None = None,
    home_name: str = "uk-dale-2",
    root: Path | None = None,
    threads: int = 1,
) -> list[Evaluation]:
    """Measures the active model of one appliance, or of all, on an unseen home, every window. Raises `JobError`.

    Of all, those whose appliance the home has; one that was named must be there.
    """
    try:
        if home_name not in UNSEEN_RECORDINGS:
            raise JobError(f"there is no home {home_name!r}; known are {', '.join(sorted(UNSEEN_RECORDINGS))}")
        torch.set_num_threads(threads)
        registry = Registry.load(None if root is None else root / "registry.json")
        home = load_home(data, UNSEEN_RECORDINGS[home_name])
        if appliance_id is None:
            entries = [entry for entry in registry.entries if entry.is_active]
            entries = [entry for entry in entries if entry.appliance_id in home.appliances_w]
        else:
            entries = [registry.active(appliance(appliance_id).appliance_id)]
            if appliance_id not in home.appliances_w:
                raise JobError(f"{home.recording.home} has no {appliance_id}")
        return [_evaluation(registry, entry, home, progress) for entry in entries]
    except EXPECTED as error:
        raise JobError(str(error)) from error


def _evaluation(registry: Registry, entry: RegistryEntry, home: Home, progress: Progress) -> Evaluation:
    model = load_verified(entry, registry.root, preferred_device())
    served, centred = test_on(
        model.network,
        home,
        appliance(entry.appliance_id),
        Recipe(window=entry.input_window_size),
        decision_of(model),
        entry.input_window_size - 1 - entry.output_sample_index,
        progress,
    )
    return Evaluation(entry, served, centred)
