"""`nilm train` and `nilm evaluate` say in one sentence what is wrong."""

from __future__ import annotations

import importlib.util

import pytest
from typer.testing import CliRunner

from serve_app.cli.main import app

runner = CliRunner()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "kettle", "--data", "nowhere"], "the data folder nowhere does not exist"),
        (["train", "toaster", "--data", "nowhere"], "there is no appliance 'toaster'"),
        (
            ["train", "kettle", "--data", "nowhere", "--architecture", "Crystal"],
            "the data folder nowhere does not exist",
        ),
        (["evaluate", "--data", "nowhere"], "name one appliance, or give --all"),
        (["evaluate", "kettle", "--all", "--data", "nowhere"], "name one appliance, or give --all"),
        (["evaluate", "--all", "--data", "nowhere"], "the data folder nowhere does not exist"),
        (["evaluate", "--all", "--data", ".", "--registry", "no.json"], "no.json: cannot be read"),
    ],
)
def test_errors_are_one_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "train":
        arguments = [*arguments, "--out", str(tmp_path)]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_without_the_tools_extra(monkeypatch, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pandas" else real(name))
    result = runner.invoke(app, ["train", "kettle", "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert "pandas is not installed" in result.stderr
    assert "nilm-serve[tools]" in result.stderr


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help(command):
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "--data" in result.stdout
