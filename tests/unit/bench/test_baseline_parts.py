"""What the baselines share: they check tokens as the service does, and what they acknowledge is on the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import jwt
import pytest

from deployments.contracts import PredictionPoint
from serve_app.access.development import mint_development_token
from serve_app.access.verified import AUDIENCE, LEEWAY_S
from serve_app.settings import DEVELOPMENT_ISSUER
from tests.bench.serving.baselines import tokens
from tests.bench.serving.baselines.rows import PredictionRows, stored_predictions
from tests.bench.serving.baselines.tokens import RememberedTokens, TokenCheck

SECRET = "unit-tests-only-" + "0" * 32
CHECKS = [TokenCheck, RememberedTokens]


def test_audience_issuer_and_leeway_are_those_of_the_service() -> None:
    assert (tokens.AUDIENCE, tokens.ISSUER, tokens.LEEWAY_S) == (AUDIENCE, DEVELOPMENT_ISSUER, LEEWAY_S)


@pytest.mark.parametrize("check", CHECKS)
def test_a_good_token_passes_every_time(check: type[TokenCheck]) -> None:
    header = f"Bearer {mint_development_token(SECRET, 'someone', 5, DEVELOPMENT_ISSUER)}"
    checks = check(SECRET)
    assert [checks.user_id(header) for _ in range(3)] == ["someone"] * 3


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer ",
        "Bearer a.b.c",
        mint_development_token(SECRET, "someone", 5, DEVELOPMENT_ISSUER),
        "Bearer " + mint_development_token("other" + SECRET, "someone", 5, DEVELOPMENT_ISSUER),
        "Bearer " + mint_development_token(SECRET, "someone", 5, "another-issuer"),
        "Bearer " + jwt.encode({"sub": "x", "aud": AUDIENCE, "iss": DEVELOPMENT_ISSUER}, SECRET),
    ],
)
def test_any_other_is_refused_every_time(check: type[TokenCheck], header: str | None) -> None:
    checks = check(SECRET)
    for _ in range(2):
        with pytest.raises(jwt.InvalidTokenError):
            checks.user_id(header)


def test_a_remembered_token_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    header = f"Bearer {mint_development_token(SECRET, 'someone', 1, DEVELOPMENT_ISSUER)}"
    checks = RememberedTokens(SECRET)
    checks.user_id(header)
    monkeypatch.setattr(checks, "_claims", lambda _: pytest.fail("it was known"))
    assert checks.user_id(header) == "someone"
    monkeypatch.undo()
    later_s = time.time() + 60 + LEEWAY_S + 1
    monkeypatch.setattr(time, "time", lambda: later_s)
    verify = Mock(return_value={"sub": "someone", "exp": later_s + 60})
    monkeypatch.setattr(checks, "_claims", verify)
    checks.user_id(header)
    verify.assert_called_once_with(header)


def test_two_connections_write_to_one_file_at_once(tmp_path: Path, make_point: Callable[..., PredictionPoint]) -> None:
    database = tmp_path / "predictions.sqlite3"
    points = [[make_point() for _ in range(100)] for _ in range(2)]

    def write(part: list[PredictionPoint]) -> None:
        rows = PredictionRows(database)
        for one in part:
            rows.insert([one])
        rows.close()

    threads = [threading.Thread(target=write, args=(part,)) for part in points]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored_predictions(database) == 200
