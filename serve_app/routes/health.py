"""`/live`, `/ready`, `/health` are public; `/metrics` needs a token, because it tells how the service is used."""

from __future__ import annotations

import hmac
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from serve_app import metrics
from serve_app.schemas import ProblemDocument
from serve_app.services import Services, authenticated, services_of
from serve_app.settings import Environment

router = APIRouter(tags=["health"])
UNAUTHORIZED: dict[int | str, dict[str, Any]] = {401: {"model": ProblemDocument}}
NOT_READY: dict[int | str, dict[str, Any]] = {503: {"description": "Not ready; `reasons` outside production"}}


@router.get("/live")
async def live() -> dict[str, str]:
    """Process and event loop only: a failing store must not restart healthy processes."""
    return {"status": "live"}


@router.get("/ready", responses=NOT_READY)
async def ready(response: Response, services: Annotated[Services, Depends(services_of)]) -> dict[str, object]:
    """True when tokens can be verified, every configured appliance is warm and the store takes writes."""
    reasons = services.catalogue.not_ready()
    if not reasons:
        return {"status": "ready"}
    response.status_code = 503
    response.headers["Retry-After"] = "1"
    return {"status": "not_ready", **({"reasons": reasons} if _detailed(services) else {})}


@router.get("/health")
async def health(services: Annotated[Services, Depends(services_of)]) -> dict[str, object]:
    """State of the parts, for people; the detail is left out in production."""
    reasons = services.catalogue.not_ready()
    body: dict[str, object] = {"status": "ok" if not reasons else "degraded"}
    if _detailed(services):
        store = services.catalogue.store()
        body["reasons"] = reasons
        body["store"] = store.kind if store else None
        body["appliances"] = {s.appliance_id: s.model_version for s in services.catalogue.appliances()}
    return body


@router.get("/metrics", responses=UNAUTHORIZED)
async def prometheus(request: Request, services: Annotated[Services, Depends(services_of)]) -> Response:
    """The Prometheus text format; credential: a user's token, or ADMIN_TOKEN as the bearer."""
    authorization = request.headers.get("authorization", "")
    admin = services.settings.admin_token.get_secret_value()
    if not (admin and hmac.compare_digest(authorization.encode(), f"Bearer {admin}".encode())):
        authenticated(request)
    catalogue = services.catalogue
    body = metrics.render(services.metrics, catalogue.appliances(), catalogue.store())
    return Response(body, media_type=CONTENT_TYPE_LATEST)


def _detailed(services: Services) -> bool:
    return services.settings.env is not Environment.PRODUCTION
