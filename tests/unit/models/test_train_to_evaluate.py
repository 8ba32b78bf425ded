"""The whole way on invented recordings: `nilm train`, killed and gone on, then `nilm evaluate` on its run folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from models.loader import GoldenCheck, load_verified
from models.registry import Registry
from models.training.export import UNRELEASED
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
    recording(folder / "REFIT_House2_1min.parquet", 1, 22_000)
    recording(folder / "REFIT_House20_1min.parquet", 2, 22_000)
    recording(folder / "UKDALE_House2_1min.parquet", 3, 1_000)
    return folder


def test_train_then_evaluate_says_what_the_run_says(tmp_path, data):
    out = tmp_path / "run"
    arguments = ["train", "kettle", "--data", str(data), "--out", str(out), "--steps", "2"]
    trained = runner.invoke(app, arguments)
    assert trained.exit_code == 0, trained.output
    assert "UK-DALE House 2 (unseen home), final:" in trained.stdout.replace("\n", " ")

    entry = Registry.load(out / "registry.json").resolve("kettle", UNRELEASED)
    assert load_verified(entry, out).golden is GoldenCheck.PASSED
    assert [source.home for source in entry.training_data] == ["REFIT House 2", "REFIT House 20"]
    assert [(test["kind"], test["home"]) for test in entry.metrics["tests"]] == [
        ("unseen_home", "UK-DALE House 2"),
        ("seen_home", "REFIT House 2"),
        ("seen_home", "REFIT House 20"),
    ]
    test = entry.metrics["tests"][0]
    # One minute for every window, in blocks of eight, but not the 20 that were never measured.
    assert 1_000 - 512 + 1 - 20 - 8 < test["provisional"]["samples"] <= 1_000 - 512 + 8
    assert {path.name for path in out.iterdir()} == {
        "registry.json",
        "model.safetensors",
        "golden.npz",
        "log.csv",
        "reliability.png",
        "example-day.png",
    }
    assert str(tmp_path) not in json.dumps(entry.metrics)

    registry = str(out / "registry.json")
    evaluated = runner.invoke(app, ["evaluate", "--all", "--data", str(data), "--registry", registry])
    assert evaluated.exit_code == 0, evaluated.output
    assert "UK-DALE House 2 (unseen home)" in evaluated.stdout
    assert evaluated.stdout.count("equal") == 6

    document = json.loads((out / "registry.json").read_text(encoding="utf-8"))
    document["models"][0]["metrics"]["tests"][0]["final"]["mae_w"] += 1.0
    (out / "registry.json").write_text(json.dumps(document), encoding="utf-8")
    differs = runner.invoke(app, ["evaluate", "kettle", "--data", str(data), "--registry", registry])
    assert differs.exit_code == 1
    assert "1 of 3 measurements differ from the card" in differs.stderr

    again = runner.invoke(app, arguments)
    assert again.exit_code == 1
    assert "holds a finished run" in again.stderr


def test_a_run_killed_half_way_goes_on_to_the_same_weights(tmp_path, data):
    def command(out: Path) -> list[str]:
        nilm = [sys.executable, "-m", "serve_app.cli.main"]
        return [*nilm, "train", "kettle", "--data", str(data), "--out", str(out), "--steps", "52"]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, capture_output=True, timeout=240)
    process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (killed / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "registry.json").exists()

    resumed = subprocess.run(command(killed), check=True, capture_output=True, text=True, timeout=240)
    assert "finished in" in resumed.stdout
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert weights[0] == weights[1]
    lines = [len((folder / "log.csv").read_text(encoding="utf-8").splitlines()) for folder in (whole, killed)]
    assert lines == [53, 53]
    assert not (killed / "checkpoint.pt").exists()
