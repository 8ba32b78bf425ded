"""Development tokens: their claims, where the secret comes from, and that production makes none."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import jwt
import pytest
from typer.testing import CliRunner

from serve_app.access.development import ensure_development_secret, mint_development_token, read_development_secret
from serve_app.access.principal import Role
from serve_app.cli.main import app
from serve_app.settings import token_issuer

SECRET = "k" * 48


@pytest.fixture(autouse=True)
def development(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENV", "SUPABASE_JWT_SECRET", "SUPABASE_URL", "NILM_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


def claims_of(token: str, secret: str = SECRET) -> dict[str, object]:
    return jwt.decode(token, secret, algorithms=["HS256"], audience="authenticated")


def test_the_claims_are_those_of_an_access_token() -> None:
    claims = claims_of(mint_development_token(SECRET, "ada", 5, "nilm-development", Role.ADMIN))
    assert claims["sub"] == "ada"
    assert claims["role"] == "authenticated"
    assert claims["iss"] == "nilm-development"
    assert claims["app_metadata"] == {"role": "admin"}
    assert int(str(claims["exp"])) - int(str(claims["iat"])) == 300
    assert abs(int(str(claims["iat"])) - time.time()) < 5


def test_without_a_role_the_claim_is_left_out() -> None:
    assert "app_metadata" not in claims_of(mint_development_token(SECRET, "ada", 5, "i"))


def test_a_token_that_is_never_valid_is_not_made() -> None:
    with pytest.raises(ValueError, match="at least one minute"):
        mint_development_token(SECRET, "ada", 0, "i")


def test_the_issuer_is_supabases_when_a_project_is_configured() -> None:
    assert token_issuer("https://project.test/") == "https://project.test/auth/v1"
    assert token_issuer(None) == "nilm-development"


def test_the_secret_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    assert read_development_secret(tmp_path) is None
    secret = ensure_development_secret(tmp_path)
    assert len(secret.encode()) >= 32
    assert ensure_development_secret(tmp_path) == secret == read_development_secret(tmp_path)
    assert stat.S_IMODE((tmp_path / "dev-secret").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["dev-secret"]


def test_the_environments_secret_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_development_secret(tmp_path)
    monkeypatch.setenv("SUPABASE_JWT_SECRET", SECRET)
    assert ensure_development_secret(tmp_path) == SECRET


def test_the_command_prints_a_token_and_nothing_else(tmp_path: Path) -> None:
    secret = ensure_development_secret(tmp_path)
    result = CliRunner().invoke(
        app,
        ["token", "--data-dir", str(tmp_path), "--user", "bo", "--buildings", "h1,h2", "--buildings", "h3"],
    )
    assert result.exit_code == 0
    claims = claims_of(result.stdout.strip(), secret)
    assert claims["sub"] == "bo"
    assert "app_metadata" not in claims
    granted = json.loads((tmp_path / "development-grants.json").read_text())["users"]
    assert granted == {"bo": {"h1": ["*"], "h2": ["*"], "h3": ["*"]}}


def test_the_role_is_in_the_token_and_grants_nothing_by_itself(tmp_path: Path) -> None:
    secret = ensure_development_secret(tmp_path)
    result = CliRunner().invoke(app, ["token", "--data-dir", str(tmp_path), "--role", "super_admin"])
    assert claims_of(result.stdout.strip(), secret)["app_metadata"] == {"role": "super_admin"}
    assert not (tmp_path / "development-grants.json").exists()


@pytest.mark.parametrize("case", ["an id that is none", "a broken file", "Supabase grants"])
def test_buildings_that_cannot_be_granted_give_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    ensure_development_secret(tmp_path)
    if case == "a broken file":
        (tmp_path / "development-grants.json").write_text("{")
    if case == "Supabase grants":
        monkeypatch.setenv("SUPABASE_URL", "https://project.test")
        monkeypatch.setenv("ENV", "development")
    building = "two words" if case == "an id that is none" else "h1"
    result = CliRunner().invoke(app, ["token", "--data-dir", str(tmp_path), "--buildings", building])
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("case", ["production", "an empty ENV", "perhaps production", "no secret"])
def test_the_command_refuses_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    if case in {"production", "an empty ENV"}:
        monkeypatch.setenv("ENV", "production" if case == "production" else "")
    if case == "perhaps production":  # to the service, no ENV is production
        monkeypatch.setenv("SUPABASE_URL", "https://project.test")
    if case != "no secret":
        ensure_development_secret(tmp_path)
    result = CliRunner().invoke(app, ["token", "--data-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
