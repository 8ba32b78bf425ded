"""Who gets in and who does not, by name; then the same verifier while its provider rotates, hangs and is down."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import ssl
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.utils import raw_to_der_signature

from serve_app.access.keys import JwksCache, KeyTimings
from serve_app.access.principal import Principal, Role
from serve_app.access.tokens import TokenVerifier
from serve_app.problems import Problem, Problems
from tests.servers.issuer import ALGORITHMS, Issuer, SigningKey, base64url, compact

SECRET = "a-shared-secret-of-more-than-thirty-two-bytes"
WEEK_S = 7 * 24 * 3600
USER = Principal("user-1")
_TLS = ssl.create_default_context()


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """One provider, one service."""

    issuer: Issuer
    clock: Clock
    keys: JwksCache
    both: TokenVerifier
    published_only: TokenVerifier
    secret_only: TokenVerifier

    secret: SigningKey
    stranger: SigningKey

    def hs256(self, **changes: object) -> str:
        return self.issuer.bearer(self.secret, {"kid": ...}, **changes)

    def hmac_with(self, key: bytes, algorithm: str, kid: str) -> str:
        """A token whose signature is an HMAC under `key`, whatever its header says."""
        signed = compact({"alg": algorithm, "kid": kid}, self.issuer.claims()).rsplit(".", 1)[0]
        return f"Bearer {signed}.{base64url(hmac.digest(key, signed.encode(), 'sha256'))}"

    def signed_by(self, name: str, signature: Callable[[bytes], bytes]) -> str:
        """A token of one of our keys with its signature replaced."""
        signed, _, good = self.issuer.token(name).rpartition(".")
        return f"Bearer {signed}.{base64url(signature(jwt.utils.base64url_decode(good)))}"


def http_client() -> httpx.AsyncClient:
    # Reading the certificates for each of a hundred tests would take longer than the tests.
    return httpx.AsyncClient(trust_env=False, verify=_TLS)


@pytest.fixture(scope="module")
def shared_issuer() -> Iterator[Issuer]:
    """For tests that leave it as it is."""
    with Issuer() as issuer:
        yield issuer


@pytest.fixture
def own_issuer() -> Iterator[Issuer]:
    with Issuer() as issuer:
        yield issuer


async def _world(issuer: Issuer) -> AsyncIterator[World]:
    clock = Clock()
    async with http_client() as client:
        keys = JwksCache(issuer.jwks_url, client=client, clock=clock, timings=KeyTimings(fetch_s=2.0))
        yield World(
            issuer=issuer,
            clock=clock,
            keys=keys,
            both=TokenVerifier(issuer=issuer.issuer, secret=SECRET, keys=keys),
            published_only=TokenVerifier(issuer=issuer.issuer, secret=None, keys=keys),
            secret_only=TokenVerifier(issuer=issuer.issuer, secret=SECRET, keys=None),
            secret=SigningKey("secret", "HS256", SECRET),
            stranger=SigningKey.make("ES256", "stranger"),
        )
        await keys.aclose()


@pytest.fixture
async def world(shared_issuer: Issuer) -> AsyncIterator[World]:
    async for world in _world(shared_issuer):
        yield world


@pytest.fixture
async def broken_world(own_issuer: Issuer) -> AsyncIterator[World]:
    async for world in _world(own_issuer):
        yield world


def public_pem(world: World, name: str) -> bytes:
    return _public(world, name, serialization.Encoding.PEM)


def public_der(world: World, name: str) -> bytes:
    return _public(world, name, serialization.Encoding.DER)


def _public(world: World, name: str, encoding: serialization.Encoding) -> bytes:
    public = world.issuer.keys[name].private.public_key()
    return bytes(public.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo))


def public_jwk(world: World, name: str) -> bytes:
    return json.dumps(world.issuer.keys[name].jwk()).encode()


def public_point(world: World, _name: str) -> bytes:
    return jwt.utils.base64url_decode(world.issuer.keys["ES256"].jwk()["x"])


def as_algorithm(world: World, name: str, algorithm: str) -> str:
    """Our key `name`, used by its owner for another algorithm."""
    key = world.issuer.keys[name]
    return world.issuer.bearer(SigningKey(key.kid, algorithm, key.private))


def legacy_key(world: World, role: str) -> str:
    now = int(time.time())
    claims = {"iss": "supabase", "ref": "project", "role": role, "iat": now - WEEK_S, "exp": now + WEEK_S}
    return "Bearer " + world.secret.sign(json.dumps(claims).encode(), kid=...)


def raw_payload(world: World, payload: bytes, **headers: object) -> str:
    return "Bearer " + world.issuer.keys["ES256"].sign(payload, **headers)


Header = Callable[[World], str | None]
Outcome = Principal | Problems
CASES: dict[str, tuple[Header, Outcome]] = {}


def case(name: str, expected: Outcome, header: Header) -> None:
    assert name not in CASES, name
    CASES[name] = (header, expected)


def role_case(name: str, expected: Role | None, **claims: object) -> None:
    case(f"role: {name}", Principal("user-1", expected), lambda w: w.issuer.bearer(**claims))


def now() -> int:
    return int(time.time())


# Who gets in.
case("HS256 by the shared secret", USER, lambda w: w.hs256())
for _name in ALGORITHMS:
    case(f"{_name} by a published key", USER, lambda w, n=_name: w.issuer.bearer(n))
case("the scheme in lower case and spaces", USER, lambda w: "bearer   " + w.issuer.token() + " \t")
case("aud is a list that holds ours", USER, lambda w: w.issuer.bearer(aud=["other", "authenticated"]))
case("another subject", Principal("user-2"), lambda w: w.issuer.bearer(sub="user-2"))
case("expired within the leeway", USER, lambda w: w.issuer.bearer(exp=now() - 20))
case("nbf within the leeway", USER, lambda w: w.issuer.bearer(nbf=now() + 20))
case("iat within the leeway", USER, lambda w: w.issuer.bearer(iat=now() + 20))
case("no iat", USER, lambda w: w.issuer.bearer(iat=...))
case("exp with a fraction", USER, lambda w: w.issuer.bearer(exp=now() + 60.5))
case("no typ", USER, lambda w: w.issuer.bearer(headers={"typ": ...}))
case("HS256 naming a published key is still the secret's", USER, lambda w: w.issuer.bearer(w.secret, {"kid": "es"}))
for _name, _value in {
    "jku": "http://127.0.0.1:9/jwks.json",
    "x5u": "http://127.0.0.1:9/chain.pem",
    "x5c": ["AAAA"],
    "jwk": {"kty": "oct", "k": "AAAA"},
}.items():
    case(f"a good token with the header {_name}", USER, lambda w, n=_name, v=_value: w.issuer.bearer(headers={n: v}))

# What they are.
role_case("user", Role.USER, app_metadata={"role": "user"})
role_case("admin", Role.ADMIN, app_metadata={"role": "admin"})
role_case("super_admin", Role.SUPER_ADMIN, app_metadata={"role": "super_admin"})
for _role in ("Admin", " admin", "admin\n", "root", "authenticated", "service_role", "", 1, True, None, {"admin": 1}):
    role_case(f"{_role!r} is none", None, app_metadata={"role": _role})
role_case("['admin'] is none", None, app_metadata={"role": ["admin"]})
role_case("of user_metadata is not read", None, user_metadata={"role": "super_admin"}, app_metadata={})
role_case("of the claim `role` is not read", None, role="super_admin")
role_case("of `user_role` is not read", None, user_role="admin")
role_case("without app_metadata", None, app_metadata=..., role="admin", user_metadata={"role": "admin"})
for _shape in ([], ["role", "admin"], "admin", [{"role": "admin"}], None, 7):
    role_case(f"of app_metadata as {_shape!r}", None, app_metadata=_shape)
role_case("an anonymous user is a user", Role.USER, is_anonymous=True, app_metadata={"role": "admin"})
role_case("anonymous as a text is a user", Role.USER, is_anonymous="true", app_metadata={"role": "admin"})
role_case("without is_anonymous", Role.ADMIN, is_anonymous=..., app_metadata={"role": "admin"})

# No credential.
for _text in (
    None,
    "",
    " ",
    "Bearer",
    "Bearer ",
    "Bearer \t",
    "Basic dXNlcjpwYXNz",
    "Token abc",
    "bearer:abc",
    "Bearer\tabc",
):
    case(f"header {_text!r}", Problems.TOKEN_MISSING, lambda _, t=_text: t)

# Algorithm confusion: what everybody knows is no secret.
for _name in ALGORITHMS:
    for _bytes in (public_pem, public_der, public_jwk, public_point):
        _label = f"{_bytes.__name__} of {_name} as HMAC secret"
        case(
            f"HS256 with {_label}",
            Problems.TOKEN_BAD_SIGNATURE,
            lambda w, n=_name, b=_bytes: w.hmac_with(b(w, n), "HS256", w.issuer.keys[n].kid),
        )
        case(
            f"{_name} with {_label}",
            Problems.TOKEN_BAD_SIGNATURE,
            lambda w, n=_name, b=_bytes: w.hmac_with(b(w, n), n, w.issuer.keys[n].kid),
        )
case(
    "an oct key in the key set is not used",
    Problems.TOKEN_BAD_SIGNATURE,
    lambda w: w.hmac_with(b"published-secret", "HS256", "oct-key"),
)
for _none in ("none", "None", "NONE", "nOnE"):
    for _signature in (b"", b"\x00"):
        case(
            f"alg {_none}, signature of {len(_signature)} bytes",
            Problems.TOKEN_FORBIDDEN_ALGORITHM,
            lambda w, a=_none, s=_signature: (
                "Bearer " + compact({"alg": a, "kid": w.issuer.keys["ES256"].kid}, w.issuer.claims(), s)
            ),
        )
for _hmac in ("HS384", "HS512"):
    case(
        f"{_hmac} by the shared secret",
        Problems.TOKEN_FORBIDDEN_ALGORITHM,
        lambda w, a=_hmac: "Bearer " + jwt.encode(w.issuer.claims(), SECRET + SECRET, algorithm=a),
    )
for _other in ("RS384", "RS512", "PS256", "PS512"):
    case(
        f"{_other} by our RSA key",
        Problems.TOKEN_FORBIDDEN_ALGORITHM,
        lambda w, a=_other: as_algorithm(w, "RS256", a),
    )
for _strange in ("hs256", "es256", "ES384", "ES256K", "", " ES256", "dir"):
    case(
        f"alg {_strange!r}",
        Problems.TOKEN_FORBIDDEN_ALGORITHM,
        lambda w, a=_strange: w.issuer.bearer(headers={"alg": a}),
    )
for _claimed in ALGORITHMS:
    for _real in ALGORITHMS:
        if _claimed != _real:
            case(
                f"{_claimed} claimed of a key for {_real}",
                Problems.TOKEN_FORBIDDEN_ALGORITHM,
                lambda w, c=_claimed, r=_real: w.issuer.bearer(w.issuer.keys[r], {"alg": c}),
            )
for _odd in (None, 5, ["ES256"], {"alg": "ES256"}, True):
    case(f"alg {_odd!r}", Problems.TOKEN_MALFORMED, lambda w, a=_odd: w.issuer.bearer(headers={"alg": a}))
case("no alg", Problems.TOKEN_MALFORMED, lambda w: w.issuer.bearer(headers={"alg": ...}))

# Keys.
case("a key that is not published", Problems.TOKEN_UNKNOWN_KEY, lambda w: w.issuer.bearer(w.stranger))
case("no kid", Problems.TOKEN_UNKNOWN_KEY, lambda w: w.issuer.bearer(headers={"kid": ...}))
case("the kid of an oct key", Problems.TOKEN_UNKNOWN_KEY, lambda w: w.issuer.bearer(headers={"kid": "oct-key"}))
for _kid in (None, 7, ["a"], {"a": 1}, "", "k" * 129, True):
    case(f"kid {_kid!r:.20}", Problems.TOKEN_MALFORMED, lambda w, k=_kid: w.issuer.bearer(headers={"kid": k}))
for _kid in ("../../etc/passwd", "' OR 1=1 --", "kid\x00", "\ud800", "é"):
    case(f"kid {_kid!r}", Problems.TOKEN_UNKNOWN_KEY, lambda w, k=_kid: w.issuer.bearer(headers={"kid": k}))
case(
    "a published kid, a stranger's signature",
    Problems.TOKEN_BAD_SIGNATURE,
    lambda w: w.issuer.bearer(w.stranger, {"kid": w.issuer.keys["ES256"].kid}),
)
case(
    "a published kid, a stranger's signature, his key in the header",
    Problems.TOKEN_BAD_SIGNATURE,
    lambda w: w.issuer.bearer(w.stranger, {"kid": w.issuer.keys["ES256"].kid, "jwk": w.stranger.jwk()}),
)
case(
    "a stranger's key in the header",
    Problems.TOKEN_UNKNOWN_KEY,
    lambda w: w.issuer.bearer(w.stranger, {"jwk": w.stranger.jwk(), "jku": "http://127.0.0.1:9/jwks.json"}),
)
case("another secret", Problems.TOKEN_BAD_SIGNATURE, lambda w: w.hmac_with(b"x" * 40, "HS256", "secret"))
for _name in ALGORITHMS:
    case(f"{_name}, no signature", Problems.TOKEN_BAD_SIGNATURE, lambda w, n=_name: w.signed_by(n, lambda _: b""))
    case(
        f"{_name}, a signature of zeros",
        Problems.TOKEN_BAD_SIGNATURE,
        lambda w, n=_name: w.signed_by(n, lambda s: b"\x00" * len(s)),
    )
    case(
        f"{_name}, one bit of the signature",
        Problems.TOKEN_BAD_SIGNATURE,
        lambda w, n=_name: w.signed_by(n, lambda s: bytes([s[0] ^ 1]) + s[1:]),
    )
    case(
        f"{_name}, another subject under the signature",
        Problems.TOKEN_BAD_SIGNATURE,
        lambda w, n=_name: "Bearer " + swapped(w.issuer.token(n), w.issuer.token(n, sub="admin")),
    )
case(
    "ES256 signature in DER",
    Problems.TOKEN_BAD_SIGNATURE,
    lambda w: w.signed_by("ES256", lambda s: raw_to_der_signature(s, ec.SECP256R1())),
)
case(
    "expired and wrongly signed is wrongly signed",
    Problems.TOKEN_BAD_SIGNATURE,
    lambda w: w.issuer.bearer(w.stranger, {"kid": w.issuer.keys["ES256"].kid}, exp=1),
)

# Claims.
case("expired", Problems.TOKEN_EXPIRED, lambda w: w.issuer.bearer(exp=now() - 40))
case("expired long ago, by the secret", Problems.TOKEN_EXPIRED, lambda w: w.hs256(exp=1))
case("exp negative", Problems.TOKEN_EXPIRED, lambda w: w.issuer.bearer(exp=-(10**400)))
for _exp in (True, False, "1", "9999999999", "tomorrow", [9999999999], {}, 10**12, 10**400):
    case(f"exp {_exp!r:.20}", Problems.TOKEN_MALFORMED, lambda w, e=_exp: w.issuer.bearer(exp=e))
for _text in ("1e999", "-1e999", "NaN", "Infinity", "-Infinity", "9" * 4400, "0x7fffffff", "1_000"):
    case(
        f"exp as {_text:.20}",
        Problems.TOKEN_MALFORMED,
        lambda w, t=_text: raw_payload(w, json.dumps(w.issuer.claims(exp="@")).replace('"@"', t).encode()),
    )
for _claim in ("nbf", "iat"):
    case(f"{_claim} ahead", Problems.TOKEN_MALFORMED, lambda w, c=_claim: w.issuer.bearer(**{c: now() + 40}))
    for _odd in (None, True, "0", [0], float("nan"), float("inf")):
        case(f"{_claim} {_odd!r}", Problems.TOKEN_MALFORMED, lambda w, c=_claim, v=_odd: w.issuer.bearer(**{c: v}))
for _aud in ("anon", "Authenticated", "authenticated ", "", [], ["anon"], [["authenticated"]], ["authenticated", 7]):
    case(f"aud {_aud!r}", Problems.TOKEN_WRONG_AUDIENCE, lambda w, a=_aud: w.issuer.bearer(aud=a))
case("aud {...}", Problems.TOKEN_WRONG_AUDIENCE, lambda w: w.issuer.bearer(aud={"authenticated": True}))
case("iss with a slash", Problems.TOKEN_WRONG_ISSUER, lambda w: w.issuer.bearer(iss=w.issuer.issuer + "/"))
case("iss in upper case", Problems.TOKEN_WRONG_ISSUER, lambda w: w.issuer.bearer(iss=w.issuer.issuer.upper()))
case("iss of another project", Problems.TOKEN_WRONG_ISSUER, lambda w: w.issuer.bearer(iss="https://x.test/auth/v1"))
case("iss as a list", Problems.TOKEN_WRONG_ISSUER, lambda w: w.issuer.bearer(iss=[w.issuer.issuer]))
case("iss empty", Problems.TOKEN_WRONG_ISSUER, lambda w: w.issuer.bearer(iss=""))
case("the project's anon key", Problems.TOKEN_WRONG_ISSUER, lambda w: legacy_key(w, "anon"))
case("the project's service_role key", Problems.TOKEN_WRONG_ISSUER, lambda w: legacy_key(w, "service_role"))
for _claim in ("exp", "sub", "aud", "iss"):
    case(f"no {_claim}", Problems.TOKEN_MALFORMED, lambda w, c=_claim: w.issuer.bearer(**{c: ...}))
    case(f"{_claim} null", Problems.TOKEN_MALFORMED, lambda w, c=_claim: w.issuer.bearer(**{c: None}))
for _sub in ("", 7, ["user-1"], "a\nb", "\x00", "x" * 129, "\ud800", "a\u202eb"):
    case(f"sub {_sub!r:.20}", Problems.TOKEN_MALFORMED, lambda w, s=_sub: w.issuer.bearer(sub=s))

# Shape.
for _crit in (["exp"], ["b64"], [], "exp", None, ["alg"]):
    case(f"crit {_crit!r}", Problems.TOKEN_MALFORMED, lambda w, c=_crit: w.issuer.bearer(headers={"crit": c}))
for _flag in (True, False):
    case(
        f"b64 {_flag}",
        Problems.TOKEN_MALFORMED,
        lambda w, f=_flag: w.issuer.bearer(headers={"b64": f, "crit": ["b64"]}),
    )
for _shape in (
    "x",
    "a.b",
    "..",
    "....",
    "a.b.c",
    "a.b.c.d.e",
    "é.é.é",
    "\x00.\x00.\x00",
    "a b",
    "." * 4000,
    "＋.＋.＋",
):
    case(f"token {_shape!r:.20}", Problems.TOKEN_MALFORMED, lambda _, s=_shape: f"Bearer {s}")


def rearranged(form: Callable[[str, str, str], str]) -> Header:
    return lambda w: "Bearer " + form(*w.issuer.token().split("."))


for _label, _form in {
    "the signature twice": lambda h, p, s: f"{h}.{p}.{s}.{s}",
    "the payload twice": lambda h, p, s: f"{h}.{p}.{p}.{s}",
    "all twice": lambda h, p, s: f"{h}.{p}.{s}.{h}.{p}.{s}",
    "two tokens": lambda h, p, s: f"{h}.{p}.{s}, Bearer {h}.{p}.{s}",
    "padded": lambda h, p, s: f"{h}==.{p}.{s}",
    "the signature padded": lambda h, p, s: f"{h}.{p}.{s}==",
    "no header": lambda h, p, s: f".{p}.{s}",
    "no payload": lambda h, p, s: f"{h}..{s}",
    "a newline at the end": lambda h, p, s: f"{h}.{p}.{s}\n",
    "a no-break space": lambda h, p, s: f"\xa0{h}.{p}.{s}",
    "the standard alphabet": lambda h, p, s: f"{h}.{p}.+/{s[2:]}",
    "stray bits in the header": lambda h, p, s: f"{base64url(b'{}')[:-1]}x.{p}.{s}",
}.items():
    case(_label, Problems.TOKEN_MALFORMED, rearranged(_form))
case(
    "a repeated claim",
    Problems.TOKEN_MALFORMED,
    lambda w: raw_payload(w, b'{"sub":"admin",' + json.dumps(w.issuer.claims()).encode()[1:]),
)
case(
    "a repeated header",
    Problems.TOKEN_MALFORMED,
    lambda w: "Bearer " + compact(b'{"alg":"none","alg":"ES256","kid":"x"}', w.issuer.claims(), b"x"),
)
for _payload in (b"[1]", b"7", b"null", b'"x"', b"", b"[" * 3000, b'{"a":' * 900, b"\xff", b"\xff\xfe{\x00}\x00"):
    if _payload:
        case(f"signed payload {_payload!r:.25}", Problems.TOKEN_MALFORMED, lambda w, p=_payload: raw_payload(w, p))
    case(
        f"header {_payload!r:.25}",
        Problems.TOKEN_MALFORMED,
        lambda w, p=_payload: "Bearer " + compact(p, w.issuer.claims(), b"x"),
    )
case("NaN where nobody looks", Problems.TOKEN_MALFORMED, lambda w: w.issuer.bearer(user_metadata={"x": float("nan")}))
case(
    "UTF-16 payload", Problems.TOKEN_MALFORMED, lambda w: raw_payload(w, json.dumps(w.issuer.claims()).encode("utf-16"))
)
case("a token of more than 8 KiB", Problems.TOKEN_MALFORMED, lambda w: w.issuer.bearer(user_metadata={"x": "y" * 6200}))


def swapped(token: str, other: str) -> str:
    """The header and signature of one token around the payload of another."""
    header, _, signature = token.split(".")
    return f"{header}.{other.split('.')[1]}.{signature}"


async def outcome(verifier: TokenVerifier, header: str | None) -> Outcome:
    """Whom the header lets in, or the problem; any other error fails the test."""
    try:
        return await verifier.principal(header)
    except Problem as problem:
        refused = problem
    assert refused.kind.value.status == (503 if refused.kind is Problems.IDENTITY_UNAVAILABLE else 401)
    token = (header or "").partition(" ")[2]
    assert not any(len(part) > 3 and part in refused.detail for part in token.split("."))
    return refused.kind


@pytest.mark.parametrize("name", CASES)
async def test_the_matrix(world: World, name: str) -> None:
    header, expected = CASES[name]
    world.issuer.extra = [{"kty": "oct", "kid": "oct-key", "k": base64url(b"published-secret"), "alg": "HS256"}]
    text = header(world)
    assert await outcome(world.both, text) == expected
    assert await outcome(world.both, text) == expected, "the second time, from what is remembered"


def test_the_matrix_names_every_refusal() -> None:
    found = {expected for _, expected in CASES.values() if isinstance(expected, Problems)}
    assert found == {kind for kind in Problems if kind.value.status == 401}


async def test_without_a_secret_no_hmac_passes(world: World) -> None:
    for secret in (b"", SECRET.encode(), b"None", public_pem(world, "RS256")):
        header = world.hmac_with(secret, "HS256", world.issuer.keys["RS256"].kid)
        assert await outcome(world.published_only, header) is Problems.TOKEN_FORBIDDEN_ALGORITHM
    assert await outcome(world.published_only, world.issuer.bearer("RS256")) == USER
    empty = TokenVerifier(issuer=world.issuer.issuer, secret="", keys=world.keys)
    assert await outcome(empty, world.hmac_with(b"", "HS256", "x")) is Problems.TOKEN_FORBIDDEN_ALGORITHM


async def test_without_published_keys_only_the_secret_passes(world: World) -> None:
    assert await outcome(world.secret_only, world.hs256()) == USER
    for name in ALGORITHMS:
        assert await outcome(world.secret_only, world.issuer.bearer(name)) is Problems.TOKEN_FORBIDDEN_ALGORITHM


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("same_kid", [False, True])
async def test_rotation_admits_the_new_key_and_refuses_the_old(broken_world: World, name: str, same_kid: bool) -> None:
    world, issuer = broken_world, broken_world.issuer
    before = issuer.bearer(name)
    assert await outcome(world.both, before) == USER
    old = issuer.rotate(name)
    if same_kid:
        issuer.keys[name] = SigningKey(old.kid, name, issuer.keys[name].private)
        if name == "RS256":
            assert old.private is not issuer.keys[name].private
    after = issuer.bearer(name)
    # Until the next fetch the old key is believed: that is what the time to live means.
    assert await outcome(world.both, before) == USER
    world.clock.now += 600 if same_kid else 31
    await outcome(world.both, after)
    for _ in range(200):
        if issuer.requests == 2 and await outcome(world.both, after) == USER:
            break
        await asyncio.sleep(0.01)
    assert await outcome(world.both, after) == USER
    refusal = Problems.TOKEN_BAD_SIGNATURE if same_kid else Problems.TOKEN_UNKNOWN_KEY
    assert await outcome(world.both, before) is refusal, "although it was accepted and remembered a moment ago"
    assert issuer.requests == 2


async def test_a_refresh_with_the_same_keys_forgets_nothing(
    broken_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = broken_world
    header = world.issuer.bearer()
    assert await outcome(world.both, header) == USER
    world.clock.now += 600
    await outcome(world.both, header)
    for _ in range(200):
        if world.issuer.requests == 2 and world.keys._fetch is not None and world.keys._fetch.done():
            break
        await asyncio.sleep(0.01)

    def no_check(*_: object) -> bytes:
        raise AssertionError("the signature was checked again")

    monkeypatch.setattr(TokenVerifier, "_signed_payload", no_check)
    assert await outcome(world.both, header) == USER


async def test_a_hanging_key_set_costs_other_requests_nothing(
    broken_world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """The endpoint hangs for 30 s; a refresh is due and unknown keys are tried. Known keys go on as before."""
    world, issuer = broken_world, broken_world.issuer
    names = (*ALGORITHMS, "HS256")

    async def median_ms() -> float:
        times = []
        for number in range(60):
            name = names[number % 4]
            unique = len(slowest) * 1000 + number  # or a remembered token would answer
            token = world.hs256(n=unique) if name == "HS256" else issuer.bearer(name, n=unique)
            began = time.perf_counter()
            assert await outcome(world.both, token) == USER
            times.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(0)
        slowest.append(max(times))
        return statistics.median(times)

    slowest: list[float] = []
    await outcome(world.both, issuer.bearer())
    before_ms = await median_ms()
    issuer.fault(hang_s=30)
    world.clock.now += 601
    strangers = [asyncio.create_task(outcome(world.both, issuer.bearer(world.stranger))) for _ in range(20)]
    await asyncio.sleep(0.1)
    assert issuer.requests == 2, "the refresh is on its way"
    during_ms = await median_ms()
    assert not any(task.done() for task in strangers), "the hang lasted throughout"
    with capsys.disabled():
        print(
            f"\n  new tokens while the key set hangs: median {during_ms:.2f} ms, slowest {slowest[1]:.1f} ms "
            f"(before: {before_ms:.2f} ms, {slowest[0]:.1f} ms)"
        )
    assert slowest[1] < 30_000, "a request waited for the endpoint that hangs"
    assert set(await asyncio.gather(*strangers)) == {Problems.IDENTITY_UNAVAILABLE}
    assert issuer.requests == 2


async def test_while_the_key_set_is_down_old_keys_serve_and_then_nobody_gets_in(broken_world: World) -> None:
    world, issuer = broken_world, broken_world.issuer
    known, fresh = issuer.bearer(), issuer.bearer(sub="user-2")
    assert await outcome(world.both, known) == USER
    issuer.fault(status=500)
    world.clock.now += 1799
    assert await outcome(world.both, known) == USER
    assert await outcome(world.both, fresh) == Principal("user-2")
    assert world.both.usable
    world.clock.now += 2
    assert await outcome(world.both, known) is Problems.IDENTITY_UNAVAILABLE, "remembered, but its key is too old"
    assert await outcome(world.both, fresh) is Problems.IDENTITY_UNAVAILABLE
    assert not world.published_only.usable
    assert await outcome(world.both, world.hs256()) == USER, "the secret needs no provider"
    issuer.fault()
    world.clock.now += 6
    assert await outcome(world.both, known) == USER


async def test_a_refusal_is_not_remembered(broken_world: World) -> None:
    world, issuer = broken_world, broken_world.issuer
    header = issuer.bearer(world.stranger)
    assert await outcome(world.both, header) is Problems.TOKEN_UNKNOWN_KEY
    issuer.extra = [world.stranger.jwk()]
    world.clock.now += 31
    assert await outcome(world.both, header) == USER


async def test_the_token_leads_nowhere(broken_world: World) -> None:
    """A key set that a token points to is never asked for."""
    world = broken_world
    with Issuer("ES256") as trap:
        for name in ("jku", "x5u", "iss"):
            headers = {name: trap.jwks_url, "kid": trap.keys["ES256"].kid}
            assert (
                await outcome(world.both, trap.bearer("ES256", headers, iss=world.issuer.issuer))
                is Problems.TOKEN_UNKNOWN_KEY
            )
        assert trap.requests == 0


async def test_five_hundred_first_requests_fetch_once(broken_world: World) -> None:
    world = broken_world
    world.issuer.fault(hang_s=0.3)
    tokens = [world.issuer.bearer("ES256", sub=f"user-{n}") for n in range(500)]
    found = await asyncio.gather(*(outcome(world.both, token) for token in tokens))
    assert found == [Principal(f"user-{n}") for n in range(500)]
    assert world.issuer.requests == 1


async def test_many_unknown_keys_lead_to_few_fetches(broken_world: World) -> None:
    world = broken_world
    await outcome(world.both, world.issuer.bearer())
    for step in range(4):
        headers = [world.issuer.bearer(headers={"kid": f"bogus-{step}-{n}"}) for n in range(100)]
        found = await asyncio.gather(*(outcome(world.both, header) for header in headers))
        assert set(found) == {Problems.TOKEN_UNKNOWN_KEY}
        assert world.issuer.requests == 1 + step
        world.clock.now += 30


def test_the_digest_of_a_token_is_all_that_is_kept(shared_issuer: Issuer) -> None:
    verifier = TokenVerifier(issuer=shared_issuer.issuer, secret=SECRET)
    token = SigningKey("secret", "HS256", SECRET).sign(json.dumps(shared_issuer.claims()).encode())
    assert asyncio.run(verifier.principal(f"Bearer {token}")) == USER
    entries = verifier._verified._entries
    assert list(entries) == [hashlib.sha256(token.encode()).digest()]
    assert not any(part in repr((verifier, verifier._verified, entries)) for part in [SECRET, *token.split(".")])
