"""A small HTTP server that answers like the service, with faults on demand. Real sockets, no Ray."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Fault = tuple[int, dict[str, str], object]
"""Status, headers and body to answer instead."""


@dataclass
class FakeService:
    """Answers `/models` and `/disaggregate`; kettle takes half the mains, the microwave is off."""

    window_size: int = 10
    output_index: int = 7
    sample_period_s: int = 60
    token: str = "secret-token"
    fault: Callable[[int], Fault | None] = lambda _number: None
    delay_s: Callable[[int], float] = lambda _number: 0.0
    models: Callable[[], Fault | None] = lambda: None
    extra: dict[str, Any] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    authorization: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def models_reply(self) -> Fault:
        shape = {
            "input_window_size": self.window_size,
            "sample_period_s": float(self.sample_period_s),
            "output_sample_index": self.output_index,
        }
        provisional = shape | {"output_sample_index": self.window_size - 1}
        entries = [
            {"appliance_id": name, "model_id": name, "model_version": "1.0.0", "serving": name != "fridge"}
            | shape
            | {"provisional_sample_index": self.window_size - 1}
            for name in ("microwave", "kettle", "fridge")
        ]
        reply = {"models": entries, "appliances": [], "disaggregate": shape, "disaggregate_provisional": provisional}
        return 200, {}, reply

    def disaggregate_reply(self, body: dict[str, Any]) -> Fault:
        with self._lock:
            self.bodies.append(body)
            number = len(self.bodies)
        time.sleep(self.delay_s(number))
        fault = self.fault(number)
        if fault is not None:
            return fault
        behind = timedelta(seconds=(self.window_size - 1 - self.output_index) * self.sample_period_s)
        mains_kw = body["window"][self.output_index]
        reply = {
            "request_id": f"r{number}",
            "persisted": True,
            "attribution": "final",
            "predicted_for": (datetime.fromisoformat(body["timestamp"]) - behind).isoformat(),
            "aggregate_kw": mains_kw,
            "unattributed_kw": mains_kw / 2,
            "appliances": [
                _power("kettle", mains_kw / 2, 0.9, mains_kw),
                _power("microwave", 0.0, 0.1, mains_kw),
            ],
            "unavailable": [],
        }
        return 200, {}, reply | self.extra


def _power(appliance_id: str, predicted_kw: float, confidence: float, mains_kw: float) -> dict[str, Any]:
    return {
        "appliance_id": appliance_id,
        "predicted_kw": predicted_kw,
        "confidence": confidence,
        "interval_kw": {"80": [predicted_kw, mains_kw], "90": [0.0, mains_kw]},
        "model_id": f"{appliance_id}-net",
        "model_version": "1.0.0",
    }


def _handler(service: FakeService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(service.models() or service.models_reply())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            service.authorization = self.headers["Authorization"]
            if service.authorization != f"Bearer {service.token}":
                self._answer((401, {}, {"title": "Unauthorized", "detail": "The token is not valid."}))
            else:
                self._answer(service.disaggregate_reply(body))

        def _answer(self, answer: Fault) -> None:
            status, headers, body = answer
            content = json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Stay quiet."""

    return Handler


@pytest.fixture
def service() -> Iterator[FakeService]:
    fake = FakeService()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake))
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join(5)
