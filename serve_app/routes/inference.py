"""`POST /infer`, `POST /infer/batch` and `POST /disaggregate`: parse, run the use case, reply."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from serve_app.access.principal import Principal
from serve_app.access.quotas import BATCH_QUOTA
from serve_app.access.scopes import Requires, Scope
from serve_app.batch import infer_batch
from serve_app.bodies import BINARY, json_body, read_json, read_window
from serve_app.idempotency import REPLAYED_HEADER, Reply, idempotency_key
from serve_app.middleware import RequestContext
from serve_app.routes.direct import DirectRoute
from serve_app.schemas import (
    DisaggregateRequest,
    DisaggregateResponse,
    InferBatchRequest,
    InferBatchResponse,
    InferRequest,
    InferResponse,
    problem_responses,
)
from serve_app.services import Services, context_from, services_of
from serve_app.store_client import KEY_HEADER

PROBLEM_RESPONSES = problem_responses(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 431, 503)
KEY_PARAMETER = {
    "name": KEY_HEADER,
    "in": "header",
    "required": False,
    "description": "Sent again with the same key and body, the request is answered with its first reply, byte for "
    "byte, and not run again. 1 to 255 visible ASCII characters, kept for 24 hours.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
BATCH_PATH = "/infer/batch"
BATCH_LIMIT_BYTES = 4 * 1024 * 1024
"""256 windows of 599 samples written with 17 digits are three quarters of it."""
_WINDOW_PARAMETERS = [
    {
        "name": name,
        "in": "query",
        "required": False,
        "schema": {"type": "string"},
        "description": f"{text}, {BINARY} only",
    }
    for name, text in {
        "building_id": "The building",
        "appliance_id": "The appliance",
        "attribution": "`final` or `provisional`",
        "timestamp": "Time of the window's last sample",
    }.items()
]
router = APIRouter(tags=["inference"], responses=PROBLEM_RESPONSES, route_class=DirectRoute)


def _both_bodies() -> dict[str, Any]:
    document = json_body(InferRequest)
    document["requestBody"]["content"][BINARY] = {
        "schema": {"type": "string", "format": "binary", "description": "The samples in kW: float32, little-endian"}
    }
    return document | {"parameters": [KEY_PARAMETER, *_WINDOW_PARAMETERS]}


@router.post("/infer", response_model=InferResponse, openapi_extra=_both_bodies())
async def infer(
    request: Request,
    principal: Annotated[Principal, Depends(Requires(Scope.USER))],
    services: Annotated[Services, Depends(services_of)],
    context: Annotated[RequestContext, Depends(context_from)],
) -> Response:
    """Predict one appliance's power from a mains window; 200 only after the prediction is stored."""
    key = idempotency_key(request.headers)
    body = await read_window(request)
    return _response(await services.predictor.infer(body, principal, context, key))


@router.post(
    BATCH_PATH,
    response_model=InferBatchResponse,
    openapi_extra=json_body(InferBatchRequest) | {"parameters": [KEY_PARAMETER]},
)
async def infer_many(
    request: Request,
    principal: Annotated[Principal, Depends(Requires(Scope.USER, quota=BATCH_QUOTA))],
    services: Annotated[Services, Depends(services_of)],
    context: Annotated[RequestContext, Depends(context_from)],
) -> Response:
    """Predict for up to 256 windows at once, each answered or refused by itself; 200 only after all answers are
    stored, in one commit."""
    key = idempotency_key(request.headers)
    body = await read_json(request, InferBatchRequest)
    return _response(await infer_batch(services.predictor, body, principal, context, key))


@router.post(
    "/disaggregate",
    response_model=DisaggregateResponse,
    openapi_extra=json_body(DisaggregateRequest) | {"parameters": [KEY_PARAMETER]},
)
async def disaggregate(
    request: Request,
    principal: Annotated[Principal, Depends(Requires(Scope.USER))],
    services: Annotated[Services, Depends(services_of)],
    context: Annotated[RequestContext, Depends(context_from)],
) -> Response:
    """Split the mains into all appliances at one instant; 200 only after the record set is stored."""
    key = idempotency_key(request.headers)
    body = await read_json(request, DisaggregateRequest)
    return _response(await services.predictor.disaggregate(body, principal, context, key))


def _response(reply: Reply) -> Response:
    # The very bytes that were stored: a replay must not differ from its original by a space.
    headers = {REPLAYED_HEADER: "true"} if reply.replayed else None
    return Response(reply.body, media_type="application/json", headers=headers)
