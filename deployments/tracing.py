"""Spans of the stages of a request, across deployments, for those requests that are traced.

Off unless `OTEL_TRACES_EXPORTER` says where spans go: `otlp` (with OpenTelemetry's own variables, such as
`OTEL_EXPORTER_OTLP_ENDPOINT`; needs the extra `otlp`), `console`, or what another installed package provides. The
ingress decides which requests are traced; what crosses a handle is the `traceparent` of W3C Trace Context, and only of
those. Spans are sent by a thread beside the requests, and dropped when their receiver is too slow.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

EXPORTER_VARIABLE = "OTEL_TRACES_EXPORTER"
OFF, OTLP, OTLP_HTTP = "none", "otlp", "otlp_proto_http"
SERVICE = "nilm-serve"
NS_PER_MS = 1_000_000
CLOSE_S = 2.0

Attributes = Mapping[str, str | int | float]


class TracingFault(ValueError):
    """The environment names an exporter that there is not."""


def chosen_exporter() -> type[SpanExporter] | None:
    """Where spans go; None: nowhere. Raises TracingFault."""
    name = os.environ.get(EXPORTER_VARIABLE, "").strip() or OFF
    if name == OFF:
        return None
    found = [*entry_points(group="opentelemetry_traces_exporter", name=OTLP_HTTP if name == OTLP else name)]
    if not found:
        raise TracingFault(
            f"{EXPORTER_VARIABLE} is {name!r}, which no installed package provides; otlp: the extra `otlp`"
        )
    exporter: type[SpanExporter] = found[0].load()
    return exporter


@dataclass
class RequestTrace:
    """One traced request at the ingress: its span, and that of the stage it is in."""

    tracer: Tracer
    span: Span
    stage: Span | None = None

    def begin(self, stage: str) -> Span:
        """The span of a stage, to be ended; what is asked of other deployments meanwhile belongs to it."""
        self.stage = self.tracer.start_span(stage, context=set_span_in_context(self.span))
        return self.stage

    @property
    def trace_id(self) -> str:
        """Its client's, or a new one."""
        return traceparent(self.span).split("-")[1]

    @property
    def traceparent(self) -> str:
        """For the client."""
        return traceparent(self.span)

    @property
    def for_others(self) -> str:
        """For whoever is asked now."""
        return traceparent(self.stage if self.stage is not None and self.stage.is_recording() else self.span)

    def end(self, name: str, attributes: Attributes, *, failed: bool) -> None:
        """The request is answered."""
        self.span.update_name(name)
        self.span.set_attributes(attributes)
        if failed:
            self.span.set_status(Status(StatusCode.ERROR))
        self.span.end()


class Tracing:
    """Of one replica. `per_second`: requests that are traced at most; spans of others' requests are not limited."""

    def __init__(self, deployment: str, replica: str, per_second: float = 0.0) -> None:
        """Raises TracingFault."""
        self._provider = _provider(deployment, replica)
        self._tracer = None if self._provider is None else self._provider.get_tracer(SERVICE)
        self._per_second = per_second
        self._left, self._left_at_s = per_second, time.monotonic()

    @property
    def on(self) -> bool:
        """Whether spans go anywhere."""
        return self._tracer is not None

    def request(self, parent: str | None) -> RequestTrace | None:
        """A request begins, as part of its client's trace (`parent`, a `traceparent`) or of a new one.

        None when it is not traced: its client does not trace, others are traced already, or a sampler that
        OpenTelemetry's variables name says so.
        """
        if self._tracer is None or (parent is not None and not int(parent[-2:], 16) & TraceFlags.SAMPLED):
            return None
        if not self._may_begin():
            return None
        context = None if parent is None else set_span_in_context(_remote(parent))
        span = self._tracer.start_span("request", context=context, kind=SpanKind.SERVER)
        return RequestTrace(self._tracer, span) if span.is_recording() else None

    def past(self, parent: str, name: str, end_ns: int, took_ms: float, attributes: Attributes) -> None:
        """What has just been done for a traced request. `parent`: its `traceparent`; `end_ns`: Unix time."""
        if self._tracer is None:
            return
        start_ns = end_ns - int(took_ms * NS_PER_MS)
        context = set_span_in_context(_remote(parent))
        self._tracer.start_span(name, context=context, start_time=start_ns, attributes=attributes).end(end_ns)

    def close(self) -> None:
        """Send what is left. Blocks for CLOSE_S at most: nobody waits for a collector that is away."""
        if self._provider is not None:
            closing = threading.Thread(target=self._provider.shutdown, daemon=True)
            closing.start()
            closing.join(CLOSE_S)

    def _may_begin(self) -> bool:
        """Clients ask for traces by a header: more than this they do not get."""
        now = time.monotonic()
        self._left = min(max(1.0, self._per_second), self._left + (now - self._left_at_s) * self._per_second)
        self._left_at_s = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def traceparent(span: Span) -> str:
    """W3C Trace Context, level 1."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"


def _remote(parent: str) -> Span:
    _, trace_id, span_id, _ = parent.split("-")
    return NonRecordingSpan(SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(TraceFlags.SAMPLED)))


def _provider(deployment: str, replica: str) -> TracerProvider | None:
    exporter = chosen_exporter()
    if exporter is None:
        return None
    attributes = {"service.name": SERVICE, "service.instance.id": replica, "nilm.deployment": deployment}
    # Not at exit: that would wait for a collector that is away, half a minute long.
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter()))
    return provider
