"""The real HTTP application with in-process stand-ins for the deployments behind it. No Ray, no sockets.

The stand-ins keep the interface of a deployment handle: `handle.method.remote(...)` starts the call at once and gives
something to await; cancelling the await cancels the call, as Serve does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import jwt
import numpy as np
import pytest
from starlette.datastructures import MutableHeaders

from deployments.blocks import InferenceBlock
from deployments.contracts import (
    ApplianceStatus,
    Claim,
    Inference,
    InferenceRefusal,
    InferenceRefused,
    InferenceRequest,
    InferenceResult,
    KeyedRequest,
    NotPersisted,
    Persisted,
    PersistFailure,
    PersistResult,
    PowerInterval,
    RecordSet,
    StoredReply,
    StoreStatus,
)
from deployments.coordinator import Coordinator
from deployments.idempotency import KeyClaims, Start
from deployments.rollout_contracts import ApplianceRollout, Directive, RolloutOverview
from deployments.rollout_plan import RolloutPlan
from deployments.telemetry import Telemetry
from deployments.tracing import Tracing
from models.attribution import Attribution
from models.registry import Preprocessing, Registry, RegistryEntry, TrainingSource
from serve_app.access.cache_control import CacheControl, answers_of
from serve_app.access.grants import ALL, GrantCache, Grants
from serve_app.access.principal import Principal, Role
from serve_app.access.quotas import SharedQuotas
from serve_app.access.tokens import TokenVerifier
from serve_app.catalogue import Catalogue
from serve_app.exposition import Exposition
from serve_app.history_client import HistoryClient
from serve_app.http import build_http_app
from serve_app.inference import ModelClient
from serve_app.known_models import KnownModels, Reload
from serve_app.logs import JsonFormatter
from serve_app.metrics import HttpMetrics
from serve_app.predict import Predictor
from serve_app.questions import Asker, Listener
from serve_app.services import Services
from serve_app.settings import Environment, Settings
from serve_app.store_client import StoreClient
from tests.unit.handles import Method
from tests.unit.node_agent import NodeAgent

SECRET = "unit-test-secret-of-more-than-thirty-two-bytes"
ISSUER = "https://project.supabase.test/auth/v1"
ADMIN_TOKEN = "admin-token-for-tests-of-32-characters"
ORIGIN = "https://app.test"
SHA256 = "ab" * 32
REPLICA = "this-replica"


@dataclass
class FakeAppliance:
    """One appliance deployment; `answer` may be replaced by anything that answers or fails."""

    appliance_id: str
    window_size: int = 5
    output_index: int = 4
    provisional_index: int | None = None
    sample_period_s: float = 60.0
    predicted_w: float = 100.0
    provisional_w: float | None = None
    spread_w: float = 50.0
    version: str | None = "1.0.0"
    nothing: str = ""
    answer: Callable[[InferenceRequest], Any] | None = None
    windows: list[list[float]] = field(default_factory=list)
    attributions: list[Attribution] = field(default_factory=list)
    buildings: list[str] = field(default_factory=list)
    traces: list[str | None] = field(default_factory=list)
    silent: bool = False

    @property
    def sample_indices(self) -> dict[Attribution, int]:
        provisional = self.output_index if self.provisional_index is None else self.provisional_index
        return {Attribution.FINAL: self.output_index, Attribution.PROVISIONAL: provisional}

    @property
    def infer(self) -> Method:
        return Method(self._infer)

    @property
    def status(self) -> Method:
        return Method(self._status)

    async def _infer(self, block: InferenceBlock) -> list[InferenceResult]:
        return [await self._one(request) for request in block.requests()]

    async def _one(self, request: InferenceRequest) -> InferenceResult:
        self.windows.append([round(float(v), 5) for v in request.window_kw])
        self.attributions.append(request.attribution)
        self.buildings.append(request.building_id)
        self.traces.append(request.trace)
        if request.window_kw.shape != (self.window_size,):
            return InferenceRefused(InferenceRefusal.WINDOW_LENGTH, "", input_window_size=self.window_size)
        if self.answer is not None:
            outcome = self.answer(request)
            result: InferenceResult = await outcome if asyncio.iscoroutine(outcome) else outcome
            return result
        return self.inference(request)

    def inference(self, request: InferenceRequest) -> Inference:
        index = self.sample_indices[request.attribution]
        final = request.attribution is Attribution.FINAL or self.provisional_w is None
        predicted_w = self.predicted_w if final else self.provisional_w
        assert predicted_w is not None
        return Inference(
            predicted_w=predicted_w,
            on_probability=0.75,
            intervals=tuple(
                PowerInterval(coverage, max(0.0, predicted_w - spread_w), predicted_w + spread_w)
                for coverage, spread_w in ((0.8, self.spread_w), (0.9, 2 * self.spread_w))
            ),
            attribution=request.attribution,
            model_id=f"{self.appliance_id}-net",
            model_version=self.version or "",
            artifact_sha256=SHA256,
            output_sample_index=index,
            sample_period_s=self.sample_period_s,
            aggregate_kw=float(request.window_kw[index]),
            batch_size=1,
            queue_ms=0.25,
            forward_ms=1.5,
        )

    async def _status(self) -> ApplianceStatus:
        if self.silent:
            raise ConnectionError("no replica")
        loaded = self.version is not None
        return ApplianceStatus(
            appliance_id=self.appliance_id,
            model_id=f"{self.appliance_id}-net" if loaded else None,
            model_version=self.version,
            artifact_sha256=SHA256 if loaded else None,
            input_window_size=self.window_size if loaded else None,
            sample_indices=self.sample_indices if loaded else None,
            sample_period_s=self.sample_period_s if loaded else None,
            device="cpu",
            loading=False,
            nothing=self.nothing,
        )


@dataclass
class FakeStore:
    """The Persistence deployment; what it acknowledged is in `stored`. Claims are the real ones."""

    answer: Callable[[RecordSet], Any] | None = None
    stored: list[RecordSet] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event | None = None
    cancelled: int = 0
    calls: int = 0
    reachable: bool = True
    replies: dict[str, StoredReply] = field(default_factory=dict)
    recall_failure: Exception | None = None

    def __post_init__(self) -> None:
        self.claims = KeyClaims(self._recall)

    async def _recall(self, request: KeyedRequest) -> StoredReply | int | None:
        if self.recall_failure is not None:
            raise self.recall_failure
        return self.replies.get(request.key, request.received_ns)

    @property
    def claim(self) -> Method:
        return Method(self.claims.claim)

    @property
    def release_claim(self) -> Method:
        return Method(self._release)

    async def _release(self, claim: Claim) -> None:
        self.claims.release(claim)

    @property
    def persist(self) -> Method:
        return Method(self._persist)

    @property
    def status(self) -> Method:
        return Method(self._status)

    async def _persist(self, record_sets: Sequence[RecordSet]) -> list[PersistResult]:
        self.calls += 1
        return await asyncio.gather(*map(self._one, record_sets))

    async def _one(self, record_set: RecordSet) -> PersistResult:
        completion = record_set.completion
        if completion is None:
            return await self._write(record_set)
        if self.claims.start(completion.claim) is Start.LOST:
            return NotPersisted(PersistFailure.CLAIM_LOST, "")
        result: PersistResult = NotPersisted(PersistFailure.UNAVAILABLE, "")
        try:
            result = await self._write(record_set)
        finally:
            if isinstance(result, Persisted):
                self.replies[completion.claim.key] = completion.reply
            self.claims.settle(completion, result)
        return result

    async def _write(self, record_set: RecordSet) -> PersistResult:
        self.started.set()
        try:
            if self.release is not None:
                await self.release.wait()
            if self.answer is not None:
                outcome = self.answer(record_set)
                result: PersistResult = await outcome if asyncio.iscoroutine(outcome) else outcome
                if not isinstance(result, Persisted):
                    return result
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.stored.append(record_set)
        return Persisted(commit_size=1, persist_ms=0.5)

    async def _status(self) -> StoreStatus:
        return StoreStatus(
            kind="sqlite",
            reachable=self.reachable,
            detail="",
        )


@dataclass
class FixedGrants:
    """A source of grants; `failure` makes it one that is away."""

    buildings: dict[str, dict[str, set[str]]] = field(default_factory=lambda: {"user-1": {"home": {ALL}}})
    roles: dict[str, Role] = field(default_factory=dict)
    failure: Exception | None = None
    fetches: int = 0

    async def fetch(self, principal: Principal) -> Grants:
        self.fetches += 1
        if self.failure is not None:
            raise self.failure
        role = principal.token_role or self.roles.get(principal.user_id, Role.USER)
        granted = self.buildings.get(principal.user_id, {})
        return Grants(role, {building: frozenset(names) for building, names in granted.items()})

    async def aclose(self) -> None: ...


def rollout(appliance_id: str, **changes: Any) -> ApplianceRollout:
    """What the coordinator knows of an appliance that serves 1.0.0 and nothing else; anything can be replaced."""
    values: dict[str, Any] = {
        "active": Directive(7, 7, RolloutPlan("1.0.0")),
        "preparing": None,
        "refused": None,
        "refused_plan": None,
        "counts": (),
        "recent": (),
        "replicas": (),
    }
    return ApplianceRollout(appliance_id=appliance_id, **(values | changes))


class FakeCoordinator:
    """The real coordinator behind a handle; what it says of rollouts is given, and None is no answer."""

    def __init__(self, requests_per_minute: Mapping[str, int], appliances: tuple[str, ...]) -> None:
        self.real = Coordinator(requests_per_minute, appliances, SimpleNamespace(), SimpleNamespace())
        self.report, self.listen = Method(self.real.report), Method(self.real.listen)
        self.answer, self.ask = Method(self.real.answer), Method(self.real.ask)
        self.overview: RolloutOverview | None = RolloutOverview(tuple(rollout(name) for name in appliances), None, 0, 0)

    @property
    def status(self) -> Method:
        return Method(self._status)

    @property
    def reload(self) -> Method:
        return Method(self._reload)

    async def _reload(self, wait_s: float) -> RolloutOverview:
        return await self._status()

    async def _status(self) -> RolloutOverview:
        if self.overview is None:
            raise ConnectionError("no replica")
        return self.overview

    def tells(self, *rollouts: ApplianceRollout) -> None:
        self.overview = RolloutOverview(rollouts, None, 0, 0)


class ServeRequestId:
    """What Serve's proxy does around the application (its RequestIdMiddleware): give an id, append it to the reply."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = MutableHeaders(scope=scope)
        request_id = headers.get("x-request-id")
        if request_id is None:
            request_id = "serve-made-id"
            headers.append("x-request-id", request_id)

        async def with_id(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).append("X-Request-ID", request_id)
            await send(message)

        await self._app(scope, receive, with_id)


def entry(appliance_id: str, version: str, *, active: bool) -> RegistryEntry:
    return RegistryEntry(
        model_id=f"{appliance_id}-net",
        model_version=version,
        appliance_id=appliance_id,
        architecture="CNNTransformer",
        architecture_params={},
        artifact_path="artifacts/model.safetensors",
        artifact_sha256=SHA256,
        input_window_size=5,
        preprocessing=Preprocessing("standard", 0.0, 1.0),
        is_active=active,
        sample_period_s=60.0,
        input_unit="W",
        output_unit="W",
        output_sample_index=2,
        provisional_sample_index=4,
        max_power_w=3000.0,
        on_threshold_w=50.0,
        training_data=(TrainingSource("home-1", "2024-01-01", "2024-02-01", "a household"),),
        metrics={"mae_w": 12.5},
    )


@dataclass
class Harness:
    """One ingress without Ray."""

    app: Any
    client: httpx.AsyncClient
    store: FakeStore
    appliances: dict[str, FakeAppliance]
    catalogue: Catalogue
    services: Services
    log: list[dict[str, Any]]
    coordinator: FakeCoordinator
    grants: FixedGrants

    async def infer(self, body: object = None, **headers: str) -> httpx.Response:
        return await self.client.post("/infer", json=infer_body() if body is None else body, headers=headers)


def infer_body(**changes: object) -> dict[str, object]:
    body: dict[str, object] = {
        "building_id": "home",
        "appliance_id": "kettle",
        "window": [0.1, 0.2, 0.3, 0.4, 0.5],
        "timestamp": "2026-01-31T18:00:00+01:00",
    }
    return {k: v for k, v in (body | changes).items() if v is not ...}


def disaggregate_body(size: int = 5, **changes: object) -> dict[str, object]:
    return infer_body(**{"appliance_id": ..., "window": [0.5] * size} | changes)


def mint(secret: str = SECRET, *, algorithm: str = "HS256", headers: Any = None, **changes: object) -> str:
    """A valid token; `claim=...` (Ellipsis) leaves a claim out."""
    claims: dict[str, object] = {
        "sub": "user-1",
        "aud": "authenticated",
        "iss": ISSUER,
        "exp": int(time.time()) + 600,
    }
    claims = {k: v for k, v in (claims | changes).items() if v is not ...}
    return jwt.api_jws.encode(json.dumps(claims).encode(), secret, algorithm=algorithm, headers=headers)


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@asynccontextmanager
async def start(
    appliances: Mapping[str, FakeAppliance] | None = None,
    *,
    proxied: bool = False,
    poll: bool = True,
    grants: FixedGrants | None = None,
    history: Any = None,
    **settings: Any,
) -> AsyncIterator[Harness]:
    store = FakeStore()
    fakes = dict(appliances or {"kettle": FakeAppliance("kettle"), "microwave": FakeAppliance("microwave")})
    handler = _Lines()
    logger = logging.Logger("unit")
    logger.addHandler(handler)
    values = {
        "env": Environment.DEVELOPMENT,
        "supabase_jwt_secret": SECRET,
        "admin_token": ADMIN_TOKEN,
        "cors_origins": ORIGIN,
        "request_timeout_s": 5.0,
    } | settings
    configuration = Settings(**values)
    coordinator = FakeCoordinator(configuration.requests_per_minute, tuple(fakes))
    catalogue = Catalogue(fakes, store, coordinator, logger)
    models = {name: ModelClient(fake, partial(catalogue.replicas, name), "ingress") for name, fake in fakes.items()}
    source = grants or FixedGrants()
    cache = GrantCache(source)
    registry = Registry((entry("kettle", "0.9.0", active=False), entry("kettle", "1.0.0", active=True)), Path())
    agent = NodeAgent()
    telemetry = Telemetry(agent.sink)
    agent.before_each = telemetry.flush
    asker, known_models = Asker(coordinator, REPLICA), KnownModels(lambda: registry, logger)
    services = Services(
        settings=configuration,
        verifier=TokenVerifier(issuer=ISSUER, secret=SECRET, keys=None),
        grants=cache,
        quotas=SharedQuotas(coordinator.report.remote, configuration.requests_per_minute, logger=logger),
        cache_control=CacheControl(asker),
        known_models=known_models,
        reload=Reload(coordinator, asker),
        catalogue=catalogue,
        predictor=Predictor(models, StoreClient(store), catalogue, cache),
        store=StoreClient(store),
        history=HistoryClient(history or SimpleNamespace()),
        telemetry=telemetry,
        metrics=HttpMetrics(telemetry),
        exposition=Exposition(lambda: [agent.node], logger, transport=agent),
        tracing=Tracing("ingress", "test", configuration.traces_per_second),
        logger=logger,
    )

    @asynccontextmanager
    async def no_background() -> AsyncIterator[None]:
        yield

    answering = {**answers_of(cache), **known_models.answering()}
    listener = Listener(coordinator, REPLICA, answering, lambda: cache.invalidate(None), logger)
    listening = asyncio.create_task(listener.run())
    await asyncio.sleep(0)
    await known_models.reread()
    app: Any = build_http_app(services, no_background)
    if poll:
        await catalogue.refresh()
    transport = httpx.ASGITransport(app=ServeRequestId(app) if proxied else app)
    headers = {"Authorization": f"Bearer {mint()}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://nilm.test", headers=headers) as client:
        try:
            yield Harness(app, client, store, fakes, catalogue, services, handler.lines, coordinator, source)
        finally:
            listening.cancel()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def kit() -> SimpleNamespace:
    """The parts above, for tests that build their own variant (test modules cannot import a conftest)."""
    return SimpleNamespace(
        start=start,
        mint=mint,
        infer_body=infer_body,
        disaggregate_body=disaggregate_body,
        FakeAppliance=FakeAppliance,
        FakeStore=FakeStore,
        Method=Method,
        FixedGrants=FixedGrants,
        rollout=rollout,
        SECRET=SECRET,
        ISSUER=ISSUER,
        ADMIN_TOKEN=ADMIN_TOKEN,
        ORIGIN=ORIGIN,
        float32=lambda v: float(np.float32(v)),
    )


@pytest.fixture
async def service() -> AsyncIterator[Harness]:
    async with start() as harness:
        yield harness
