"""What an engine costs in accuracy: a version on all tests of its card, with torch and with the engine.

The figures become the registry's evidence; whether they allow the engine is `models.engines.unproven`.
"""

from __future__ import annotations

import dataclasses
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from models.attribution import Attribution
from models.engines import Engine
from models.loader import LoadedModel, load_verified
from models.registry import RegistryEntry
from models.training.measure import measure_again
from models.training.recordings import Home, known_homes, load_home
from models.training.run import EXPECTED, Progress, RunError, report_json, silent


def with_evidence(
    entry: RegistryEntry, root: Path, engine: Engine, data: Path, threads: int = 1, progress: Progress = silent
) -> RegistryEntry:
    """`entry` on `engine`, with what both engines reach on its tests. `root`: the registry's folder.

    On the CPU, where the engine would serve. Raises `RunError` when it cannot be measured.
    """
    wanted = dataclasses.replace(entry, engine=engine, engine_evidence=None)
    try:
        torch.set_num_threads(threads)
        models = {
            "torch": load_verified(dataclasses.replace(wanted, engine=Engine.TORCH), root),
            "engine": load_verified(wanted, root, evidence_needed=False),
        }
        homes = {name: load_home(data, recording) for name, recording in known_homes(data).items()}
        tests = [_test(models, test, homes, progress) for test in entry.metrics.get("tests", [])]
    except EXPECTED as error:
        raise RunError(str(error)) from error
    if not tests:
        raise RunError(f"{entry.model_id} {entry.model_version} has no test in its card to measure it on again")
    evidence = {
        "engine": str(engine),
        "engine_version": metadata.version(str(engine)),
        "artifact_sha256": entry.artifact_sha256,
        "tests": tests,
    }
    return dataclasses.replace(wanted, engine_evidence=evidence)


def _test(
    models: dict[str, LoadedModel], test: dict[str, Any], homes: dict[str, Home], progress: Progress
) -> dict[str, Any]:
    found = {name: test[name] for name in ("kind", "home", "from", "to")}
    for name, model in models.items():
        reports = measure_again(model, test, homes, progress).reports
        found[name] = {
            str(attribution): {figure: report_json(reports[attribution])[figure] for figure in ("f1", "mae_w")}
            for attribution in Attribution
        }
    return found
