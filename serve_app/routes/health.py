"""`/live`, `/ready`, `/health` are public; `/metrics` needs a token, because it tells how the service is used."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST

from serve_app.access.scopes import Public, Requires, Scope
from serve_app.schemas import problem_responses
from serve_app.services import Services, services_of
from serve_app.settings import Environment

router = APIRouter(tags=["health"])
PUBLIC = [Depends(Public())]
REFUSALS = problem_responses(401, 403, 429, 431, 503)
NOT_READY: dict[int | str, dict[str, Any]] = {503: {"description": "Not ready; `reasons` outside production"}}


@router.get("/live", dependencies=PUBLIC)
async def live() -> dict[str, str]:
    """Process and event loop only: a failing store must not restart healthy processes."""
    return {"status": "live"}


@router.get("/ready", responses=NOT_READY, dependencies=PUBLIC)
async def ready(response: Response, services: Annotated[Services, Depends(services_of)]) -> dict[str, object]:
    """True when tokens can be verified, every configured appliance is warm, the store takes writes, and nobody has
    said that this node is about to stop."""
    reasons = _not_ready(services)
    if not reasons:
        return {"status": "ready"}
    response.status_code = 503
    response.headers["Retry-After"] = "1"
    return {"status": "not_ready", **({"reasons": reasons} if _detailed(services) else {})}


@router.get("/health", dependencies=PUBLIC)
async def health(services: Annotated[Services, Depends(services_of)]) -> dict[str, object]:
    """State of the parts, for people; the detail is left out in production."""
    reasons = _not_ready(services)
    body: dict[str, object] = {"status": "ok" if not reasons else "degraded"}
    if _detailed(services):
        store = services.catalogue.store()
        body["reasons"] = reasons
        body["store"] = store.kind if store else None
        body["appliances"] = {s.appliance_id: s.model_version for s in services.catalogue.appliances()}
    return body


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **REFUSALS},
    dependencies=[Depends(Requires(Scope.METRICS))],
)
async def prometheus(services: Annotated[Services, Depends(services_of)]) -> Response:
    """Of all replicas on all nodes, in the Prometheus text format; credential: ADMIN_TOKEN as the bearer, or an
    admin's token."""
    return Response(await services.exposition.text(), media_type=CONTENT_TYPE_LATEST)


def _not_ready(services: Services) -> list[str]:
    reasons = ["leaving: about to stop"] if services.settings.leaving else []
    if not services.verifier.usable:
        reasons.append("identity: no keys to verify tokens with")
    return reasons + services.catalogue.not_ready()


def _detailed(services: Services) -> bool:
    return services.settings.env is not Environment.PRODUCTION
