"""Calls a model over its handle, inside the request's deadline, and turns outcomes into problems."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from deployments.contracts import (
    Inference,
    InferenceRefusal,
    InferenceRefused,
    InferenceRequest,
    WindowKw,
)
from models.attribution import Attribution
from serve_app.logs import LOGGER_NAME
from serve_app.problems import FieldError, Problem, Problems

_logger = logging.getLogger(LOGGER_NAME)
BUSY_WINDOWS = 32
"""Far below what an ingress takes before it refuses, 256 requests: shadows go first. At 40 requests a second three
are in flight."""
MAX_ATTEMPTS = 3
"""Inference has no effects, so a call lost with its replica is made again; more would only add load."""


class InFlight:
    """The windows of one ingress replica that models have not answered yet."""

    def __init__(self) -> None:
        self._windows = 0

    @property
    def many(self) -> bool:
        """Whether the service is short of time."""
        return self._windows > BUSY_WINDOWS

    @contextmanager
    def one(self) -> Iterator[None]:
        """One more, inside."""
        self._windows += 1
        try:
            yield
        finally:
            self._windows -= 1


async def run_window(
    handle: Any,
    building_id: str,
    window_kw: WindowKw,
    attribution: Attribution,
    deadline_s: float,
    in_flight: InFlight,
) -> Inference:
    """One window of a building through one appliance deployment. Raises Problem."""
    window = np.asarray(window_kw, dtype=np.float32)
    with in_flight.one():
        request = InferenceRequest(building_id, window, deadline_s, attribution, busy=in_flight.many)
        return await _answer(handle, request)


async def _answer(handle: Any, request: InferenceRequest) -> Inference:
    deadline_s = request.deadline_s
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            async with asyncio.timeout(max(0.0, deadline_s - time.time())):
                result = await handle.infer.remote(request)
        except TimeoutError:
            raise Problem(Problems.DEADLINE_EXCEEDED, "The model did not answer in time.") from None
        except BackPressureError:
            raise Problem(Problems.OVERLOADED, "Too many windows are waiting for this model.") from None
        except RayTaskError:
            # The replica lives and its code failed (it logged why): again would fail again, and its batch with it.
            raise Problem(Problems.MODEL_UNAVAILABLE, "The model failed on this window.") from None
        except (RayError, RayServeException) as error:
            _logger.warning(
                "a model call was lost", extra={"fields": {"error": type(error).__name__, "attempt": attempt}}
            )
            if attempt == MAX_ATTEMPTS:
                raise Problem(Problems.MODEL_UNAVAILABLE, "The model's replica was lost; try again.") from None
            continue
        if isinstance(result, Inference):
            return result
        raise _refused(result)
    raise AssertionError("unreachable: the last attempt returns or raises")


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
