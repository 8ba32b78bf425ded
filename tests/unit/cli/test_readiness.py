"""The endings of a start: ready, running but not ready, failed; against a made-up Serve and a made-up service."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from serve_app.cli.ports import LOOPBACK
from serve_app.cli.preflight import ServeConfig
from serve_app.cli.progress import StartProgress
from serve_app.cli.readiness import Start, StartFailed
from serve_app.cli.serve_api import ServeApi


class Service(ThreadingHTTPServer):
    """Answers GET /ready with what `replies` holds next; the last reply stays."""

    replies: list[tuple[int, object]]


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        status, body = self.server.replies.pop(0) if len(self.server.replies) > 1 else self.server.replies[0]
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        return


@pytest.fixture
def service() -> Iterator[Service]:
    with Service((LOOPBACK, 0), Handler) as server:
        server.replies = [(200, {})]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def start(service: Service, serve_status: str = "RUNNING", message: str = "", timeout_s: float = 5.0) -> Start:
    deployment = {"status": "HEALTHY" if serve_status == "RUNNING" else serve_status, "message": message}
    application = {"name": "nilm", "status": serve_status, "message": "", "deployments": {"kettle": deployment}}

    def dashboard(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"applications": {"nilm": application}})

    document: dict[str, object] = {"applications": [{"args": {"appliances": ["kettle", "fridge"]}}]}
    return Start(
        api=ServeApi("http://dashboard.test", "t", httpx.MockTransport(dashboard)),
        config=ServeConfig(Path("c.yaml"), document, service.server_port, LOOPBACK),
        progress=StartProgress(Console(file=io.StringIO())),
        cluster_failure=lambda: None,
        give_up=time.monotonic() + timeout_s,
    )


def test_a_ready_service_has_no_reasons(service: Service) -> None:
    assert start(service).bring_up() == ()


def test_loading_is_waited_for(service: Service) -> None:
    service.replies = [(503, {"reasons": ["kettle: loading"]}), (200, {})]
    assert start(service).bring_up() == ()


def test_one_refused_version_leaves_the_rest_running(service: Service) -> None:
    service.replies = [(503, {"reasons": ["kettle: version 1.0.0 refused: sha256"]})]
    assert start(service).bring_up() == ("kettle: version 1.0.0 refused: sha256",)


def test_when_every_version_is_refused_the_start_failed(service: Service) -> None:
    reasons = ["kettle: version 1.0.0 refused: sha256", "fridge: version 2.0.0 refused: not_registered"]
    service.replies = [(503, {"reasons": reasons})]
    with pytest.raises(StartFailed, match=r"No appliance can be served.*fridge"):
        start(service).bring_up()


def test_a_store_that_is_away_does_not_end_the_service(service: Service) -> None:
    service.replies = [(503, {"status": "not_ready"})]
    assert start(service, timeout_s=0.2).bring_up() == ('503 {"status": "not_ready"}',)


def test_a_deployment_that_cannot_start_ends_the_start(service: Service) -> None:
    with pytest.raises(StartFailed, match="deployment kettle cannot start: no weights"):
        start(service, "DEPLOY_FAILED", "no weights").bring_up()


def test_a_deployment_that_never_gets_healthy_is_named(service: Service) -> None:
    with pytest.raises(StartFailed, match="Gave up waiting: kettle is updating waiting for CPUs"):
        start(service, "UPDATING", "waiting for CPUs", timeout_s=0.2).bring_up()
