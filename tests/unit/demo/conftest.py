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
        entries = [
            {"appliance_id": name, "model_id": name, "model_version": "1.0.0", "serving": name != "fridge"} | shape
            for name in ("microwave", "kettle", "fridge")
        ]
        return 200, {}, {"models": entries, "appliances": [], "disaggregate": shape}

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
            "predicted_for": (datetime.fromisoformat(body["timestamp"]) - behind).isoformat(),
            "aggregate_kw": mains_kw,
            "unattributed_kw": mains_kw / 2,
            "appliances": [
                {"appliance_id": "kettle", "predicted_kw": mains_kw / 2, "confidence": 0.9, "model_version": "1.0.0"},
                {"appliance_id": "microwave", "predicted_kw": 0.0, "confidence": 0.1, "model_version": "1.0.0"},
            ],
            "unavailable": [],
        }
        return 200, {}, reply | self.extra


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
