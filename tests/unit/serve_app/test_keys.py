"""Which published keys count, and how often, how long and with how much patience the provider is asked."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from serve_app.access.keys import (
    MAX_DOCUMENT_BYTES,
    MAX_KEYS,
    MAX_KID_LENGTH,
    JwksCache,
    KeySetError,
    KeyTimings,
    parse_key_set,
)
from serve_app.logs import LOGGER_NAME
from serve_app.problems import Problem, Problems
from tests.servers.issuer import ALGORITHMS, Issuer, SigningKey, base64url

GOOD = SigningKey.make("ES256", "good")
RSA = SigningKey.make("RS256", "rsa")
EDWARDS = SigningKey.make("EdDSA", "edwards")
BIG = int.from_bytes(b"\xff" * 1100, "big")


def key_set(*entries: object) -> bytes:
    return json.dumps({"keys": entries}).encode()


def curve(curve: ec.EllipticCurve) -> dict[str, Any]:
    return ECAlgorithm.to_jwk(ec.generate_private_key(curve).public_key(), as_dict=True) | {"kid": "x"}


def uint(value: int) -> str:
    return base64url(value.to_bytes((value.bit_length() + 7) // 8, "big"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("silent", [(), ("alg",), ("use", "key_ops", "ext"), ("alg", "use", "key_ops")])
def test_a_key_verifies_the_one_algorithm_of_its_type(algorithm: str, silent: tuple[str, ...]) -> None:
    key = SigningKey.make(algorithm, "a")
    entry = key.jwk(**dict.fromkeys(silent, ...))
    (found,) = parse_key_set(key_set(entry)).values()
    assert (found.kid, found.algorithm, found.jwk.algorithm_name) == ("a", algorithm, algorithm)
    # The same key is equal at the next fetch; another one under its id is not.
    assert found == parse_key_set(key_set(entry))["a"]
    assert found != parse_key_set(key_set(SigningKey.make(algorithm, "a", number=1).jwk()))["a"]


USELESS: dict[str, Callable[[], object]] = {
    "a shared secret": lambda: {
        "kty": "oct",
        "kid": "x",
        "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlYw",
        "alg": "HS256",
    },
    "a shared secret without alg": lambda: {"kty": "oct", "kid": "x", "k": "AAAA"},
    "an RSA key for HMAC": lambda: RSA.jwk(alg="HS256"),
    "an RSA key for nothing": lambda: RSA.jwk(alg="none"),
    "an RSA key for PS256": lambda: RSA.jwk(alg="PS256"),
    "an RSA key for RS512": lambda: RSA.jwk(alg="RS512"),
    "an elliptic key for RSA": lambda: GOOD.jwk(alg="RS256"),
    "alg null": lambda: GOOD.jwk(alg=None),
    "alg of another type": lambda: GOOD.jwk(alg=["ES256"]),
    "for encryption": lambda: GOOD.jwk(use="enc"),
    "use null": lambda: GOOD.jwk(use=None),
    "for signing only": lambda: GOOD.jwk(key_ops=["sign"]),
    "for no operation": lambda: GOOD.jwk(key_ops=[]),
    "operations as a text": lambda: GOOD.jwk(key_ops="verify"),
    "another curve": lambda: curve(ec.SECP384R1()),
    "a curve of coins": lambda: curve(ec.SECP256K1()),
    "no curve": lambda: GOOD.jwk(crv=...),
    "a curve that is a list": lambda: GOOD.jwk(crv=["P-256"]),
    "a curve of another key": lambda: GOOD.jwk(crv="Ed25519"),
    "an RSA key with a curve": lambda: RSA.jwk(crv="P-256"),
    "Ed448": lambda: OKPAlgorithm.to_jwk(ed448.Ed448PrivateKey.generate().public_key(), as_dict=True) | {"kid": "x"},
    "X25519": lambda: EDWARDS.jwk(crv="X25519"),
    "a private key": lambda: GOOD.jwk(d=uint(GOOD.private.private_numbers().private_value)),
    "a private RSA key": lambda: RSAAlgorithm.to_jwk(RSA.private, as_dict=True) | {"kid": "x", "key_ops": ["verify"]},
    "a point off the curve": lambda: GOOD.jwk(y=base64url(b"\x01" * 32)),
    "the point at nowhere": lambda: GOOD.jwk(x=base64url(bytes(32)), y=base64url(bytes(32))),
    "a short coordinate": lambda: GOOD.jwk(x="AAAA"),
    "not base64": lambda: GOOD.jwk(x="!" * 43),
    "not ASCII": lambda: GOOD.jwk(x="é" * 43),
    "no coordinate": lambda: GOOD.jwk(x=...),
    "a coordinate that is a number": lambda: GOOD.jwk(x=5),
    "a short edwards key": lambda: EDWARDS.jwk(x="AAAA"),
    "a weak RSA key": lambda: RSA.jwk(n=uint(int.from_bytes(b"\xff" * 255, "big"))),
    "an RSA key that takes long": lambda: RSA.jwk(n=uint(BIG)),
    "an RSA exponent of one": lambda: RSA.jwk(e="AQ"),
    "an empty modulus": lambda: RSA.jwk(n=""),
    "no id": lambda: GOOD.jwk(kid=...),
    "an empty id": lambda: GOOD.jwk(kid=""),
    "an id that is a number": lambda: GOOD.jwk(kid=1),
    "an id that is too long": lambda: GOOD.jwk(kid="k" * (MAX_KID_LENGTH + 1)),
    "no type": lambda: GOOD.jwk(kty=...),
    "a type that is a list": lambda: GOOD.jwk(kty=["EC"]),
    "a type that nobody knows": lambda: GOOD.jwk(kty="XY"),
    "an empty entry": dict,
    "null": lambda: None,
    "a text": lambda: "key",
    "a list": lambda: [GOOD.jwk()],
}


@pytest.mark.parametrize("name", USELESS)
def test_a_useless_key_is_left_out_and_the_others_stay(name: str) -> None:
    entry = USELESS[name]()
    assert set(parse_key_set(key_set(entry, RSA.jwk(kid="kept"), entry))) == {"kept"}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b"7",
        b"null",
        b'{"keys":{}}',
        b'{"keys":null}',
        b"[" * 60_000,
        b"\xff\xfe\x00",
        b'{"keys":[',
    ],
    ids=range(11),
)
def test_what_is_no_key_set_is_an_error_without_its_text(document: bytes) -> None:
    with pytest.raises(KeySetError) as caught:
        parse_key_set(document)
    assert len(str(caught.value)) < 50
    assert "html" not in str(caught.value)


def test_an_empty_key_set_is_one() -> None:
    """A project that signs with its shared secret publishes no key."""
    assert parse_key_set(b'{"keys":[]}') == {}


def test_the_number_of_keys_is_bounded_and_the_first_of_two_with_one_id_counts() -> None:
    many = [GOOD.jwk(kid=f"k{n}") for n in range(MAX_KEYS + 10)]
    assert list(parse_key_set(key_set(*many))) == [f"k{n}" for n in range(MAX_KEYS)]
    assert parse_key_set(key_set(GOOD.jwk(), RSA.jwk(kid="good")))["good"].algorithm == "ES256"


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([*ALGORITHMS, "EC", "RSA"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
_changes = st.dictionaries(
    st.sampled_from(["kty", "crv", "alg", "use", "key_ops", "kid", "x", "y", "n", "e", "d", "k"]), _values, max_size=4
)


@settings(max_examples=150, deadline=None)
@given(base=st.sampled_from([GOOD, RSA, EDWARDS]), changes=_changes)
def test_no_entry_breaks_the_key_set(base: SigningKey, changes: dict[str, object]) -> None:
    found = parse_key_set(key_set(base.jwk(kid="fuzzed") | changes, GOOD.jwk()))
    assert "good" in found
    assert all(key.algorithm == key.jwk.algorithm_name and key.algorithm in ALGORITHMS for key in found.values())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | _values.map(lambda value: json.dumps({"keys": value}).encode()))
def test_no_document_does_anything_else(document: bytes) -> None:
    try:
        parse_key_set(document)
    except KeySetError:
        return


# --- the cache


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer("ES256") as issuer:
        yield issuer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def keys(issuer: Issuer, clock: Clock) -> AsyncIterator[JwksCache]:
    cache = JwksCache(issuer.jwks_url, clock=clock, timings=KeyTimings(fetch_s=1.0))
    yield cache
    await cache.aclose()


def kid_of(issuer: Issuer) -> str:
    return issuer.keys["ES256"].kid


async def refusal(cache: JwksCache, kid: str) -> Problem:
    with pytest.raises(Problem) as caught:
        await cache.key(kid)
    return caught.value


async def fetched(cache: JwksCache) -> None:
    """Wait for the fetch that runs in the background."""
    assert cache._fetch is not None
    await asyncio.wait({cache._fetch})


async def test_the_first_request_waits_and_the_next_do_not(issuer: Issuer, keys: JwksCache) -> None:
    assert not keys.usable
    assert keys.peek(kid_of(issuer)) is None
    key = await keys.key(kid_of(issuer))
    assert keys.peek(kid_of(issuer)) is key
    assert keys.usable
    assert issuer.requests == 1


async def test_five_hundred_first_requests_share_one_fetch(issuer: Issuer, keys: JwksCache) -> None:
    issuer.fault(hang_s=0.2)
    found = await asyncio.gather(*(keys.key(kid_of(issuer)) for _ in range(500)))
    assert {key.kid for key in found} == {kid_of(issuer)}
    assert issuer.requests == 1


async def test_after_the_time_to_live_one_fetch_runs_beside_the_old_keys(
    issuer: Issuer, keys: JwksCache, clock: Clock
) -> None:
    old = kid_of(issuer)
    await keys.key(old)
    clock.now = 599.9
    for _ in range(10):
        assert keys.peek(old) is not None
    assert keys._fetch is not None
    assert keys._fetch.done(), "no fetch before its time"
    issuer.rotate("ES256")
    issuer.fault(hang_s=0.2)
    clock.now = 600.0
    for _ in range(10):
        assert (await keys.key(old)).kid == old
    await fetched(keys)
    assert issuer.requests == 2
    assert keys.peek(old) is None
    assert keys.peek(kid_of(issuer)) is not None


async def test_a_hang_of_thirty_seconds_holds_up_only_who_has_no_key(
    issuer: Issuer, keys: JwksCache, clock: Clock
) -> None:
    known = kid_of(issuer)
    await keys.key(known)
    issuer.fault(hang_s=30)
    clock.now = 700.0
    stranger = asyncio.create_task(refusal(keys, "stranger"))
    await asyncio.sleep(0.05)
    began = time.perf_counter()
    for _ in range(1000):
        await keys.key(known)
    print(f"1000 look-ups of a known key while a fetch hangs: {(time.perf_counter() - began) * 1000:.1f} ms")
    assert not stranger.done()
    assert (await stranger).kind is Problems.IDENTITY_UNAVAILABLE
    assert time.perf_counter() - began < 10, "the fetch has its own limit"
    assert issuer.requests == 2


async def test_old_keys_are_believed_for_twenty_minutes_more_and_no_longer(
    issuer: Issuer, keys: JwksCache, clock: Clock
) -> None:
    await keys.key(kid_of(issuer))
    issuer.fault(status=503)
    clock.now = 1800.0
    assert keys.peek(kid_of(issuer)) is not None
    assert keys.usable
    await fetched(keys)
    clock.now = 1800.1
    assert keys.peek(kid_of(issuer)) is None
    assert not keys.usable
    problem = await refusal(keys, kid_of(issuer))
    assert problem.kind is Problems.IDENTITY_UNAVAILABLE
    assert problem.retry_after_s == 5
    issuer.fault()
    clock.now = 1806.0
    assert (await keys.key(kid_of(issuer))).kid == kid_of(issuer)
    assert keys.usable


async def test_the_age_counts_from_the_question_not_from_the_answer(issuer: Issuer, clock: Clock) -> None:
    async def body() -> AsyncIterator[bytes]:
        clock.now += 100  # a slow answer: what it says may be this old
        yield issuer.key_set()

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=body())

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        cache = JwksCache(issuer.jwks_url, client=client, clock=clock)
        await cache.key(kid_of(issuer))
        clock.now = 1801.0
        assert not cache.usable
        await cache.aclose()
        assert not client.is_closed, "a client that was handed in stays its owner's"


async def test_a_failing_endpoint_is_asked_every_five_seconds_and_never_taken_for_no_keys(
    issuer: Issuer, keys: JwksCache, clock: Clock
) -> None:
    issuer.fault(status=500)
    for asked in range(1, 4):
        for _ in range(20):
            problem = await refusal(keys, kid_of(issuer))
            assert problem.kind is Problems.IDENTITY_UNAVAILABLE
            assert problem.retry_after_s == 5
        assert issuer.requests == asked
        clock.now += 4.9
        assert (await refusal(keys, kid_of(issuer))).retry_after_s == 1
        assert issuer.requests == asked
        clock.now += 0.1
    issuer.fault()
    assert (await keys.key(kid_of(issuer))).kid == kid_of(issuer)


async def test_unknown_ids_lead_to_one_fetch_in_thirty_seconds(issuer: Issuer, keys: JwksCache, clock: Clock) -> None:
    await keys.key(kid_of(issuer))
    for second in range(0, 121, 5):
        clock.now = float(second)
        problems = await asyncio.gather(*(refusal(keys, f"bogus-{second}-{n}") for n in range(20)))
        assert {problem.kind for problem in problems} == {Problems.TOKEN_UNKNOWN_KEY}
    assert issuer.requests == 1 + 4


async def test_a_new_key_is_found_by_its_id(issuer: Issuer, keys: JwksCache, clock: Clock) -> None:
    await keys.key(kid_of(issuer))
    issuer.rotate("ES256")
    clock.now = 29.9
    assert (await refusal(keys, kid_of(issuer))).kind is Problems.TOKEN_UNKNOWN_KEY
    clock.now = 30.0
    assert (await keys.key(kid_of(issuer))).kid == kid_of(issuer)


async def test_an_unknown_id_is_not_called_unknown_while_nobody_can_tell(
    issuer: Issuer, keys: JwksCache, clock: Clock
) -> None:
    known = kid_of(issuer)
    await keys.key(known)
    issuer.fault(status=500)
    clock.now = 40.0
    for _ in range(5):
        problem = await refusal(keys, "new")
        assert problem.kind is Problems.IDENTITY_UNAVAILABLE
        assert problem.retry_after_s == 30
        assert keys.peek(known) is not None
    assert issuer.requests == 2
    issuer.fault()
    clock.now = 70.0
    assert (await refusal(keys, "new")).kind is Problems.TOKEN_UNKNOWN_KEY


async def test_an_empty_key_set_knows_nobody_and_is_not_an_outage(issuer: Issuer, keys: JwksCache) -> None:
    issuer.fault(body=b'{"keys":[]}')
    for _ in range(3):
        assert (await refusal(keys, "any")).kind is Problems.TOKEN_UNKNOWN_KEY
    assert issuer.requests == 1
    assert not keys.usable


async def test_a_withdrawn_key_set_withdraws_every_key(issuer: Issuer, keys: JwksCache, clock: Clock) -> None:
    await keys.key(kid_of(issuer))
    issuer.fault(body=b'{"keys":[]}')
    clock.now = 31.0
    await refusal(keys, "other")
    assert keys.peek(kid_of(issuer)) is None


BROKEN: dict[str, dict[str, object]] = {
    "500": {"status": 500},
    "404": {"status": 404},
    "206": {"status": 206},
    "401": {"status": 401},
    "garbage": {"body": b"\x00\xff garbage"},
    "a page": {"body": b"<html>maintenance</html>"},
    "an empty answer": {"body": b""},
    "too much": {"body": b'{"keys":[' + b" " * MAX_DOCUMENT_BYTES + b"]}"},
    "an endless answer": {"body": b"[" * 5_000_000},
    "compressed": {"encoding": "gzip"},
    "a byte at a time": {"drip_s": 0.05},
    "silence": {"hang_s": 30},
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_answer_is_an_outage_and_the_keys_stay(issuer: Issuer, clock: Clock, name: str) -> None:
    cache = JwksCache(issuer.jwks_url, clock=clock, timings=KeyTimings(fetch_s=0.4))
    await cache.key(kid_of(issuer))
    issuer.fault(**BROKEN[name])
    clock.now = 601.0
    began = time.perf_counter()
    assert (await refusal(cache, "other")).kind is Problems.IDENTITY_UNAVAILABLE
    assert time.perf_counter() - began < 5
    assert cache.peek(kid_of(issuer)) is not None
    await cache.aclose()


async def test_the_largest_document_is_still_read(issuer: Issuer, keys: JwksCache) -> None:
    document = issuer.key_set()
    issuer.fault(body=document + b" " * (MAX_DOCUMENT_BYTES - len(document)))
    assert (await keys.key(kid_of(issuer))).kid == kid_of(issuer)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("eager", [False, True])
async def test_a_redirect_is_not_followed(issuer: Issuer, status: int, eager: bool) -> None:
    with Issuer("ES256") as elsewhere:
        issuer.fault(status=status, location=elsewhere.jwks_url)
        async with httpx.AsyncClient(trust_env=False, follow_redirects=eager) as client:
            cache = JwksCache(issuer.jwks_url, client=client)
            assert (await refusal(cache, kid_of(elsewhere))).kind is Problems.IDENTITY_UNAVAILABLE
            await cache.aclose()
        assert elsewhere.requests == 0


async def test_nobody_listens() -> None:
    cache = JwksCache("http://127.0.0.1:9/jwks.json")
    assert (await refusal(cache, "any")).kind is Problems.IDENTITY_UNAVAILABLE
    await cache.aclose()


async def test_proxies_of_the_environment_are_not_used(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    cache = JwksCache(issuer.jwks_url)
    assert (await cache.key(kid_of(issuer))).kid == kid_of(issuer)
    await cache.aclose()


async def test_a_caller_who_leaves_takes_nothing_with_him(issuer: Issuer, keys: JwksCache) -> None:
    issuer.fault(hang_s=0.3)
    callers = [asyncio.create_task(keys.key(kid_of(issuer))) for _ in range(10)]
    await asyncio.sleep(0.05)
    for caller in callers[:9]:
        caller.cancel()
    found = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in found[:9])
    assert not isinstance(found[9], BaseException)
    assert issuer.requests == 1


async def test_the_keeper_keeps_keys_fresh_without_any_request(issuer: Issuer) -> None:
    timings = KeyTimings(ttl_s=0.1, stale_s=0.2, retry_s=0.05, fetch_s=1.0, tick_s=0.01)
    cache = JwksCache(issuer.jwks_url, timings=timings)
    await cache.start()
    await cache.start()
    assert cache.usable
    issuer.rotate("ES256")
    new = issuer.keys["ES256"]
    await _until(lambda: cache._keys.keys() == {new.kid})
    issuer.fault(status=500)
    await _until(lambda: not cache.usable)
    issuer.fault()
    await _until(lambda: cache.usable)
    await cache.aclose()
    asked = issuer.requests
    await asyncio.sleep(0.3)
    assert issuer.requests == asked, "closed is closed"
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert (await refusal(cache, new.kid)).kind is Problems.IDENTITY_UNAVAILABLE


async def test_a_start_without_a_provider_succeeds_and_is_mended_later(issuer: Issuer) -> None:
    issuer.fault(status=500)
    cache = JwksCache(issuer.jwks_url, timings=KeyTimings(retry_s=0.05, tick_s=0.01))
    await cache.start()
    assert not cache.usable
    issuer.fault()
    await _until(lambda: cache.usable)
    await cache.aclose()


async def test_closing_during_a_fetch_leaves_nobody_waiting(issuer: Issuer, keys: JwksCache) -> None:
    issuer.fault(hang_s=30)
    waiting = asyncio.create_task(refusal(keys, kid_of(issuer)))
    await asyncio.sleep(0.05)
    await keys.aclose()
    async with asyncio.timeout(2):
        assert (await waiting).kind is Problems.IDENTITY_UNAVAILABLE


async def test_a_closed_cache_asks_nobody(issuer: Issuer, clock: Clock) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        cache = JwksCache(issuer.jwks_url, client=client, clock=clock)
        await cache.key(kid_of(issuer))
        await cache.aclose()
        clock.now = 700.0
        assert cache.peek(kid_of(issuer)) is not None
        assert (await refusal(cache, "other")).kind is Problems.TOKEN_UNKNOWN_KEY
        await cache.start()
        await asyncio.sleep(0.05)
        assert issuer.requests == 1
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_outage_is_logged_once_and_without_the_answer(issuer: Issuer, keys: JwksCache, clock: Clock) -> None:
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(LOGGER_NAME)
    logger.addHandler(handler)
    try:
        issuer.fault(status=500, body=b"a secret of theirs")
        for _ in range(4):
            await refusal(keys, "any")
            clock.now += 10
    finally:
        logger.removeHandler(handler)
    assert lines == ["signing keys not readable: status 500"]


async def test_an_error_of_ours_is_neither_hidden_nor_repeated_at_once(
    issuer: Issuer, keys: JwksCache, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: bytes) -> dict[str, object]:
        raise RuntimeError("a mistake in the code")

    monkeypatch.setattr("serve_app.access.keys.parse_key_set", broken)
    for _ in range(3):
        assert (await refusal(keys, "any")).kind is Problems.IDENTITY_UNAVAILABLE
    assert issuer.requests == 1
    assert keys._fetch is not None
    assert isinstance(keys._fetch.exception(), RuntimeError)


async def test_nothing_secret_is_shown() -> None:
    cache = JwksCache("https://user:pass-word@provider.test/jwks.json")
    assert "pass-word" not in repr(cache)
    assert "provider.test" in repr(cache)
    await cache.aclose()


def test_the_contract_in_numbers() -> None:
    timings = KeyTimings()
    assert (timings.ttl_s, timings.stale_s, timings.unknown_kid_s) == (600, 1200, 30)
    assert timings.fetch_s < 10, "below a request's deadline"
    assert math.isclose(timings.retry_s, 5)


async def _until(done: Callable[[], bool]) -> None:
    for _ in range(500):
        if done():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to pass within five seconds")
