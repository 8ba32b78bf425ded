"""An appliance's deployment as an ingress sees it: windows inside their requests' deadlines, outcomes as problems.

Windows that wait at the same time travel as one call, because a call costs about a millisecond whatever it carries.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from deployments.batching import Batcher, QueueFull
from deployments.blocks import InferenceBlock
from deployments.contracts import (
    Inference,
    InferenceRefusal,
    InferenceRefused,
    InferenceRequest,
    InferenceResult,
    WindowKw,
)
from models.attribution import Attribution
from serve_app.logs import LOGGER_NAME
from serve_app.problems import FieldError, Problem, Problems

_logger = logging.getLogger(LOGGER_NAME)
MAX_ATTEMPTS = 3
"""Inference has no effects, so a call lost with its replica is made again; more would only add load."""
CALL_SAMPLES = 32 * 1024
"""Of one call: a full batch of windows of 512 samples. While the model runs one, the ingress handles the one before."""
CALLS_PER_REPLICA = 1
"""In flight from here: what comes meanwhile is the next call, and costs the model less in one pass than in four."""
LATE_S = 0.25
"""Several times what a call takes. One that takes longer, because a canary hangs, keeps nobody waiting."""
SPARE_CALLS = 3
WAITING_WINDOWS = 2048
"""A second's work for one replica at most; who came later would only wait for a refusal."""


class ModelClient:
    """Runs windows on one appliance's deployment. `replicas()`: how many it has, as far as known; `sender`: us."""

    def __init__(self, handle: Any, replicas: Callable[[], int], sender: str) -> None:
        self._handle = handle
        self._replicas = replicas
        self._sender = sender
        self._calls: Batcher[InferenceRequest, InferenceResult] = Batcher(
            self._send,
            CALL_SAMPLES,
            size_of=lambda request: len(request.window_kw),
            at_once=lambda: CALLS_PER_REPLICA * max(1, replicas()),
            spare=SPARE_CALLS,
            late_s=LATE_S,
            limit=WAITING_WINDOWS,
        )

    @property
    def waiting(self) -> int:
        """Windows that are not on their way yet."""
        return self._calls.waiting

    async def run_window(
        self,
        building_id: str,
        window_kw: WindowKw,
        attribution: Attribution,
        deadline_s: float,
        trace: str | None = None,
    ) -> Inference:
        """One window of a building; `trace`: the `traceparent` of a traced request. Raises Problem."""
        request = InferenceRequest(building_id, window_kw, deadline_s, attribution, trace)
        (outcome,) = await self.run_windows([request])
        if isinstance(outcome, Problem):
            raise outcome
        return outcome

    async def run_windows(self, requests: Sequence[InferenceRequest]) -> list[Inference | Problem]:
        """What became of each, in their order, by the latest of their deadlines."""
        sent = [self._put(request) for request in requests]
        waiting = [one for one in sent if not isinstance(one, Problem)]
        until_s = max(one.deadline_s for one in requests)
        try:
            if waiting:
                await asyncio.wait(waiting, timeout=max(0.0, until_s - time.time()))
            return [one if isinstance(one, Problem) else _outcome(one) for one in sent]
        finally:
            for one in waiting:
                one.cancel()  # whoever left, or ran out of time, wants nothing more

    def _put(self, request: InferenceRequest) -> asyncio.Future[InferenceResult] | Problem:
        try:
            return self._calls.put(request)
        except QueueFull:
            return _overloaded()

    async def _send(self, requests: list[InferenceRequest]) -> Sequence[InferenceResult]:
        """One call, made again when its replica was lost. Raises what the handle raises."""
        block = InferenceBlock.of(requests, self._sender, self._calls.waiting / max(1, self._replicas()))
        until_s = max(one.deadline_s for one in requests)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                async with asyncio.timeout(max(0.0, until_s - time.time())):
                    results: Sequence[InferenceResult] = await self._handle.infer.remote(block)
                    return results
            except (BackPressureError, RayTaskError):
                raise  # the replica lives: it would be the same again
            except (RayError, RayServeException) as error:
                fields = {"error": type(error).__name__, "attempt": attempt}
                _logger.warning("a model call was lost", extra={"fields": fields})
                if attempt == MAX_ATTEMPTS:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")


def _outcome(future: asyncio.Future[InferenceResult]) -> Inference | Problem:
    if not future.done():
        return Problem(Problems.DEADLINE_EXCEEDED, "The model did not answer in time.")
    match future.exception():
        case None:
            result = future.result()
            return result if isinstance(result, Inference) else _refused(result)
        case TimeoutError():
            return Problem(Problems.DEADLINE_EXCEEDED, "The model did not answer in time.")
        case BackPressureError():
            return _overloaded()
        case RayTaskError():
            return Problem(Problems.MODEL_UNAVAILABLE, "The model failed on this window.")
        case RayError() | RayServeException():
            return Problem(Problems.MODEL_UNAVAILABLE, "The model's replica was lost; try again.")
        case error:
            raise error


def _overloaded() -> Problem:
    return Problem(Problems.OVERLOADED, "Too many windows are waiting for this model.")


def _refused(refused: InferenceRefused) -> Problem:
    match refused.reason:
        case InferenceRefusal.WINDOW_LENGTH:
            detail = f"The model takes exactly {refused.input_window_size} samples."
            return Problem(Problems.WINDOW_LENGTH, detail, [FieldError("/window", detail)])
        case InferenceRefusal.NOT_FINITE:
            return Problem(Problems.VALIDATION, "The window is not finite.", [FieldError("/window", "not finite")])
        case InferenceRefusal.DEADLINE:
            return Problem(Problems.DEADLINE_EXCEEDED, "The window waited too long for its turn.")
        case InferenceRefusal.NO_MODEL:
            return Problem(Problems.MODEL_UNAVAILABLE, "No version of this model is loaded.", retry_after_s=5)
        case InferenceRefusal.BAD_OUTPUT:
            return Problem(Problems.MODEL_UNAVAILABLE, "The model gave no usable answer for this window.")
        case InferenceRefusal.FAILED:
            return Problem(Problems.MODEL_UNAVAILABLE, "The model failed on this window.")
