"""`GET /metrics` of the whole system: what every replica on every node counted, whichever ingress is asked.

Replicas bring their figures to the Ray agent of their node (see `deployments.telemetry`); here the agents of all
nodes are asked at the same time, within `TIMEOUT_S` and `MAX_NODE_BYTES` each, and what is ours is put together:
Ray's prefix goes, gauges become the counters and histograms that they are, and of Ray's labels those stay that name a
replica. A node that does not answer is missing, and `nilm_metrics_nodes{state="silent"}` says so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import httpx
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from deployments.nodes import Node
from deployments.telemetry import BUCKET_LABEL, BUCKET_SUFFIX, SUM_SUFFIX, TOTAL_SUFFIX
from serve_app.access.bounded_read import UnreadableBody, read_body

TIMEOUT_S = 3.0
"""An agent answers in a twentieth of a second; Prometheus itself gives up after ten."""
MAX_NODE_BYTES = 32 * 1024 * 1024
"""A hundred times what a node says that was just started; Ray's own figures grow with tasks and workers."""
FRESH_S = 1.0
"""Whoever asks again within that is told the same: replicas pass on their figures once a second."""
RAY_PREFIX = "ray_"
OURS = (b"ray_nilm_", b"# HELP ray_nilm_", b"# TYPE ray_nilm_")
NODE_LABEL, NODE_ADDRESS_LABEL = "node", "NodeAddress"
RAYS_LABELS = frozenset({"Component", "SessionName", "Version", "WorkerId", "JobId", NODE_ADDRESS_LABEL})
"""What Ray adds and nobody needs; application, deployment and replica stay, and the address as `node`."""
DROPPED_LABELS = RAYS_LABELS | {BUCKET_LABEL}
OTEL_PREFIX = "otel_"

Labels = tuple[tuple[str, str], ...]


@dataclass
class _Histogram:
    """One of all nodes."""

    text: str
    buckets: dict[Labels, dict[str, float]] = field(default_factory=dict)
    sums: dict[Labels, float] = field(default_factory=dict)


class Exposition:
    """Of one ingress replica. `nodes`: see `deployments.nodes`; it may block."""

    def __init__(
        self,
        nodes: Callable[[], Sequence[Node]],
        logger: logging.Logger,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        # Agents are neighbours: no proxy of the environment is asked for them.
        self._client = httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False, transport=transport)
        self._nodes = nodes
        self._logger = logger
        self._asking: asyncio.Task[Sequence[Node]] | None = None
        self._known: Sequence[Node] = ()
        self._running: asyncio.Task[bytes] | None = None
        self._last: tuple[bytes, float] | None = None

    async def text(self) -> bytes:
        """The Prometheus text format. Never raises for a node that does not answer."""
        if self._last is not None and time.monotonic() - self._last[1] < FRESH_S:
            return self._last[0]
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._render())
        return await asyncio.shield(self._running)  # others may wait for it too

    async def aclose(self) -> None:
        """Let go of connections."""
        await self._client.aclose()

    async def _render(self) -> bytes:
        await self._look_for_nodes()
        texts = await asyncio.gather(*(self._ask(node) for node in self._known))
        answered = [text for text in texts if text is not None]
        silent = len(texts) - len(answered) if texts else 1  # this one at least
        # Thousands of lines are parsed: not on the loop that requests are answered on.
        body = await asyncio.to_thread(merged, answered, silent)
        self._last = (body, time.monotonic())
        return body

    async def _look_for_nodes(self) -> None:
        """Ray's head may be away, for minutes: then the nodes that were there last are asked."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(asyncio.to_thread(self._nodes))
        await asyncio.wait({self._asking}, timeout=TIMEOUT_S)
        error = self._asking.exception() if self._asking.done() else TimeoutError()
        if error is None:
            self._known = self._asking.result()
        else:
            fields = {"error": type(error).__name__}
            self._logger.warning("the cluster's nodes are not told", extra={"fields": fields})

    async def _ask(self, node: Node) -> bytes | None:
        headers = {"Accept-Encoding": "identity"}
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._client.stream("GET", node.metrics_url, headers=headers) as reply,
            ):
                reply.raise_for_status()
                return await read_body(reply, MAX_NODE_BYTES)
        except (httpx.HTTPError, TimeoutError, UnreadableBody) as error:
            fields = {"node": node.node_id, "error": type(error).__name__}
            self._logger.warning("no metrics of a node", extra={"fields": fields})
            return None


def merged(texts: Iterable[bytes], silent: int) -> bytes:
    """One exposition of those of several nodes; `silent`: how many more nodes there are."""
    answered = 0
    families: dict[str, Metric] = {}
    histograms: dict[str, _Histogram] = {}
    for text in texts:
        try:
            told = _ours(text)
        except ValueError:  # no exposition at all
            silent += 1
            continue
        answered += 1
        for metric in told:
            _take(metric, families, histograms)
    nodes = GaugeMetricFamily("nilm_metrics_nodes", "Nodes by whether they told their figures", labels=["state"])
    nodes.add_metric(["answered"], answered)
    nodes.add_metric(["silent"], silent)
    registry = CollectorRegistry()
    registry.register(_Told([*families.values(), *_assembled(histograms), nodes]))
    return generate_latest(registry)


def _ours(text: bytes) -> list[Metric]:
    """Raises ValueError."""
    lines = (line for line in text.splitlines(keepends=True) if line.startswith(OURS))
    return list(text_string_to_metric_families(b"".join(lines).decode()))


def _take(told: Metric, families: dict[str, Metric], histograms: dict[str, _Histogram]) -> None:
    """Ray tells everything as a gauge; what it is, its name says."""
    name = told.name.removeprefix(RAY_PREFIX)
    if name.endswith((BUCKET_SUFFIX, SUM_SUFFIX)):
        histogram = histograms.setdefault(name.rpartition("_")[0], _Histogram(told.documentation))
        for sample in told.samples:
            labels = _labels(sample.labels)
            if name.endswith(SUM_SUFFIX):
                histogram.sums[labels] = sample.value
            else:
                bound = sample.labels[BUCKET_LABEL]
                histogram.buckets.setdefault(labels, {})[bound] = sample.value
        return
    kind = "counter" if name.endswith(TOTAL_SUFFIX) else "gauge"
    family = families.setdefault(name, Metric(name.removesuffix(TOTAL_SUFFIX), told.documentation, kind))
    for sample in told.samples:
        family.add_sample(name, dict(_labels(sample.labels)), sample.value)


def _labels(labels: dict[str, str]) -> Labels:
    """Without the bound of a bucket."""
    kept = {k: value for k, value in labels.items() if k not in DROPPED_LABELS and not k.startswith(OTEL_PREFIX)}
    return tuple(sorted({**kept, NODE_LABEL: labels.get(NODE_ADDRESS_LABEL, "")}.items()))


class _Told(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _assembled(histograms: dict[str, _Histogram]) -> Iterator[Metric]:
    for name, histogram in histograms.items():
        metric = Metric(name, histogram.text, "histogram")
        for labels, counts in histogram.buckets.items():
            # A report between two buckets of one observation would make the later one the smaller.
            up_to = 0.0
            for bound in sorted(counts, key=float):
                up_to = max(up_to, counts[bound])
                metric.add_sample(name + BUCKET_SUFFIX, {**dict(labels), BUCKET_LABEL: bound}, up_to)
            metric.add_sample(f"{name}_count", dict(labels), up_to)
            metric.add_sample(name + SUM_SUFFIX, dict(labels), histogram.sums.get(labels, 0.0))
        yield metric
