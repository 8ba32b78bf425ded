"""What the README and docs/models.md say of the models is what the registry says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.figures import headline_test
from models.registry import Registry
from models.release import verify
from serve_app.cli.main import app

ROOT = Path(__file__).resolve().parents[3]
ROW = re.compile(r"^\| ([a-z ]+) \| ([0-9.]+) \| ([0-9.]+) \| ([0-9.]+) \|$", re.MULTILINE)


def test_the_readme_says_what_the_registry_says() -> None:
    said = {name.replace(" ", "_"): figures for name, *figures in ROW.findall((ROOT / "README.md").read_text())}
    measured = {}
    for entry in Registry.load().entries:
        test = headline_test(entry)
        if entry.is_active and test is not None:
            final = test["final"]
            measured[entry.appliance_id] = [
                f"{final['f1']:.2f}",
                f"{final['mae_w']:.1f}",
                f"{final['always_off_mae_w']:.1f}",
            ]
    assert said == measured
    assert len(said) >= 4


def test_the_page_of_all_models_is_the_generated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, ["models", "docs", "--check"])
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize("entry", Registry.load().entries, ids=lambda entry: f"{entry.model_id}-{entry.model_version}")
def test_every_active_version_may_be_released(entry) -> None:
    reasons = verify(entry, Registry.load().root)
    if entry.is_active:
        assert reasons == []
    else:
        # Registered all the same; the card says why it is not active.
        assert all("never saw" in reason or "always-off" in reason for reason in reasons)
