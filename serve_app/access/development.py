"""Development identities: the local signing secret and the tokens minted with it.

Owns the two files a developer's machine needs to call a protected route without an identity provider.
Refuses to be of any use in production: `nilm token` and `nilm run` never call it there.
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

import jwt

from serve_app.access.principal import Role

SECRET_VARIABLE = "SUPABASE_JWT_SECRET"  # noqa: S105 - the variable's name, not a secret
SECRET_FILE_NAME = "dev-secret"  # noqa: S105 - a file name
SECRET_BYTES = 48
"""384 random bits: more than HS256's own 256, so the secret is never the weakest part."""


def in_production() -> bool:
    """Whether `ENV` says so to a command. Unset, as on a checkout, it does not; empty means production."""
    return os.environ.get("ENV", "development") in {"production", ""}


def mint_development_token(secret: str, user_id: str, minutes: int, issuer: str, role: Role | None = None) -> str:
    """An HS256 access token shaped like Supabase's, valid from now for `minutes`; `role` is `app_metadata.role`.

    It says who the caller is. What the caller may use is in the development grants file.
    """
    if minutes < 1:
        raise ValueError("a token must be valid for at least one minute")
    issued_at = int(time.time())
    claims: dict[str, object] = {
        "sub": user_id,
        "aud": "authenticated",
        "role": "authenticated",
        "iss": issuer,
        "iat": issued_at,
        "exp": issued_at + minutes * 60,
    }
    if role is not None:
        claims["app_metadata"] = {"role": str(role)}
    return jwt.encode(claims, secret, algorithm="HS256")


def read_development_secret(data_dir: Path) -> str | None:
    """The secret the service of this data directory verifies tokens with; None before its first start."""
    from_environment = os.environ.get(SECRET_VARIABLE)
    if from_environment:
        return from_environment
    path = data_dir / SECRET_FILE_NAME
    return path.read_text(encoding="ascii").strip() or None if path.is_file() else None


def ensure_development_secret(data_dir: Path) -> str:
    """Like `read_development_secret`, but makes the secret once, so that tokens survive a restart."""
    existing = read_development_secret(data_dir)
    if existing is not None:
        return existing
    secret = secrets.token_urlsafe(SECRET_BYTES)
    write_private_file(data_dir / SECRET_FILE_NAME, secret)
    return secret


def write_private_file(path: Path, content: str) -> None:
    """Write `content` so that only the owner can read it, from the first byte on, and never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content + "\n")
    temporary.replace(path)
