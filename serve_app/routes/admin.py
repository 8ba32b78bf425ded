"""`/admin/...`: for operators. Acts on every ingress replica, not on the one that happened to answer."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError

from deployments.noticeboard import Answers
from serve_app.access.scopes import Requires, Scope
from serve_app.admin_schemas import (
    CacheStatsResponse,
    InvalidateRequest,
    InvalidateResponse,
    ReplicaCache,
    ReplicaRemoved,
)
from serve_app.bodies import json_body, read_json
from serve_app.middleware import RequestContext
from serve_app.schemas import problem_responses
from serve_app.services import Services, context_from, services_of

PROBLEM_RESPONSES = problem_responses(400, 401, 403, 408, 413, 415, 422, 429, 431, 503)
router = APIRouter(
    prefix="/admin", tags=["admin"], responses=PROBLEM_RESPONSES, dependencies=[Depends(Requires(Scope.ADMIN))]
)


@router.post("/cache/invalidate", openapi_extra=json_body(InvalidateRequest))
async def invalidate_cache(
    request: Request,
    services: Annotated[Services, Depends(services_of)],
    context: Annotated[RequestContext, Depends(context_from)],
) -> InvalidateResponse:
    """Forget cached grants, of one user or of all: revoked access ends now and not with the cache's lifetime."""
    body = await read_json(request, InvalidateRequest)
    answers = await services.cache_control.drop(body.user_id, context.remaining_s())
    replicas = [ReplicaRemoved(replica=name, removed=said.get("removed", 0)) for name, said in _sorted(answers)]
    return InvalidateResponse(
        removed=sum(one.removed for one in replicas), replicas=replicas, silent_replicas=list(answers.silent)
    )


@router.get("/cache/stats")
async def cache_stats(
    services: Annotated[Services, Depends(services_of)], context: Annotated[RequestContext, Depends(context_from)]
) -> CacheStatsResponse:
    """Figures of the grants cache of every ingress replica, since it started."""
    answers = await services.cache_control.stats(context.remaining_s())
    replicas, silent = [], set(answers.silent)
    for name, said in _sorted(answers):
        try:
            replicas.append(ReplicaCache.model_validate({"replica": name, **said}))
        except ValidationError:  # of another version of us, in a rolling update
            silent.add(name)
    return CacheStatsResponse(replicas=replicas, silent_replicas=sorted(silent))


def _sorted(answers: Answers) -> list[tuple[str, dict[str, int]]]:
    return sorted(answers.by_replica.items())
