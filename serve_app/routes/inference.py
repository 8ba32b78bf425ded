"""`POST /infer` and `POST /disaggregate`: parse, run the use case, reply."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from serve_app.access.principal import Principal
from serve_app.access.scopes import Requires, Scope
from serve_app.bodies import json_body, read_json
from serve_app.middleware import RequestContext
from serve_app.schemas import (
    DisaggregateRequest,
    DisaggregateResponse,
    InferRequest,
    InferResponse,
    problem_responses,
)
from serve_app.services import Services, context_from, services_of

PROBLEM_RESPONSES = problem_responses(400, 401, 403, 404, 408, 413, 415, 422, 429, 431, 503)
router = APIRouter(tags=["inference"], responses=PROBLEM_RESPONSES)


@router.post("/infer", openapi_extra=json_body(InferRequest))
async def infer(
    request: Request,
    principal: Annotated[Principal, Depends(Requires(Scope.USER))],
    services: Annotated[Services, Depends(services_of)],
    context: Annotated[RequestContext, Depends(context_from)],
) -> InferResponse:
    """Predict one appliance's power from a mains window; 200 only after the prediction is stored."""
    body = await read_json(request, InferRequest)
    return await services.predictor.infer(body, principal, context)


@router.post("/disaggregate", openapi_extra=json_body(DisaggregateRequest))
async def disaggregate(
    request: Request,
    principal: Annotated[Principal, Depends(Requires(Scope.USER))],
    services: Annotated[Services, Depends(services_of)],
    context: Annotated[RequestContext, Depends(context_from)],
) -> DisaggregateResponse:
    """Split the mains into all appliances at one instant; 200 only after the record set is stored."""
    body = await read_json(request, DisaggregateRequest)
    return await services.predictor.disaggregate(body, principal, context)
