"""A run folder as `nilm train` leaves it, in milliseconds: a tiny network without training, and invented figures."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from models.appliances import appliance
from models.architectures import build
from models.attribution import Attribution
from models.registry import RegistryEntry, TrainingSource
from models.training.export import export
from models.training.loop import Recipe

WINDOW = 64
RECIPE = Recipe(seed=5, steps=6, batch_size=8, window=WINDOW, architecture_params=(("channels", (8, 12)),))
INDICES = {Attribution.FINAL: 32, Attribution.PROVISIONAL: 53}
REFIT = "REFIT, Murray, CC BY 4.0"
TRAINING = (TrainingSource("REFIT House 2", "2013-09-17", "2014-10-01", f"{REFIT}; by way of a collection"),)

Change = Callable[[dict[str, Any]], None]


def report(f1: float, mae_w: float, always_off_mae_w: float = 25.0) -> dict[str, Any]:
    """One answer on one home."""
    return {
        "samples": 120_000,
        "mae_w": mae_w,
        "mae_on_w": 424.0,
        "sae": 0.1,
        "nde": 0.2,
        "mr": 0.7,
        "teca": 0.8,
        "f1": f1,
        "cycle_f1": 0.9,
        "energy_per_day_error_wh": 126.0,
        "always_off_mae_w": always_off_mae_w,
        "always_off_energy_per_day_error_wh": 580.0,
        "beats_always_off": True,
        "ece_before": 0.02,
        "ece_after": 0.001,
        "coverage": {"80": 0.81, "90": 0.91},
        "coverage_on": {"80": 0.78, "90": 0.88},
        "reliability": [[119_000, 0.001, 0.002], [1_000, 0.9, 0.88]],
    }


def a_test(kind: str, home: str, final: dict[str, Any], provisional: dict[str, Any]) -> dict[str, Any]:
    """One test as `models.training.run` writes it, after everything that was learnt from."""
    return {
        "kind": kind,
        "home": home,
        "attribution": REFIT if home.startswith("REFIT") else "UK-DALE, Kelly, CC BY 4.0",
        "from": "2015-02-01",
        "to": "2015-05-01",
        "final": final,
        "provisional": provisional,
    }


def metrics() -> dict[str, Any]:
    """Complete figures of a good kettle."""
    answers = {
        str(attribution): {
            "sample_index": index,
            "on_probability_threshold": 0.25,
            "power_gate_probability": 0.05,
            "calibration": {"slope": 1.1, "bias": -2.0},
            "validation": {
                "f1": 0.9,
                "mae_w": 6.0,
                "always_off_mae_w": 22.0,
                "ece_before": 0.02,
                "ece_after": 0.001,
            },
        }
        for attribution, index in INDICES.items()
    }
    return {
        "on_threshold_w": 2000.0,
        "parameters": 1234,
        "recipe": {"seed": 5, "steps": 6, "batch_size": 8},
        "validation_data": [{"home": "REFIT House 2", "from": "2014-10-03", "to": "2014-12-01"}],
        "answers": answers,
        "tests": [
            a_test("unseen_home", "UK-DALE House 2", report(0.938, 5.86), report(0.901, 7.12)),
            a_test("seen_home", "REFIT House 2", report(0.95, 4.5), report(0.92, 5.5)),
        ],
    }


def make_run(folder: Path, change: Change | None = None, seed: int = 5, appliance_id: str = "kettle") -> RegistryEntry:
    """Writes the folder; `change` edits the figures before."""
    torch.manual_seed(seed)
    network = build(RECIPE.architecture, RECIPE.params(), WINDOW).eval()
    figures = copy.deepcopy(metrics())
    if change is not None:
        change(figures)
    entry = export(network, appliance(appliance_id), RECIPE, INDICES, folder, TRAINING, figures)
    for name in ("reliability.png", "example-day.png"):
        (folder / name).write_bytes(b"\x89PNG")
    return entry


def edit_registry(path: Path, change: Change) -> None:
    """Changes the first entry of a registry.json by hand."""
    document = json.loads(path.read_text())
    change(document["models"][0])
    path.write_text(json.dumps(document))


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file below, hidden ones too."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
