"""`/admin/...`: for operators. Acts on every ingress replica, not on the one that happened to answer."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError

from deployments.noticeboard import Answers
from serve_app.access.scopes import Requires, Scope
from serve_app.admin_schemas import (
    CacheStatsResponse,
    IngressModels,
    InvalidateRequest,
    InvalidateResponse,
    ReloadResponse,
    ReplicaCache,
    ReplicaModels,
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


@router.post("/reload-models")
async def reload_models(
    services: Annotated[Services, Depends(services_of)], context: Annotated[RequestContext, Depends(context_from)]
) -> ReloadResponse:
    """Every replica reads the registry again, and loads what is wanted and was refused, or has changed.

    Answers when all have, or with who has not, within the time of a request. What serves goes on meanwhile.
    """
    overview, ingresses = await services.reload.everywhere(context.remaining_s())
    replicas = [
        ReplicaModels(
            appliance_id=one.appliance_id,
            replica=replica.replica,
            node=replica.node,
            versions={str(loaded.role): loaded.model_version for loaded in replica.loaded},
            artifact_sha256={str(loaded.role): loaded.artifact_sha256 for loaded in replica.loaded},
            registry_sha256=replica.registry_sha256,
            settled=one.preparing is None and one.active is not None and replica.number == one.active.number,
            refused=str(replica.refused) if replica.refused else None,
        )
        for one in overview.appliances
        for replica in one.replicas
    ]
    known = [
        IngressModels(replica=name, registry_sha256=said.get("registry_sha256"), error=said.get("error"))
        for name, said in _sorted(ingresses)
    ]
    return ReloadResponse(replicas=replicas, ingresses=known, silent_replicas=list(ingresses.silent))


def _sorted(answers: Answers) -> list[tuple[str, dict[str, Any]]]:
    return sorted(answers.by_replica.items())
