"""The token check of every baseline: HS256 by the shared secret, audience, issuer and leeway as in the service."""

from __future__ import annotations

import time

import jwt

AUDIENCE, ISSUER, LEEWAY_S = "authenticated", "nilm-development", 30
REMEMBERED_TOKENS = 10_000


class TokenCheck:
    """A Supabase access token by the shared secret, verified anew for each request."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def user_id(self, authorization: str | None) -> str:
        """Who calls. Raises jwt.InvalidTokenError."""
        return str(self._claims(authorization)["sub"])

    def _claims(self, authorization: str | None) -> dict[str, object]:
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise jwt.InvalidTokenError("send the header Authorization: Bearer <token>")
        claims: dict[str, object] = jwt.decode(
            token,
            self._secret,
            algorithms=["HS256"],
            audience=AUDIENCE,
            issuer=ISSUER,
            leeway=LEEWAY_S,
            options={"require": ["exp", "sub", "aud", "iss"]},
        )
        return claims


class RememberedTokens(TokenCheck):
    """The same check, made once for each token until it expires."""

    def __init__(self, secret: str) -> None:
        super().__init__(secret)
        self._known: dict[str, tuple[str, float]] = {}

    def user_id(self, authorization: str | None) -> str:
        """Who calls. Raises jwt.InvalidTokenError."""
        known = self._known.get(authorization or "")
        if known is not None and time.time() < known[1]:
            return known[0]
        claims = self._claims(authorization)
        if len(self._known) >= REMEMBERED_TOKENS:
            self._known.clear()
        user_id, until_s = str(claims["sub"]), float(str(claims["exp"])) + LEEWAY_S
        self._known[authorization or ""] = user_id, until_s
        return user_id
