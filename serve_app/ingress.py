"""The Ingress deployment: builds this replica's collaborators and its HTTP application when the replica starts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI
from ray import serve

from deployments import memory
from deployments.nodes import nodes
from deployments.registry_source import registry_source
from deployments.telemetry import Telemetry
from deployments.tracing import Tracing
from serve_app.access.cache_control import CacheControl, answers_of
from serve_app.access.quotas import SharedQuotas
from serve_app.access.wiring import build_grants, build_verifier
from serve_app.catalogue import Catalogue
from serve_app.exposition import Exposition
from serve_app.history_client import HistoryClient
from serve_app.http import build_http_app
from serve_app.inference import ModelClient
from serve_app.known_models import KnownModels, Reload
from serve_app.logs import service_logger
from serve_app.metrics import HttpMetrics
from serve_app.predict import Predictor
from serve_app.questions import Asker, Listener
from serve_app.services import Services
from serve_app.settings import load_settings
from serve_app.store_client import StoreClient


@serve.ingress()
class Ingress:
    """HTTP in front of the appliance deployments and the store. Refuses to start on unusable settings."""

    def __init__(
        self,
        appliances: Mapping[str, Any],
        persistence: Any,
        history: Any,
        coordinator: Any,
        rollout: Any,
    ) -> None:
        # `rollout` talks to the coordinator by itself; it is named here so that Serve starts it.
        settings = load_settings()
        replica = serve.get_replica_context().replica_id.unique_id
        logger = service_logger({"deployment": "ingress", "replica": replica})
        catalogue = Catalogue(appliances, persistence, coordinator, logger)
        models = {
            name: ModelClient(handle, partial(catalogue.replicas, name), replica) for name, handle in appliances.items()
        }
        grants = build_grants(settings)
        store = StoreClient(persistence)
        quotas = SharedQuotas(coordinator.report.remote, settings.requests_per_minute, logger=logger)
        self._catalogue = catalogue
        known_models = KnownModels(registry_source().registry, logger)
        answering = {**answers_of(grants), **known_models.answering()}
        self._listener = Listener(coordinator, replica, answering, lambda: grants.invalidate(None), logger)
        asker, telemetry = Asker(coordinator, replica), Telemetry()
        self._services = Services(
            settings=settings,
            verifier=build_verifier(settings),
            grants=grants,
            quotas=quotas,
            cache_control=CacheControl(asker),
            known_models=known_models,
            reload=Reload(coordinator, asker),
            catalogue=catalogue,
            predictor=Predictor(models, store, catalogue, grants),
            store=store,
            history=HistoryClient(history),
            telemetry=telemetry,
            metrics=HttpMetrics(telemetry),
            exposition=Exposition(nodes, logger),
            tracing=Tracing("ingress", replica, settings.traces_per_second),
            logger=logger,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        # Built here and not at import: a module-global app would be pickled with the deployment, clients and all.
        return build_http_app(self._services, self._background)

    @asynccontextmanager
    async def _background(self) -> AsyncIterator[None]:
        # Not waited for: a provider that hangs must not keep this replica from starting; readiness tells meanwhile.
        services = self._services
        works = (
            self._catalogue.run(),
            self._listener.run(),
            services.known_models.run(self._catalogue.rollouts),
            services.verifier.start(),
            services.telemetry.run(),
        )
        tasks = [asyncio.create_task(work) for work in works]
        memory.settle()
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await services.exposition.aclose()
            await services.quotas.close()
            await services.verifier.aclose()
            await services.grants.aclose()
            await asyncio.to_thread(services.tracing.close)
