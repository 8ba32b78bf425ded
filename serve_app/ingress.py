"""The Ingress deployment: builds this replica's collaborators and its HTTP application when the replica starts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from prometheus_client import disable_created_metrics
from ray import serve

from models.registry import Registry
from serve_app.access.tokens import TokenVerifier
from serve_app.catalogue import Catalogue
from serve_app.http import build_http_app
from serve_app.logs import service_logger
from serve_app.metrics import HttpMetrics
from serve_app.predict import Predictor
from serve_app.services import Services
from serve_app.settings import load_settings


@serve.ingress()
class Ingress:
    """HTTP in front of the appliance deployments and the store. Refuses to start on unusable settings."""

    def __init__(self, appliances: Mapping[str, Any], persistence: Any, registry_path: str | None = None) -> None:
        disable_created_metrics()  # a `_created` twin of every counter would double the series for nothing
        settings = load_settings()
        logger = service_logger()
        catalogue = Catalogue(appliances, persistence, logger)
        self._catalogue = catalogue
        self._services = Services(
            settings=settings,
            verifier=TokenVerifier(secret=settings.supabase_jwt_secret.get_secret_value(), issuer=settings.issuer),
            registry=Registry.load(Path(registry_path) if registry_path else None),
            catalogue=catalogue,
            predictor=Predictor(appliances=appliances, persistence=persistence, catalogue=catalogue),
            metrics=HttpMetrics(),
            logger=logger,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        # Built here and not at import: a module-global app would be pickled with the deployment, clients and all.
        return build_http_app(self._services, self._background)

    @asynccontextmanager
    async def _background(self) -> AsyncIterator[None]:
        poll = asyncio.create_task(self._catalogue.run())
        try:
            yield
        finally:
            poll.cancel()
            with suppress(asyncio.CancelledError):
                await poll
