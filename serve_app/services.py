"""The collaborators of one ingress replica, built once and handed to the routes through the app's state."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from deployments.telemetry import Telemetry
from deployments.tracing import Tracing
from serve_app.access.cache_control import CacheControl
from serve_app.access.grants import GrantCache
from serve_app.access.quotas import SharedQuotas
from serve_app.access.tokens import TokenVerifier
from serve_app.catalogue import Catalogue
from serve_app.exposition import Exposition
from serve_app.history_client import HistoryClient
from serve_app.known_models import KnownModels, Reload
from serve_app.metrics import HttpMetrics
from serve_app.middleware import RequestContext, context_of
from serve_app.predict import Predictor
from serve_app.settings import Settings
from serve_app.store_client import StoreClient


@dataclass(frozen=True)
class Services:
    """Everything a route may use."""

    settings: Settings
    verifier: TokenVerifier
    grants: GrantCache
    quotas: SharedQuotas
    cache_control: CacheControl
    known_models: KnownModels
    reload: Reload
    catalogue: Catalogue
    predictor: Predictor
    store: StoreClient
    history: HistoryClient
    telemetry: Telemetry
    metrics: HttpMetrics
    exposition: Exposition
    tracing: Tracing
    logger: logging.Logger


def services_of(request: Request) -> Services:
    """FastAPI dependency: this replica's collaborators."""
    return cast(Services, request.app.state.services)


def context_from(request: Request) -> RequestContext:
    """FastAPI dependency: this request's id, trace, deadline."""
    return context_of(request.scope)
