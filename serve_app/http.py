"""Builds the FastAPI application: routes at `/` and `/api`, middleware order, errors as problem documents."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from serve_app.access.address_limit import AddressLimitMiddleware
from serve_app.access.client_address import ClientAddresses
from serve_app.admission import Admission, AdmissionMiddleware
from serve_app.bodies import json_pointer
from serve_app.door import Door, Refusals
from serve_app.metrics import watch
from serve_app.middleware import API_PREFIX, DOCS_PATH, RequestContextMiddleware, problem_reply
from serve_app.openapi import DocumentedAPI
from serve_app.problems import FieldError, Problem, Problems, from_framework_status
from serve_app.request_limits import RequestLimitMiddleware
from serve_app.routes import admin, analytics, health, inference, ingest, models
from serve_app.services import Services
from serve_app.settings import Environment, Settings

BODY_LIMIT_BYTES = 256 * 1024
ALLOWED_HEADERS = [
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "X-Admin-Token",
    "X-Request-ID",
    "traceparent",
]
EXPOSED_HEADERS = [
    "ETag",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Idempotency-Replayed",
    "Server-Timing",
    "X-Request-ID",
]
METRICS_PATH = "/metrics"
PROBE_PATHS = ("/live", "/ready", "/health")
Background = Callable[[], AbstractAsyncContextManager[None]]


def build_http_app(services: Services, background: Background) -> FastAPI:
    """The HTTP application of one ingress replica. `background` runs while the application lives."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with background():
            yield

    settings = services.settings
    with_docs = settings.expose_docs or settings.env is not Environment.PRODUCTION
    app = DocumentedAPI(
        title="nilm-serve",
        description="Per-appliance power from mains power; every acknowledged prediction is stored.",
        lifespan=lifespan,
        docs_url=DOCS_PATH if with_docs else None,
        redoc_url=None,
        openapi_url="/openapi.json" if with_docs else None,
        redirect_slashes=False,  # the redirect's address would come from the Host header; a wrong path is a 404
    )
    app.state.services = services
    for router in (inference.router, ingest.router, analytics.router, models.router, admin.router, health.router):
        app.include_router(router)
        app.include_router(router, prefix=API_PREFIX, include_in_schema=False)
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    # The last one added is the outermost.
    app.add_middleware(
        RequestLimitMiddleware,
        body_limit_bytes=BODY_LIMIT_BYTES,
        larger={
            prefix + path: limit_bytes
            for prefix in ("", API_PREFIX)
            for path, limit_bytes in (
                (ingest.PATH, ingest.BODY_LIMIT_BYTES),
                (inference.BATCH_PATH, inference.BATCH_LIMIT_BYTES),
            )
        },
    )
    app.add_middleware(
        AddressLimitMiddleware,
        quotas=services.quotas,
        addresses=ClientAddresses(settings.trusted_proxy_list),
        exempt_paths=_everywhere(PROBE_PATHS),
        logger=services.logger,
    )
    admission = Admission(settings.max_requests_in_flight, _everywhere((*PROBE_PATHS, METRICS_PATH)))
    app.add_middleware(AdmissionMiddleware, admission=admission)
    app.add_middleware(
        RequestContextMiddleware,
        timeout_s=settings.request_timeout_s,
        metrics=services.metrics,
        tracing=services.tracing,
        logger=services.logger,
        untraced_paths=_everywhere((*PROBE_PATHS, METRICS_PATH)),
    )
    app.add_middleware(CORSMiddleware, **_cors(settings))
    Door.guard(admission, Refusals(admission, services.metrics, services.logger), **_cors(settings))
    watch(services.telemetry, services, lambda: admission.in_flight)
    return app


def _cors(settings: Settings) -> dict[str, Any]:
    return {
        "allow_origins": settings.cors_origin_list,
        "allow_methods": ["GET", "POST"],
        "allow_headers": ALLOWED_HEADERS,
        "expose_headers": EXPOSED_HEADERS,
    }


def _everywhere(paths: Iterable[str]) -> frozenset[str]:
    return frozenset(prefix + path for prefix in ("", API_PREFIX) for path in paths)


def _reply(request: Request, problem: Problem) -> Response:
    return problem_reply(request.scope, problem, instance=request.url.path)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101 - registered for this type only
    return _reply(request, error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this type only
    faults = [FieldError(json_pointer(e["loc"]), str(e["msg"])) for e in error.errors()[:20]]
    return _reply(request, Problem(Problems.VALIDATION, "The request's parameters are not valid.", faults))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this type only
    return _reply(request, from_framework_status(error.status_code, error.headers))
