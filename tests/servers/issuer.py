"""An identity provider for tests: real keys, and an HTTP server that publishes them as Supabase does.

    with Issuer() as issuer:                      # GET <issuer.url>/auth/v1/.well-known/jwks.json
        header = issuer.bearer("ES256", sub="user-1", exp=...)
        issuer.fault(hang_s=30)                   # or status=500, body=b"garbage", location="http://..."
        issuer.rotate("ES256")                    # the old key is no longer published

It is a thread with a real socket, so that processes beside this one can read the keys too.
"""

from __future__ import annotations

import base64
import functools
import json
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

JWKS_PATH = "/auth/v1/.well-known/jwks.json"
ALGORITHMS = ("ES256", "RS256", "EdDSA")
_TO_JWK: dict[str, Any] = {"ES256": ECAlgorithm, "RS256": RSAAlgorithm, "EdDSA": OKPAlgorithm}


def base64url(raw: bytes) -> str:
    """Unpadded base64url."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def compact(header: object, payload: object, signature: bytes = b"") -> str:
    """A token of these parts; bytes are taken as they are, all else becomes JSON."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    return ".".join(base64url(part) for part in [*parts, signature])


@functools.cache
def _rsa_key(_number: int) -> rsa.RSAPrivateKey:
    # Slow to make: a run of tests shares them, by number.
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass(frozen=True)
class SigningKey:
    """A key pair; `private` is an object of `cryptography`, or the text of an HMAC secret."""

    kid: str
    algorithm: str
    private: Any = field(repr=False)

    @classmethod
    def make(cls, algorithm: str, kid: str | None = None, *, number: int = 0) -> SigningKey:
        """A new key; RSA keys of one `number` are the same key."""
        private: Any
        match algorithm:
            case "ES256":
                private = ec.generate_private_key(ec.SECP256R1())
            case "RS256":
                private = _rsa_key(number)
            case "EdDSA":
                private = ed25519.Ed25519PrivateKey.generate()
            case _:
                raise ValueError(algorithm)
        return cls(kid or str(uuid.uuid4()), algorithm, private)

    def jwk(self, **changes: object) -> dict[str, Any]:
        """The public key as Supabase publishes it; `name=...` (Ellipsis) leaves a member out."""
        public = _TO_JWK[self.algorithm].to_jwk(self.private.public_key(), as_dict=True)
        members = public | {"kid": self.kid, "alg": self.algorithm, "use": "sig", "key_ops": ["verify"], "ext": True}
        return {name: value for name, value in (members | changes).items() if value is not ...}

    def sign(self, payload: bytes, **headers: object) -> str:
        """A token of this key; `name=...` leaves a header out."""
        merged = {"alg": self.algorithm, "kid": self.kid, "typ": "JWT"} | headers
        header = {name: value for name, value in merged.items() if value is not ...}
        signed = compact(header, payload).rsplit(".", 1)[0]
        algorithm = jwt.get_algorithm_by_name(self.algorithm)
        return f"{signed}.{base64url(algorithm.sign(signed.encode(), algorithm.prepare_key(self.private)))}"


@dataclass(frozen=True)
class Fault:
    """How the key set is answered."""

    hang_s: float = 0.0
    """Wait this long before the answer, and for good if the server is closed meanwhile."""
    status: int = 200
    body: bytes | None = None
    """None: the real key set."""
    location: str = ""
    """Where a redirect points to."""
    encoding: str = ""
    drip_s: float = 0.0
    """Pause between single bytes of the answer."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = True
    request_queue_size = 1024

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet: clients that leave early are what some tests are about."""


class Issuer:
    """Publishes `keys`, signs with them, counts the requests, and misbehaves on demand."""

    def __init__(self, *algorithms: str) -> None:
        self.keys = {name: SigningKey.make(name) for name in algorithms or ALGORITHMS}
        self.extra: list[object] = []
        """Further entries of the key set, as they are."""
        self.requests = 0
        self._fault = Fault()
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def issuer(self) -> str:
        """The `iss` of its tokens."""
        return f"{self.url}/auth/v1"

    @property
    def jwks_url(self) -> str:
        return self.url + JWKS_PATH

    def fault(self, **settings: Any) -> None:
        """Put a fault in force; without settings, mend. Answers that hang go on with the new setting."""
        with self._lock:
            self._fault = replace(Fault(), **settings)
        self._ending.set()  # wake those that hang
        self._ending = threading.Event()

    def rotate(self, algorithm: str) -> SigningKey:
        """Publish a new key in the old one's place; returns the old one."""
        old = self.keys[algorithm]
        self.keys[algorithm] = SigningKey.make(algorithm, number=1)
        return old

    def key_set(self) -> bytes:
        return json.dumps({"keys": [*(key.jwk() for key in self.keys.values()), *self.extra]}).encode()

    def claims(self, **changes: object) -> dict[str, object]:
        """The claims of a valid token of `user-1`, for ten minutes; `name=...` leaves a claim out."""
        now = int(time.time())
        claims: dict[str, object] = {
            "iss": self.issuer,
            "sub": "user-1",
            "aud": "authenticated",
            "exp": now + 600,
            "iat": now,
            "role": "authenticated",
            "is_anonymous": False,
            "app_metadata": {"provider": "email", "providers": ["email"]},
            "user_metadata": {},
        }
        return {name: value for name, value in (claims | changes).items() if value is not ...}

    def token(
        self, key: SigningKey | str = "ES256", headers: Mapping[str, object] | None = None, **changes: object
    ) -> str:
        """A signed token; `key` is one of ours by algorithm, or any."""
        signer = self.keys[key] if isinstance(key, str) else key
        return signer.sign(json.dumps(self.claims(**changes)).encode(), **(headers or {}))

    def bearer(
        self, key: SigningKey | str = "ES256", headers: Mapping[str, object] | None = None, **changes: object
    ) -> str:
        """The `Authorization` header of a signed token."""
        return f"Bearer {self.token(key, headers, **changes)}"

    def answer(self) -> tuple[Fault, bytes]:
        """Count a request, wait if it is to hang, and say what to answer."""
        with self._lock:
            self.requests += 1
            fault, ending = self._fault, self._ending
        if fault.hang_s and ending.wait(fault.hang_s):
            fault = self._fault
        return fault, self.key_set() if fault.body is None else fault.body


def _handler(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_GET(self) -> None:
            fault, body = issuer.answer()
            found = self.path == JWKS_PATH
            self.close_connection = True  # no idle connection keeps the server from closing
            self.send_response(fault.status if found else 404)
            if fault.location:
                self.send_header("Location", fault.location)
            if fault.encoding:
                self.send_header("Content-Encoding", fault.encoding)
            self.send_header("Content-Type", "application/json")
            self.send_header("Connection", "close")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            pieces = [body[i : i + 1] for i in range(len(body))] if fault.drip_s else [body]
            for piece in pieces:
                self.wfile.write(piece)
                time.sleep(fault.drip_s)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Stay quiet."""

    return Handler
