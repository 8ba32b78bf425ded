"""The environment either describes a service that may start, or every fault is named at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.access.tokens import MIN_SECRET_BYTES
from serve_app.settings import DEVELOPMENT_ISSUER, Environment, SettingsError, load_settings

ENV_EXAMPLE = Path(__file__).parents[3] / ".env.example"
GOOD_SECRET = "k3Jr9wq0Zt5Lx8Vb2Nm7Hd4Fg6Sa1Pc0"
PRODUCTION = {
    "ENV": "production",
    "SUPABASE_URL": "https://abcdefgh.supabase.co",
    "SUPABASE_SERVICE_ROLE_KEY": "service-key-value",
    "SUPABASE_JWT_SECRET": GOOD_SECRET,
    "ADMIN_TOKEN": "Zx81-admin-7f3e9a1c5b2d8e4f6a0c9b7d",
    "CORS_ORIGINS": "https://app.nilm.energy",
    "FORWARDED_ALLOW_IPS": "",
}


def environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_development_needs_only_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, ENV="development", SUPABASE_JWT_SECRET=GOOD_SECRET)
    settings = load_settings()
    assert settings.env is Environment.DEVELOPMENT
    assert settings.issuer == DEVELOPMENT_ISSUER
    assert settings.cors_origin_list == []
    assert settings.store_config().kind == "sqlite"


def test_a_complete_production_environment_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, **PRODUCTION | {"CORS_ORIGINS": " https://a.nilm.energy , https://b.nilm.energy,"})
    settings = load_settings()
    assert settings.issuer == "https://abcdefgh.supabase.co/auth/v1"
    assert settings.cors_origin_list == ["https://a.nilm.energy", "https://b.nilm.energy"]


def test_a_provider_with_published_keys_needs_no_shared_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, **PRODUCTION | {"SUPABASE_JWT_SECRET": ""})
    assert load_settings().supabase_jwt_secret.get_secret_value() == ""


def test_a_provider_in_development_needs_the_key_that_reads_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, ENV="development", SUPABASE_URL="http://127.0.0.1:54321")
    with pytest.raises(SettingsError, match="SUPABASE_SERVICE_ROLE_KEY is missing"):
        load_settings()


def test_limits_and_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, **PRODUCTION)
    settings = load_settings()
    assert settings.requests_per_minute == {"user": 60, "batch": 30, "ip": 120}
    assert settings.trusted_proxy_list == []
    assert settings.expose_docs is False
    limits = {"RATE_LIMIT_PER_USER": "5", "RATE_LIMIT_BATCHES_PER_USER": "6", "RATE_LIMIT_PER_IP": "7"}
    environment(monkeypatch, TRUSTED_PROXIES=" 10.0.0.0/8, ::1,", **limits)
    settings = load_settings()
    assert settings.requests_per_minute == {"user": 5, "batch": 6, "ip": 7}
    assert settings.trusted_proxy_list == ["10.0.0.0/8", "::1"]


def test_without_env_it_is_production_and_every_missing_value_is_named() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings()
    for name in PRODUCTION.keys() - {"ENV", "SUPABASE_JWT_SECRET", "FORWARDED_ALLOW_IPS"}:
        assert f"{name} is missing" in str(caught.value)


@pytest.mark.parametrize("name", sorted(PRODUCTION.keys() - {"ENV", "SUPABASE_JWT_SECRET", "FORWARDED_ALLOW_IPS"}))
def test_an_empty_value_is_a_missing_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    environment(monkeypatch, **PRODUCTION | {name: ""})
    with pytest.raises(SettingsError, match=f"{name} is missing"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SUPABASE_JWT_SECRET", "change-me-change-me-change-me-change-me"),
        ("SUPABASE_JWT_SECRET", "your-super-secret-jwt-token-with-at-least-32-characters-long"),
        ("SUPABASE_URL", "https://your-project.supabase.co"),
        ("SUPABASE_URL", "https://<project>.supabase.co"),
        ("SUPABASE_SERVICE_ROLE_KEY", "your_service_key"),
        ("SUPABASE_SERVICE_ROLE_KEY", "<service key>"),
        ("ADMIN_TOKEN", "CHANGEME"),
        ("ADMIN_TOKEN", "xxxx"),
        ("ADMIN_TOKEN", "secret"),
        ("CORS_ORIGINS", "https://app.example.com"),
        ("CORS_ORIGINS", "*"),
        ("CORS_ORIGINS", "https://app.nilm.energy, *"),
        ("INFLUX_URL", "http://influx.example.org:8086"),
    ],
)
def test_production_refuses_placeholders(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment(monkeypatch, **PRODUCTION | {name: value})
    with pytest.raises(SettingsError, match=name) as caught:
        load_settings()
    if name != "CORS_ORIGINS" and not name.endswith("URL"):
        assert value not in str(caught.value)


def test_every_fault_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, ENV="production", SUPABASE_JWT_SECRET="change-me", INFLUX_URL="http://influx:8086")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    for part in ("placeholder", f"shorter than {MIN_SECRET_BYTES}", "INFLUX_TOKEN", "INFLUX_ORG", "SUPABASE_URL"):
        assert part in str(caught.value)


@pytest.mark.parametrize("env", ["development", "production"])
def test_a_short_secret_is_refused_everywhere(monkeypatch: pytest.MonkeyPatch, env: str) -> None:
    environment(monkeypatch, **PRODUCTION | {"ENV": env, "SUPABASE_JWT_SECRET": "a" * 31})
    with pytest.raises(SettingsError, match="SUPABASE_JWT_SECRET is shorter"):
        load_settings()
    monkeypatch.setenv("SUPABASE_JWT_SECRET", "é" * 16)
    assert load_settings()


def test_influx_without_its_token_cannot_start_even_in_development(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(
        monkeypatch, ENV="development", SUPABASE_JWT_SECRET=GOOD_SECRET, INFLUX_URL="http://influx:8086", INFLUX_ORG="o"
    )
    with pytest.raises(SettingsError, match="INFLUX_TOKEN is missing"):
        load_settings()
    monkeypatch.setenv("INFLUX_TOKEN", "write-token")
    config = load_settings().store_config()
    assert (config.kind, config.influx_url) == ("influxdb", "http://influx:8086")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENV", "staging"),
        ("SUPABASE_URL", "supabase.co"),
        ("SUPABASE_URL", "file:///etc/passwd"),
        ("INFLUX_URL", "http://influx:8086?org=x"),
        ("INFLUX_URL", "http://"),
        ("REQUEST_TIMEOUT_S", "0"),
        ("REQUEST_TIMEOUT_S", "nan"),
        ("REQUEST_TIMEOUT_S", "soon"),
        ("RATE_LIMIT_PER_USER", "0"),
        ("RATE_LIMIT_BATCHES_PER_USER", "-1"),
        ("RATE_LIMIT_PER_IP", "many"),
        ("TRUSTED_PROXIES", "10.0.0.0/8, proxy.internal"),
        ("TRUSTED_PROXIES", "0.0.0.0/0"),
        ("TRUSTED_PROXIES", "0.0.0.0/1,128.0.0.0/1"),
        ("REDIS_URL", "http://cache:6379"),
        ("REDIS_URL", "redis://"),
        ("SUPABASE_URL", "http://abcdefgh.supabase.co"),
        ("ADMIN_TOKEN", "Zx81"),
        ("FORWARDED_ALLOW_IPS", "*"),
        ("EXPOSE_DOCS", "perhaps"),
    ],
)
def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment(monkeypatch, **PRODUCTION | {name: value})
    with pytest.raises(SettingsError, match=name):
        load_settings()


def test_a_redis_url_that_cannot_be_read_gives_nothing_of_its_password_away(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, **PRODUCTION | {"REDIS_URL": "redis://:s3:cr#et@cache/0"})
    with pytest.raises(SettingsError, match="REDIS_URL") as caught:
        load_settings()
    assert "s3" not in str(caught.value)


def test_production_must_be_told_that_the_server_itself_trusts_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, **PRODUCTION)
    monkeypatch.delenv("FORWARDED_ALLOW_IPS")
    with pytest.raises(SettingsError, match="FORWARDED_ALLOW_IPS must be set and empty"):
        load_settings()


@pytest.mark.parametrize("url", ["http://127.0.0.1:54321", "http://10.2.3.4", "http://kong:8000", "http://kong.db.svc"])
def test_a_provider_inside_the_own_network_may_be_plain_http(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    environment(monkeypatch, **PRODUCTION | {"SUPABASE_URL": url})
    assert load_settings().supabase_url == url


def test_no_secret_in_repr_or_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "SUPABASE_JWT_SECRET": GOOD_SECRET,
        "ADMIN_TOKEN": PRODUCTION["ADMIN_TOKEN"],
        "INFLUX_TOKEN": "in7lux-t0ken",
    }
    secrets["REDIS_URL"] = "redis://:p4ss@cache:6379"
    environment(monkeypatch, **PRODUCTION | secrets | {"INFLUX_URL": "http://influx:8086", "INFLUX_ORG": "o"})
    settings = load_settings()
    shown = repr(settings) + str(settings) + repr(settings.model_dump()) + repr(settings.store_config())
    for secret in [*secrets.values(), PRODUCTION["SUPABASE_SERVICE_ROLE_KEY"]]:
        assert secret not in shown


@pytest.mark.skipif(not ENV_EXAMPLE.exists(), reason="there is no .env.example yet")
def test_the_values_of_the_example_file_do_not_start_production(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line.partition("=") for line in ENV_EXAMPLE.read_text(encoding="utf-8").splitlines()]
    values = {n.strip(): v.strip().strip("\"'") for n, _, v in lines if n.strip() and not n.lstrip().startswith("#")}
    environment(monkeypatch, **values | {"ENV": "production"})
    with pytest.raises(SettingsError) as caught:
        load_settings()
    for name in ("SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_JWT_SECRET", "ADMIN_TOKEN", "CORS_ORIGINS"):
        assert f"{name} is" in str(caught.value), f"the example's {name} would be accepted in production"


def test_retention_is_the_embedded_stores_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    environment(monkeypatch, **PRODUCTION | {"RETENTION_DAYS": "400"})
    assert load_settings().store_config().retention_days == 400
    environment(monkeypatch, INFLUX_URL="http://127.0.0.1:8086", INFLUX_TOKEN="token-of-tests", INFLUX_ORG="org")
    with pytest.raises(SettingsError, match="RETENTION_DAYS is for the embedded store"):
        load_settings()
