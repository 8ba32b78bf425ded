"""`nilm data check`: a table for what can be used, a sentence and exit code 1 for what cannot."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from models.training.data_report import Problem
from models.training.recordings import known_homes
from serve_app.cli.main import app
from tests.unit.models.recording_files import frame

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "models-guide.md"


def check(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)], env={"COLUMNS": "200"})


def home(**changes: object) -> dict[str, object]:
    return {
        "name": "my-house",
        "file": "house.csv",
        "unit": "W",
        "columns": {"mains": "mains", "kettle": "kettle"},
        "attribution": "mine",
    } | changes


def folder_of(folder: Path, *homes: dict[str, object], table: pd.DataFrame | None = None) -> Path:
    (frame() if table is None else table).to_csv(folder / "house.csv", index=False)
    (folder / "homes.yaml").write_text(yaml.safe_dump({"homes": list(homes)}))
    return folder


def row(result: Result, first: str) -> list[str]:
    """The cells of the table row that begins with `first`."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    (found,) = [cells for cells in rows if cells[0] == first]
    return found[1:]


def test_a_folder_is_checked(tmp_path: Path) -> None:
    table = frame()
    table.loc[7, "mains"] = 0
    table.loc[8, "kettle"] = -1
    result = check(folder_of(tmp_path, home(title="[b]My house[/b]"), table=table))
    assert result.exit_code == 0, result.output
    assert "[b]My house[/b] (house.csv)" in result.stdout
    assert row(result, "span, UTC") == ["2014-06-01 to 2014-06-01"]
    assert row(result, "period") == ["60 s (100.0%)"]
    assert row(result, "samples") == ["120 in the file, 120 minutes"]
    assert row(result, "measured") == ["99.2% of the minutes"]
    assert row(result, "mains of zero") == ["mains", "1", "missing"]
    assert row(result, "appliance power below zero")[:2] == ["kettle", "1"]
    # Three of 119 measured minutes at 2700 W, in one cycle.
    assert row(result, "kettle") == ["68.07", "2,700", "1", "2.52%"]


def test_the_declaration_itself_may_be_named(tmp_path: Path) -> None:
    folder_of(tmp_path, home())
    assert check(tmp_path / "homes.yaml").exit_code == 0


def test_one_unusable_home_does_not_hide_the_others(tmp_path: Path) -> None:
    result = check(folder_of(tmp_path, home(name="gone", file="gone.csv"), home()))
    assert result.exit_code == 1
    assert "has no gone.csv (the recording of gone)" in result.stderr
    assert "my-house (house.csv)" in result.stdout


def test_a_single_file_is_declared_by_options(tmp_path: Path) -> None:
    table = frame().rename(columns={"mains": "Whole house", "time": "When", "kettle": "Kettle"})
    table["Whole house"] /= 1000.0
    table["Kettle"] /= 1000.0
    table.to_csv(tmp_path / "house.csv", index=False)
    options = ("--unit", "kW", "--mains", "Whole house", "--time", "When", "--timezone", "Europe/London")
    result = check(tmp_path / "house.csv", *options)
    assert result.exit_code == 0, result.output
    assert row(result, "times") == ["local times of Europe/London"]
    assert row(result, "declared unit") == ["kW"]
    assert row(result, "kettle")[1] == "2,700"


def test_a_single_parquet_of_the_known_layout_needs_only_its_unit(tmp_path: Path) -> None:
    table = frame().rename(columns={"mains": "Aggregate", "kettle": "Kettle"})
    table = table.assign(time=pd.to_datetime(table["time"])).set_index("time").astype("float32")
    table.to_parquet(tmp_path / "house.parquet")
    result = check(tmp_path / "house.parquet", "--unit", "W")
    assert result.exit_code == 0, result.output
    assert row(result, "kettle")[2] == "1"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "there is no nowhere"),
        (["."], "no homes.yaml, nor any of UKDALE_House2_1min.parquet"),
        ([".", "--unit", "W"], "--unit is for a single file"),
        (["house.csv"], "--unit W or --unit kW"),
        (["house.csv", "--unit", "w"], "--unit W or --unit kW"),
        (["house.csv", "--unit", "W"], "has no column 'Aggregate'; it has time, mains, kettle"),
        (["house.csv", "--unit", "kW", "--mains", "mains"], "looks like W"),
        (["house.csv", "--unit", "W", "--mains", "mains", "--time", "when"], "has no column 'when'"),
        (["house.csv", "--unit", "W", "--timezone", "Mars"], "is not an IANA time zone"),
        (["junk.csv", "--unit", "W"], "junk.csv cannot be read as CSV"),
        (["empty.csv", "--unit", "W"], "empty.csv cannot be read as CSV"),
        (["half.parquet", "--unit", "W"], "half.parquet cannot be read as parquet"),
        (["home.h5", "--unit", "W"], "other formats are declared in a homes.yaml"),
        (["broken.yaml"], "broken.yaml is not YAML"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    frame().to_csv("house.csv", index=False)
    Path("junk.csv").write_bytes(bytes(range(256)) * 40)
    Path("empty.csv").touch()
    Path("half.parquet").write_bytes(b"PAR1" + b"\x15" * 50)
    Path("home.h5").touch()
    Path("broken.yaml").write_text("homes: [")
    result = check(*arguments)
    assert result.exit_code == 1, result.output
    assert sentence in result.stderr
    assert "Traceback" not in result.output
    assert not result.stdout


def test_help_names_the_options() -> None:
    result = CliRunner().invoke(app, ["data", "check", "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert "--timezone" in result.stdout


def test_the_guide_states_the_policy_for_every_problem() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    missing = [problem.name for problem in Problem if f"| {problem.label} | {problem.treatment} |" not in guide]
    assert not missing


def test_the_example_of_the_guide_is_a_valid_declaration(tmp_path: Path) -> None:
    example = re.search(r"^```yaml\n(homes:.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert example
    (tmp_path / "homes.yaml").write_text(example[1], encoding="utf-8")
    assert list(known_homes(tmp_path)) == ["my-house", "nilmtk-1"]
