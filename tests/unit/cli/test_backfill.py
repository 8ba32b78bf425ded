"""`nilm backfill`: what is refused before any cluster is joined; the rest is an integration test."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from serve_app.cli.main import app


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "-1d", "--to", "-2d"], "--to must be after --from"),
        (["--from", "2026-01-01T00:00:00Z", "--to", "2026-01-01T00:00:00Z"], "--to must be after --from"),
        (["--building", "[/red]", "--from", "-1d"], "--building must be 1 to 64 letters"),
        (["--from", "yesterday"], "--from must be ISO 8601"),
        (["--from", "2026-01-01T00:00:00"], "--from must be ISO 8601 with an offset"),
        (["--from", "1970-01-01T00:00:00Z"], "--from is before the year 2000"),
        (["--from", "-1d"], "no cluster: start the service"),
        (["--from", "-1d", "--address", "127.0.0.1:1"], "nothing answers at 127.0.0.1:1"),
        (["--from", "-1d", "--address", "auto"], "nothing answers at auto"),
        (["--from", "-1d", "--address", "127.0.0.1:99999"], "nothing answers at"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["backfill", "--building", "mill", *arguments], env={"RAY_ADDRESS": ""})
    assert result.exit_code == 1
    assert words in result.output
    assert "Traceback" not in result.output
