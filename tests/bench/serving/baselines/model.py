"""The model of every baseline: the packaged kettle, loaded and run by the very code that does so in the service."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

import numpy as np
import torch

from deployments.contracts import PredictionPoint
from models.attribution import Attribution
from models.loader import FloatArray, LoadedModel, load_verified
from models.registry import Registry
from models.signal import W_PER_KW

APPLIANCE = "kettle"
MAX_MAINS_KW = 100.0
"""As in the service: a larger value is almost always watts sent as kW."""


def load_model(model_version: str) -> LoadedModel:
    """The packaged model, verified, on one thread: several servers' pools would fight for the same cores."""
    torch.set_num_threads(1)
    registry = Registry.load()
    return load_verified(registry.resolve(APPLIANCE, model_version), registry.root)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of one window: power in kW, probability of being on."""

    predicted_kw: float
    confidence: float


def predict(model: LoadedModel, windows_kw: FloatArray) -> list[Prediction]:
    """One forward pass over float32 [n, input_window_size], kW; the final answers."""
    output = model.predict(windows_kw)[Attribution.FINAL]
    return [
        Prediction(power_w / W_PER_KW, probability)
        for power_w, probability in zip(output.predicted_w.tolist(), output.on_probability.tolist(), strict=True)
    ]


def usable(window_kw: FloatArray, model: LoadedModel) -> bool:
    """Whether the model may run on it: its length, finite, and no watts sent as kW."""
    return window_kw.shape == (model.entry.input_window_size,) and bool(
        np.all((window_kw >= 0) & (window_kw <= MAX_MAINS_KW))
    )


def point(
    model: LoadedModel, building_id: str, user_id: str, window_kw: FloatArray, said: Prediction
) -> PredictionPoint:
    """The row of a prediction that stands for now."""
    entry = model.entry
    return PredictionPoint(
        building_id=building_id,
        appliance_id=entry.appliance_id,
        model_version=entry.model_version,
        attribution=Attribution.FINAL,
        time_ns=time.time_ns(),
        predicted_kw=said.predicted_kw,
        confidence=said.confidence,
        aggregate_kw=float(window_kw[entry.output_sample_index]),
        request_id=uuid.uuid4().hex,
        user_id=user_id,
        artifact_sha256=entry.artifact_sha256,
        latency_ms=0.0,
    )
