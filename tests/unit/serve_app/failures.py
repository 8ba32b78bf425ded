"""What a reply must look like when it is a problem, and the ways a model or a store can fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from deployments.contracts import InferenceRefusal, InferenceRefused


def problem(response: httpx.Response, status: int, code: str, pointer: str | None = None) -> dict[str, Any]:
    """The reply is this problem, whole and self-consistent."""
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["code"]) == (status, code), body
    assert response.headers["content-type"] == "application/problem+json"
    assert body["status"] == status
    assert body["instance"] == response.request.url.path
    assert body["request_id"] == response.headers.get("x-request-id")
    assert ("retry-after" in response.headers) == (status == 503)
    if status == 503:
        assert int(response.headers["retry-after"]) >= 1
        assert body["retryable"] is True
    if pointer is not None:
        assert pointer in [fault["pointer"] for fault in body["errors"]], body["errors"]
    assert "persisted" not in body
    return body


def raises(error: Exception) -> Callable[..., Any]:
    def fail(_: object) -> Any:
        raise error

    return fail


def refused(reason: InferenceRefusal) -> Callable[[object], InferenceRefused]:
    return lambda _: InferenceRefused(reason, "internal /secret/path", input_window_size=599)


MODEL_FAILURES: list[tuple[Callable[[Any], Any], int, str]] = [
    (refused(InferenceRefusal.WINDOW_LENGTH), 422, "window_length"),
    (refused(InferenceRefusal.NOT_FINITE), 422, "validation"),
    (refused(InferenceRefusal.DEADLINE), 503, "deadline_exceeded"),
    (refused(InferenceRefusal.NO_MODEL), 503, "model_unavailable"),
    (refused(InferenceRefusal.BAD_OUTPUT), 503, "model_unavailable"),
    (refused(InferenceRefusal.FAILED), 503, "model_unavailable"),
    (raises(BackPressureError(num_queued_requests=1, max_queued_requests=1)), 503, "overloaded"),
    (raises(RayActorError()), 503, "model_unavailable"),
    (raises(RuntimeError("bug with /secret/path")), 500, "internal"),
]
