"""What a route asks of its caller. Every route declares one scope; a test fails on a route that declares none."""

from __future__ import annotations

import asyncio
import hmac
from enum import StrEnum
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from serve_app.access.counting import count
from serve_app.access.principal import Principal, Role
from serve_app.access.quotas import USER_QUOTA
from serve_app.middleware import RequestContext, context_of
from serve_app.problems import Problem, Problems
from serve_app.services import Services, services_of

BEARER = HTTPBearer(auto_error=False, bearerFormat="JWT", description="An access token of the identity provider")
ADMIN_TOKEN_HEADER = "X-Admin-Token"  # noqa: S105 - a header's name


class Scope(StrEnum):
    """Who may call."""

    PUBLIC = "public"
    """Anyone, uncounted: probes."""
    USER = "user"
    """Whoever has a valid token, within the user's quota."""
    METRICS = "metrics"
    """A scraper with ADMIN_TOKEN as its bearer token, uncounted; or the role admin or super_admin: figures tell how the
    service is used, which is nobody's business who may merely sign up."""
    ADMIN = "admin"
    """As USER with the role admin or super_admin, and the header X-Admin-Token where ADMIN_TOKEN is set."""


class Public:
    """FastAPI dependency that declares a route open to anyone."""

    scope = Scope.PUBLIC

    async def __call__(self) -> None: ...


class Requires:
    """FastAPI dependency that lets nobody through but the scope's callers. Raises Problem 401, 403, 429, 503.

    Gives the principal, or None to a scraper.
    """

    def __init__(self, scope: Scope, quota: str = USER_QUOTA) -> None:
        self.scope = scope
        self._quota = quota

    async def __call__(
        self,
        request: Request,
        # For the OpenAPI document; the header is read and refused by us, with our problem documents.
        _: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)],
    ) -> Principal | None:
        services, context = services_of(request), context_of(request.scope)
        authorization = request.headers.get("authorization")
        if self.scope is Scope.METRICS and _is_scraper(services, authorization):
            return None
        with context.timed("auth"):
            principal = await authenticate(services, context, authorization, self._quota)
            if self.scope is not Scope.USER:
                await _check_role(services, principal, context)
            if self.scope is Scope.ADMIN:
                _check_admin_token(services, request.headers.get(ADMIN_TOKEN_HEADER, ""))
        return principal


async def authenticate(
    services: Services, context: RequestContext, authorization: str | None, quota: str = USER_QUOTA
) -> Principal:
    """The verified caller, counted against this quota of the user. A refused token counts against nobody's."""
    principal = services.verifier.known(authorization)
    if principal is None:
        try:
            async with asyncio.timeout(context.remaining_s()):
                principal = await services.verifier.principal(authorization)
        except TimeoutError:
            raise Problem(Problems.IDENTITY_UNAVAILABLE, "The identity provider did not answer in time.") from None
    context.user_id = principal.user_id
    await count(services.quotas, quota, principal.user_id, context)
    return principal


def _is_scraper(services: Services, authorization: str | None) -> bool:
    expected = services.settings.admin_token.get_secret_value()
    return bool(expected) and hmac.compare_digest((authorization or "").encode(), f"Bearer {expected}".encode())


async def _check_role(services: Services, principal: Principal, context: RequestContext) -> None:
    role: Role = principal.token_role or (await services.grants.grants(principal, context.remaining_s())).role
    if not role.is_admin:
        raise Problem(Problems.FORBIDDEN_ROLE, "This needs the role admin or super_admin.")


def _check_admin_token(services: Services, offered: str) -> None:
    expected = services.settings.admin_token.get_secret_value()
    if expected and not hmac.compare_digest(offered.encode(), expected.encode()):
        raise Problem(Problems.ADMIN_TOKEN_WRONG, f"Send the admin token in the header {ADMIN_TOKEN_HEADER}.")
