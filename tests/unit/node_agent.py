"""A Ray node's agent as far as figures are concerned: takes what replicas pass on, tells it as Ray's agent does."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from deployments.nodes import Node
from serve_app.exposition import merged
from tests.told import Told

RAYS = {
    "Component": "core_worker",
    "NodeAddress": "192.0.2.1",
    "SessionName": "session_2026-01-01_00-00-00_000000_1",
    "Version": "2.60.0",
    "WorkerId": "ab" * 28,
    "application": "nilm",
    "deployment": "ingress",
    "otel_scope_name": "ray._private.telemetry.open_telemetry_metric_recorder",
    "otel_scope_schema_url": "",
    "otel_scope_version": "",
    "replica": "nilm#ingress#abcdefgh",
}


class _Gauge:
    def __init__(self, values: dict[tuple[tuple[str, str], ...], float], label_names: tuple[str, ...]) -> None:
        self._values = values
        self._label_names = label_names

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert tuple(tags) == self._label_names
        assert all(isinstance(one, str) for one in tags.values())
        self._values[tuple(sorted(tags.items()))] = value


class NodeAgent(httpx.AsyncBaseTransport):
    """Behind a `Telemetry`, and the transport of an `Exposition`."""

    node = Node("node-1", "http://192.0.2.1:8080/metrics")

    def __init__(self) -> None:
        self.families: dict[tuple[str, str], dict[tuple[tuple[str, str], ...], float]] = {}
        self.before_each: Callable[[], None] = lambda: None

    def sink(self, name: str, text: str, label_names: tuple[str, ...]) -> _Gauge:
        """For a `Telemetry`."""
        return _Gauge(self.families.setdefault((name, text), {}), label_names)

    def text(self) -> str:
        """What Ray's agent answers."""
        lines = ["# HELP ray_tasks Current number of tasks", "# TYPE ray_tasks gauge", 'ray_tasks{State="RUNNING"} 3.0']
        for (name, text), values in self.families.items():
            lines += [f"# HELP ray_{name} {text}", f"# TYPE ray_{name} gauge"]
            for labels, value in values.items():
                told = ",".join(f'{key}="{one}"' for key, one in sorted({**RAYS, **dict(labels)}.items()))
                lines.append(f"ray_{name}{{{told}}} {value}")
        return "\n".join(lines) + "\n"

    def told(self) -> Told:
        """What `GET /metrics` says of it."""
        return Told(merged([self.text().encode()], 0).decode())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert str(request.url) == self.node.metrics_url
        self.before_each()
        return httpx.Response(200, stream=httpx.ByteStream(self.text().encode()))
