"""The catalogue of errors (RFC 9457 problem documents): the only place where a failure becomes HTTP.

Every failing reply of the service is one of these, framework errors included, so a client needs one parser.
`code` is stable and meant for programs; `detail` is for people and never carries internals or secrets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from starlette.responses import JSONResponse

PROBLEM_MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One kind of failure. `retryable`: the same request may succeed later without change."""

    code: str
    status: int
    title: str
    retryable: bool = False


class Problems(Enum):
    """Every failure a client can meet."""

    MALFORMED_JSON = ProblemType("malformed_json", 400, "The body is not valid JSON")
    BAD_REQUEST = ProblemType("bad_request", 400, "The request cannot be understood")
    TOKEN_MISSING = ProblemType("token_missing", 401, "A bearer token is required")
    TOKEN_MALFORMED = ProblemType("token_malformed", 401, "The bearer token cannot be read")
    TOKEN_EXPIRED = ProblemType("token_expired", 401, "The bearer token has expired")
    TOKEN_WRONG_AUDIENCE = ProblemType("token_wrong_audience", 401, "The bearer token is for another audience")
    TOKEN_WRONG_ISSUER = ProblemType("token_wrong_issuer", 401, "The bearer token comes from another issuer")
    TOKEN_BAD_SIGNATURE = ProblemType("token_bad_signature", 401, "The bearer token's signature is wrong")
    TOKEN_FORBIDDEN_ALGORITHM = ProblemType(
        "token_forbidden_algorithm", 401, "The bearer token uses an algorithm that is not accepted"
    )
    TOKEN_UNKNOWN_KEY = ProblemType("token_unknown_key", 401, "The bearer token was signed with a key we do not know")
    FORBIDDEN_BUILDING = ProblemType("forbidden_building", 403, "This building is not yours")
    FORBIDDEN_APPLIANCE = ProblemType("forbidden_appliance", 403, "This appliance is not one of the building's")
    FORBIDDEN_ROLE = ProblemType("forbidden_role", 403, "Your role may not do this")
    ADMIN_TOKEN_WRONG = ProblemType("admin_token_wrong", 403, "The admin token is missing or wrong")
    NOT_FOUND = ProblemType("not_found", 404, "There is nothing here")
    UNKNOWN_APPLIANCE = ProblemType("unknown_appliance", 404, "No model serves this appliance")
    UNKNOWN_MODEL = ProblemType("unknown_model", 404, "No such model is registered")
    METHOD_NOT_ALLOWED = ProblemType("method_not_allowed", 405, "This method is not allowed here")
    BODY_TOO_SLOW = ProblemType("body_too_slow", 408, "The body did not arrive in time", retryable=True)
    IDEMPOTENCY_KEY_IN_FLIGHT = ProblemType(
        "idempotency_key_in_flight", 409, "The first request with this key is still running", retryable=True
    )
    BODY_TOO_LARGE = ProblemType("body_too_large", 413, "The body is too large")
    UNSUPPORTED_MEDIA_TYPE = ProblemType("unsupported_media_type", 415, "The body's type is not accepted")
    VALIDATION = ProblemType("validation", 422, "The request does not have the required form")
    WINDOW_LENGTH = ProblemType("window_length", 422, "The window does not have the model's length")
    IDEMPOTENCY_KEY_REUSED = ProblemType("idempotency_key_reused", 422, "This key was used for another request")
    RECORD_REJECTED = ProblemType("record_rejected", 422, "The store refused this record")
    RATE_LIMITED = ProblemType("rate_limited", 429, "Your quota is used up", retryable=True)
    HEADERS_TOO_LARGE = ProblemType("headers_too_large", 431, "The request's headers are too large")
    INTERNAL = ProblemType("internal", 500, "Something failed on our side", retryable=True)
    IDENTITY_UNAVAILABLE = ProblemType("identity_unavailable", 503, "Tokens cannot be verified now", retryable=True)
    GRANTS_UNAVAILABLE = ProblemType("grants_unavailable", 503, "Access cannot be looked up now", retryable=True)
    COORDINATION_UNAVAILABLE = ProblemType(
        "coordination_unavailable", 503, "Not every replica can be reached now", retryable=True
    )
    MODEL_UNAVAILABLE = ProblemType("model_unavailable", 503, "The model cannot answer now", retryable=True)
    STORE_UNAVAILABLE = ProblemType("store_unavailable", 503, "The store cannot be used now", retryable=True)
    STORE_UNREADABLE = ProblemType("store_unreadable", 503, "What is stored cannot be read now", retryable=True)
    OVERLOADED = ProblemType("overloaded", 503, "The service is at its capacity", retryable=True)
    DEADLINE_EXCEEDED = ProblemType("deadline_exceeded", 503, "The request ran out of its time", retryable=True)


@dataclass(frozen=True, slots=True)
class FieldError:
    """One faulty place of a request; `pointer` is a JSON Pointer (RFC 6901) or a parameter's name."""

    pointer: str
    detail: str


@dataclass
class Problem(Exception):
    """Raised anywhere below a route; becomes the reply."""

    kind: Problems
    detail: str
    errors: Sequence[FieldError] = ()
    retry_after_s: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind.value.code}: {self.detail}"


def problem_response(problem: Problem, *, instance: str, request_id: str) -> JSONResponse:
    """The reply for a problem. 401 carries WWW-Authenticate; 409 and 503 carry Retry-After >= 1."""
    kind = problem.kind.value
    body: dict[str, Any] = {
        "type": f"urn:nilm-serve:problem:{kind.code}",
        "title": kind.title,
        "status": kind.status,
        "detail": problem.detail,
        "instance": instance,
        "code": kind.code,
        "request_id": request_id,
        "retryable": kind.retryable,
        "errors": [{"pointer": e.pointer, "detail": e.detail} for e in problem.errors],
    }
    headers = dict(problem.headers)
    if kind.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="nilm-serve"'
    if kind.status in (409, 503):
        headers["Retry-After"] = str(max(1, problem.retry_after_s or 1))
    return JSONResponse(body, status_code=kind.status, headers=headers, media_type=PROBLEM_MEDIA_TYPE)


_BY_FRAMEWORK_STATUS = {
    400: Problems.BAD_REQUEST,
    404: Problems.NOT_FOUND,
    405: Problems.METHOD_NOT_ALLOWED,
    413: Problems.BODY_TOO_LARGE,
    415: Problems.UNSUPPORTED_MEDIA_TYPE,
    422: Problems.VALIDATION,
}


def from_framework_status(status: int, headers: Mapping[str, str] | None = None) -> Problem:
    """The problem for an error the web framework raised by itself (unknown path, wrong method)."""
    kind = _BY_FRAMEWORK_STATUS.get(status, Problems.BAD_REQUEST if status < 500 else Problems.INTERNAL)
    return Problem(kind, kind.value.title + ".", headers=dict(headers or {}))
