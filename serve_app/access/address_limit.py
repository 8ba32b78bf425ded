"""Pure ASGI middleware: the quota of one client address, taken before anyone is authenticated.

It stands inside the request context (which gives it the request's id, and the refusal its log line) and outside the
routes: a refused request costs no token check. Refuses with 429.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.access.client_address import ClientAddresses, limit_key
from serve_app.access.quota_window import Verdict
from serve_app.access.quotas import IP_QUOTA, rate_limited
from serve_app.middleware import context_of
from serve_app.problems import problem_response


class Quotas(Protocol):
    """The part of SharedQuotas that is used here."""

    async def take(self, quota: str, key: str) -> Verdict:
        """Grant or refuse one request."""
        ...


class AddressLimitMiddleware:
    """Takes each request from the quota of its client address; see client_address for whose that is.

    `exempt_paths` are the probes: an orchestrator that is refused would restart us. The verdict is left in the
    request's context, for whoever writes the RateLimit headers.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        quotas: Quotas,
        addresses: ClientAddresses,
        exempt_paths: Collection[str],
    ) -> None:
        self._app = app
        self._quotas = quotas
        self._addresses = addresses
        self._exempt_paths = frozenset(exempt_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._exempt_paths:
            await self._app(scope, receive, send)
            return
        forwarded_for = Headers(scope=scope).getlist("x-forwarded-for")
        address = self._addresses.of(scope.get("client"), forwarded_for)
        verdict = await self._quotas.take(IP_QUOTA, limit_key(address))
        context = context_of(scope)
        context.verdicts.append(verdict)
        if verdict.allowed:
            await self._app(scope, receive, send)
            return
        problem = rate_limited(verdict)
        context.problem_code = problem.kind.value.code
        response = problem_response(problem, instance=scope["path"], request_id=context.request_id)
        await response(scope, receive, send)
