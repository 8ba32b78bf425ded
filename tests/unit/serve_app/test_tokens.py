"""The verifier by itself: the edges of time and size, what it remembers, what it shows, and that it never crashes.

Who gets in and who does not is in test_identity_matrix.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.access.keys import JwksCache
from serve_app.access.principal import Principal, Role
from serve_app.access.tokens import MAX_TOKEN_BYTES, MIN_SECRET_BYTES, TokenVerifier
from serve_app.access.verified import LATEST_TIME, LEEWAY_S, Verified, VerifiedTokens
from serve_app.problems import Problem, Problems
from tests.servers.issuer import ALGORITHMS, SigningKey, base64url, compact

SECRET = "a-shared-secret-of-more-than-thirty-two-bytes"
ISSUER = "https://project.supabase.test/auth/v1"
SIGNER = SigningKey("secret", "HS256", SECRET)
PUBLISHED = {name: SigningKey.make(name, name) for name in ALGORITHMS}
NOW = 1_800_000_000.0


class Clock:
    """Unix seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(clock: Clock) -> TokenVerifier:
    return TokenVerifier(issuer=ISSUER, secret=SECRET, keys=None, clock=clock)


def bearer(key: SigningKey = SIGNER, **changes: object) -> str:
    claims: dict[str, object] = {"sub": "user-1", "aud": "authenticated", "iss": ISSUER, "exp": NOW + 600} | changes
    return "Bearer " + key.sign(json.dumps(claims).encode())


async def refusal(verifier: TokenVerifier, header: str | None) -> Problem:
    with pytest.raises(Problem) as caught:
        await verifier.principal(header)
    return caught.value


async def test_a_token_counts_until_its_leeway_is_over_remembered_or_not(verifier: TokenVerifier, clock: Clock) -> None:
    remembered, new = bearer(), bearer(sub="user-2")
    for clock.now in (NOW, NOW + 600 + LEEWAY_S - 0.001):
        assert await verifier.principal(remembered) == Principal("user-1")
    assert await verifier.principal(new) == Principal("user-2")
    clock.now = NOW + 600 + LEEWAY_S
    for header in (remembered, new, bearer(sub="user-3")):
        assert (await refusal(verifier, header)).kind is Problems.TOKEN_EXPIRED
    assert len(verifier._verified) == 0


@pytest.mark.parametrize("claim", ["nbf", "iat"])
async def test_a_token_from_the_future_counts_once_the_leeway_reaches_it(
    verifier: TokenVerifier, clock: Clock, claim: str
) -> None:
    header = bearer(**{claim: NOW + LEEWAY_S + 1})
    assert "not valid yet" in (await refusal(verifier, header)).detail
    clock.now += 1
    assert await verifier.principal(header) == Principal("user-1")


async def test_the_last_possible_time(verifier: TokenVerifier) -> None:
    assert await verifier.principal(bearer(exp=LATEST_TIME))
    assert (await refusal(verifier, bearer(exp=LATEST_TIME + 1))).kind is Problems.TOKEN_MALFORMED


async def test_the_size_limit_is_exact(verifier: TokenVerifier) -> None:
    largest = 0
    for filler in range(5900, 6000):
        header = bearer(x="y" * filler)
        size = len(header) - len("Bearer ")
        if size <= MAX_TOKEN_BYTES:
            assert await verifier.principal(header) == Principal("user-1")
            largest = max(largest, size)
        else:
            assert "longer than 8192 bytes" in (await refusal(verifier, header)).detail
    # One length in four does not occur in base64.
    assert MAX_TOKEN_BYTES - 1 <= largest < len(header) - len("Bearer ")
    assert "longer" in (await refusal(verifier, "Bearer " + "a" * (MAX_TOKEN_BYTES + 1))).detail
    assert "longer" not in (await refusal(verifier, "Bearer " + "a" * MAX_TOKEN_BYTES)).detail


async def test_a_missing_claim_is_named(verifier: TokenVerifier) -> None:
    assert "'sub'" in (await refusal(verifier, bearer(sub=None))).detail


async def test_a_remembered_token_is_not_checked_again_and_a_refused_one_is(
    verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = []
    check = TokenVerifier._signed_payload
    monkeypatch.setattr(TokenVerifier, "_signed_payload", lambda *a: (checks.append(1), check(*a))[1])
    for _ in range(3):
        assert await verifier.principal(bearer(app_metadata={"role": "admin"})) == Principal("user-1", Role.ADMIN)
    assert len(checks) == 1
    for _ in range(3):
        await refusal(verifier, bearer(aud="anon"))
    assert len(checks) == 4


async def test_memory_is_bounded_and_the_least_used_goes_first(clock: Clock) -> None:
    verifier = TokenVerifier(issuer=ISSUER, secret=SECRET, keys=None, clock=clock, remembered=3)
    headers = [bearer(sub=f"user-{n}") for n in range(4)]
    for n in (0, 1, 2, 0, 3):
        await verifier.principal(headers[n])
    kept = {entry.principal.user_id for entry in verifier._verified._entries.values()}
    assert kept == {"user-0", "user-2", "user-3"}
    for n in range(100):
        await verifier.principal(bearer(sub=f"other-{n}"))
    assert len(verifier._verified) == 3


def test_an_entry_ends_with_its_time() -> None:
    memory = VerifiedTokens(2)
    entry = Verified(Principal("user-1"), 100.0, None)
    memory.put(b"a", entry)
    assert memory.get(b"a", 99.9) is entry
    assert memory.get(b"a", 100.0) is None
    assert len(memory) == 0
    memory.drop(b"never there")


@pytest.mark.parametrize("secret", ["short", "x" * (MIN_SECRET_BYTES - 1)])
def test_a_short_secret_is_refused_at_the_start(secret: str) -> None:
    with pytest.raises(ValueError, match="fewer than 32 bytes") as caught:
        TokenVerifier(issuer=ISSUER, secret=secret)
    assert secret not in str(caught.value)


def test_the_shortest_good_secret() -> None:
    assert TokenVerifier(issuer=ISSUER, secret="x" * MIN_SECRET_BYTES).usable


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_public_key_in_the_place_of_the_secret_is_refused_at_the_start(name: str) -> None:
    public = PUBLISHED[name].private.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    for text in (pem, json.dumps(PUBLISHED[name].jwk()), json.dumps({"keys": [PUBLISHED[name].jwk()]})):
        with pytest.raises(ValueError, match="public key"):
            TokenVerifier(issuer=ISSUER, secret=text)


async def test_no_secret_and_no_token_is_shown(verifier: TokenVerifier) -> None:
    header = bearer()
    await verifier.principal(header)
    shown = repr(verifier) + str(vars(verifier)["_verified"]) + repr(list(verifier._verified._entries.items()))
    assert SECRET not in shown
    assert not any(part in shown for part in header.removeprefix("Bearer ").split("."))
    problem = await refusal(verifier, bearer(SigningKey("x", "HS256", "another-secret-that-is-long-enough!!")))
    assert SECRET not in repr(problem)


async def test_usable_says_whether_any_token_could_pass(verifier: TokenVerifier) -> None:
    assert verifier.usable
    assert not TokenVerifier(issuer=ISSUER, secret=None).usable
    async with published_only() as (only, _):
        assert not only.usable
        await only.start()
        assert only.usable
        await only.aclose()
    await verifier.start()
    await verifier.aclose()


# --- whatever is sent


class published_only:  # noqa: N801 - reads as a function
    """A verifier whose provider answers in memory."""

    def __init__(self) -> None:
        document = json.dumps({"keys": [key.jwk() for key in PUBLISHED.values()]}).encode()

        async def body() -> AsyncIterator[bytes]:
            yield document

        transport = httpx.MockTransport(lambda _: httpx.Response(200, content=body()))
        self._client = httpx.AsyncClient(transport=transport)
        self._keys = JwksCache("http://provider.test/jwks.json", client=self._client)

    async def __aenter__(self) -> tuple[TokenVerifier, TokenVerifier]:
        only = TokenVerifier(issuer=ISSUER, secret=None, keys=self._keys, clock=Clock())
        return only, TokenVerifier(issuer=ISSUER, secret=SECRET, keys=self._keys, clock=Clock())

    async def __aexit__(self, *_: object) -> None:
        await self._keys.aclose()
        await self._client.aclose()


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
_names = st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "zip", "enc", "cty"])
_headers = st.dictionaries(_names, _json | st.sampled_from([*ALGORITHMS, "HS256", "none"]), max_size=4)
_claims = st.dictionaries(
    st.sampled_from(["exp", "nbf", "iat", "sub", "aud", "iss", "role", "app_metadata", "is_anonymous"]),
    _json,
    max_size=5,
)
_junk = (
    st.text() | st.text("abcABC012-_.=+/ \t\n", max_size=60) | st.binary(max_size=60).map(lambda b: b.decode("latin-1"))
)
_signers = st.sampled_from([SIGNER, *PUBLISHED.values()])
_fuzzed = (
    st.none()
    | _junk
    | _junk.map("Bearer {}".format)
    | st.builds(lambda h, c, s: "Bearer " + compact(h, c, s), _headers, _json, st.binary(max_size=70))
    | st.builds(lambda h, c: f"Bearer {base64url(h)}.{base64url(c)}.AA", st.binary(max_size=40), st.binary(max_size=40))
    # Signed, so that what follows the signature check meets it too.
    | st.builds(lambda key, claims: bearer(key, **claims), _signers, _claims)
    | st.builds(lambda key, payload: "Bearer " + key.sign(payload), _signers, st.binary(max_size=40))
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_fuzzed, min_size=1, max_size=5))
def test_any_header_is_a_caller_or_a_problem(headers: list[str | None]) -> None:
    async def check() -> None:
        async with published_only() as verifiers:
            for header in headers:
                for verifier in verifiers:
                    try:
                        principal = await verifier.principal(header)
                    except Problem as problem:
                        refused = problem
                    else:
                        assert isinstance(principal, Principal)
                        assert principal.user_id
                        continue
                    assert refused.kind.value.status in {401, 503}

    asyncio.run(check())


_CHANGES: dict[str, Callable[[str, int], str]] = {
    "dropped": lambda token, i: token[:i] + token[i + 1 :],
    "doubled": lambda token, i: token[:i] + token[i] + token[i:],
    "changed": lambda token, i: token[:i] + ("A" if token[i] != "A" else "B") + token[i + 1 :],
}


@pytest.mark.parametrize("change", _CHANGES)
@pytest.mark.parametrize("name", [*ALGORITHMS, "HS256"])
async def test_no_change_of_one_character_passes(name: str, change: str) -> None:
    token = bearer(SIGNER if name == "HS256" else PUBLISHED[name]).removeprefix("Bearer ")
    async with published_only() as (_, verifier):
        for index in range(len(token)):
            changed = _CHANGES[change](token, index)
            if changed != token:
                await refusal(verifier, f"Bearer {changed}")
        assert len(verifier._verified) == 0
        assert await verifier.principal(f"Bearer {token}") == Principal("user-1")
