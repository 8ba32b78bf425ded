"""Pure ASGI middleware: refuses at once what there is no room for, so that what was let in keeps its time.

Without it requests would queue until their deadline: all of them late, and the work of those that gave up done anyway.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.middleware import problem_reply
from serve_app.problems import Problem, Problems


class AdmissionMiddleware:
    """At most `limit` requests at a time, those of `exempt_paths` aside: probes and figures are wanted most now."""

    def __init__(self, app: ASGIApp, *, limit: int, exempt_paths: Collection[str]) -> None:
        self._app = app
        self._limit = limit
        self._exempt_paths = frozenset(exempt_paths)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._exempt_paths:
            await self._app(scope, receive, send)
            return
        if self._in_flight >= self._limit:
            problem = Problem(Problems.OVERLOADED, f"{self._limit} requests are being answered already.")
            await problem_reply(scope, problem)(scope, receive, send)
            return
        self._in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_flight -= 1
