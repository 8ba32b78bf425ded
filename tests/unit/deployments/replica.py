"""A registry of kettle versions on disk, and an appliance replica without Ray around it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from deployments.appliance import ApplianceModel
from deployments.contracts import InferenceRequest, InferenceResult
from models.architectures import build
from models.attribution import Attribution

WINDOW = 16
FINAL_INDEX, PROVISIONAL_INDEX = 8, 14
PARAMS = {"input_channels": 1, "d_model": 8, "n_heads": 2, "n_layers": 1}
# [coverage, (low, high)], W; the same whatever the on-probability, and the two answers unlike each other.
OFFSETS_W = {
    Attribution.FINAL: [[-10.0, 20.0], [-30.0, 40.0]],
    Attribution.PROVISIONAL: [[-100.0, 200.0], [-300.0, 400.0]],
}


@dataclass
class Shelf:
    """A registry with versions 1.0.0, 2.0.0 and 3.0.0 of a kettle."""

    root: Path
    entries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def registry(self) -> Path:
        return self.root / "registry.json"

    def add(self, version: str, seed: int) -> None:
        torch.manual_seed(seed)
        network = build("CNNTransformer", PARAMS, WINDOW)
        for attribution, offsets in OFFSETS_W.items():
            network.readout(attribution).interval_offsets_w += torch.tensor(offsets)[:, None]
        relative = f"artifacts/kettle/{version}/model.safetensors"
        path = self.root / relative
        path.parent.mkdir(parents=True)
        safetensors.torch.save_file(network.state_dict(), path)
        self.entries.append(
            {
                "model_id": "kettle-net",
                "model_version": version,
                "appliance_id": "kettle",
                "architecture": "CNNTransformer",
                "architecture_params": PARAMS,
                "artifact_path": relative,
                "artifact_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "input_window_size": WINDOW,
                "output_sample_index": FINAL_INDEX,
                "provisional_sample_index": PROVISIONAL_INDEX,
                "preprocessing": {"type": "standard", "mean": 500.0, "std": 800.0},
                "is_active": version == "1.0.0",
            }
        )
        self.registry.write_text(json.dumps({"models": self.entries}), encoding="utf-8")

    def artifact(self, version: str) -> Path:
        return self.root / f"artifacts/kettle/{version}/model.safetensors"

    def flip_a_byte(self, version: str = "2.0.0") -> None:
        content = bytearray(self.artifact(version).read_bytes())
        content[-1] ^= 1
        self.artifact(version).write_bytes(content)


async def settled(model: ApplianceModel) -> None:
    """Until no deploy is under way."""
    if model._swap_task is not None:
        await asyncio.wait_for(model._swap_task, 20)


async def deploy(model: ApplianceModel, version: str) -> None:
    await model.reconfigure({"model_version": version})
    await settled(model)


def request(
    window: object = None, attribution: Attribution = Attribution.FINAL, *, deadline_s: float | None = None
) -> InferenceRequest:
    values = np.full(WINDOW, 0.5, dtype=np.float32) if window is None else np.asarray(window, dtype=np.float32)
    return InferenceRequest(values, time.time() + 60 if deadline_s is None else deadline_s, attribution)


async def run_batch(model: ApplianceModel, *requests: InferenceRequest) -> list[InferenceResult]:
    """The batch function itself: `serve.batch` around it reads the replica's context, which only Serve has."""
    function = ApplianceModel._run_batch.__wrapped__
    results: list[InferenceResult] = await function(model, [(r, time.perf_counter()) for r in requests])
    return results
