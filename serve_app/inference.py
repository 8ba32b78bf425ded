"""Calls a model and a store over their handles, inside the request's deadline, and turns outcomes into problems."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import numpy as np
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from deployments.contracts import (
    Inference,
    InferenceRefusal,
    InferenceRefused,
    InferenceRequest,
    NotPersisted,
    Persisted,
    PersistFailure,
    RecordSet,
    WindowKw,
)
from models.attribution import Attribution
from serve_app.logs import LOGGER_NAME
from serve_app.problems import FieldError, Problem, Problems

_logger = logging.getLogger(LOGGER_NAME)
MAX_ATTEMPTS = 3
"""Inference has no effects, so a call lost with its replica is made again; more would only add load."""


async def run_window(handle: Any, window_kw: WindowKw, attribution: Attribution, deadline_s: float) -> Inference:
    """One window through one appliance deployment. Raises Problem."""
    request = InferenceRequest(np.asarray(window_kw, dtype=np.float32), deadline_s, attribution)
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


async def persist(handle: Any, record_set: RecordSet) -> Persisted:
    """Make a record set durable; returns only after the commit. Raises Problem."""
    try:
        async with asyncio.timeout(max(0.0, record_set.deadline_s - time.time())):
            result = await handle.persist.remote(record_set)
    except TimeoutError:
        raise Problem(Problems.STORE_UNAVAILABLE, "The store did not answer in time.") from None
    except BackPressureError:
        raise Problem(Problems.OVERLOADED, "Too many predictions are waiting to be stored.") from None
    except (RayError, RayServeException) as error:
        _logger.warning("a store call was lost", extra={"fields": {"error": type(error).__name__}})
        raise Problem(Problems.STORE_UNAVAILABLE, "The store's replica was lost; try again.") from None
    if isinstance(result, Persisted):
        return result
    _logger.warning("not stored", extra={"fields": {"failure": str(result.failure), "reason": result.detail}})
    raise _not_persisted(result)


def _not_persisted(outcome: NotPersisted) -> Problem:
    match outcome.failure:
        case PersistFailure.REJECTED:
            return Problem(Problems.RECORD_REJECTED, "The store refused this prediction.")
        case PersistFailure.QUEUE_FULL:
            detail = "Too many predictions are waiting to be stored."
            return Problem(Problems.OVERLOADED, detail, retry_after_s=outcome.retry_after_s)
        case PersistFailure.UNAVAILABLE | PersistFailure.DEADLINE:
            detail = "The prediction was computed but could not be stored, so it is not acknowledged."
            return Problem(Problems.STORE_UNAVAILABLE, detail, retry_after_s=outcome.retry_after_s)
