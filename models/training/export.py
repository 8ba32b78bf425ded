"""What a finished training leaves in its run folder: weights, golden outputs and a registry of one entry.

A run folder can be loaded, measured and served like any registry; `models.release` copies it into the shipped one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

from models.appliances import Appliance
from models.architectures import INTERVAL_EDGES, SequenceModel
from models.attribution import Attribution
from models.files import write_atomically
from models.loader import LoadedModel, golden_arrays, load_verified
from models.registry import Preprocessing, RegistryEntry, TrainingSource, registry_text
from models.signal import MAINS_MEAN_W, MAINS_STD_W
from models.training.golden import synthetic_windows_kw
from models.training.loop import Recipe
from models.training.recordings import SAMPLE_PERIOD_S

UNRELEASED = "unreleased"
"""The version of a run; `nilm models add` gives the real one."""
WEIGHTS_NAME = "model.safetensors"
GOLDEN_NAME = "golden.npz"
GOLDEN_WINDOWS = 8
GOLDEN_CANDIDATES = 64
GATE_MARGIN = 0.4
"""Golden probabilities keep this share of the way to 0 and 1 off the gate, where rounding switches the power."""
EDGE_MARGIN = 0.002
"""And this off the edges of the interval groups, where rounding switches the interval."""
MODEL_SUFFIXES = {"TemporalPoolingUNet": "tpunet", "CNNTransformer": "cnnt", "NILMFormer": "nilmformer"}


def model_id_of(appliance: Appliance, recipe: Recipe) -> str:
    """`kettle-tpunet`: the appliance and the architecture, of an ensemble that of its members."""
    architecture = str(recipe.params().get("member", recipe.architecture))
    suffix = MODEL_SUFFIXES.get(architecture, architecture.lower())
    return f"{appliance.appliance_id.replace('_', '-')}-{suffix}"


def export(
    network: SequenceModel,
    appliance: Appliance,
    recipe: Recipe,
    sample_indices: dict[Attribution, int],
    folder: Path,
    training_data: tuple[TrainingSource, ...],
    metrics: dict[str, Any],
) -> RegistryEntry:
    """Writes weights, golden outputs and registry.json to `folder`, and proves that the loader accepts them.

    `network` already carries its calibration, gates and intervals.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    content = safetensors.torch.save(weights)
    write_atomically(folder / WEIGHTS_NAME, content)
    entry = RegistryEntry(
        model_id=model_id_of(appliance, recipe),
        model_version=UNRELEASED,
        appliance_id=appliance.appliance_id,
        architecture=recipe.architecture,
        architecture_params=recipe.params(),
        artifact_path=WEIGHTS_NAME,
        artifact_sha256=hashlib.sha256(content).hexdigest(),
        input_window_size=recipe.window,
        preprocessing=Preprocessing("standard", MAINS_MEAN_W, MAINS_STD_W, appliance.mains_clip_w),
        is_active=False,
        sample_period_s=SAMPLE_PERIOD_S,
        input_unit="W",
        output_unit="W",
        output_sample_index=sample_indices[Attribution.FINAL],
        provisional_sample_index=sample_indices[Attribution.PROVISIONAL],
        max_power_w=appliance.max_power_w,
        on_threshold_w=appliance.on_threshold_w,
        golden_path=None,
        card_path=None,
        training_data=training_data,
        metrics=metrics,
    )
    golden = golden_content(load_verified(entry, folder), appliance)
    write_atomically(folder / GOLDEN_NAME, golden)
    entry = dataclasses.replace(entry, golden_path=GOLDEN_NAME)
    load_verified(entry, folder)
    write_atomically(folder / "registry.json", registry_text([entry]).encode())
    return entry


def golden_content(model: LoadedModel, appliance: Appliance) -> bytes:
    """golden.npz: `windows_kw` float32 [k, W], and what the model says of them (`models.loader.golden_arrays`).

    For each answer a quarter are the windows it finds most likely on, so that a wrong power head cannot hide behind
    the gate; the rest are the least likely ones.
    """
    entry = model.entry
    windows_kw = np.concatenate(
        [
            synthetic_windows_kw(appliance, entry.input_window_size, index, GOLDEN_CANDIDATES)
            for index in sorted(set(entry.sample_indices.values()))
        ]
    )
    usable = np.ones(len(windows_kw), dtype=np.bool_)
    for attribution, output in model.predict(windows_kw).items():
        gate = float(model.network.readout(attribution).power_gate)
        usable &= np.abs(output.on_probability - gate) > GATE_MARGIN * min(gate, 1.0 - gate)
        nearest = np.abs(output.on_probability[:, None] - np.array(INTERVAL_EDGES)).min(axis=1)
        usable &= nearest > EDGE_MARGIN
    candidates = windows_kw[usable]
    outputs, quarter = model.predict(candidates), GOLDEN_WINDOWS // 4
    ordered = {name: np.argsort(-output.on_probability, kind="stable") for name, output in outputs.items()}
    likely = dict.fromkeys(int(row) for name in Attribution for row in ordered[name][:quarter])
    unlikely = [int(row) for row in ordered[Attribution.FINAL] if int(row) not in likely]
    chosen = candidates[[*likely, *unlikely[len(likely) - GOLDEN_WINDOWS :]]]
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"windows_kw": chosen, **golden_arrays(model.predict(chosen))}
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
