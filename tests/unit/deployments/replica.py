"""A registry of kettle versions on disk, plans that name them, and an appliance replica without Ray around it."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import itertools
import json
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import safetensors.torch
import torch

from deployments.appliance import MAX_BATCH_WINDOWS, ApplianceModel
from deployments.autoscaling import HeldBack
from deployments.batching import Batcher
from deployments.blocks import InferenceBlock
from deployments.comparison import Comparison
from deployments.contracts import InferenceRequest, InferenceResult
from deployments.figures import ModelFigures
from deployments.forward import Call, Forward
from deployments.rollout_contracts import Demotion, Directive, Role, VersionCounts
from deployments.rollout_plan import Canary, GuardBounds, RolloutPlan, Shadow
from deployments.tally import Tally
from deployments.telemetry import Telemetry
from deployments.tracing import Tracing
from deployments.versions import Serving, Versions
from models.architectures import build
from models.attribution import Attribution
from models.loader import ModelOutput
from models.source import RegistrySource
from tests.told import Told
from tests.unit.node_agent import NodeAgent

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


def plan(
    stable: str = "1.0.0", canary: str | None = None, shadow: str | None = None, percent: float = 100.0, **guard: Any
) -> RolloutPlan:
    """A canary answers for every building, unless told."""
    return RolloutPlan(
        stable,
        canary=None if canary is None else Canary(canary, percent),
        shadow=None if shadow is None else Shadow(shadow),
        guard=GuardBounds(**guard),
    )


_numbers = itertools.count(1)


def directive(
    wanted: RolloutPlan, *, at_s: float = 0.0, of: Directive | None = None, demoted: bool = False
) -> Directive:
    """The next one; `of`: of the same plan as that one."""
    number = next(_numbers)
    demotion = Demotion(wanted.canary.version, "a test", 0.0) if demoted and wanted.canary else None
    return Directive(number, of.plan_number if of else number, wanted, demotion, at_s)


async def deploy(versions: Versions, wanted: RolloutPlan, **options: Any) -> Directive:
    """Loads what the plan names, and serves it. Raises `VersionRefused`."""
    order = directive(wanted, **options)
    await versions.prepare(order)
    assert versions.switch(order)
    versions.current()
    return order


class Kettle:
    """An ApplianceModel as its constructor leaves it, without Ray and without a coordinator."""

    def __init__(self, shelf: Shelf) -> None:
        self.model = model = ApplianceModel.__new__(ApplianceModel)
        model._appliance_id, model._device = "kettle", "cpu"
        model._tally = Tally("kettle")
        self._agent = NodeAgent()
        self._telemetry = Telemetry(self._agent.sink)
        model._tracing = Tracing("kettle", "test")
        model._figures = ModelFigures(self._telemetry, "kettle", lambda: model._live)
        model._versions = Versions("kettle", RegistrySource(str(shelf.registry)), "cpu", model._begin)
        model._follower = SimpleNamespace(nothing="", loading=False)  # type: ignore[assignment]
        model._stable, model._canary = Forward("stable"), Forward("canary")
        model._comparison = Comparison(model._tally)
        model._live, model._logged_plan = 0, None
        model._held_back, model._logged = HeldBack(), None
        model._stable_windows = Batcher(model._run_stable, MAX_BATCH_WINDOWS)
        model._canary_windows = Batcher(model._run_canary, MAX_BATCH_WINDOWS)

    def told(self) -> Told:
        """The figures, as `GET /metrics` would say them."""
        self._telemetry.flush()
        return self._agent.told()

    @property
    def versions(self) -> Versions:
        return self.model._versions

    @property
    def serving(self) -> Serving:
        serving = self.versions.current()
        assert serving is not None
        return serving

    def counts(self, role: Role) -> VersionCounts:
        return dict(self.model._tally.counts).get(role, VersionCounts())

    async def infer(self, one: InferenceRequest) -> InferenceResult:
        """One window in a call of its own."""
        (result,) = await self.model.infer(InferenceBlock.of([one]))
        return result

    async def stable(self, *requests: InferenceRequest) -> list[InferenceResult]:
        """The batch function itself."""
        return await self.model._run_stable(calls(requests))

    async def canary(self, *requests: InferenceRequest) -> list[InferenceResult | None]:
        return await self.model._run_canary(calls(requests))

    async def compared(self) -> None:
        """Until nothing waits to be compared."""
        working = self.model._comparison._working
        if working is not None:
            await asyncio.wait_for(working, 20)


def calls(requests: Iterable[InferenceRequest]) -> list[Call]:
    return [(request, time.perf_counter()) for request in requests]


def request(
    window: object = None,
    attribution: Attribution = Attribution.FINAL,
    *,
    deadline_s: float | None = None,
    building: str = "home-1",
) -> InferenceRequest:
    values = np.full(WINDOW, 0.5, dtype=np.float32) if window is None else np.asarray(window, dtype=np.float32)
    return InferenceRequest(building, values, time.time() + 60 if deadline_s is None else deadline_s, attribution)


def both(final: ModelOutput, provisional: ModelOutput | None = None) -> dict[Attribution, ModelOutput]:
    return {Attribution.FINAL: final, Attribution.PROVISIONAL: final if provisional is None else provisional}


def output(predicted_w: Any, on_probability: Any, spread_w: float = 10.0) -> ModelOutput:
    """Outputs with intervals of +-spread and +-twice that."""
    power = np.asarray(predicted_w, dtype=np.float32)
    spreads = spread_w * np.array([[-1, 1], [-2, 2]], dtype=np.float32)
    return ModelOutput(power, np.asarray(on_probability, dtype=np.float32), power[:, None, None] + spreads)


async def freed(reference: weakref.ref[Any]) -> None:
    """Until nobody holds it: the thread that made it may take a moment to end."""
    async with asyncio.timeout(10):
        while reference() is not None:
            gc.collect()
            await asyncio.sleep(0.005)
