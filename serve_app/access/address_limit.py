"""Pure ASGI middleware: the quota of one client address, taken before anyone is authenticated.

It stands inside the request context (which gives it the request's id, and the refusal its log line) and outside the
routes: a refused request costs no token check. Refuses with 429.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.access.client_address import ClientAddresses, limit_key
from serve_app.access.counting import Quotas, count
from serve_app.access.quotas import IP_QUOTA
from serve_app.middleware import context_of, problem_reply
from serve_app.problems import Problem


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
        logger: logging.Logger,
    ) -> None:
        self._app = app
        self._quotas = quotas
        self._addresses = addresses
        self._exempt_paths = frozenset(exempt_paths)
        self._logger = logger
        self._warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._exempt_paths:
            await self._app(scope, receive, send)
            return
        forwarded_for = Headers(scope=scope).getlist("x-forwarded-for")
        address = self._addresses.of(scope.get("client"), forwarded_for)
        if forwarded_for and not self._warned and not self._addresses.believes(scope.get("client")):
            # Once: anybody can send the header. An operator whose own proxy sends it must learn why all share a quota.
            self._warned = True
            self._logger.warning("X-Forwarded-For from a peer that is not in TRUSTED_PROXIES is not believed")
        try:
            await count(self._quotas, IP_QUOTA, limit_key(address), context_of(scope))
        except Problem as problem:
            await problem_reply(scope, problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)
