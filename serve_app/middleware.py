"""Pure ASGI middleware: request context (id, trace, quota headers, access log, last-resort 500).

Order, outermost first: CORS (so that every refusal carries it), request context, admission, quota of the client's
address, size and time limits, routes.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.tracing import RequestTrace, Tracing
from serve_app.access.quotas import Verdict, policy_header, state_header
from serve_app.metrics import HttpMetrics
from serve_app.problems import Problem, Problems, problem_response

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)
CLIENT_GONE = 499
"""Logged and counted, never sent: nginx's code for a client that hung up. As a 500 it would raise our alarms."""
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
"""Replies are data: no browser may run, frame or sniff them. Which origins may read them is CORS' business."""
_SECURITY_HEADERS = tuple((name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items())
API_PREFIX = "/api"
"""Every route is served below it too."""
METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS"})
"""Those that a span names; OpenTelemetry's word for any other is `_OTHER`."""
DOCS_PATH = "/docs"
"""The one page that runs scripts; closed in production unless asked for."""


@dataclass(slots=True)
class RequestContext:
    """What one request carries through the service. `deadline_s` is an instant of `time.time()`."""

    request_id: str
    trace_id: str
    deadline_s: float
    started_s: float = field(default_factory=time.perf_counter)
    user_id: str | None = None
    problem_code: str | None = None
    stages_ms: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    """Of the quotas this request was counted against."""
    trace: RequestTrace | None = None
    """Of a request that is traced."""
    replayed: bool = False
    """An earlier request with the same Idempotency-Key got this reply."""

    def remaining_s(self) -> float:
        """Seconds until the deadline, never negative."""
        return max(0.0, self.deadline_s - time.time())

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time spent inside to a stage, also when it ends in a failure."""
        started = time.perf_counter()
        span = None if self.trace is None else self.trace.begin(stage)
        try:
            yield
        finally:
            self.stages_ms[stage] = self.stages_ms.get(stage, 0.0) + (time.perf_counter() - started) * 1000
            if span is not None:
                span.end()

    @property
    def trace_for_others(self) -> str | None:
        """The `traceparent` for other deployments, of a request that is traced."""
        return None if self.trace is None else self.trace.for_others

    def server_timing(self) -> str:
        """The Server-Timing header: milliseconds by stage."""
        return ", ".join(f"{name};dur={value:.2f}" for name, value in self.stages_ms.items())


def context_of(scope: Scope) -> RequestContext:
    """The context the middleware put into this request's scope."""
    return cast(RequestContext, scope["nilm.context"])


def problem_reply(scope: Scope, problem: Problem, instance: str | None = None) -> Response:
    """The reply that refuses this request; the log line will name the problem. `instance`: the path if left out."""
    context = context_of(scope)
    context.problem_code = problem.kind.value.code
    return problem_response(problem, instance=instance or scope["path"], request_id=context.request_id)


class RequestContextMiddleware:
    """Gives each request its id, trace and deadline; logs and measures it; turns a crash into a plain 500."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        timeout_s: float,
        metrics: HttpMetrics,
        tracing: Tracing,
        logger: logging.Logger,
        untraced_paths: Collection[str] = (),
    ) -> None:
        self._app = app
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._tracing = tracing
        self._untraced_paths = frozenset(untraced_paths)
        self._logger = logger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        context = new_context(headers, self._timeout_s)
        if self._tracing.on and scope["path"] not in self._untraced_paths:
            self._begin_trace(headers, context)
        scope["nilm.context"] = context
        status = 500
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                started = True
                status = message["status"]
                message["headers"] = [*message["headers"], *reply_headers(scope, context, message["headers"])]
                if headers.get("x-request-id") != context.request_id:
                    # Serve gives every request an id and appends it to the reply itself; twice the same header would
                    # reach a browser as one value "id, id".
                    message["headers"].append((b"x-request-id", context.request_id.encode()))
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            if not started:
                status = CLIENT_GONE
            raise
        except Exception:
            # The last line of defence: the client gets no internals, the log gets everything.
            self._logger.exception("request crashed", extra={"fields": {"request_id": context.request_id}})
            if started:
                raise
            problem = Problem(Problems.INTERNAL, "The failure was logged under this request id.")
            await problem_reply(scope, problem)(scope, receive, send_with_headers)
        finally:
            self._finish(scope, context, status)

    def _begin_trace(self, headers: Headers, context: RequestContext) -> None:
        given = headers.get("traceparent", "")
        context.trace = self._tracing.request(given if TRACEPARENT.fullmatch(given) else None)
        if context.trace is not None:
            context.trace_id = context.trace.trace_id

    def _finish(self, scope: Scope, context: RequestContext, status: int) -> None:
        seconds = time.perf_counter() - context.started_s
        route = scope.get("route")
        refused_before_routing = context.problem_code not in {None, Problems.NOT_FOUND.value.code}
        template = getattr(route, "path", None) or ("refused" if refused_before_routing else "unmatched")
        self._metrics.answered(template.removeprefix(API_PREFIX), status, seconds, context.stages_ms, context.verdicts)
        if context.replayed:
            self._metrics.replayed()
            context.labels["replayed"] = "true"
        fields: dict[str, object] = {
            "request_id": context.request_id,
            "trace_id": context.trace_id,
            "method": scope["method"],
            "route": template,
            "status": status,
            "duration_ms": round(seconds * 1000, 2),
            **{f"{name}_ms": round(value, 2) for name, value in context.stages_ms.items()},
            **context.labels,
        }
        if context.user_id is not None:
            fields["user_id"] = context.user_id
        if context.problem_code is not None:
            fields["code"] = context.problem_code
        if context.trace is not None:
            method = scope["method"] if scope["method"] in METHODS else "_OTHER"
            attributes = {
                "http.request.method": method,
                "http.route": template,
                "http.response.status_code": status,
                "nilm.request_id": context.request_id,
                **{f"nilm.{name}": value for name, value in context.labels.items()},
            }
            context.trace.end(f"{method} {template}", attributes, failed=status >= 500)
        level = logging.ERROR if status == 500 else logging.WARNING if status > 500 else logging.INFO
        self._logger.log(level, "request", extra={"fields": fields})


def reply_headers(
    scope: Scope, context: RequestContext, present: Iterable[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes]]:
    """What every reply says besides what its route said and its id."""
    traced = context.trace
    yield b"traceparent", (traced.traceparent if traced else f"00-{context.trace_id}-{_hex_digits(16)}-00").encode()
    if context.stages_ms:
        yield b"server-timing", context.server_timing().encode()
    if context.verdicts:
        yield b"ratelimit-policy", policy_header(context.verdicts).encode()
        yield b"ratelimit", state_header(context.verdicts).encode()
    given = {name for name, _ in present}
    for name, value in _SECURITY_HEADERS:
        if name not in given and (name != b"content-security-policy" or scope["path"] != DOCS_PATH):
            yield name, value


def _hex_digits(count: int) -> str:
    """Of an id that names and guards nothing: three draws of the system's randomness cost a tenth of a request."""
    return f"{random.getrandbits(4 * count):0{count}x}"


def new_context(headers: Headers, timeout_s: float) -> RequestContext:
    offered = headers.get("x-request-id", "")
    request_id = offered if REQUEST_ID.fullmatch(offered) else _hex_digits(32)
    trace = TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    trace_id = trace.group(1) if trace else _hex_digits(32)
    return RequestContext(request_id=request_id, trace_id=trace_id, deadline_s=time.time() + timeout_s)
