"""In front of all that Serve does for a request in an ingress replica: six times as much work as to refuse it here.

Where HAProxy sends requests to the replicas themselves, Serve puts what `door` says around its own application there.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.admission import Admission
from serve_app.metrics import HttpMetrics
from serve_app.middleware import new_context, reply_headers
from serve_app.problems import problem_response

LOG_EVERY_S = 1.0
"""A line for each refusal would cost more than the refusal."""
_INSTANCE, _REQUEST_ID = "/its/path", "its-request-id"


class Refusals:
    """Answers those that `admission` has no room for as the application behind the door would; logs how many."""

    def __init__(self, admission: Admission, metrics: HttpMetrics, logger: logging.Logger) -> None:
        self._metrics = metrics
        self._logger = logger
        self._code = admission.problem.kind.value.code
        response = problem_response(admission.problem, instance=_INSTANCE, request_id=_REQUEST_ID)
        self._status = response.status_code
        self._headers = [(name, value) for name, value in response.raw_headers if name != b"content-length"]
        body = bytes(response.body)
        self._before, rest = body.split(json.dumps(_INSTANCE).encode())
        self._between, self._after = rest.split(_REQUEST_ID.encode())
        self._refused = 0
        self._logged_s = -LOG_EVERY_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = new_context(Headers(scope=scope), 0.0)
        instance, request_id = json.dumps(scope["path"], ensure_ascii=False).encode(), context.request_id.encode()
        body = b"".join((self._before, instance, self._between, request_id, self._after))
        headers = [(b"content-length", b"%d" % len(body)), (b"x-request-id", request_id), *self._headers]
        headers += reply_headers(scope, context, headers)
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self._metrics.answered("refused", self._status, time.perf_counter() - context.started_s)
        self._log()

    def _log(self) -> None:
        self._refused += 1
        now = time.monotonic()
        if now - self._logged_s >= LOG_EVERY_S:
            self._logger.warning("refused", extra={"fields": {"code": self._code, "requests": self._refused}})
            self._refused, self._logged_s = 0, now


class Door:
    """The middleware. A process has one application behind it, which says with `guard` how much room it has.

    Without one, as in Serve's own proxies, every request passes.
    """

    _admission: Admission | None = None
    _refusals: ASGIApp | None = None

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    @classmethod
    def guard(cls, admission: Admission, refusals: Refusals, **cors: Any) -> None:
        """From now on `refusals` answers, in this process, what `admission` has no room for."""
        cls._admission, cls._refusals = admission, CORSMiddleware(refusals, **cors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        admission, refusals = self._admission, self._refusals
        if admission is not None and refusals is not None and admission.full and admission.counts(scope):
            await refusals(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def door() -> list[Middleware]:
    """For `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`."""
    return [Middleware(Door)]
