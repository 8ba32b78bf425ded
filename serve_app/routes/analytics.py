"""`GET /analytics/...`: what was measured and predicted, of buildings that the caller may see."""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from deployments.analytics.spans import Resolution, Span
from deployments.contracts import HistoryAnswer, HistoryQuery
from serve_app.access.principal import Principal
from serve_app.access.scopes import Requires, Scope
from serve_app.instants import parse_moment, to_ns
from serve_app.middleware import RequestContext
from serve_app.problems import FieldError, Problem, Problems
from serve_app.schemas import IDENTIFIER_PATTERN, PredictionsDocument, ReadingsDocument, problem_responses
from serve_app.services import Services, context_from, services_of

_TAG = re.compile(r'(?:W/)?"([\x21\x23-\x7e]{1,64})"')
_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "The document that `If-None-Match` names is still the one"}
}
router = APIRouter(
    prefix="/analytics",
    tags=["analytics"],
    responses=problem_responses(400, 401, 403, 422, 429, 431, 503) | _NOT_MODIFIED,
)

BuildingId = Annotated[str, Query(pattern=IDENTIFIER_PATTERN)]
ApplianceId = Annotated[str | None, Query(pattern=IDENTIFIER_PATTERN, description="Only this one")]
Start = Annotated[str, Query(description="ISO 8601 with offset, or a time before now: `-7d` (s, m, h, d, w)")]
End = Annotated[str, Query(description="Like `start`; `now()` if left out")]
Step = Annotated[Resolution, Query(description="Length of a bucket; its start is the row's `time`")]


@dataclass(frozen=True, slots=True)
class _Caller:
    """Who asks, and by what means it is answered."""

    request: Request
    principal: Principal
    services: Services
    context: RequestContext


def _caller(
    request: Request,
    principal: Annotated[Principal, Depends(Requires(Scope.USER))],
    services: Annotated[Services, Depends(services_of)],
    context: Annotated[RequestContext, Depends(context_from)],
) -> _Caller:
    return _Caller(request, principal, services, context)


@router.get("/readings", response_model=ReadingsDocument)
async def readings(
    caller: Annotated[_Caller, Depends(_caller)],
    building_id: BuildingId,
    start: Start,
    end: End = "now()",
    resolution: Step = Resolution.QUARTER,
    include_disaggregation: Annotated[bool, Query(description="With the power of each appliance")] = False,
    appliance_id: ApplianceId = None,
) -> Response:
    """The building's mains, a row for each bucket; null where nothing was measured."""
    what = "disaggregation" if include_disaggregation else "readings"
    return await _answer(caller, what, building_id, _span(start, end, resolution), resolution, appliance_id)


@router.get("/predictions", response_model=PredictionsDocument)
async def predictions(
    caller: Annotated[_Caller, Depends(_caller)],
    building_id: BuildingId,
    start: Start,
    end: End = "now()",
    resolution: Step = Resolution.QUARTER,
    appliance_id: ApplianceId = None,
) -> Response:
    """What the models said of the building's appliances, a row for each bucket and appliance."""
    return await _answer(caller, "predictions", building_id, _span(start, end, resolution), resolution, appliance_id)


async def _answer(
    caller: _Caller,
    what: str,
    building_id: str,
    span: Span,
    resolution: Resolution,
    appliance_id: str | None,
) -> Response:
    context = caller.context
    with context.timed("auth"):
        grants = await caller.services.grants.grants(caller.principal, context.remaining_s())
    if not grants.may_use(building_id):
        detail = "Your account does not grant this building."
        raise Problem(Problems.FORBIDDEN_BUILDING, detail, [FieldError("building_id", "not granted")])
    granted = grants.granted_appliances(building_id)
    if appliance_id is not None:
        if granted is not None and appliance_id not in granted:
            detail = "This building has no such appliance, or it is not yours to see."
            raise Problem(Problems.FORBIDDEN_APPLIANCE, detail, [FieldError("appliance_id", "not granted")])
        granted = frozenset({appliance_id})
    query = HistoryQuery(
        what=what,
        building_id=building_id,
        start_ns=span.start_ns,
        stop_ns=span.stop_ns,
        resolution=resolution.value,
        appliance_ids=None if granted is None else tuple(sorted(granted)),
        known_tags=frozenset(_TAG.findall(caller.request.headers.get("if-none-match", ""))),
    )
    with context.timed("history"):
        answer = await caller.services.history.ask(query, context.deadline_s)
    return _response(caller.request, answer)


def _response(request: Request, answer: HistoryAnswer) -> Response:
    headers = {
        # Weak: the same rows, whether compressed or not.
        "ETag": f'W/"{answer.tag}"',
        # May be kept, by the one it is for, and is asked for again before each use.
        "Cache-Control": "private, no-cache",
        "Vary": "Accept-Encoding, Authorization",
    }
    if answer.gzipped is None:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", "").lower():
        headers["Content-Encoding"] = "gzip"
        return Response(answer.gzipped, media_type="application/json", headers=headers)
    return Response(gzip.decompress(answer.gzipped), media_type="application/json", headers=headers)


def _span(start: str, end: str, resolution: Resolution) -> Span:
    now = datetime.now(UTC)
    moments = []
    for name, text in (("start", start), ("end", end)):
        try:
            moments.append(to_ns(parse_moment(text, now)))
        except ValueError as error:
            raise Problem(Problems.VALIDATION, f"`{name}` {error}.", [FieldError(name, str(error))]) from None
    start_ns, stop_ns = moments
    if start_ns >= stop_ns:
        raise Problem(Problems.VALIDATION, "`start` must be before `end`.", [FieldError("start", "is not before end")])
    # No rows for what has not begun yet.
    span = Span.covering(start_ns, max(min(stop_ns, to_ns(now)), start_ns + 1), resolution.step_ns)
    if span.stop_ns - span.start_ns > resolution.longest_ns + resolution.step_ns:
        days = resolution.longest_ns / 86400e9
        detail = f"At a resolution of {resolution.value} a range may last {days:g} days; take a coarser one."
        raise Problem(Problems.VALIDATION, detail, [FieldError("start", detail)])
    return span
