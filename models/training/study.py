"""Many run folders as one file of figures: what `docs/models.md` says of seeds, folds, architectures, learning curve.

Costs are measured here, all in one go on one core, so that they compare; accuracies come from the runs.
"""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.files import write_atomically
from models.loader import LoadedModel, load_verified
from models.refusal import ArtifactRefused
from models.registry import Registry, RegistryEntry, RegistryError
from models.training.checkpoint import LOG_NAME
from models.training.run import Progress, RunError, silent

BATCH_WINDOWS = 16
REPEATS = 15


def collect(folders: Sequence[Path], progress: Progress = silent) -> dict[str, Any]:
    """The figures of all finished runs among `folders` and their direct subfolders. Raises `RunError`."""
    found = sorted(
        {path.parent for folder in folders for path in (*folder.glob("registry.json"), *folder.glob("*/registry.json"))}
    )
    if not found:
        raise RunError(f"no finished run in {', '.join(map(str, folders))}")
    runs: list[dict[str, Any]] = []
    costs: dict[tuple[str, int], float] = {}
    for done, folder in enumerate(found):
        try:
            registry = Registry.load(folder / "registry.json")
            for entry in registry.entries:
                cost_key = (entry.architecture, entry.input_window_size)
                if cost_key not in costs:
                    costs[cost_key] = forward_ms(load_verified(entry, folder))
                runs.append(_run(entry, folder, costs[cost_key]))
        except (RegistryError, ArtifactRefused) as error:
            raise RunError(f"{folder}: {error}") from error
        progress("reading runs", done + 1, len(found))
    return {"runs": runs}


def gather(folders: Sequence[Path], out: Path, progress: Progress = silent) -> int:
    """Writes the figures to `out`, beside those of runs it already holds; returns how many it holds then.

    A run is known by its appliance, architecture, homes and seed, so that one repeated replaces itself.
    """
    found = collect(folders, progress)["runs"]
    kept: list[dict[str, Any]] = []
    if out.exists():
        try:
            kept = json.loads(out.read_text(encoding="utf-8"))["runs"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{out} is not a study: {error}") from error
    together = {_key(run): run for run in (*kept, *found)}
    runs = [together[key] for key in sorted(together)]
    write_atomically(out, (json.dumps({"runs": runs}, indent=1, allow_nan=False) + "\n").encode())
    return len(runs)


def _key(run: dict[str, Any]) -> tuple[str, ...]:
    homes = ",".join(run["training_homes"])
    return run["appliance_id"], run["architecture"], str(run["test_home"]), homes, str(run["seed"])


def forward_ms(model: LoadedModel) -> float:
    """Milliseconds per window on one core, of a batch of 16: the median of 15 repeats after one to warm up."""
    torch.set_num_threads(1)
    windows_kw = np.full((BATCH_WINDOWS, model.entry.input_window_size), 0.3, dtype=np.float32)
    model.predict(windows_kw)
    seconds: list[float] = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        model.predict(windows_kw)
        seconds.append(time.perf_counter() - started)
    return 1000.0 * statistics.median(seconds) / BATCH_WINDOWS


def _run(entry: RegistryEntry, folder: Path, ms_per_window: float) -> dict[str, Any]:
    recipe = entry.metrics["recipe"]
    return {
        "appliance_id": entry.appliance_id,
        "architecture": entry.architecture,
        "training_homes": recipe["training_homes"],
        "test_home": recipe["test_home"],
        "seed": recipe["seed"],
        "steps": recipe["steps"],
        "parameters": entry.metrics["parameters"],
        "train_minutes": _train_minutes(folder / LOG_NAME),
        "ms_per_window": round(ms_per_window, 2),
        "tests": [
            {
                name: {key: part for key, part in value.items() if key != "reliability"}
                if isinstance(value, dict)
                else value
                for name, value in test.items()
            }
            for test in entry.metrics["tests"]
        ],
    }


def _train_minutes(log: Path) -> float | None:
    """Each continuation of a killed run counts from zero, so the rises are added up. None for an ensemble."""
    if not log.exists():
        return None
    with log.open(encoding="utf-8", newline="") as file:
        elapsed = [float(row["elapsed_s"]) for row in csv.DictReader(file)]
    seconds = sum(max(now - before, 0.0) for before, now in zip([0.0, *elapsed], elapsed, strict=False))
    return round(seconds / 60.0, 1)
