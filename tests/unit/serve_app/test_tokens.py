"""Every token that must not pass, each refused with its own code; and the few that must."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from serve_app.access.principal import ALL_BUILDINGS, Principal
from serve_app.access.tokens import LEEWAY_S, MAX_TOKEN_BYTES, TokenVerifier
from serve_app.problems import Problem, Problems

Mint = Callable[..., str]


@pytest.fixture
def verifier(kit: SimpleNamespace) -> TokenVerifier:
    return TokenVerifier(secret=kit.SECRET, issuer=kit.ISSUER)


def refusal(verifier: TokenVerifier, header: str | None) -> Problems:
    with pytest.raises(Problem) as caught:
        verifier.principal(header)
    assert caught.value.kind.value.status == 401
    return caught.value.kind


def b64(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def test_a_valid_token_gives_the_subject_and_the_granted_buildings(verifier: TokenVerifier, kit: Any) -> None:
    token = kit.mint(app_metadata={"buildings": ["home", "barn"]})
    assert verifier.principal(f"Bearer {token}") == Principal("user-1", frozenset({"home", "barn"}))
    assert verifier.principal(f"bearer   {token} ").user_id == "user-1"


@pytest.mark.parametrize("aud", ["authenticated", ["other", "authenticated"]])
def test_the_audience_may_be_a_string_or_a_list(verifier: TokenVerifier, kit: Any, aud: object) -> None:
    assert verifier.principal(f"Bearer {kit.mint(aud=aud)}").user_id == "user-1"


def test_leeway_covers_clock_skew_and_ends(verifier: TokenVerifier, kit: Any) -> None:
    now = int(time.time())
    assert verifier.principal(f"Bearer {kit.mint(exp=now - LEEWAY_S + 10)}")
    assert refusal(verifier, f"Bearer {kit.mint(exp=now - LEEWAY_S - 5)}") is Problems.TOKEN_EXPIRED


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "Token abc", "bearer:abc"])
def test_no_bearer_credential(verifier: TokenVerifier, header: str | None) -> None:
    assert refusal(verifier, header) is Problems.TOKEN_MISSING


CLAIM_CASES: list[tuple[dict[str, object], Problems]] = [
    ({"exp": 1}, Problems.TOKEN_EXPIRED),
    ({"exp": True}, Problems.TOKEN_EXPIRED),
    ({"aud": "anon"}, Problems.TOKEN_WRONG_AUDIENCE),
    ({"aud": ["anon", "other"]}, Problems.TOKEN_WRONG_AUDIENCE),
    ({"aud": [["authenticated"]]}, Problems.TOKEN_WRONG_AUDIENCE),
    ({"aud": {"authenticated": True}}, Problems.TOKEN_WRONG_AUDIENCE),
    ({"iss": "supabase"}, Problems.TOKEN_WRONG_ISSUER),
    ({"iss": "https://project.supabase.test/auth/v1/"}, Problems.TOKEN_WRONG_ISSUER),
    ({"iss": ["https://project.supabase.test/auth/v1"]}, Problems.TOKEN_WRONG_ISSUER),
    ({"sub": ...}, Problems.TOKEN_MALFORMED),
    ({"exp": ...}, Problems.TOKEN_MALFORMED),
    ({"aud": ...}, Problems.TOKEN_MALFORMED),
    ({"iss": ...}, Problems.TOKEN_MALFORMED),
    ({"sub": None}, Problems.TOKEN_MALFORMED),
    ({"sub": ""}, Problems.TOKEN_MALFORMED),
    ({"sub": 7}, Problems.TOKEN_MALFORMED),
    ({"sub": "a\nb"}, Problems.TOKEN_MALFORMED),
    ({"sub": "x" * 129}, Problems.TOKEN_MALFORMED),
    ({"exp": "tomorrow"}, Problems.TOKEN_MALFORMED),
    ({"exp": float("inf")}, Problems.TOKEN_MALFORMED),
    ({"exp": float("nan")}, Problems.TOKEN_MALFORMED),
    ({"exp": []}, Problems.TOKEN_MALFORMED),
    ({"nbf": float("inf")}, Problems.TOKEN_MALFORMED),
    ({"nbf": 9_999_999_999}, Problems.TOKEN_MALFORMED),
]


@pytest.mark.parametrize(("changes", "expected"), CLAIM_CASES, ids=[str(c[0])[:60] for c in CLAIM_CASES])
def test_a_signed_token_with_wrong_claims(
    verifier: TokenVerifier, kit: Any, changes: dict[str, object], expected: Problems
) -> None:
    assert refusal(verifier, f"Bearer {kit.mint(**changes)}") is expected


def test_a_missing_claim_is_named(verifier: TokenVerifier, kit: Any) -> None:
    with pytest.raises(Problem, match="'sub'"):
        verifier.principal(f"Bearer {kit.mint(sub=...)}")


def test_another_key_is_a_bad_signature(verifier: TokenVerifier, kit: Any) -> None:
    assert (
        refusal(verifier, f"Bearer {kit.mint('another-secret-that-is-long-enough!')}") is Problems.TOKEN_BAD_SIGNATURE
    )
    header, payload, signature = kit.mint().split(".")
    forged = json.loads(base64.urlsafe_b64decode(payload + "==")) | {"sub": "admin"}
    assert refusal(verifier, f"Bearer {header}.{b64(forged)}.{signature}") is Problems.TOKEN_BAD_SIGNATURE


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE"])
@pytest.mark.parametrize("signature", ["", "AA"])
def test_an_unsigned_token_never_passes(verifier: TokenVerifier, kit: Any, algorithm: str, signature: str) -> None:
    payload = kit.mint().split(".")[1]
    token = f"{b64({'alg': algorithm, 'typ': 'JWT'})}.{payload}.{signature}"
    assert refusal(verifier, f"Bearer {token}") is Problems.TOKEN_FORBIDDEN_ALGORITHM


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_another_hmac_with_our_key_is_not_accepted(verifier: TokenVerifier, kit: Any, algorithm: str) -> None:
    assert refusal(verifier, f"Bearer {kit.mint(algorithm=algorithm)}") is Problems.TOKEN_FORBIDDEN_ALGORITHM


def test_an_rs256_token_is_not_accepted(verifier: TokenVerifier, kit: Any, rsa_key: rsa.RSAPrivateKey) -> None:
    token = jwt.encode({"sub": "user-1"}, rsa_key, algorithm="RS256")
    assert refusal(verifier, f"Bearer {token}") is Problems.TOKEN_FORBIDDEN_ALGORITHM


def test_a_public_key_used_as_hmac_key_is_not_accepted(
    verifier: TokenVerifier, kit: Any, rsa_key: rsa.RSAPrivateKey
) -> None:
    pem = rsa_key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    import hashlib
    import hmac

    payload = kit.mint().split(".")[1]
    for algorithm in ("HS256", "RS256"):
        signed = f"{b64({'alg': algorithm, 'typ': 'JWT'})}.{payload}"
        signature = b64(hmac.new(pem, signed.encode(), hashlib.sha256).digest())
        assert refusal(verifier, f"Bearer {signed}.{signature}") in {
            Problems.TOKEN_BAD_SIGNATURE,
            Problems.TOKEN_FORBIDDEN_ALGORITHM,
        }


JUNK = [
    "x",
    "a.b",
    "....",
    "a.b.c",
    "é.é.é",
    "\x00.\x00.\x00",
    f"{b64([1])}.e30.AA",
    f"{b64(5)}.e30.AA",
    f"{b64({'alg': 'HS256', 'kid': 5})}.e30.AA",
    f"{b64({'alg': 'HS256', 'b64': False, 'crit': ['b64']})}.e30.AA",
    f"{b64(b'[' * 5000)}.e30.AA",
    f"{b64(b'{' + b'}' * 9)}.e30.AA",
    "." * 4000,
]


@pytest.mark.parametrize("token", JUNK, ids=range(len(JUNK)))
def test_junk_is_malformed_and_never_a_crash(verifier: TokenVerifier, token: str) -> None:
    assert refusal(verifier, f"Bearer {token}") is Problems.TOKEN_MALFORMED


@pytest.mark.parametrize("algorithm", [5, ["HS256"], None, {"x": 1}, "hs256"])
def test_a_strange_algorithm_is_refused(verifier: TokenVerifier, algorithm: object) -> None:
    kind = refusal(verifier, f"Bearer {b64({'alg': algorithm})}.e30.AA")
    assert kind in {Problems.TOKEN_MALFORMED, Problems.TOKEN_FORBIDDEN_ALGORITHM}


@pytest.mark.parametrize("payload", [b"[1]", b"7", b"null", b"[" * 3000, b"\xff"])
def test_a_signed_payload_that_is_no_object_is_malformed(verifier: TokenVerifier, kit: Any, payload: bytes) -> None:
    token = jwt.api_jws.encode(payload, kit.SECRET, algorithm="HS256")
    assert refusal(verifier, f"Bearer {token}") is Problems.TOKEN_MALFORMED


def test_the_size_limit_is_exact(verifier: TokenVerifier) -> None:
    with pytest.raises(Problem, match="longer than"):
        verifier.principal("Bearer " + "a" * (MAX_TOKEN_BYTES + 1))
    with pytest.raises(Problem, match="not a readable"):
        verifier.principal("Bearer " + "a" * MAX_TOKEN_BYTES)


@pytest.mark.parametrize(
    "claims",
    [
        {"app_metadata": ..., "user_metadata": {"buildings": ["home"]}},
        {"app_metadata": ..., "buildings": ["home"]},
        {"app_metadata": None},
        {"app_metadata": ["home"]},
        {"app_metadata": {"buildings": "home"}},
        {"app_metadata": {"buildings": "*"}},
        {"app_metadata": {"buildings": {"home": True}}},
        {"app_metadata": {"buildings": [["home"], {"home": 1}, None, 7]}},
        {"app_metadata": {"buildings": []}},
        {"app_metadata": ..., "role": "service_role"},
    ],
)
def test_only_an_admin_set_list_grants_buildings(verifier: TokenVerifier, kit: Any, claims: dict[str, object]) -> None:
    principal = verifier.principal(f"Bearer {kit.mint(**claims)}")
    assert not principal.may_use("home")
    assert not principal.may_use("*")


def test_grants_are_exact() -> None:
    assert Principal("u", frozenset({"home"})).may_use("home")
    for other in ("Home", "home ", "hom", ""):
        assert not Principal("u", frozenset({"home"})).may_use(other)
    assert Principal("u", frozenset({ALL_BUILDINGS})).may_use("anything")
    assert not Principal("u", frozenset()).may_use("home")


def test_no_secret_in_repr_or_problem(verifier: TokenVerifier, kit: Any) -> None:
    assert kit.SECRET not in repr(verifier)
    token = kit.mint("another-secret-that-is-long-enough!")
    with pytest.raises(Problem) as caught:
        verifier.principal(f"Bearer {token}")
    assert token not in str(caught.value)
    assert kit.SECRET not in str(caught.value)
