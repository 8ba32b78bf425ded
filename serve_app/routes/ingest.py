"""`POST /ingest/readings`: mains readings in, acknowledged when they are stored."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request

from deployments.contracts import RecordSet
from serve_app.access.principal import Principal
from serve_app.access.scopes import Requires, Scope
from serve_app.bodies import json_body, media_type_of, read_body
from serve_app.middleware import RequestContext
from serve_app.problems import Problem, Problems
from serve_app.readings import ReadingList, as_problem, from_json, from_line_protocol
from serve_app.schemas import ReadingFaultDocument, ReadingsRequest, ReadingsResponse, problem_responses
from serve_app.services import Services, context_from, services_of
from serve_app.store_client import TooOld

PATH = "/ingest/readings"
BODY_LIMIT_BYTES = 1024 * 1024
"""5,000 readings are half of it."""
LINE_PROTOCOL = "text/plain"
_LINES: dict[str, Any] = {
    "schema": {"type": "string", "description": "InfluxDB line protocol, one reading a line"},
    "example": "sensor_reading,building_id=demo-home aggregate_kw=0.53 1793500000000000000",
}

router = APIRouter(tags=["readings"], responses=problem_responses(400, 401, 403, 408, 413, 415, 422, 429, 431, 503))


def _both_bodies() -> dict[str, Any]:
    document = json_body(ReadingsRequest)
    document["requestBody"]["content"][LINE_PROTOCOL] = _LINES
    return document


@router.post(PATH, openapi_extra=_both_bodies())
async def ingest_readings(
    request: Request,
    principal: Annotated[Principal, Depends(Requires(Scope.USER))],
    services: Annotated[Services, Depends(services_of)],
    context: Annotated[RequestContext, Depends(context_from)],
    all_or_nothing: Annotated[bool, Query(description="Store nothing when one reading has a fault")] = False,
    precision: Annotated[
        Literal["ns", "us", "ms", "s"], Query(description="Unit of the times in line protocol")
    ] = "ns",
) -> ReadingsResponse:
    """Store up to 5,000 mains readings; those with a fault are named by their index, the others are stored."""
    readings = await _read(request, precision)
    with context.timed("auth"):
        grants = await services.grants.grants(principal, context.remaining_s())
    readings.keep(grants.may_use)
    while True:
        if not len(readings) or (all_or_nothing and readings.faults):
            raise as_problem(readings.faults, readings.received)
        try:
            with context.timed("persist"):
                await services.store.persist(RecordSet((), context.deadline_s, readings=readings.arrays()))
        except TooOld as late:
            readings.refuse_before(late.oldest_kept_ns)
        else:
            break
    return ReadingsResponse(
        request_id=context.request_id,
        persisted=True,
        accepted=len(readings),
        refused=len(readings.faults),
        errors=[
            ReadingFaultDocument(index=fault.index, field=fault.place, detail=fault.detail) for fault in readings.faults
        ],
    )


async def _read(request: Request, precision: str) -> ReadingList:
    media_type = media_type_of(request)
    if media_type not in ("application/json", LINE_PROTOCOL):
        raise Problem(
            Problems.UNSUPPORTED_MEDIA_TYPE, "Send readings as application/json, or line protocol as text/plain."
        )
    raw = await read_body(request)
    # In a thread: five thousand readings would hold all other requests for a tenth of a second.
    if media_type == "application/json":
        return await asyncio.to_thread(from_json, raw)
    return await asyncio.to_thread(from_line_protocol, raw, precision, datetime.now(UTC))
