"""Verifies bearer tokens. Every refusal has its own problem code; no detail repeats what the token says.

Two kinds of key, never mixed: the shared secret checks HS256 only, a published key only the algorithm of its own type.
The token merely names its key. Headers that bring or point to keys (`jwk`, `jku`, `x5c`, `x5u`) are not read.
The signature is checked before any claim, and the claims before the caller is anybody.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from typing import Any, Final

import jwt
from jwt.algorithms import HMACAlgorithm

from serve_app.access.keys import KEY_ALGORITHMS, MAX_KID_LENGTH, JwksCache, VerificationKey
from serve_app.access.principal import Principal
from serve_app.access.verified import CAPACITY, VerifiedTokens, accepted, malformed
from serve_app.problems import Problem, Problems

MAX_TOKEN_BYTES = 8192
MIN_SECRET_BYTES = 32
"""RFC 7518, 3.2: an HS256 key has at least the size of the hash output, 256 bits."""

_SECRET_ALGORITHM: Final = "HS256"  # noqa: S105 - an algorithm's name, not a secret
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", re.ASCII)
"""Three segments of unpadded base64url; the last may be empty, so that unsigned tokens are named as such."""
_JWS: Final = jwt.PyJWS(algorithms=[_SECRET_ALGORITHM, *sorted(KEY_ALGORITHMS)])
"""Knows no other algorithm: `none` is not among them."""


class TokenVerifier:
    """Turns an `Authorization` header into a Principal, or raises a Problem.

    `secret`: the shared key of HS256 tokens; without one they are refused. `keys`: the provider's published keys;
    without them only the secret counts. `clock`: Unix seconds.
    """

    def __init__(
        self,
        *,
        issuer: str,
        secret: str | None,
        keys: JwksCache | None = None,
        clock: Callable[[], float] = time.time,
        remembered: int = CAPACITY,
    ) -> None:
        """Raises ValueError for a secret that is too short or is really a public key."""
        self._issuer = issuer
        self._secret = _checked_secret(secret) if secret else None
        self._keys = keys
        self._clock = clock
        self._verified = VerifiedTokens(remembered)

    def __repr__(self) -> str:
        return f"TokenVerifier(issuer={self._issuer!r}, secret={self._secret is not None}, keys={self._keys!r})"

    @property
    def usable(self) -> bool:
        """Whether some token could pass now: a secret is set, or published keys are known and not too old."""
        return self._secret is not None or (self._keys is not None and self._keys.usable)

    def refreshes(self) -> dict[tuple[str, ...], float]:
        """Fetches of the published keys so far, by outcome."""
        fetched, failed = (0, 0) if self._keys is None else (self._keys.fetched, self._keys.failed)
        return {("ok",): fetched, ("failed",): failed}

    async def start(self) -> None:
        """Fetch the published keys, if there are any to fetch, and keep them fresh. Never raises for a failed fetch."""
        if self._keys is not None:
            await self._keys.start()

    async def aclose(self) -> None:
        """Stop fetching keys."""
        if self._keys is not None:
            await self._keys.aclose()

    def known(self, authorization: str | None) -> Principal | None:
        """The bearer of a token that was accepted before and still counts. Raises Problem for what is no token."""
        digest = _digest(_bearer(authorization))
        known = self._verified.get(digest, self._clock())
        if known is None:
            return None
        if known.key is None or (self._keys is not None and self._keys.peek(known.key.kid) == known.key):
            return known.principal
        self._verified.drop(digest)  # its key is withdrawn, replaced or too old
        return None

    async def principal(self, authorization: str | None) -> Principal:
        """Verify `Bearer <token>`. Waits only for a key that is not known yet.

        Raises Problem: 401 with the reason's own code, 503 when the token's key cannot be looked up.
        """
        known = self.known(authorization)
        if known is not None:
            return known
        token = _bearer(authorization)
        key = await self._key(_json_object(_decoded(token.split(".")[0])))
        claims = _json_object(self._signed_payload(token, key))
        verified = accepted(claims, key, issuer=self._issuer, now_s=self._clock())
        self._verified.put(_digest(token), verified)
        return verified.principal

    async def _key(self, header: dict[str, Any]) -> VerificationKey | None:
        """The key that must have signed; None stands for the secret."""
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or "crit" in header or "b64" in header:
            # RFC 7515, 4.1.11: extensions that are critical and unknown must be refused, and we know none.
            raise malformed("The token's header is not usable.")
        if algorithm == _SECRET_ALGORITHM and self._secret is not None:
            return None
        if algorithm not in KEY_ALGORITHMS or self._keys is None:
            raise Problem(Problems.TOKEN_FORBIDDEN_ALGORITHM, "Tokens with this algorithm are not accepted.")
        if "kid" not in header:
            raise Problem(Problems.TOKEN_UNKNOWN_KEY, "The token does not say which key signed it.")
        kid = header["kid"]
        if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID_LENGTH:
            raise malformed("The token's key id is not usable.")
        key = await self._keys.key(kid)
        if key.algorithm != algorithm:
            raise Problem(Problems.TOKEN_FORBIDDEN_ALGORITHM, "The token's algorithm is not that of its key.")
        return key

    def _signed_payload(self, token: str, key: VerificationKey | None) -> bytes:
        algorithm = _SECRET_ALGORITHM if key is None else key.algorithm
        try:
            decoded = _JWS.decode_complete(token, key.jwk if key else self._secret or "", algorithms=[algorithm])
        except jwt.InvalidAlgorithmError:
            raise Problem(Problems.TOKEN_FORBIDDEN_ALGORITHM, "The token's algorithm is not accepted.") from None
        except jwt.InvalidSignatureError:
            raise Problem(Problems.TOKEN_BAD_SIGNATURE, "The token was not signed with our key.") from None
        except jwt.InvalidTokenError:
            raise malformed("The token is not a readable JWT.") from None
        return bytes(decoded["payload"])


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("ascii")).digest()


def _checked_secret(secret: str) -> str:
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"the shared secret has fewer than {MIN_SECRET_BYTES} bytes")
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except jwt.InvalidKeyError:
        raise ValueError("the shared secret is a public key or a certificate, which everybody knows") from None
    return secret


def _bearer(authorization: str | None) -> str:
    """The token of the header, of the right size and alphabet."""
    if not authorization:
        raise Problem(Problems.TOKEN_MISSING, "Send the header `Authorization: Bearer <token>`.")
    scheme, _, token = authorization.partition(" ")
    token = token.strip(" \t")
    if scheme.lower() != "bearer" or not token:
        raise Problem(Problems.TOKEN_MISSING, "The Authorization header is not of the form `Bearer <token>`.")
    if len(token) > MAX_TOKEN_BYTES:
        raise malformed(f"The token is longer than {MAX_TOKEN_BYTES} bytes.")
    if not _COMPACT.fullmatch(token):
        raise malformed("The token is not a readable JWT.")
    return token


def _decoded(segment: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except ValueError:
        raise malformed("The token is not a readable JWT.") from None


def _json_object(raw: bytes) -> dict[str, Any]:
    """A JSON object without repeated names and without NaN: one reading, whoever reads it."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise malformed("The token is not a readable JWT.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name occurs twice")
    return members


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
