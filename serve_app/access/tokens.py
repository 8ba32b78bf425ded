"""Verifies bearer tokens: HS256 with the shared secret. Every refusal has its own problem code.

The algorithm allow-list is fixed here and never taken from the token, so `none` and key-confusion tokens fail.
"""

from __future__ import annotations

from typing import Any

import jwt

from serve_app.access.principal import Principal
from serve_app.problems import Problem, Problems

AUDIENCE = "authenticated"
LEEWAY_S = 30
MAX_TOKEN_BYTES = 8192
MAX_USER_ID_LENGTH = 128
_ALGORITHMS = ["HS256"]


class TokenVerifier:
    """Turns an `Authorization` header into a Principal, or raises a 401 Problem."""

    def __init__(self, *, secret: str, issuer: str) -> None:
        self._secret = secret
        self._issuer = issuer

    def __repr__(self) -> str:
        return f"TokenVerifier(issuer={self._issuer!r})"

    def principal(self, authorization: str | None) -> Principal:
        """Verify `Bearer <token>`. Raises Problem (401) with the reason's own code."""
        if not authorization:
            raise Problem(Problems.TOKEN_MISSING, "Send the header `Authorization: Bearer <token>`.")
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise Problem(Problems.TOKEN_MISSING, "The Authorization header is not of the form `Bearer <token>`.")
        if len(token) > MAX_TOKEN_BYTES:
            raise Problem(Problems.TOKEN_MALFORMED, f"The token is longer than {MAX_TOKEN_BYTES} bytes.")
        return _principal(self._claims(token))

    def _claims(self, token: str) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                self._secret,
                algorithms=_ALGORITHMS,
                audience=AUDIENCE,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "sub", "aud", "iss"]},
            )
        except jwt.ExpiredSignatureError:
            raise Problem(Problems.TOKEN_EXPIRED, "The token has expired; sign in again.") from None
        except jwt.InvalidAudienceError:
            raise Problem(Problems.TOKEN_WRONG_AUDIENCE, f"The token's audience is not {AUDIENCE!r}.") from None
        except jwt.InvalidIssuerError:
            raise Problem(Problems.TOKEN_WRONG_ISSUER, "The token's issuer is not ours.") from None
        except jwt.InvalidAlgorithmError:
            raise Problem(Problems.TOKEN_FORBIDDEN_ALGORITHM, "Only HS256 tokens are accepted.") from None
        except jwt.InvalidSignatureError:
            raise Problem(Problems.TOKEN_BAD_SIGNATURE, "The token was not signed with our key.") from None
        except jwt.MissingRequiredClaimError as error:
            raise Problem(Problems.TOKEN_MALFORMED, f"The token lacks the claim {error.claim!r}.") from None
        except (jwt.InvalidTokenError, ValueError):
            # ValueError: PyJWT lets some malformed headers and numbers through as plain errors.
            raise Problem(Problems.TOKEN_MALFORMED, "The token is not a readable JWT.") from None


def _principal(claims: dict[str, Any]) -> Principal:
    user_id = claims["sub"]
    if not isinstance(user_id, str) or not 0 < len(user_id) <= MAX_USER_ID_LENGTH or not user_id.isprintable():
        raise Problem(Problems.TOKEN_MALFORMED, "The token's subject is not usable.")
    metadata = claims.get("app_metadata")
    granted = metadata.get("buildings") if isinstance(metadata, dict) else None
    buildings = frozenset(b for b in granted if isinstance(b, str)) if isinstance(granted, list) else frozenset()
    return Principal(user_id=user_id, buildings=buildings)
