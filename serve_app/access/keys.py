"""The identity provider's public signing keys: fetched over HTTP, cached, never waited for once there are keys.

Owns the JWKS document: which of its keys may verify what, how old they may be, how often the provider is asked.
Refuses symmetric and private keys, keys whose type does not fix one allowed algorithm, redirects and large documents.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import jwt
from cryptography.exceptions import UnsupportedAlgorithm

from serve_app.access.bounded_read import UnreadableBody, read_body
from serve_app.logs import LOGGER_NAME
from serve_app.problems import Problem, Problems

MAX_DOCUMENT_BYTES = 64 * 1024
MAX_KEYS = 32
MAX_KID_LENGTH = 128
RSA_BITS = range(2048, 8192 + 1)
"""RFC 7518, 3.3 asks for 2048 or more; far larger keys would make every check slow."""

_ALGORITHM_OF: Final = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
"""The one algorithm of each key type and curve. The key decides, never the token."""
_MEMBERS: Final = {"RS256": ("e", "kty", "n"), "ES256": ("crv", "kty", "x", "y"), "EdDSA": ("crv", "kty", "x")}
"""The public members of a key, in the order of RFC 7638 (thumbprints)."""
KEY_ALGORITHMS: Final = frozenset(_MEMBERS)

_logger = logging.getLogger(LOGGER_NAME)


class KeySetError(ValueError):
    """The provider's answer is not a key set; the text holds nothing of the answer."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key and the only algorithm it may verify. Equal keys have equal ids, algorithms and thumbprints."""

    kid: str
    algorithm: str
    thumbprint: str
    jwk: jwt.PyJWK = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class KeyTimings:
    """When keys are fetched and how long they are believed, in seconds."""

    ttl_s: float = 600.0
    """Younger keys are used as they are; older ones are used while a fetch runs beside them."""
    stale_s: float = 1200.0
    """How much longer keys are believed while the provider cannot be read."""
    unknown_kid_s: float = 30.0
    """Unknown key ids lead to a fetch only if the last one began this long ago, however many ids are tried."""
    retry_s: float = 5.0
    """From the end of a failed fetch to the next."""
    fetch_s: float = 5.0
    """Longest fetch, slow bytes included; below a request's deadline, which those without any key wait out."""
    tick_s: float = 5.0
    """How often the keeper looks whether a fetch is due."""


def parse_key_set(document: bytes) -> dict[str, VerificationKey]:
    """The usable keys by id; others are left out. Raises KeySetError when the document is no key set at all."""
    try:
        content = json.loads(document)
    except (ValueError, RecursionError):
        raise KeySetError("the key set is not JSON") from None
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise KeySetError("the key set has no list of keys")
    keys: dict[str, VerificationKey] = {}
    for entry in entries:
        key = _verification_key(entry) if isinstance(entry, dict) else None
        if key is not None and len(keys) < MAX_KEYS:
            keys.setdefault(key.kid, key)
    return keys


def _verification_key(entry: Mapping[str, Any]) -> VerificationKey | None:
    kid, kty, curve = entry.get("kid"), entry.get("kty"), entry.get("crv")
    if not all(isinstance(value, str) for value in (kid, kty)) or not isinstance(curve, str | None):
        return None
    algorithm = _ALGORITHM_OF.get((str(kty), curve))
    operations = entry.get("key_ops", ["verify"])
    if (
        algorithm is None
        or not 0 < len(str(kid)) <= MAX_KID_LENGTH
        or entry.get("alg", algorithm) != algorithm
        or entry.get("use", "sig") != "sig"
        or not (isinstance(operations, list) and "verify" in operations)
        or "d" in entry  # a private key that everybody can read proves nothing
        or not all(isinstance(entry.get(name), str) for name in _MEMBERS[algorithm])
    ):
        return None
    public = {name: entry[name] for name in _MEMBERS[algorithm]}
    try:
        jwk = jwt.PyJWK(public, algorithm=algorithm)
    except (jwt.PyJWTError, UnsupportedAlgorithm):
        return None
    if algorithm == "RS256" and jwk.key.key_size not in RSA_BITS:
        return None
    thumbprint = hashlib.sha256(json.dumps(public, separators=(",", ":")).encode()).hexdigest()
    return VerificationKey(str(kid), algorithm, thumbprint, jwk)


class JwksCache:
    """The provider's keys, for one event loop.

    `start` makes the first fetch and keeps the keys fresh; without it, requests start the fetches. One fetch runs at a
    time, for all who wait for it. A failed one leaves the known keys in force until they are too old.
    """

    def __init__(
        self,
        url: str,
        *,
        client: httpx.AsyncClient | None = None,
        clock: Callable[[], float] = time.monotonic,
        timings: KeyTimings | None = None,
    ) -> None:
        self._url = httpx.URL(url)
        self._timings = timings or KeyTimings()
        self._clock = clock
        self._owns_client = client is None
        self._client = client or httpx.AsyncClient(trust_env=False, timeout=self._timings.fetch_s)
        self._keys: dict[str, VerificationKey] = {}
        self._loaded_at = self._attempted_at = self._retry_at = -math.inf
        self._failed = False
        self.fetched = self.failed = 0
        """Fetches that ended well, and those that did not."""
        self._closed = False
        self._fetch: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"JwksCache({self._url!r}, keys={len(self._keys)}, usable={self.usable})"

    @property
    def usable(self) -> bool:
        """Whether at least one key is known and not too old."""
        return bool(self._keys) and self._believed()

    async def start(self) -> None:
        """Fetch once, whether or not it succeeds, then keep the keys fresh until `aclose`."""
        await self._wait(self._begin())
        if self._keeper is None and not self._closed:
            self._keeper = asyncio.create_task(self._keep())

    async def aclose(self) -> None:
        """Stop fetching, for good."""
        self._closed = True
        tasks = [task for task in (self._keeper, self._fetch) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._owns_client:
            await self._client.aclose()

    def peek(self, kid: str) -> VerificationKey | None:
        """The key if it is known and not too old. Never waits; starts a fetch when one is due."""
        if self._due():
            self._begin()
        return self._keys.get(kid) if self._believed() else None

    async def key(self, kid: str) -> VerificationKey:
        """The key with this id; waits only if it is not known.

        Raises Problem: TOKEN_UNKNOWN_KEY when the provider does not publish it, IDENTITY_UNAVAILABLE when the provider
        could not be asked.
        """
        found = self.peek(kid)
        if found is not None:
            return found
        # Keys that are too old are fetched by `peek`; here the id is new to keys that are believed.
        if self._believed() and self._clock() - self._attempted_at >= self._timings.unknown_kid_s:
            self._begin()
        await self._wait(self._fetch)
        found = self._keys.get(kid) if self._believed() else None
        if found is not None:
            return found
        if self._failed or not self._believed():
            next_at = self._attempted_at + self._timings.unknown_kid_s if self._believed() else self._retry_at
            wait_s = next_at - self._clock()
            raise Problem(
                Problems.IDENTITY_UNAVAILABLE,
                "The identity provider's keys cannot be read now.",
                retry_after_s=math.ceil(wait_s) if 1 < wait_s < math.inf else 1,
            )
        raise Problem(Problems.TOKEN_UNKNOWN_KEY, "The token was signed with a key that is not published.")

    def _believed(self) -> bool:
        return self._clock() - self._loaded_at <= self._timings.ttl_s + self._timings.stale_s

    def _due(self) -> bool:
        now = self._clock()
        return now - self._loaded_at >= self._timings.ttl_s and now >= self._retry_at

    def _begin(self) -> asyncio.Task[None] | None:
        """The fetch that runs now, started if none does."""
        if not self._closed and (self._fetch is None or self._fetch.done()):
            # A context of its own: the fetch is nobody's request and must not carry one's trace.
            self._fetch = asyncio.create_task(self._refresh(), context=contextvars.Context())
        return self._fetch

    async def _wait(self, fetch: asyncio.Task[None] | None) -> None:
        if fetch is not None and not fetch.done():
            await asyncio.wait({fetch})  # unlike `await fetch`, a cancelled caller leaves the fetch alone

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._timings.tick_s)
            if self._due():
                await self._wait(self._begin())

    async def _refresh(self) -> None:
        began_at = self._attempted_at = self._clock()
        failed = True  # unless it ends well, whatever ends it
        try:
            async with asyncio.timeout(self._timings.fetch_s):
                self._keys = parse_key_set(await self._download())
            self._loaded_at, failed = began_at, False
        except (httpx.HTTPError, TimeoutError, KeySetError) as error:
            # The text of our own error holds nothing of the answer. Once per outage: retries would fill the log.
            reason = str(error) if isinstance(error, KeySetError) else type(error).__name__
            _logger.log(logging.DEBUG if self._failed else logging.WARNING, "signing keys not readable: %s", reason)
        finally:
            self._failed = failed
            self.fetched, self.failed = self.fetched + (not failed), self.failed + failed
            self._retry_at = self._clock() + self._timings.retry_s if failed else -math.inf

    async def _download(self) -> bytes:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        async with self._client.stream("GET", self._url, headers=headers, follow_redirects=False) as response:
            if response.status_code != httpx.codes.OK:
                raise KeySetError(f"status {response.status_code}")
            try:
                return await read_body(response, MAX_DOCUMENT_BYTES)
            except UnreadableBody as error:
                raise KeySetError(f"the key set {error}") from None
