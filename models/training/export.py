"""From a trained network to a registered version: weights, golden outputs, card, registry entry.

Every file is written beside its place and moved there by `os.replace`, the registry last, so that a reader sees
the old state or the new one. A version is registered only after the loader has accepted it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

from models.appliances import Appliance
from models.architectures import SequenceModel
from models.loader import LoadedModel, load_verified
from models.registry import Preprocessing, Registry, RegistryEntry, TrainingSource
from models.signal import MAINS_CLIP_W, MAINS_MEAN_W, MAINS_STD_W
from models.training.evaluate import Decision
from models.training.golden import synthetic_windows_kw
from models.training.loop import Recipe
from models.training.recordings import SAMPLE_PERIOD_S

GOLDEN_WINDOWS = 8
GOLDEN_CANDIDATES = 64
GATE_MARGIN = 0.4
"""Golden probabilities keep this share of the way to 0 and 1 off the gate, where rounding switches the power."""


class VersionExists(Exception):
    """The version is registered already; a version never changes its meaning silently."""


def model_id_of(appliance: Appliance) -> str:
    """`kettle-tpunet`, `washing-machine-tpunet`: the appliance and the architecture."""
    return f"{appliance.appliance_id.replace('_', '-')}-tpunet"


def ensure_free(root: Path, appliance_id: str, version: str) -> None:
    """Raises `VersionExists` when `root`/registry.json has that version: asked before training, not after."""
    path = root / "registry.json"
    known = Registry.load(path).entries if path.exists() else ()
    if any((entry.appliance_id, entry.model_version) == (appliance_id, version) for entry in known):
        raise VersionExists(f"{appliance_id} {version} is registered already; a new version or --replace is needed")


def write_atomically(path: Path, content: bytes) -> None:
    """Readers of `path` see the old content or the new one, never a part; survives a crash right after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files for their owner only; artifacts are for whoever serves them.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def apply_decision(network: SequenceModel, decision: Decision) -> None:
    """Puts calibration and gate into the network's buffers, hence into the weights file."""
    network.calibration_slope.fill_(decision.calibration.slope)
    network.calibration_bias.fill_(decision.calibration.bias)
    network.power_gate.fill_(decision.power_gate)


def export(
    network: SequenceModel,
    appliance: Appliance,
    recipe: Recipe,
    sample_index: int,
    version: str,
    root: Path,
    training_data: tuple[TrainingSource, ...],
    metrics: dict[str, Any],
    is_active: bool,
) -> RegistryEntry:
    """Writes weights and golden outputs under `root` and proves that the loader accepts them.

    Returns the entry; `register` makes it known. `network` already carries its calibration and gate.
    """
    model_id = model_id_of(appliance)
    folder = f"artifacts/{model_id}/{version}"
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    content = safetensors.torch.save(weights)
    write_atomically(root / folder / "model.safetensors", content)
    entry = RegistryEntry(
        model_id=model_id,
        model_version=version,
        appliance_id=appliance.appliance_id,
        architecture=recipe.architecture,
        architecture_params=recipe.params(),
        artifact_path=f"{folder}/model.safetensors",
        artifact_sha256=hashlib.sha256(content).hexdigest(),
        input_window_size=recipe.window,
        preprocessing=Preprocessing("standard", MAINS_MEAN_W, MAINS_STD_W, MAINS_CLIP_W),
        is_active=is_active,
        sample_period_s=SAMPLE_PERIOD_S,
        input_unit="W",
        output_unit="W",
        output_sample_index=sample_index,
        max_power_w=appliance.max_power_w,
        on_threshold_w=appliance.on_threshold_w,
        golden_path=None,
        card_path=f"{folder}/card.md",
        training_data=training_data,
        metrics=metrics,
    )
    golden = golden_content(load_verified(entry, root), appliance, float(network.power_gate))
    write_atomically(root / folder / "golden.npz", golden)
    entry = dataclasses.replace(entry, golden_path=f"{folder}/golden.npz")
    load_verified(entry, root)
    return entry


def golden_content(model: LoadedModel, appliance: Appliance, gate: float) -> bytes:
    """golden.npz: `windows_kw` float32 [k, W], `predicted_w` and `on_probability` float32 [k].

    Half are the windows the model finds most likely on, so that a wrong power head cannot hide behind the gate.
    """
    entry = model.entry
    windows_kw = synthetic_windows_kw(appliance, entry.input_window_size, entry.output_sample_index, GOLDEN_CANDIDATES)
    probability = model.predict(windows_kw).on_probability
    usable = np.flatnonzero(np.abs(probability - gate) > GATE_MARGIN * min(gate, 1.0 - gate))
    ordered = usable[np.argsort(-probability[usable], kind="stable")]
    half = GOLDEN_WINDOWS // 2
    chosen = np.concatenate((ordered[:half], ordered[half:][-half:]))
    output = model.predict(windows_kw[chosen])
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        windows_kw=windows_kw[chosen],
        predicted_w=output.predicted_w,
        on_probability=output.on_probability,
    )
    return buffer.getvalue()


def entry_json(entry: RegistryEntry) -> dict[str, Any]:
    """The entry as registry.json holds it."""
    row = dataclasses.asdict(entry)
    row["training_data"] = [
        {"home": source.home, "from": source.from_, "to": source.to, "attribution": source.attribution}
        for source in entry.training_data
    ]
    return row


def register(entry: RegistryEntry, root: Path, replace: bool = False) -> None:
    """Adds the entry to `root`/registry.json; an active entry makes the appliance's other versions inactive.

    Raises `VersionExists` unless `replace`, and `RegistryError` when the result would not be a valid registry.
    """
    path = root / "registry.json"
    rows = [entry_json(known) for known in Registry.load(path).entries] if path.exists() else []
    if not replace:
        ensure_free(root, entry.appliance_id, entry.model_version)
    rows = [row for row in rows if _key(row) != (entry.appliance_id, entry.model_version)]
    for row in rows:
        if entry.is_active and row["appliance_id"] == entry.appliance_id:
            row["is_active"] = False
    rows = sorted([*rows, entry_json(entry)], key=_key)
    text = json.dumps({"schema_version": 1, "models": rows}, indent=2, allow_nan=False) + "\n"
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "registry.json"
        trial.write_text(text, encoding="utf-8")
        Registry.load(trial)
    write_atomically(path, text.encode())


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["appliance_id"], row["model_version"]
