"""The whole way on invented recordings: `nilm train`, then `nilm evaluate`, then training the version again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from models.loader import GoldenCheck, load_verified
from models.registry import Registry
from serve_app.cli.main import app

runner = CliRunner()


def recording(path: Path, seed: int, minutes: int) -> None:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {"Kettle": 0.0, "Microwave": 0.0},
        index=pd.date_range("2014-01-01", periods=minutes, freq="1min", name="Time"),
        dtype=np.float32,
    )
    for column, power_w in (("Kettle", 2700.0), ("Microwave", 1200.0)):
        for start in rng.integers(0, minutes - 5, minutes // 100):
            frame.iloc[start : start + 3, frame.columns.get_loc(column)] = power_w
    base_w = 150.0 + rng.normal(0.0, 10.0, minutes)
    frame["Aggregate"] = (frame["Kettle"] + frame["Microwave"] + base_w).astype(np.float32)
    # A metering gap: zeros, which are missing and not "off".
    frame.iloc[700:720, frame.columns.get_loc("Aggregate")] = 0.0
    frame.to_parquet(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    recording(folder / "REFIT_House2_1min.parquet", 1, 12_000)
    recording(folder / "REFIT_House20_1min.parquet", 2, 12_000)
    recording(folder / "UKDALE_House2_1min.parquet", 3, 1_000)
    return folder


def test_train_register_evaluate(tmp_path, data):
    out = tmp_path / "out"
    arguments = ["train", "kettle", "--data", str(data), "--out", str(out), "--steps", "2"]
    trained = runner.invoke(app, arguments)
    assert trained.exit_code == 0, trained.output
    assert "registered kettle-tpunet 1.0.0" in trained.stdout

    entry = Registry.load(out / "registry.json").active("kettle")
    assert load_verified(entry, out).golden is GoldenCheck.PASSED
    assert [source.home for source in entry.training_data] == ["REFIT House 2", "REFIT House 20"]
    test = entry.metrics["tests"][0]
    assert test["home"] == "UK-DALE House 2"
    assert test["served"]["sample_index"] == entry.output_sample_index
    # Every window's served sample, but not the 20 that were never measured.
    assert test["served"]["samples"] == 1_000 - 512 + 1 - 20
    card = (out / entry.card_path).read_text(encoding="utf-8")
    for fact in ("doi:10.1038/sdata.2015.7", "doi:10.1038/sdata.2016.122", "CC BY 4.0", "## Not for"):
        assert fact in card
    assert f"sample {entry.output_sample_index}" in card
    assert str(tmp_path) not in card

    evaluated = runner.invoke(app, ["evaluate", "--all", "--data", str(data), "--out", str(out)])
    assert evaluated.exit_code == 0, evaluated.output
    assert "never seen in training" in evaluated.stdout
    assert f"{test['served']['mae_w']:.2f}" in evaluated.stdout

    again = runner.invoke(app, arguments)
    assert again.exit_code == 1
    assert "is registered already" in again.stderr
