"""Typed settings from environment variables, read once by the composition root.

Fail closed: `ENV` defaults to production, and production refuses to start while a required value is missing or
still the placeholder of `.env.example`. Secrets are `SecretStr`, so no `repr` or log line shows them.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from deployments.stores import StoreConfig
from deployments.tracing import TracingFault, chosen_exporter
from serve_app.access.client_address import ClientAddresses
from serve_app.access.quotas import BATCH_QUOTA, IP_QUOTA, USER_QUOTA
from serve_app.access.tokens import MIN_SECRET_BYTES

DEVELOPMENT_ISSUER = "nilm-development"

MIN_ADMIN_TOKEN_CHARS = 32
"""128 random bits in hexadecimal."""
PROXY_TRUST_VARIABLE = "FORWARDED_ALLOW_IPS"

_PLACEHOLDER = re.compile(
    r"change.?me|placeholder|(^|//)your[-_ ]|(^|//)<.*>|^x{3,}$|\bexample\.(com|org|net)\b|^(secret|password|todo)$",
    re.IGNORECASE,
)


def token_issuer(supabase_url: str | None) -> str:
    """The only `iss` that tokens may carry: the identity provider's, or the development one where there is none."""
    return f"{supabase_url.rstrip('/')}/auth/v1" if supabase_url else DEVELOPMENT_ISSUER


def _comma_separated(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def _is_internal(url: str) -> bool:
    """Whether a URL stays on this machine or in a private network: an address of one, or a name without a domain."""
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".svc", ".cluster.local", ".internal"))
    return address.is_loopback or address.is_private


class SettingsError(Exception):
    """The environment does not describe a service that may start; the text names every fault."""


DATABASE_NAME = "predictions.sqlite3"
"""Of the embedded store's file in the data folder."""
LEAVING_NAME = "leaving"
"""Of a file in the data folder that is there while the service is about to stop: `/ready` is then false."""


class Environment(StrEnum):
    """Where the service runs."""

    DEVELOPMENT = "development"
    PRODUCTION = "production"


class Settings(BaseSettings):
    """Every setting of the service; field names are the environment variables, in lower case."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    env: Environment = Environment.PRODUCTION
    nilm_data_dir: Path = Path(".nilm")
    """Folder of the embedded store."""
    supabase_url: str = ""
    """Base URL of the identity provider; tokens must be issued by `<url>/auth/v1`."""
    supabase_service_role_key: SecretStr = SecretStr("")
    """The server-side key that reads grants and roles; it passes by row-level security, so it never leaves us."""
    supabase_jwt_secret: SecretStr = SecretStr("")
    """Shared key of HS256 tokens, at least 32 bytes. Empty: only tokens signed with the provider's published keys."""
    admin_token: SecretStr = SecretStr("")
    """Second factor of admin routes and the scrape credential of /metrics."""
    expose_docs: bool = False
    """Serve /docs and /openapi.json in production too."""
    max_requests_in_flight: int = Field(default=256, ge=1, le=100_000)
    """Of one ingress replica: a third of a second's work, so that whoever is let in is answered in good time."""
    rate_limit_per_user: int = Field(default=60, ge=1, le=1_000_000)
    """Requests a minute of one authenticated user, over all ingress replicas."""
    rate_limit_batches_per_user: int = Field(default=30, ge=1, le=1_000_000)
    """Calls of /infer/batch a minute of one user, which count here and not above."""
    rate_limit_per_ip: int = Field(default=120, ge=1, le=1_000_000)
    """Requests a minute of one client address (IPv6: of one /64), before authentication."""
    trusted_proxies: str = ""
    """Comma-separated addresses or networks whose X-Forwarded-For is believed."""
    redis_url: SecretStr = SecretStr("")
    """Set: quotas are counted in Redis. Empty: in the coordinator deployment's memory."""
    cors_origins: str = ""
    """Comma-separated origins of browsers that may call; `*` is refused in production."""
    influx_url: str = ""
    """Set: predictions go to InfluxDB 2. Empty: the embedded SQLite store, one node only."""
    influx_token: SecretStr = SecretStr("")
    influx_org: str = ""
    influx_bucket_raw: str = "raw"
    influx_bucket_pred: str = "predictions"
    retention_days: int = Field(default=0, ge=0, le=36500)
    """Of the embedded store: older rows leave, their quarters of an hour stay. 0 keeps every row."""
    request_timeout_s: float = Field(default=10.0, gt=0, le=300)
    """One deadline per request: every wait inside is bounded by it."""
    traces_per_second: float = Field(default=5.0, gt=0, le=1000)
    """Requests of one ingress replica that are traced at most, when OTEL_TRACES_EXPORTER says where spans go."""

    @field_validator("supabase_url", "influx_url")
    @classmethod
    def _http_url(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", value):
            raise ValueError("must be an http:// or https:// URL")
        return value.rstrip("/")

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        try:
            usable = not url or (url.startswith(("redis://", "rediss://")) and bool(urlsplit(url).hostname))
            _ = urlsplit(url).port  # raises with a part of the password when that holds an unescaped / or #
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("must be a redis:// or rediss:// URL, with a percent-encoded password") from None
        return value

    @property
    def issuer(self) -> str:
        """The only `iss` a token may carry."""
        return token_issuer(self.supabase_url)

    @property
    def cors_origin_list(self) -> list[str]:
        """Allowed origins, without blanks."""
        return _comma_separated(self.cors_origins)

    @property
    def trusted_proxy_list(self) -> list[str]:
        """Addresses and networks of `TRUSTED_PROXIES`, without blanks."""
        return _comma_separated(self.trusted_proxies)

    @property
    def requests_per_minute(self) -> dict[str, int]:
        """The quotas by name."""
        return {
            USER_QUOTA: self.rate_limit_per_user,
            BATCH_QUOTA: self.rate_limit_batches_per_user,
            IP_QUOTA: self.rate_limit_per_ip,
        }

    @property
    def leaving(self) -> bool:
        """Whether this node is about to stop, and nothing new should be sent to it."""
        return (self.nilm_data_dir / LEAVING_NAME).exists()

    def store_config(self) -> StoreConfig:
        """Which store to open: InfluxDB when INFLUX_URL is set, else SQLite in the data folder."""
        if self.influx_url:
            return StoreConfig.for_influx(
                url=self.influx_url,
                org=self.influx_org,
                bucket_pred=self.influx_bucket_pred,
                bucket_raw=self.influx_bucket_raw,
            )
        return StoreConfig.for_sqlite(self.nilm_data_dir.absolute() / DATABASE_NAME, self.retention_days)


def load_settings() -> Settings:
    """Read the environment. Raises SettingsError naming every variable that is missing, wrong or a placeholder."""
    try:
        settings = Settings()
    except ValidationError as error:
        faults = "; ".join(f"{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise SettingsError(f"Settings are not usable: {faults}") from None
    faults_found = _faults(settings)
    if faults_found:
        where = "Production refuses to start" if settings.env is Environment.PRODUCTION else "Cannot start"
        raise SettingsError(f"{where}: " + "; ".join(faults_found) + ".")
    return settings


def _faults(settings: Settings) -> list[str]:
    faults = []
    secret = settings.supabase_jwt_secret.get_secret_value()
    required: dict[str, str] = {}
    if settings.supabase_url or settings.env is Environment.PRODUCTION:
        required["SUPABASE_SERVICE_ROLE_KEY"] = settings.supabase_service_role_key.get_secret_value()
    else:
        # Without an identity provider the shared secret is the only key there is.
        required["SUPABASE_JWT_SECRET"] = secret
    if settings.influx_url:
        required |= {
            "INFLUX_TOKEN": settings.influx_token.get_secret_value(),
            "INFLUX_ORG": settings.influx_org,
        }
    if settings.env is Environment.PRODUCTION:
        required |= {
            "SUPABASE_URL": settings.supabase_url,
            "ADMIN_TOKEN": settings.admin_token.get_secret_value(),
            "CORS_ORIGINS": settings.cors_origins,
        }
    placeholders = required | {
        "SUPABASE_JWT_SECRET": secret,
        "INFLUX_URL": settings.influx_url,
        "REDIS_URL": settings.redis_url.get_secret_value(),
    }
    faults += [f"{name} is missing" for name, value in required.items() if not value]
    if settings.env is Environment.PRODUCTION:
        faults += [
            f"{name} is still a placeholder"
            for name, value in placeholders.items()
            if value and _PLACEHOLDER.search(value)
        ]
        if "*" in settings.cors_origin_list:
            faults.append("CORS_ORIGINS must name origins, not *")
        if settings.supabase_url.startswith("http://") and not _is_internal(settings.supabase_url):
            faults.append("SUPABASE_URL must be https: who changes the published keys on the way is everybody")
        if 0 < len(settings.admin_token.get_secret_value()) < MIN_ADMIN_TOKEN_CHARS:
            faults.append(f"ADMIN_TOKEN is shorter than {MIN_ADMIN_TOKEN_CHARS} characters")
        if os.environ.get(PROXY_TRUST_VARIABLE) != "":
            # `nilm run` sets it. Unset, uvicorn believes any X-Forwarded-For that comes through 127.0.0.1.
            faults.append(f"{PROXY_TRUST_VARIABLE} must be set and empty: only TRUSTED_PROXIES says whom to believe")
    return faults + _faults_of_parts(settings)


def _faults_of_parts(settings: Settings) -> list[str]:
    """Values that are well formed and yet do not fit."""
    faults = []
    secret = settings.supabase_jwt_secret.get_secret_value()
    if settings.influx_url and settings.retention_days:
        faults.append("RETENTION_DAYS is for the embedded store: with INFLUX_URL, set the retention of its buckets")
    try:
        chosen_exporter()
    except TracingFault as fault:
        faults.append(str(fault))
    if settings.redis_url.get_secret_value() and importlib.util.find_spec("redis") is None:
        faults.append("REDIS_URL is set, but the extra `redis` is not installed")
    try:
        ClientAddresses(settings.trusted_proxy_list)
    except ValueError as error:
        faults.append(f"TRUSTED_PROXIES: {error}")
    if secret and len(secret.encode()) < MIN_SECRET_BYTES:
        faults.append(f"SUPABASE_JWT_SECRET is shorter than {MIN_SECRET_BYTES} bytes")
    return faults
