"""`nilm demo` as a person runs it: the picture, the summary, the exit status, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from serve_app.cli.main import app
from serve_app.demo.live import LiveView
from serve_app.demo.plot import draw
from serve_app.demo.recording import Recording, plan_windows
from serve_app.demo.replies import Disaggregation
from serve_app.demo.results import Results
from serve_app.demo.stream import Outcome
from serve_app.settings import DEVELOPMENT_ISSUER

RUN = CliRunner()
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("NILM_TOKEN", "SUPABASE_JWT_SECRET", "SUPABASE_URL", "NILM_DATA_DIR", "ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def _size(png: bytes) -> tuple[int, int]:
    assert png[:8] == PNG_SIGNATURE
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_a_synthetic_day_ends_in_a_picture_and_a_summary(service: Any, tmp_path: Path) -> None:
    out = tmp_path / "pictures" / "day.png"
    result = RUN.invoke(
        app,
        ["demo", "--url", service.url, "--token", service.token, "--hours", "0.5", "--out", str(out), "--seed", "4"],
    )
    assert result.exit_code == 0, result.output
    assert "Synthetic household (seed 4)" in result.output
    assert "synthetic kWh" in result.output
    assert "measured" not in result.output
    assert "sent 30, acknowledged 30, skipped 0 (mains missing), failed 0" in result.output
    assert "acknowledged 30 of 30" in result.output
    assert len(service.bodies) == 30
    png = out.read_bytes()
    assert b"Synthetic household" in png  # the title also travels in the file's metadata
    assert _size(png)[0] >= 1200
    assert len(png) > 20_000


def test_a_recording_is_compared_with_its_measurements(service: Any, tmp_path: Path) -> None:
    times = pd.date_range("2026-01-01", periods=60, freq="60s")
    mains = 500.0 + np.arange(60)
    mains[30] = 0.0
    path = tmp_path / "home.csv"
    pd.DataFrame({"Time": times, "Aggregate": mains, "Kettle": mains / 2}).to_csv(path, index=False)
    result = RUN.invoke(app, ["demo", "--url", service.url, "--token", service.token, "--input", str(path)])
    assert result.exit_code == 0, result.output
    assert "skipped 10 (mains missing)" in result.output
    assert (tmp_path / "demo" / "disaggregation.png").stat().st_size > 20_000
    kettle = next(line for line in result.output.splitlines() if "Kettle" in line)
    assert [cell.strip() for cell in kettle.strip("│").split("│")][3] == "0.0"


def test_a_local_service_gets_a_development_token(service: Any, tmp_path: Path) -> None:
    import jwt

    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "dev-secret").write_text("s" * 64 + "\n")
    result = RUN.invoke(app, ["demo", "--url", service.url, "--data-dir", str(data_dir), "--hours", "0.1"])
    assert result.exit_code == 1
    assert "does not accept the token" in result.output  # it was sent, and this server takes another
    sent = service.authorization.removeprefix("Bearer ")
    claims = jwt.decode(sent, "s" * 64, algorithms=["HS256"], audience="authenticated", issuer=DEVELOPMENT_ISSUER)
    granted = json.loads((data_dir / "development-grants.json").read_text())["users"]
    assert granted == {claims["sub"]: {"demo-home": ["*"]}}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--token", "t", "--input", "nowhere.csv"], "There is no file nowhere.csv."),
        (["--token", "t", "--start", "soon"], "--start is an ISO 8601 instant"),
        (["--token", "t", "--rate", "fast"], "--rate is `max`, `realtime` or a positive number"),
        ([], "has no development secret"),
        (["--url", "https://nilm.example.org"], "only sent to this machine"),
        (["--token", "t", "--url", "nonsense"], "is not an http:// or https:// URL"),
        (["--token", "t", "--url", "http://127.0.0.1:9"], "No service answers at http://127.0.0.1:9"),
    ],
)
def test_what_cannot_start_says_why(service: Any, arguments: list[str], sentence: str) -> None:
    url = [] if "--url" in arguments else ["--url", service.url]
    result = RUN.invoke(app, ["demo", *url, *arguments])
    assert result.exit_code == 2
    assert sentence in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("missing", "sentence"), [("matplotlib", "needs matplotlib"), ("pandas", "needs pandas")])
def test_a_missing_extra_is_named(
    service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, sentence: str
) -> None:
    (tmp_path / "home.csv").write_text("time,power\n")
    monkeypatch.setitem(sys.modules, missing, None)
    result = RUN.invoke(app, ["demo", "--url", service.url, "--token", service.token, "--input", "home.csv"])
    assert result.exit_code == 2
    assert sentence in result.output
    assert "nilm-serve[tools]" in result.output


def test_the_command_line_starts_without_the_extras() -> None:
    code = "import sys, serve_app.cli.demo; sys.exit(bool({'pandas', 'matplotlib', 'ray', 'torch'} & set(sys.modules)))"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False, timeout=60).returncode == 0


def test_nothing_acknowledged_is_a_failure_without_a_picture(service: Any, tmp_path: Path) -> None:
    service.fault = lambda _n: (500, {}, {"title": "Internal error"})
    result = RUN.invoke(app, ["demo", "--url", service.url, "--token", service.token, "--hours", "0.1"])
    assert result.exit_code == 1
    assert "acknowledged 0" in result.output
    assert not (tmp_path / "demo").exists()


def test_ctrl_c_draws_what_there_is(service: Any, tmp_path: Path) -> None:
    service.delay_s = lambda _number: 0.05
    out = tmp_path / "part.png"
    command = [sys.executable, "-m", "serve_app.cli.main", "demo", "--url", service.url, "--token", service.token]
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [*command, "--out", str(out)],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while len(service.bodies) < 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert "acknowledged" in output
    assert _size(out.read_bytes())[0] >= 1200


def _results(answered: list[int]) -> Results:
    start = datetime(2026, 3, 1, tzinfo=UTC)
    mains = 500.0 + 100 * np.sin(np.arange(300) / 9)
    recording = Recording("A test home", start, 60, mains, {"kettle": mains / 3})
    results = Results(recording, plan_windows(recording, 10, 7, None, 4), ["kettle", "shower", "heat_pump"])
    for window in results.plan.windows:
        if window.target not in answered:
            results.add(Outcome(window, None, "lost"))
            continue
        kw = float(mains[window.target]) / 1000
        powers = [
            {"appliance_id": name, "predicted_kw": kw / 4, "confidence": 0.5, "model_version": "1"}
            for name in ("kettle", "shower", "heat_pump")
        ]
        reply = {"persisted": True, "unattributed_kw": kw / 4, "appliances": powers}
        results.add(Outcome(window, Disaggregation.model_validate(reply)))
    return results


def test_the_picture_holds_every_appliances_colour(tmp_path: Path) -> None:
    from matplotlib.image import imread

    out = tmp_path / "day.png"
    draw(_results(list(range(300))), "home", out)
    pixels = (np.asarray(imread(out))[:, :, :3] * 255).round().astype(int)
    for colour in ("D55E00", "F0E442", "E69F00", "DDDDDD"):
        wanted = [int(colour[i : i + 2], 16) for i in (0, 2, 4)]
        assert (np.abs(pixels - wanted).max(axis=2) <= 1).sum() > 2000, colour


@pytest.mark.parametrize("answered", [[50], [60, 61, 200], list(range(20, 120))])
def test_gaps_are_drawn_without_complaint(tmp_path: Path, answered: list[int]) -> None:
    out = tmp_path / "gaps.png"
    draw(_results(answered), "home", out)
    assert len(out.read_bytes()) > 20_000


def test_the_live_table_shows_the_latest_minutes() -> None:
    console = Console(force_terminal=True, width=140, height=40, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    results = _results(list(range(300)))
    with LiveView(console, results) as view:
        for window in results.plan.windows[:3]:
            reply = {
                "persisted": True,
                "unattributed_kw": 0.1,
                "appliances": [{"appliance_id": "kettle", "predicted_kw": 1.25, "confidence": 0.97}],
            }
            view.show(Outcome(window, Disaggregation.model_validate(reply)))
        view.show(Outcome(results.plan.windows[3], None, "500, Internal error"))
        view.waiting(3, "429, quota")
        console.print(view._render())
    text = console.export_text()
    assert "1.250  97%" in text
    assert "A test home" in text
    assert "failed" in text
    assert "waiting 3 s: 429, quota" in text
