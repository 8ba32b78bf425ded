"""One run folder of several: the same recipe and homes with different seeds, served as their median."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

from models.appliances import appliance
from models.architectures import Ensemble, build
from models.loader import load_verified
from models.registry import Registry, RegistryEntry
from models.training.export import WEIGHTS_NAME
from models.training.loop import Recipe, preferred_device
from models.training.protocol import load_fold
from models.training.run import EXPECTED, Progress, RunError, finish, prepare, silent


def combine(
    runs: Sequence[Path], data: Path, folder: Path, restart: bool = False, progress: Progress = silent
) -> RegistryEntry:
    """Chooses on validation and tests anew for the median of finished runs. Raises `RunError`."""
    try:
        entries = [_finished(run) for run in runs]
        first = entries[0]
        for run, entry in zip(runs, entries, strict=True):
            if _kind(entry) != _kind(first):
                raise RunError(f"{run} is another appliance, architecture or fold than {runs[0]}")
        seeds = [int(entry.metrics["recipe"]["seed"]) for entry in entries]
        if len(set(seeds)) < len(seeds):
            raise RunError("two of the runs have the same seed: they are one opinion, not two")
        told = first.metrics["recipe"]
        recipe = Recipe(
            seed=seeds[0],
            steps=int(told["steps"]),
            batch_size=int(told["batch_size"]),
            architecture="Ensemble",
            architecture_params=(
                ("member", first.architecture),
                ("member_params", first.architecture_params),
                ("members", len(runs)),
            ),
            window=first.input_window_size,
        )
        prepare(folder, restart)
        target = appliance(first.appliance_id)
        fold = load_fold(data, target, told["test_home"], told["training_homes"])
        torch.set_num_threads(recipe.threads)
        network = build(recipe.architecture, recipe.params(), recipe.window)
        assert isinstance(network, Ensemble)  # noqa: S101 - tells the type checker
        network.load_members([safetensors.torch.load_file(run / WEIGHTS_NAME) for run in runs])
        network.to(preferred_device()).eval()
        return finish(folder, target, recipe, fold, network, progress, seeds)
    except EXPECTED as error:
        raise RunError(str(error)) from error
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the runs do not fit together: {error}") from error


def _finished(run: Path) -> RegistryEntry:
    if not (run / "registry.json").exists():
        raise RunError(f"{run} is not a finished run")
    registry = Registry.load(run / "registry.json")
    entry = registry.entries[0]
    load_verified(entry, registry.root)
    return entry


def _kind(entry: RegistryEntry) -> tuple[object, ...]:
    told = entry.metrics["recipe"]
    return (
        entry.appliance_id,
        entry.architecture,
        entry.architecture_params,
        entry.input_window_size,
        told["steps"],
        told["training_homes"],
        told["test_home"],
    )
