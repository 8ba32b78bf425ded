"""From a registry entry to a model that may serve: every step checked, in an order that trusts nothing early.

file present -> sha256 -> safetensors (never pickle) -> architecture -> strict weights -> finite weights ->
warm-up -> golden output -> ready. Refusals are `ArtifactRefused` with a closed set of reasons, never a model
that is half loaded.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch

from models.architectures import ArchitectureError, SequenceModel, build
from models.registry import RegistryEntry
from models.signal import W_PER_KW, kw_to_w, normalise

FloatArray = npt.NDArray[np.float32]

GOLDEN_TOLERANCE_W = 0.5
GOLDEN_TOLERANCE_PROBABILITY = 1e-3
"""Convolutions sum in another order on another CPU or on a GPU; a wrong model differs by far more than this."""

WARM_UP_WINDOWS = 2


class ArtifactRefusal(StrEnum):
    """The step that failed."""

    ARTIFACT_MISSING = "artifact_missing"
    SHA256_MISMATCH = "sha256_mismatch"
    NOT_SAFETENSORS = "not_safetensors"
    UNKNOWN_ARCHITECTURE = "unknown_architecture"
    WEIGHTS_MISMATCH = "weights_mismatch"
    WEIGHTS_NOT_FINITE = "weights_not_finite"
    WARM_UP_FAILED = "warm_up_failed"
    GOLDEN_MISSING = "golden_missing"
    GOLDEN_MISMATCH = "golden_mismatch"


class ArtifactRefused(Exception):
    """The artifact must not serve. Picklable: both arguments are `args`."""

    def __init__(self, reason: ArtifactRefusal, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = ArtifactRefusal(reason)
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.detail}"


class GoldenCheck(StrEnum):
    """Whether the golden output was compared."""

    PASSED = "passed"
    SKIPPED = "skipped"
    """The entry names no golden file (registries written before it existed)."""


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """Predictions for n windows: both float32 [n]. Power in W; probability of being on in [0, 1]."""

    predicted_w: FloatArray
    on_probability: FloatArray


class LoadedModel:
    """A verified model, ready to predict. Holds no state between calls."""

    def __init__(self, entry: RegistryEntry, network: SequenceModel, device: str) -> None:
        self.entry = entry
        self.device = device
        self.golden = GoldenCheck.SKIPPED
        self.network = network

    def predict(self, windows_kw: FloatArray) -> ModelOutput:
        """Mains windows, float32 [n, input_window_size], kW, oldest first -> power and on-probability [n].

        The output stands for sample `entry.output_sample_index`. Raises `ValueError` for another shape.
        """
        window = self.entry.input_window_size
        if windows_kw.ndim != 2 or windows_kw.shape[1] != window:
            raise ValueError(f"windows must be [n, {window}], not {list(windows_kw.shape)}")
        if windows_kw.shape[0] == 0:
            return ModelOutput(np.empty(0, dtype=np.float32), np.empty(0, dtype=np.float32))
        inputs = torch.from_numpy(self._network_input(windows_kw)).to(self.device)
        # TF32 would cost three digits, more than the golden tolerance, for a model this small no time at all.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            probability, power_w = self.network.estimate(inputs, self.entry.output_sample_index)
            power_w = power_w.clamp(min=0.0, max=self.entry.max_power_w)
        return ModelOutput(
            predicted_w=power_w.cpu().numpy().astype(np.float32, copy=False),
            on_probability=probability.cpu().numpy().astype(np.float32, copy=False),
        )

    def _network_input(self, windows_kw: FloatArray) -> FloatArray:
        preprocessing = self.entry.preprocessing
        if self.entry.input_unit == "W":
            return normalise(kw_to_w(windows_kw), preprocessing.mean, preprocessing.std, preprocessing.clip_w)
        clip_kw = None if preprocessing.clip_w is None else preprocessing.clip_w / W_PER_KW
        return normalise(windows_kw, preprocessing.mean, preprocessing.std, clip_kw)


def load_verified(entry: RegistryEntry, root: Path, device: str = "cpu") -> LoadedModel:
    """Loads, verifies and warms one entry. `root` is the registry's folder. Raises `ArtifactRefused`."""
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
    model = _warm_up(entry, network, device)
    if entry.golden_path is not None:
        _compare_golden(model, _read_inside(root, entry.golden_path, ArtifactRefusal.GOLDEN_MISSING))
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
    windows = np.full((WARM_UP_WINDOWS, entry.input_window_size), 0.3, dtype=np.float32)
    try:
        model = LoadedModel(entry, network.to(device), device)
        output = model.predict(windows)
    # AssertionError is how torch says that it was built without the device.
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise ArtifactRefused(ArtifactRefusal.WARM_UP_FAILED, f"the first forward failed: {error}") from error
    if not (np.isfinite(output.predicted_w).all() and np.isfinite(output.on_probability).all()):
        raise ArtifactRefused(ArtifactRefusal.WARM_UP_FAILED, "constant mains of 0.3 kW give NaN or infinity")
    return model


def _compare_golden(model: LoadedModel, content: bytes) -> None:
    """Refuses unless the model says what it said when it was exported, on the same synthetic windows."""

    def mismatch(detail: str) -> ArtifactRefused:
        return ArtifactRefused(ArtifactRefusal.GOLDEN_MISMATCH, f"{model.entry.golden_path}: {detail}")

    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as golden:
            windows_kw = golden["windows_kw"].astype(np.float32)
            expected_w = golden["predicted_w"]
            expected_probability = golden["on_probability"]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise mismatch(f"not a golden file: {error}") from error
    try:
        output = model.predict(windows_kw)
    except ValueError as error:
        raise mismatch(str(error)) from error
    comparisons = (
        ("predicted_w", output.predicted_w, expected_w, GOLDEN_TOLERANCE_W),
        ("on_probability", output.on_probability, expected_probability, GOLDEN_TOLERANCE_PROBABILITY),
    )
    for name, actual, expected, tolerance in comparisons:
        if actual.shape != expected.shape or actual.size == 0:
            raise mismatch(f"{name} has shape {list(expected.shape)} for {actual.shape[0]} windows")
        difference = float(np.max(np.abs(actual - expected)))
        # Written as "not within", so that a NaN is a mismatch.
        if not difference <= tolerance:
            raise mismatch(f"{name} differs by {difference:.6g}, more than {tolerance}")
