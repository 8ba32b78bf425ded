"""Refuses at once what there is no room for, so that what was let in keeps its time.

Without it requests would queue until their deadline: all of them late, and the work of those that gave up done anyway.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.middleware import problem_reply
from serve_app.problems import Problem, Problems

SERVE_PATHS = ("/-/healthz", "/-/routes")
"""Serve answers these itself, in front of the application; by the first HAProxy sees whether a replica lives."""


class Admission:
    """At most `limit` requests at a time, those of `exempt_paths` aside: probes and figures are wanted most now."""

    def __init__(self, limit: int, exempt_paths: Collection[str]) -> None:
        self._limit = limit
        self._exempt_paths = frozenset(exempt_paths).union(SERVE_PATHS)
        self.in_flight = 0

    def counts(self, scope: Scope) -> bool:
        """Whether this request takes room."""
        return scope["type"] == "http" and scope["path"] not in self._exempt_paths

    @property
    def full(self) -> bool:
        """Whether there is room for no more."""
        return self.in_flight >= self._limit

    @property
    def problem(self) -> Problem:
        """What those are told who are not let in."""
        return Problem(Problems.OVERLOADED, f"{self._limit} requests are being answered already.")


class AdmissionMiddleware:
    """Counts requests in and out."""

    def __init__(self, app: ASGIApp, *, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        admission = self._admission
        if not admission.counts(scope):
            await self._app(scope, receive, send)
        elif admission.full:
            await problem_reply(scope, admission.problem)(scope, receive, send)
        else:
            admission.in_flight += 1
            try:
                await self._app(scope, receive, send)
            finally:
                admission.in_flight -= 1
