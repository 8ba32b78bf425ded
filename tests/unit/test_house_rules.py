"""The rules of docs' "house": who may import whom, that routes need a token, that modules stay small."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi.routing import iter_route_contexts

from deployments.telemetry import Telemetry
from deployments.tracing import Tracing
from models.registry import Registry
from serve_app.access.cache_control import CacheControl
from serve_app.access.development_grants import DevelopmentGrants
from serve_app.access.grants import GrantCache
from serve_app.access.quotas import SharedQuotas
from serve_app.access.scopes import Public, Requires, Scope
from serve_app.access.tokens import TokenVerifier
from serve_app.catalogue import Catalogue
from serve_app.exposition import Exposition
from serve_app.history_client import HistoryClient
from serve_app.http import build_http_app
from serve_app.known_models import KnownModels, Reload
from serve_app.metrics import HttpMetrics
from serve_app.predict import Predictor
from serve_app.questions import Asker
from serve_app.services import Services
from serve_app.settings import Environment, Settings
from serve_app.store_client import StoreClient

ROOT = Path(__file__).parents[2]
ROOMS = ("serve_app", "deployments", "models", "configs")
MAX_LINES = 400
MAY_IMPORT = {
    "models": {"models"},
    "configs": {"configs"},
    "deployments": {"deployments", "models"},
    "serve_app": set(ROOMS),
}
RAY_MODULES = {"serve_app/app.py", "serve_app/ingress.py", "serve_app/inference.py", "serve_app/store_client.py"}
PUBLIC_PATHS = {f"{prefix}/{name}" for prefix in ("", "/api") for name in ("live", "ready", "health")}
ADMIN_PATHS = {
    f"{prefix}/admin/{name}" for prefix in ("", "/api") for name in ("cache/invalidate", "cache/stats", "reload-models")
}


def imported(tree: ast.Module, path: str) -> Iterator[str]:
    """Every module a file names: plain, relative, inside functions, for types only, or by importlib."""
    package = Path(path).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (above, node.module) if part)
            yield module
            # `from ray.serve import _private` names a module too.
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))
        elif isinstance(node, ast.Attribute) and ast.unparse(node).endswith("serve._private"):
            yield "ray.serve._private"


def broken_rules(path: str, source: str) -> set[str]:
    """The rules that one file breaks. `path` is relative to the repository."""
    tree = ast.parse(source, path)
    room = path.split("/", maxsplit=1)[0]
    broken = set()
    for module in imported(tree, path):
        top = module.split(".")[0]
        if top in ROOMS and top not in MAY_IMPORT[room]:
            broken.add(f"{room} imports {top}")
        if top in {"fastapi", "starlette"} and room != "serve_app":
            broken.add("web framework outside serve_app")
        if top == "torch" and room != "models" and path != "deployments/appliance.py":
            broken.add("torch outside models and the appliance deployment")
        if top == "ray" and room != "deployments" and path not in RAY_MODULES and "serve_app/cli/" not in path:
            broken.add("ray outside deployments and the composition modules")
        if top == "fsspec" and path != "models/source.py":
            broken.add("fsspec outside models/source.py")
        if top == "openvino" and path != "models/openvino_network.py":
            broken.add("openvino outside models/openvino_network.py")
        if module.startswith("ray.serve._private"):
            broken.add("ray.serve._private")
        if module == "__future__.annotations" and path == "serve_app/app.py":
            broken.add("postponed annotations in app.py")
    return broken


FILES = sorted(path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("path", FILES)
def test_the_file_keeps_the_rules(path: str) -> None:
    assert broken_rules(path, (ROOT / path).read_text(encoding="utf-8")) == set()


def test_every_room_was_walked() -> None:
    assert {path.split("/")[0] for path in FILES} == set(ROOMS)
    assert set(FILES) >= RAY_MODULES


OFFENDERS = [
    ("models/x.py", "import deployments.contracts", "models imports deployments"),
    ("models/x.py", "from configs import production", "models imports configs"),
    ("configs/x.py", "import models", "configs imports models"),
    ("deployments/x.py", "from serve_app.problems import Problem", "deployments imports serve_app"),
    ("deployments/stores/x.py", "import configs", "deployments imports configs"),
    ("models/training/x.py", "from ...serve_app import app", "models imports serve_app"),
    ("models/x.py", "def f():\n    import serve_app", "models imports serve_app"),
    ("models/x.py", "if TYPE_CHECKING:\n    from serve_app import app", "models imports serve_app"),
    ("models/x.py", "importlib.import_module('serve_app.app')", "models imports serve_app"),
    ("models/x.py", "__import__('serve_app')", "models imports serve_app"),
    ("deployments/x.py", "from starlette.requests import Request", "web framework outside serve_app"),
    ("models/x.py", "import fastapi", "web framework outside serve_app"),
    ("deployments/persistence.py", "import torch", "torch outside models and the appliance deployment"),
    ("serve_app/routes/x.py", "from torch import nn", "torch outside models and the appliance deployment"),
    ("serve_app/predict.py", "from ray import serve", "ray outside deployments and the composition modules"),
    ("models/x.py", "import os, ray.data", "ray outside deployments and the composition modules"),
    ("models/x.py", "from fsspec.callbacks import Callback", "fsspec outside models/source.py"),
    ("models/loader.py", "import openvino", "openvino outside models/openvino_network.py"),
    ("deployments/x.py", "from ray.serve._private.constants import X", "ray.serve._private"),
    ("deployments/x.py", "from ray.serve import _private", "ray.serve._private"),
    ("deployments/x.py", "from ray import serve\nserve._private.api", "ray.serve._private"),
    ("serve_app/cli/x.py", "import ray.serve._private", "ray.serve._private"),
    ("serve_app/app.py", "from __future__ import annotations", "postponed annotations in app.py"),
]


@pytest.mark.parametrize(("path", "source", "rule"), OFFENDERS)
def test_the_walker_sees_each_offence(path: str, source: str, rule: str) -> None:
    assert broken_rules(path, source) == {rule}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/x.py", "import torch\nfrom models.registry import Registry\nfrom .signal import normalise"),
        ("deployments/appliance.py", "import torch\nfrom ray import serve\nimport models"),
        ("serve_app/ingress.py", "from ray import serve\nimport fastapi, deployments, models, configs, serve_app"),
        ("serve_app/cli/x.py", "import ray"),
        ("models/source.py", "import fsspec"),
        ("models/x.py", "import torchmetrics, rayleigh, fastapi_like\nname = 'serve_app'"),
        ("deployments/x.py", "from __future__ import annotations"),
    ],
)
def test_the_walker_lets_the_rest_pass(path: str, source: str) -> None:
    assert broken_rules(path, source) == set()


@pytest.mark.parametrize("path", FILES)
def test_the_module_is_small_enough_to_read(path: str) -> None:
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines; split it"


def test_models_can_be_used_without_ray_or_the_web() -> None:
    """The rules above, as the interpreter sees them: what `import models.loader` brings along."""
    code = "import sys, models.loader, models.source; print({'ray', 'fastapi', 'serve_app'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    reply = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert reply.stdout.strip() == "set()"


def test_a_registry_can_be_read_without_torch() -> None:
    """A process that answers HTTP reads it too, and torch would take most of its memory."""
    command = [sys.executable, "-c", "import sys, models.source; print('torch' in sys.modules)"]
    reply = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert reply.stdout.strip() == "False"


@pytest.fixture(scope="module")
def app() -> Any:
    logger = logging.Logger("rules")
    catalogue = Catalogue({}, object(), object(), logger)  # type: ignore[arg-type]
    asker = Asker(None, "none")
    # In production, so that no page for developers is among the routes.
    settings = Settings(env=Environment.PRODUCTION, rate_limit_per_ip=1000)
    grants = GrantCache(DevelopmentGrants(ROOT / "no-such-file"))

    async def unreported(_: object) -> tuple[()]:
        return ()

    telemetry = Telemetry()
    services = Services(
        settings=settings,
        verifier=TokenVerifier(issuer="nobody", secret="s" * 40, keys=None),
        grants=grants,
        quotas=SharedQuotas(unreported, settings.requests_per_minute, logger=logger),
        cache_control=CacheControl(asker),
        known_models=KnownModels(lambda: Registry((), ROOT), logger),
        reload=Reload(None, asker),
        catalogue=catalogue,
        predictor=Predictor({}, StoreClient(None), catalogue, grants),
        store=StoreClient(None),
        history=HistoryClient(None),
        telemetry=telemetry,
        metrics=HttpMetrics(telemetry),
        exposition=Exposition(list, logger),
        tracing=Tracing("ingress", "test"),
        logger=logger,
    )

    @asynccontextmanager
    async def nothing() -> AsyncIterator[None]:
        yield

    return build_http_app(services, nothing)


def declared_scopes(dependant: Any) -> Iterator[Scope]:
    """Every scope that a route asks for, through whatever other dependency."""
    for dependency in dependant.dependencies:
        if isinstance(dependency.call, Requires | Public):
            yield dependency.call.scope
        yield from declared_scopes(dependency)


def scopes_by_route(app: Any) -> dict[tuple[str, str], set[Scope]]:
    """(method, path) of every route, also where the framework keeps an included router as a tree."""
    return {
        (method, context.path): set(declared_scopes(context.dependant))
        for context in iter_route_contexts(app.router.routes)
        for method in context.methods or {"GET"}
    }


def test_every_route_declares_exactly_one_scope(app: Any) -> None:
    found = scopes_by_route(app)
    assert found.keys() >= {("POST", "/infer"), ("POST", "/api/disaggregate"), ("GET", "/api/models")}
    assert {route for route, scopes in found.items() if len(scopes) != 1} == set()
    assert {path for (_, path), scopes in found.items() if scopes == {Scope.PUBLIC}} == PUBLIC_PATHS
    assert {path for (_, path), scopes in found.items() if scopes == {Scope.ADMIN}} == ADMIN_PATHS


def test_a_route_that_declares_nothing_is_seen() -> None:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.get("/open")(lambda: None)
    app.get("/declared", dependencies=[Depends(Requires(Scope.USER))])(lambda: None)
    assert scopes_by_route(app) == {("GET", "/open"): set(), ("GET", "/declared"): {Scope.USER}}


async def test_every_route_but_the_probes_wants_a_token(app: Any) -> None:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://nilm.test") as client:
        for (method, path), scopes in sorted(scopes_by_route(app).items()):
            response = await client.request(method, path.replace("{", "").replace("}", ""))
            if scopes == {Scope.PUBLIC}:
                assert response.status_code in {200, 503}, (method, path)
            else:
                assert response.status_code == 401, (method, path)
                assert response.json()["code"] == "token_missing"
