"""From a registry entry to a model that may serve: every step checked, in an order that trusts nothing early.

file present -> sha256 -> safetensors (never pickle) -> architecture -> strict weights -> finite weights ->
warm-up -> the entry's engine, if that is not torch -> golden output -> ready. Refusals are `ArtifactRefused` with a
closed set of reasons, never a model that is half loaded.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch

from models.architectures import ArchitectureError, SequenceModel, build
from models.architectures.time_convolution import prepare_for_serving
from models.attribution import Attribution
from models.engines import Engine, unproven
from models.openvino_network import compiled
from models.refusal import ArtifactRefusal, ArtifactRefused
from models.registry import RegistryEntry
from models.signal import W_PER_KW, kw_to_w, normalise

FloatArray = npt.NDArray[np.float32]

GOLDEN_TOLERANCE_W = 0.5
GOLDEN_TOLERANCE_PROBABILITY = 1e-3
"""Convolutions sum in another order on another CPU or on a GPU; a wrong model differs by far more than this."""

WARM_UP_WINDOWS = 2


class GoldenCheck(StrEnum):
    """Whether the golden output was compared."""

    PASSED = "passed"
    SKIPPED = "skipped"
    """The entry names no golden file (registries written before it existed)."""


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """Predictions for n windows, float32. Power in W [n]; probability of being on in [0, 1] [n].

    `interval_w` is [n, len(COVERAGES), 2]: low and high of the prediction intervals.
    """

    predicted_w: FloatArray
    on_probability: FloatArray
    interval_w: FloatArray


@dataclass(frozen=True, slots=True)
class Golden:
    """Synthetic windows [k, W], kW, and what the model said of them when it was exported (`golden_arrays`)."""

    windows_kw: FloatArray
    expected: Mapping[str, FloatArray]


class LoadedModel:
    """A verified model, ready to predict. Holds no state between calls."""

    def __init__(
        self, entry: RegistryEntry, network: SequenceModel, device: str, engine: Engine = Engine.TORCH
    ) -> None:
        self.entry = entry
        self.engine = engine
        self.device = device
        self.golden = GoldenCheck.SKIPPED
        self.network = network

    def predict(self, windows_kw: FloatArray) -> dict[Attribution, ModelOutput]:
        """Mains windows, float32 [n, input_window_size], kW, oldest first -> both answers for n windows.

        Each stands for its sample in `entry.sample_indices`. Raises `ValueError` for another shape.
        """
        window = self.entry.input_window_size
        if windows_kw.ndim != 2 or windows_kw.shape[1] != window:
            raise ValueError(f"windows must be [n, {window}], not {list(windows_kw.shape)}")
        inputs = self.network_input(windows_kw)
        # TF32 would cost three digits, more than the golden tolerance, for a model this small no time at all.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            estimates = self.network.estimate(inputs, self.entry.sample_indices, self.entry.max_power_w)
        return {
            attribution: ModelOutput(
                predicted_w=_float32(estimate.power_w),
                on_probability=_float32(estimate.on_probability),
                interval_w=_float32(estimate.interval_w),
            )
            for attribution, estimate in estimates.items()
        }

    def network_input(self, windows_kw: FloatArray) -> torch.Tensor:
        """Mains windows [n, W], kW -> what the network takes of them, on its device."""
        preprocessing = self.entry.preprocessing
        if self.entry.input_unit == "W":
            mains, clip = kw_to_w(windows_kw), preprocessing.clip_w
        else:
            mains, clip = windows_kw, None if preprocessing.clip_w is None else preprocessing.clip_w / W_PER_KW
        return torch.from_numpy(normalise(mains, preprocessing.mean, preprocessing.std, clip)).to(self.device)


def _float32(values: torch.Tensor) -> FloatArray:
    return values.cpu().numpy().astype(np.float32, copy=False)


def load_verified(
    entry: RegistryEntry, root: Path, device: str = "cpu", *, evidence_needed: bool = True
) -> LoadedModel:
    """Loads, verifies and warms one entry. `root` is the registry's folder. Raises `ArtifactRefused`.

    `evidence_needed` is false for those alone who gather the evidence for another engine than torch.
    """
    content = _read_inside(root, entry.artifact_path, ArtifactRefusal.ARTIFACT_MISSING)
    # The very bytes that were hashed are parsed, so nobody can swap the file in between.
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry.artifact_sha256:
        raise ArtifactRefused(
            ArtifactRefusal.SHA256_MISMATCH,
            f"{entry.artifact_path} has sha256 {digest}, the registry says {entry.artifact_sha256}",
        )
    try:
        weights = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ArtifactRefused(
            ArtifactRefusal.NOT_SAFETENSORS, f"{entry.artifact_path} is not a safetensors file: {error}"
        ) from error
    network = _network(entry, weights)
    on_torch = entry.engine is Engine.TORCH or device != "cpu"
    if on_torch:
        prepare_for_serving(network)
    model = _warm_up(entry, network, device)
    golden = None
    if entry.golden_path is not None:
        golden = _golden(entry, _read_inside(root, entry.golden_path, ArtifactRefusal.GOLDEN_MISSING))
    if not on_torch:
        model = _on_engine(model, golden, evidence_needed)
    if golden is not None:
        _compare_golden(model, golden)
        model.golden = GoldenCheck.PASSED
    return model


def _read_inside(root: Path, relative: str, missing: ArtifactRefusal) -> bytes:
    """The file's bytes, or a refusal when it is absent or, symlinks followed, outside `root`."""
    root = Path(root).resolve()
    target = (root / relative).resolve()
    if not target.is_relative_to(root):
        raise ArtifactRefused(missing, f"{relative} leads outside the artifact root")
    try:
        return target.read_bytes()
    except OSError as error:
        raise ArtifactRefused(missing, f"{relative} cannot be read: {error.strerror}") from error


def _network(entry: RegistryEntry, weights: dict[str, torch.Tensor]) -> SequenceModel:
    try:
        network = build(entry.architecture, entry.architecture_params, entry.input_window_size)
    except ArchitectureError as error:
        raise ArtifactRefused(ArtifactRefusal.UNKNOWN_ARCHITECTURE, str(error)) from error
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ArtifactRefused(
            ArtifactRefusal.WEIGHTS_MISMATCH,
            f"{entry.artifact_path} does not fit {entry.architecture}: {error}",
        ) from error
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ArtifactRefused(
                ArtifactRefusal.WEIGHTS_NOT_FINITE, f"{name} in {entry.artifact_path} holds NaN or infinity"
            )
    return network.eval().requires_grad_(False)


def _warm_up(entry: RegistryEntry, network: SequenceModel, device: str) -> LoadedModel:
    try:
        model = LoadedModel(entry, network.to(device), device)
        outputs = model.predict(_warm_up_windows_kw(entry))
    # AssertionError is how torch says that it was built without the device.
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise ArtifactRefused(ArtifactRefusal.WARM_UP_FAILED, f"the first forward failed: {error}") from error
    if not all(np.isfinite(values).all() for values in golden_arrays(outputs).values()):
        raise ArtifactRefused(ArtifactRefusal.WARM_UP_FAILED, "constant mains of 0.3 kW give NaN or infinity")
    return model


def _warm_up_windows_kw(entry: RegistryEntry) -> FloatArray:
    return np.full((WARM_UP_WINDOWS, entry.input_window_size), 0.3, dtype=np.float32)


def _on_engine(model: LoadedModel, golden: Golden | None, evidence_needed: bool) -> LoadedModel:
    """The model with its forward pass on the entry's engine, which must say of golden windows what torch says."""
    entry = model.entry
    reason = unproven(entry) if evidence_needed else None
    if reason is not None:
        raise ArtifactRefused(ArtifactRefusal.ENGINE_UNPROVEN, reason)
    if golden is None:
        raise ArtifactRefused(
            ArtifactRefusal.GOLDEN_MISSING, f"{entry.engine} is compared with torch on golden windows; it has none"
        )
    windows_kw = np.concatenate((golden.windows_kw, _warm_up_windows_kw(entry)))
    network = compiled(model.network, model.network_input(windows_kw), tuple(entry.sample_indices.values()))
    return LoadedModel(entry, network, model.device, entry.engine)


def _golden_mismatch(entry: RegistryEntry, detail: str) -> ArtifactRefused:
    return ArtifactRefused(ArtifactRefusal.GOLDEN_MISMATCH, f"{entry.golden_path}: {detail}")


def _golden(entry: RegistryEntry, content: bytes) -> Golden:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as golden:
            windows_kw = golden["windows_kw"].astype(np.float32)
            expected = {name: golden[name] for name in golden.files if name != "windows_kw"}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise _golden_mismatch(entry, f"not a golden file: {error}") from error
    if windows_kw.ndim != 2 or windows_kw.shape[1] != entry.input_window_size or not len(windows_kw):
        raise _golden_mismatch(
            entry, f"holds windows {list(windows_kw.shape)} for a model of {entry.input_window_size} samples"
        )
    return Golden(windows_kw, expected)


def _compare_golden(model: LoadedModel, golden: Golden) -> None:
    """Refuses unless the model says what it said when it was exported."""

    def mismatch(detail: str) -> ArtifactRefused:
        return _golden_mismatch(model.entry, detail)

    actual, expected = golden_arrays(model.predict(golden.windows_kw)), golden.expected
    if set(actual) != set(expected):
        raise mismatch(f"holds {', '.join(sorted(expected))}; the model gives {', '.join(sorted(actual))}")
    for name, values in actual.items():
        tolerance = GOLDEN_TOLERANCE_PROBABILITY if name.endswith("on_probability") else GOLDEN_TOLERANCE_W
        if values.shape != expected[name].shape:
            raise mismatch(f"{name} has shape {list(expected[name].shape)} for {values.shape[0]} windows")
        difference = float(np.max(np.abs(values - expected[name])))
        # Written as "not within", so that a NaN is a mismatch.
        if not difference <= tolerance:
            raise mismatch(f"{name} differs by {difference:.6g}, more than {tolerance}")


def golden_arrays(outputs: Mapping[Attribution, ModelOutput]) -> dict[str, FloatArray]:
    """The arrays of a golden file beside `windows_kw`: `final_predicted_w`, `provisional_on_probability`, ..."""
    return {
        f"{attribution}_{name}": getattr(output, name)
        for attribution, output in outputs.items()
        for name in ("predicted_w", "on_probability", "interval_w")
    }
