"""What signed claims make of their bearer, and the memory of tokens that were accepted.

The memory makes a client's next request cost a hash and not a signature check. It holds no token, only its SHA-256.
Whether an entry still counts is the verifier's question: it asks for the key again.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from serve_app.access.keys import VerificationKey
from serve_app.access.principal import Principal, Role
from serve_app.problems import Problem, Problems

AUDIENCE = "authenticated"
LEEWAY_S = 30
"""How far the clocks of the issuer and of this machine may be apart."""
MAX_USER_ID_LENGTH = 128
LATEST_TIME = 253_402_300_799
"""The end of the year 9999: a later time is a mistake, not a date."""
CAPACITY = 4096
"""Callers of one minute at the full rate of one replica; about 2 MB."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A token's caller, until when it counts (Unix seconds, leeway included), and the key that signed it.

    `key` is None for the shared secret, which cannot change while the process lives.
    """

    principal: Principal
    until_s: float
    key: VerificationKey | None


class VerifiedTokens:
    """At most `capacity` entries; the one unused for longest makes room."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[bytes, Verified] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"VerifiedTokens({len(self)} of {self._capacity})"

    def get(self, digest: bytes, now_s: float) -> Verified | None:
        """The entry, unless its time is over."""
        entry = self._entries.get(digest)
        if entry is None:
            return None
        if now_s >= entry.until_s:
            self.drop(digest)
            return None
        self._entries.move_to_end(digest)
        return entry

    def put(self, digest: bytes, entry: Verified) -> None:
        """Remember an accepted token."""
        self._entries[digest] = entry
        self._entries.move_to_end(digest)
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def drop(self, digest: bytes) -> None:
        """Forget a token, known or not."""
        self._entries.pop(digest, None)


def malformed(detail: str) -> Problem:
    """The problem of a token that cannot be used."""
    return Problem(Problems.TOKEN_MALFORMED, detail)


def accepted(claims: dict[str, Any], key: VerificationKey | None, *, issuer: str, now_s: float) -> Verified:
    """What signed claims make of their bearer. `nbf` and `iat` may be absent; if present, neither may lie ahead."""
    # The issuer first, so that a project's API key (`iss: supabase`, no `sub`) is named as foreign.
    if _required(claims, "iss") != issuer:
        raise Problem(Problems.TOKEN_WRONG_ISSUER, "The token's issuer is not ours.")
    named = _required(claims, "aud")
    audience = named if isinstance(named, list) else [named]
    if AUDIENCE not in audience or not all(isinstance(name, str) for name in audience):
        raise Problem(Problems.TOKEN_WRONG_AUDIENCE, f"The token's audience is not {AUDIENCE!r}.")
    user_id = _required(claims, "sub")
    if not isinstance(user_id, str) or not 0 < len(user_id) <= MAX_USER_ID_LENGTH or not user_id.isprintable():
        raise malformed("The token's subject is not usable.")
    until_s = _time("exp", _required(claims, "exp")) + LEEWAY_S
    if now_s >= until_s:
        raise Problem(Problems.TOKEN_EXPIRED, "The token has expired; sign in again.")
    if any(name in claims and _time(name, claims[name]) > now_s + LEEWAY_S for name in ("nbf", "iat")):
        raise malformed("The token is not valid yet.")
    return Verified(Principal(user_id, _token_role(claims)), until_s, key)


def _required(claims: dict[str, Any], name: str) -> Any:
    if claims.get(name) is None:
        raise malformed(f"The token lacks the claim {name!r}.")
    return claims[name]


def _time(name: str, value: object) -> float:
    """A NumericDate (RFC 7519, 2): Unix seconds, a JSON number; neither a boolean nor a text that looks like one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value <= LATEST_TIME:
        raise malformed(f"The token's {name!r} is not a time.")
    return value


def _token_role(claims: dict[str, Any]) -> Role | None:
    if claims.get("is_anonymous", False) is not False:
        return Role.USER  # and not None: somebody without an account holds no office, whatever a profile says
    metadata = claims.get("app_metadata")
    role = metadata.get("role") if isinstance(metadata, dict) else None
    return Role(role) if isinstance(role, str) and role in set(Role) else None
