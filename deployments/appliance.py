"""ApplianceModel: one appliance's model behind Serve's dynamic batching, with a verified swap of versions.

`reconfigure` never raises and, once something serves, never loads: an exception there leaves the deployment without
a usable replica, and a slow one holds requests. It records what is wanted; a task beside the serving model prepares
and verifies it, then one assignment switches. A version that fails any step is refused and reported as state.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import serve

from deployments.contracts import (
    ApplianceStatus,
    Inference,
    InferenceRefusal,
    InferenceRefused,
    InferenceRequest,
    InferenceResult,
    PowerInterval,
    RefusedVersion,
)
from models.architectures import COVERAGES
from models.loader import LoadedModel, ModelOutput, load_verified
from models.refusal import ArtifactRefused
from models.registry import Registry, RegistryError

MAX_BATCH_WINDOWS = 64
logger = logging.getLogger("ray.serve")


class ApplianceModel:
    """Runs the windows of one appliance.

    `registry_path`: another registry than the packaged one. `device`: "cpu", "cuda" or "auto" (a GPU if there is one).
    """

    def __init__(self, appliance_id: str, registry_path: str | None = None, device: str = "auto") -> None:
        # One thread a replica: several replicas share the machine, and torch's own pool would fight them.
        torch.set_num_threads(1)
        self._appliance_id = appliance_id
        self._registry_path = Path(registry_path) if registry_path else None
        self._device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._serving: LoadedModel | None = None
        self._wanted = ""
        self._refused: RefusedVersion | None = None
        self._loading = False
        self._swap_lock = asyncio.Lock()
        self._swap_task: asyncio.Task[None] | None = None
        self._forward_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forward")
        self._windows_total = 0
        self._batches_total = 0
        self._largest_batch = 0

    async def reconfigure(self, user_config: object) -> None:
        """Take `{"model_version": "1.2.0"}` from serve_config.yaml. Never raises; see the module's text."""
        version = _wanted_version(user_config)
        if version is None:
            self._refuse(str(user_config)[:80], "bad_user_config", "user_config must be {model_version: <text>}")
            return
        self._wanted = version
        self._loading = True
        self._swap_task = asyncio.create_task(self._swap(version))
        if self._serving is None:
            # A new replica takes no traffic until this returns, so it is warm before its first window.
            await asyncio.shield(self._swap_task)

    async def _swap(self, version: str) -> None:
        async with self._swap_lock:
            if version != self._wanted:
                return  # A later deploy has overtaken this one.
            try:
                model = await asyncio.to_thread(self._load, version)
            except RegistryError as error:
                self._refuse(version, "not_registered", str(error))
            except ArtifactRefused as error:
                self._refuse(version, str(error.reason), error.detail)
            except Exception as error:
                # An architecture may fail in any way; whatever it is must not stop the version that serves.
                logger.exception("loading %s %s failed", self._appliance_id, version)
                self._refuse(version, "load_failed", type(error).__name__)
            else:
                if version != self._wanted and self._serving is not None:
                    return  # Rolled back while it loaded: it must not serve, not even until the next one is ready.
                self._serving = model
                self._refused = None
                logger.info("%s serves version %s", self._appliance_id, version)
            finally:
                if version == self._wanted:
                    self._loading = False

    def _load(self, version: str) -> LoadedModel:
        registry = Registry.load(self._registry_path)
        return load_verified(registry.resolve(self._appliance_id, version), registry.root, self._device)

    def _refuse(self, version: str, reason: str, detail: str) -> None:
        self._refused = RefusedVersion(model_version=version, reason=reason, detail=detail)
        serving = self._serving.entry.model_version if self._serving else None
        logger.error(
            "%s refuses version %s: %s (%s); serving: %s",
            self._appliance_id,
            version,
            reason,
            detail,
            serving,
        )

    async def status(self) -> ApplianceStatus:
        """What this replica serves now."""
        entry = self._serving.entry if self._serving else None
        return ApplianceStatus(
            appliance_id=self._appliance_id,
            wanted_version=self._wanted,
            model_id=entry.model_id if entry else None,
            model_version=entry.model_version if entry else None,
            artifact_sha256=entry.artifact_sha256 if entry else None,
            input_window_size=entry.input_window_size if entry else None,
            sample_indices=entry.sample_indices if entry else None,
            sample_period_s=entry.sample_period_s if entry else None,
            device=self._device,
            loading=self._loading,
            refused=self._refused,
            windows_total=self._windows_total,
            batches_total=self._batches_total,
            largest_batch=self._largest_batch,
        )

    async def infer(self, request: InferenceRequest) -> InferenceResult:
        """Run one window; whatever waits meanwhile shares the next forward pass."""
        model = self._serving
        if model is None:
            detail = f"{self._refused.reason}: {self._refused.detail}" if self._refused else "still loading"
            return InferenceRefused(InferenceRefusal.NO_MODEL, detail)
        result: InferenceResult = await self._run_batch((request, time.perf_counter()))
        return result

    # No wait: while one forward pass runs in its thread, everything that arrives forms the next batch, so a lone
    # request is never delayed for company that may not come.
    @serve.batch(max_batch_size=MAX_BATCH_WINDOWS, batch_wait_timeout_s=0.0)
    async def _run_batch(self, calls: list[tuple[InferenceRequest, float]]) -> list[InferenceResult]:
        model = self._serving
        if model is None:
            return [InferenceRefused(InferenceRefusal.NO_MODEL, "no version is loaded") for _ in calls]
        results: list[InferenceResult | None] = [_refusal(request, model) for request, _ in calls]
        rows = [i for i, refused in enumerate(results) if refused is None]
        if rows:
            started = time.perf_counter()
            block = np.ascontiguousarray([calls[i][0].window_kw for i in rows], dtype=np.float32)
            loop = asyncio.get_running_loop()
            outputs = await loop.run_in_executor(self._forward_thread, model.predict, block)
            forward_ms = (time.perf_counter() - started) * 1000
            self._windows_total += len(rows)
            self._batches_total += 1
            self._largest_batch = max(self._largest_batch, len(rows))
            for position, i in enumerate(rows):
                request, arrived = calls[i]
                results[i] = _inference(
                    model,
                    request,
                    outputs[request.attribution],
                    position,
                    batch_size=len(rows),
                    queue_ms=(started - arrived) * 1000,
                    forward_ms=forward_ms,
                )
        return [result for result in results if result is not None]


def _wanted_version(user_config: object) -> str | None:
    if not isinstance(user_config, Mapping) or set(user_config) != {"model_version"}:
        return None
    version: Any = user_config["model_version"]
    return version if isinstance(version, str) and version else None


def _refusal(request: InferenceRequest, model: LoadedModel) -> InferenceRefused | None:
    """Why this window cannot run on this model, or None. Checked per window: neighbours are unaffected."""
    size = model.entry.input_window_size
    if request.window_kw.shape != (size,):
        detail = f"{model.entry.model_id} {model.entry.model_version} takes {size} samples"
        return InferenceRefused(InferenceRefusal.WINDOW_LENGTH, detail, input_window_size=size)
    if not np.isfinite(request.window_kw).all():
        return InferenceRefused(InferenceRefusal.NOT_FINITE, "the window holds values that are not finite")
    if time.time() >= request.deadline_s:
        return InferenceRefused(InferenceRefusal.DEADLINE, "the deadline passed while the window waited")
    return None


def _inference(
    model: LoadedModel,
    request: InferenceRequest,
    output: ModelOutput,
    position: int,
    *,
    batch_size: int,
    queue_ms: float,
    forward_ms: float,
) -> InferenceResult:
    predicted_w, on_probability = float(output.predicted_w[position]), float(output.on_probability[position])
    if not (np.isfinite([predicted_w, on_probability]).all() and np.isfinite(output.interval_w[position]).all()):
        return InferenceRefused(InferenceRefusal.BAD_OUTPUT, "the model's output is not finite")
    entry = model.entry
    sample_index = entry.sample_indices[request.attribution]
    return Inference(
        predicted_w=predicted_w,
        on_probability=on_probability,
        intervals=tuple(
            PowerInterval(coverage, float(low_w), float(high_w))
            for coverage, (low_w, high_w) in zip(COVERAGES, output.interval_w[position], strict=True)
        ),
        attribution=request.attribution,
        model_id=entry.model_id,
        model_version=entry.model_version,
        artifact_sha256=entry.artifact_sha256,
        output_sample_index=sample_index,
        sample_period_s=entry.sample_period_s,
        aggregate_kw=float(request.window_kw[sample_index]),
        batch_size=batch_size,
        queue_ms=queue_ms,
        forward_ms=forward_ms,
    )
