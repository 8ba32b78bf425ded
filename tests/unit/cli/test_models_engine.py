"""`nilm models engine`: measured on recordings with both engines, then in the registry; or refused and unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from models.engines import Engine
from models.loader import load_verified
from models.registry import Registry
from models.training import engine_evidence
from serve_app.cli.main import app
from tests.unit.models.run_folders import make_run, snapshot
from tests.unit.models.test_train_to_evaluate import recording


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    recording(folder / "REFIT_House2_1min.parquet", 1, 22_000)
    recording(folder / "UKDALE_House2_1min.parquet", 3, 1_000)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with kettle-tpunet 1.0.0 and 1.1.0 in `models`."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    for version in ("1.0.0", "1.1.0"):
        result = nilm("add", "run", "--version", version)
        assert result.exit_code == 0, result.stderr
    return tmp_path


def nilm(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments, "--registry-root", "models"])


def engine(*arguments: str) -> Result:
    return nilm("engine", "kettle-tpunet", "1.0.0", *arguments)


def refused(here: Path, before: dict[str, bytes], result: Result, message: str) -> None:
    assert result.exit_code == 1, result.stdout
    assert message in result.stderr
    assert isinstance(result.exception, SystemExit)
    assert snapshot(here / "models") == before


def test_it_is_measured_with_both_and_the_figures_are_kept(here: Path, data: Path) -> None:
    before = snapshot(here / "models")
    result = engine("openvino", "--data", str(data))
    assert result.exit_code == 0, result.stderr
    after = snapshot(here / "models")
    assert {name for name in after if after[name] != before.get(name)} == {"registry.json"}
    rows = json.loads(after["registry.json"])["models"]
    assert "engine" not in rows[1]
    found = rows[0].pop("engine_evidence")
    assert rows[0].pop("engine") == "openvino"
    assert rows[0] == json.loads(before["registry.json"])["models"][0]
    assert (found["engine"], found["artifact_sha256"]) == ("openvino", rows[0]["artifact_sha256"])
    assert [(test["kind"], test["home"]) for test in found["tests"]] == [
        ("unseen_home", "UK-DALE House 2"),
        ("seen_home", "REFIT House 2"),
    ]
    for test in found["tests"]:
        for answer in ("final", "provisional"):
            assert test["engine"][answer] == pytest.approx(test["torch"][answer], abs=1e-3)
            assert test["torch"][answer]["mae_w"] > 0
            assert f"{test['home']} ({test['kind'].replace('_', ' ')}), {answer}: torch F1" in result.stdout
    entry = Registry.load(here / "models" / "registry.json").resolve("kettle", "1.0.0")
    assert load_verified(entry, here / "models").engine is Engine.OPENVINO
    # The card is of the weights, which are the same.
    listed = CliRunner().invoke(app, ["models", "list", "--registry", "models/registry.json"]).stdout.splitlines()
    assert [line.split("│")[-2].strip() for line in listed if "kettle-tpunet" in line] == ["openvino", "torch"]

    # And back, for which nothing has to be measured.
    result = engine("torch")
    assert result.exit_code == 0, result.stderr
    assert snapshot(here / "models") == before


def test_a_drop_of_f1_is_refused_with_the_figures(here: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = engine_evidence.measure_again

    def worse_on_openvino(model: Any, *others: Any) -> Any:
        measured = honest(model, *others)
        scores = next(iter(measured.reports.values())).scores
        object.__setattr__(scores, "f1", 0.95 if model.engine is Engine.TORCH else 0.948)
        return measured

    monkeypatch.setattr(engine_evidence, "measure_again", worse_on_openvino)
    before = snapshot(here / "models")
    result = engine("openvino", "--data", str(data))
    refused(here, before, result, "engine_unproven: on UK-DALE House 2 the F1 of its final answer drops from 0.9500")
    assert "torch F1 0.9500" in result.stdout
    assert "openvino F1 0.9480" in result.stdout


def test_what_is_missing_is_one_sentence(here: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NILM_DATA", raising=False)
    before = snapshot(here / "models")
    refused(here, before, engine("openvino"), "openvino is measured before it serves: give the folder")
    refused(here, before, engine("openvino", "--data", "nowhere"), "the data folder nowhere does not exist")
    refused(here, before, nilm("engine", "kettle-tpunet", "9", "torch"), "registered are kettle-tpunet 1.0.0, kettle")
    (data / "hidden").mkdir(exist_ok=True)
    (data / "UKDALE_House2_1min.parquet").rename(data / "hidden" / "file")
    try:
        result = engine("openvino", "--data", str(data))
    finally:
        (data / "hidden" / "file").rename(data / "UKDALE_House2_1min.parquet")
    refused(here, before, result, "the recording of UK-DALE House 2, which kettle-tpunet was tested on, is not there")


def test_without_the_extra(here: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    before = snapshot(here / "models")
    refused(here, before, engine("openvino", "--data", str(data)), "pip install 'nilm-serve[openvino]'")


def test_help() -> None:
    result = CliRunner().invoke(app, ["models", "engine", "--help"])
    assert result.exit_code == 0
    assert "--data" in result.stdout
