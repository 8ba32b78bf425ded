"""`nilm models`: list, verify, add and docs, as a person and CI call them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from serve_app.cli.main import app
from tests.unit.models.run_folders import edit_registry, make_run, snapshot
from tests.unit.models.test_overview import RUNS


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a run in `run` and its version 1.0.0, active, in `models`."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    result = nilm("add", "run", "--version", "1.0.0", "--active", "--registry-root", "models")
    assert result.exit_code == 0, result.stderr
    return tmp_path


def nilm(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments])


def nilm_on(command: str, *arguments: str) -> Result:
    return nilm(command, *arguments, "--registry", "models/registry.json")


def refused(result: Result, message: str) -> None:
    assert result.exit_code == 1
    assert message in result.stderr
    # The runner keeps an exception instead of printing it; a refusal is an exit, not a crash.
    assert isinstance(result.exception, SystemExit)


def test_add_says_what_it_made_and_how_to_serve_it(here: Path) -> None:
    result = nilm("add", "run", "--version", "1.1.0", "--registry-root", "models")
    assert result.exit_code == 0
    assert "kettle-tpunet 1.1.0" in result.stdout
    assert "serve_config.yaml" in result.stdout
    refused(nilm("add", "run", "--version", "1.1.0", "--registry-root", "models"), "already has a version 1.1.0")
    refused(nilm("add", "nowhere", "--version", "1.2.0", "--registry-root", "models"), "nowhere/registry.json")


def test_add_active_is_refused_with_the_reason_and_changes_nothing(here: Path) -> None:
    make_run(here / "weak", lambda m: m["tests"][0]["final"].update(mae_w=26.0), seed=6)
    before = snapshot(here / "models")
    result = nilm("add", "weak", "--version", "1.1.0", "--active", "--registry-root", "models")
    refused(result, "does not beat always-off: MAE 26 W")
    assert snapshot(here / "models") == before


def test_list_shows_figures_what_is_active_and_what_serves(here: Path) -> None:
    nilm("add", "run", "--version", "1.1.0", "--registry-root", "models")
    (here / "serve_config.yaml").write_text(
        "applications: [{deployments: [{name: ingress}, {name: rollout, user_config: "
        "{kettle: {stable: 1.1.0, canary: {version: 1.0.0, percent: 5}}}}]}]"
    )
    result = nilm_on("list")
    assert result.exit_code == 0
    lines = [[cell.strip() for cell in line.split("│")] for line in result.stdout.splitlines() if "1.0" in line]
    first = next(cells for cells in lines if "1.0.0" in cells)
    figures = ["UK-DALE House 2", "0.938", "5.86", "25.00", "0.901", "7.12", "1,234"]
    assert first[1:12] == ["kettle-tpunet", "1.0.0", "yes", "canary", *figures]
    second = next(line for line in result.stdout.splitlines() if "1.1.0" in line)
    assert [cell.strip() for cell in second.split("│")][1:5] == ["kettle-tpunet", "1.1.0", "", "stable"]


def test_list_takes_another_configuration_and_refuses_one_that_is_none(here: Path) -> None:
    (here / "other.yaml").write_text("applications: 3")
    refused(nilm_on("list", "--config", "other.yaml"), "other.yaml is not a Serve config")
    (here / "other.yaml").write_text("a: [")
    refused(nilm_on("list", "--config", "other.yaml"), "other.yaml is not a Serve config")


@pytest.mark.parametrize("deployments", ["", ", deployments: null", ", deployments: []"])
def test_a_configuration_need_not_name_its_deployments(here: Path, deployments: str) -> None:
    """Serve does not ask for them."""
    (here / "serve_config.yaml").write_text(f"applications: [{{name: nilm{deployments}}}]")
    result = nilm_on("list")
    assert result.exit_code == 0, result.stderr
    row = next(line for line in result.stdout.splitlines() if "1.0.0" in line)
    assert [cell.strip() for cell in row.split("│")][3:5] == ["yes", ""]


def test_brackets_in_a_name_are_not_markup(here: Path) -> None:
    edit_registry(
        here / "models" / "registry.json", lambda row: row["metrics"]["tests"][0].update(home="Flat [bold] [/x]")
    )
    result = nilm_on("list")
    assert result.exit_code == 0, result.stderr
    assert "Flat [bold] [/x]" in result.stdout
    result = nilm("add", "run", "--version", "1.0.0", "--registry-root", "[red]")
    assert "card [red]/artifacts" in result.stdout
    assert "wrote [red]/page.md" in nilm_on("docs", "--out", "[red]/page.md").stdout


@pytest.mark.parametrize(
    ("metrics", "count"), [({}, "-"), ({"parameters": "many"}, "-"), ({"parameters": 1234, "tests": {"a": 1}}, "1,234")]
)
def test_entries_of_before_are_listed_without_figures(here: Path, metrics: dict[str, Any], count: str) -> None:
    edit_registry(here / "models" / "registry.json", lambda row: row.update(metrics=metrics))
    result = nilm_on("list")
    assert result.exit_code == 0, result.stderr
    row = next(line for line in result.stdout.splitlines() if "1.0.0" in line)
    assert [cell.strip() for cell in row.split("│")][5:12] == ["-"] * 6 + [count]
    assert nilm_on("docs").exit_code == 0
    refused(nilm_on("verify"), "1 of 1 versions may not be released")


@pytest.mark.parametrize("content", ['{"models": []}', "[]"])
def test_an_empty_registry_is_listed_and_documented(here: Path, content: str) -> None:
    (here / "models" / "registry.json").write_text(content)
    assert nilm_on("list").exit_code == 0
    assert nilm_on("docs").exit_code == 0
    assert nilm_on("verify").exit_code == 1


def test_the_packaged_registry_is_the_default(here: Path) -> None:
    result = nilm("list")
    assert result.exit_code == 0
    assert "kettle-tpunet" in result.stdout


@pytest.mark.parametrize("command", ["list", "verify", "docs"])
def test_a_registry_that_is_none_is_one_sentence(here: Path, command: str) -> None:
    refused(nilm(command, "--registry", "no.json"), "no.json: cannot be read")


def test_verify_says_ok_or_why_not(here: Path) -> None:
    result = nilm_on("verify")
    assert result.exit_code == 0
    assert "kettle-tpunet 1.0.0: ok" in result.stdout
    card = here / "models/artifacts/kettle-tpunet/1.0.0/card.md"
    card.write_text(card.read_text().replace("0.938", "0.998"))
    result = nilm_on("verify")
    refused(result, "1 of 1 versions may not be released")
    assert "kettle-tpunet 1.0.0: refused" in result.stdout
    assert "differs from the registry at line" in result.stdout


def test_verify_takes_a_model_and_a_version(here: Path) -> None:
    nilm("add", "run", "--version", "1.1.0", "--registry-root", "models")
    # All versions of a model, active or not; without a name the active ones.
    assert nilm_on("verify", "kettle-tpunet").stdout.count(": ok") == 2
    assert nilm_on("verify", "kettle-tpunet", "1.1.0").stdout.splitlines() == ["kettle-tpunet 1.1.0: ok"]
    assert nilm_on("verify").stdout.splitlines() == ["kettle-tpunet 1.0.0: ok"]
    refused(nilm_on("verify", "kettle-tpunet", "9"), "registered are kettle-tpunet 1.0.0, kettle-tpunet 1.1.0")
    refused(nilm_on("verify", "toaster"), "no such version")


def test_docs_writes_the_page_and_check_finds_it_out_of_date(here: Path) -> None:
    refused(nilm_on("docs", "--check"), "docs/models.md is not what the registry gives")
    assert not (here / "docs").exists()
    assert nilm_on("docs").exit_code == 0
    page = (here / "docs" / "models.md").read_text()
    assert "kettle-tpunet 1.0.0" in page
    assert nilm_on("docs", "--check").exit_code == 0
    edit_registry(here / "models" / "registry.json", lambda row: row["metrics"]["tests"][0]["final"].update(f1=0.5))
    refused(nilm_on("docs", "--check"), "docs/models.md is not what the registry gives")
    assert (here / "docs" / "models.md").read_text() == page


def test_docs_goes_where_it_is_told_and_its_links_follow(here: Path) -> None:
    assert nilm_on("docs", "--out", "a/b/page.md").exit_code == 0
    assert "(../../models/artifacts/kettle-tpunet/1.0.0/card.md)" in (here / "a/b/page.md").read_text()


def test_docs_with_a_study_draws_the_learning_curve_the_same_each_time(here: Path) -> None:
    (here / "docs" / "models").mkdir(parents=True)
    (here / "docs" / "models" / "study.json").write_text(json.dumps({"runs": RUNS}))
    assert nilm_on("docs").exit_code == 0
    picture = here / "docs" / "images" / "learning-curve.png"
    first = picture.read_bytes()
    assert first.startswith(b"\x89PNG")
    assert "(images/learning-curve.png)" in (here / "docs" / "models.md").read_text()
    assert nilm_on("docs").exit_code == 0
    assert picture.read_bytes() == first


def test_docs_refuses_a_study_that_is_none(here: Path) -> None:
    (here / "docs" / "models").mkdir(parents=True)
    (here / "docs" / "models" / "study.json").write_text("{}")
    refused(nilm_on("docs"), "'runs' is a required property")


def test_docs_refuses_a_study_that_was_named_and_is_not_there(here: Path) -> None:
    refused(nilm_on("docs", "--study", "nowhere.json"), "nowhere.json cannot be read")
    assert not (here / "docs").exists()


def test_docs_says_where_it_cannot_write_and_takes_a_broken_page_for_an_old_one(here: Path) -> None:
    (here / "file").write_text("not a folder")
    refused(nilm_on("docs", "--out", "file/page.md"), "file")
    (here / "folder").mkdir()
    refused(nilm_on("docs", "--out", "folder"), "Is a directory")
    (here / "page.md").write_bytes(b"\xff")
    refused(nilm_on("docs", "--check", "--out", "page.md"), "page.md is not what the registry gives")


def test_docs_without_the_tools_draws_nothing_and_says_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "docs" / "models").mkdir(parents=True)
    (here / "docs" / "models" / "study.json").write_text(json.dumps({"runs": RUNS}))
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pandas" else real(name))
    refused(nilm_on("docs"), "nilm-serve[tools]")
    assert not (here / "docs" / "models.md").exists()


@pytest.mark.parametrize("command", ["list", "verify", "add", "docs"])
def test_help(command: str) -> None:
    result = nilm(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.strip()
