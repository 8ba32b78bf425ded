"""Reads a JSON request body into its type, with every fault as a problem that points at its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from serve_app.problems import FieldError, Problem, Problems
from serve_app.schemas import MAX_MAINS_KW, InferRequest

MAX_REPORTED_ERRORS = 20
"""A window of text would otherwise make a reply larger than the request."""
BINARY = "application/octet-stream"
SAMPLE = np.dtype("<f4")
"""Of a binary window: IEEE 754, 4 bytes, little-endian."""
B = TypeVar("B", bound=BaseModel)


async def read_window(request: Request) -> InferRequest:
    """The body of `/infer`: JSON, or the samples as float32 with all the rest in the query. Raises Problem."""
    if media_type_of(request) != BINARY:
        return await read_json(request, InferRequest)
    raw = await read_body(request)
    if len(raw) % SAMPLE.itemsize:
        detail = f"The body has {len(raw)} bytes; every sample takes {SAMPLE.itemsize}."
        raise Problem(Problems.BAD_REQUEST, detail)
    given: dict[str, Any] = {name: request.query_params.getlist(name) for name in request.query_params}
    repeated = [name for name, values in given.items() if len(values) > 1]
    if repeated:
        raise Problem(Problems.VALIDATION, "A parameter is given twice.", [FieldError(n, "twice") for n in repeated])
    named = {name: values[0] for name, values in given.items()}
    if "window" in named:
        raise Problem(Problems.VALIDATION, "The window is the body.", [FieldError("window", "is no parameter")])
    try:
        return InferRequest.model_validate(named | {"window": np.frombuffer(raw, SAMPLE).tolist()}, strict=False)
    except ValidationError as error:
        raise _problem(error) from None


async def read_json(request: Request, body_type: type[B]) -> B:
    """The body as `body_type`. Raises Problem: 415 wrong type or encoding, 400 cut short or not JSON, 422 not valid."""
    if media_type_of(request) != "application/json":
        raise Problem(Problems.UNSUPPORTED_MEDIA_TYPE, "Send the body as application/json.")
    raw = await read_body(request)
    try:
        return body_type.model_validate_json(raw)
    except ValidationError as error:
        raise _problem(error) from None


def media_type_of(request: Request) -> str:
    """The type of the body, in lower case and without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request) -> bytes:
    """The whole body. Raises Problem: 415 compressed, 400 cut short."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(Problems.UNSUPPORTED_MEDIA_TYPE, "Compressed bodies are not accepted.")
    try:
        return await request.body()
    except ClientDisconnect:
        raise Problem(Problems.BAD_REQUEST, "The body ended before it was complete.") from None


def _problem(error: ValidationError) -> Problem:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    if faults[0]["type"] == "json_invalid":
        return Problem(Problems.MALFORMED_JSON, faults[0]["msg"] + ".")
    errors = [
        FieldError(json_pointer(f["loc"]), _explain(f["type"], f["loc"], f["msg"]))
        for f in faults[:MAX_REPORTED_ERRORS]
    ]
    shown = f", the first {MAX_REPORTED_ERRORS} are listed" if len(faults) > MAX_REPORTED_ERRORS else ""
    return Problem(Problems.VALIDATION, f"{len(faults)} fault(s) in the body{shown}.", errors)


def _explain(kind: str, location: Sequence[Any], message: str) -> str:
    """pydantic's words, except where the usual mistake has a better name."""
    if "window" in location:
        if kind == "less_than_equal":
            return f"is above {MAX_MAINS_KW:g} kW; the unit is kW, not W"
        if kind == "greater_than_equal":
            return "is negative; mains power is the power drawn from the supply, in kW"
    if kind == "string_pattern_mismatch":
        return "must be 1 to 64 of A-Z a-z 0-9 _ -"
    return message.removeprefix("Value error, ")


def json_pointer(location: Sequence[Any]) -> str:
    """RFC 6901 pointer of a place; `~` and `/` inside a name are escaped."""
    return "".join("/" + str(part)[:80].replace("~", "~0").replace("/", "~1") for part in location)


def json_body(body_type: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI description of a body that `read_json` reads."""
    schema = body_type.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
