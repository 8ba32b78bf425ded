"""`nilm replay`: what is refused before any cluster is joined; the rest is an integration test."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from serve_app.cli.main import app


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing option '--request-id'"),
        (["--request-id", "a b"], "--request-id must be 1 to 128 letters"),
        (["--request-id", ""], "--request-id must be 1 to 128 letters"),
        (["--request-id", "r\n"], "--request-id must be 1 to 128 letters"),
        (["--request-id", "r" * 129], "--request-id must be 1 to 128 letters"),
        (["--request-id", "größe"], "--request-id must be 1 to 128 letters"),
        (["--request-id", "r", "--from", "-1d", "--to", "-2d"], "--to must be after --from"),
        (["--request-id", "r", "--from", "yesterday"], "--from must be ISO 8601"),
        (["--request-id", "r"], "no cluster: start the service"),
        (["--request-id", "r", "--address", "127.0.0.1:1"], "nothing answers at 127.0.0.1:1"),
    ],
)
def test_what_cannot_be_replayed_is_one_sentence_and_no_difference(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["replay", *arguments], env={"RAY_ADDRESS": "", "COLUMNS": "160"})
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output
