"""Runs a batch of windows through one model, on a thread of its own. Each bad window is refused alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from deployments.contracts import (
    Inference,
    InferenceRefusal,
    InferenceRefused,
    InferenceRequest,
    InferenceResult,
    PowerInterval,
)
from models.architectures import COVERAGES
from models.attribution import Attribution
from models.loader import FloatArray, LoadedModel, ModelOutput

Call = tuple[InferenceRequest, float]
"""A request, and when it arrived, by `time.perf_counter()`."""


class Forward:
    """One thread: more would compete for the same core, and batches would be smaller."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._running: asyncio.Future[Mapping[Attribution, ModelOutput]] | None = None
        self._began_s = 0.0

    @property
    def running_s(self) -> float:
        """For how long the batch that runs has been running; 0 while none does."""
        return time.monotonic() - self._began_s if self.busy else 0.0

    @property
    def busy(self) -> bool:
        """Whether a batch still runs, one whose caller has given up included."""
        return self._running is not None and not self._running.done()

    def afresh(self) -> Forward:
        """Another one, with a thread of its own: what runs in this one may never end."""
        return Forward(self._name)

    async def run(self, model: LoadedModel, calls: Sequence[Call]) -> list[InferenceResult]:
        """A result per call, in their order. Raises what the model raises."""
        results: list[InferenceResult | None] = [_refusal(request, model) for request, _ in calls]
        rows = [i for i, refused in enumerate(results) if refused is None]
        if rows:
            started = time.perf_counter()
            block = np.ascontiguousarray([calls[i][0].window_kw for i in rows], dtype=np.float32)
            outputs = await self._predict(model, block)
            forward_ms = (time.perf_counter() - started) * 1000
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

    async def _predict(self, model: LoadedModel, block: FloatArray) -> Mapping[Attribution, ModelOutput]:
        loop = asyncio.get_running_loop()
        self._began_s = time.monotonic()
        self._running = loop.run_in_executor(self._thread, model.predict, block)
        # If nobody waits any more when it fails, that is no fault to log.
        self._running.add_done_callback(lambda done: done.cancelled() or done.exception())
        # Shielded: to cancel it would not end the pass, only make it look ended.
        return await asyncio.shield(self._running)


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
