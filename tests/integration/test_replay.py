"""`nilm replay` on a running service: what was answered over HTTP, again from the stored readings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.registry import PACKAGED_REGISTRY
from serve_app.cli.announcement import SHELL_FILE_NAME
from tests.integration.service import ROOT, Service, read_models, shape_of

pytestmark = pytest.mark.integration
START = (datetime.now(UTC) - timedelta(days=3)).replace(second=0, microsecond=0)
BUILDING = "replay-mill"
MINUTES = 700
KETTLE_EVERY = 11
NILM = Path(sys.executable).with_name("nilm")


def mains_kw() -> np.ndarray:
    """Spikes of a minute, which several models claim: some are claimed twice."""
    minute = np.arange(MINUTES)
    return np.round(0.02 + 2.8 * (minute % KETTLE_EVERY == 0) + 1.2 * (minute % 7 == 0), 4)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    """With the readings stored."""
    start_s = int(START.timestamp())
    lines = [f"sensor_reading,building_id={BUILDING} aggregate_kw={kw} {start_s + 60 * n}"
             for n, kw in enumerate(mains_kw())]  # fmt: skip
    with service.client() as client:
        headers = {"Content-Type": "text/plain"}
        reply = client.post("/ingest/readings?precision=s", content="\n".join(lines), headers=headers)
        assert (reply.status_code, reply.json()["refused"]) == (200, 0), reply.text
        yield client


def replay(service: Service, request_id: str, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """With the environment that `. .nilm/serve-env.sh` makes."""
    script = (service.data_dir / SHELL_FILE_NAME).read_text().replace("export ", "")
    environment = {**os.environ, **dict(word.split("=", 1) for word in script.split()), **variables}
    command = [str(NILM), "replay", "--request-id", request_id, *more]
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def infer(client: httpx.Client, request_id: str, window: np.ndarray, first: int, **more: Any) -> dict[str, Any]:
    """`first`: the minute of the window's first sample."""
    end = START + timedelta(minutes=first + len(window) - 1)
    body = {"building_id": BUILDING, "appliance_id": "kettle", "timestamp": end.isoformat(), "window": window.tolist()}
    reply = client.post("/infer", json=body | more, headers={"X-Request-ID": request_id})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


@pytest.mark.parametrize("attribution", ["final", "provisional"])
def test_a_window_of_stored_readings_agrees(service: Service, client: httpx.Client, attribution: str) -> None:
    shape = shape_of(client, "kettle")
    size = shape["input_window_size"]
    index = shape["output_sample_index" if attribution == "final" else "provisional_sample_index"]
    first = -index % KETTLE_EVERY
    said = infer(
        client, f"replay.agrees-{attribution}", mains_kw()[first : first + size], first, attribution=attribution
    )
    assert said["predicted_kw"] > 1
    done = replay(service, said["request_id"])
    assert done.returncode == 0, done.stdout + done.stderr
    [row] = [line for line in done.stdout.splitlines() if "kettle" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[:4] == [BUILDING, "kettle", said["model_version"], said["artifact_sha256"][:12]]
    assert (attribution in cells[4]) == (attribution == "provisional")
    assert cells[5:8] == [f"{said['predicted_kw']:.4f}"] * 2 + ["+0.0000"]
    assert cells[8:] == [f"{said['confidence']:.3f}"] * 2 + ["agrees"]


def test_another_window_is_said_to_be_one(service: Service, client: httpx.Client) -> None:
    shape = shape_of(client, "kettle")
    size, index = shape["input_window_size"], shape["output_sample_index"]
    window = mains_kw()[2 : 2 + size].copy()
    window[index] += 1.5
    infer(client, "replay-other-window", window, 2)
    done = replay(service, "replay-other-window")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "another window" in done.stdout
    assert "the window that was sent was another one" in done.stdout


def test_readings_that_are_missing_are_counted(service: Service, client: httpx.Client) -> None:
    size = shape_of(client, "kettle")["input_window_size"]
    infer(client, "replay-without-readings", mains_kw()[:size], MINUTES - 100)
    done = replay(service, "replay-without-readings")
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"readings of 100 of the {size} minutes of its window are stored" in done.stdout


def test_what_disaggregate_scaled_to_the_mains_agrees(service: Service, client: httpx.Client) -> None:
    shape = read_models(client)["disaggregate"]
    size, index = shape["input_window_size"], shape["output_sample_index"]
    powers_kw = mains_kw()
    for first in range(-index % KETTLE_EVERY, MINUTES - size, KETTLE_EVERY):
        end = START + timedelta(minutes=first + size - 1)
        body = {"building_id": BUILDING, "window": powers_kw[first : first + size].tolist()}
        request_id = f"replay-shares-{first}"
        reply = client.post(
            "/disaggregate", json=body | {"timestamp": end.isoformat()}, headers={"X-Request-ID": request_id}
        )
        assert reply.status_code == 200, reply.text
        # What is left is a hair at most, when the shares add up to the mains.
        if reply.json()["unattributed_kw"] < 1e-9:
            break
    else:
        raise AssertionError("the models never claim more than the mains here")
    shares = {one["appliance_id"]: one["predicted_kw"] for one in reply.json()["appliances"]}
    assert len(shares) == 4
    done = replay(service, request_id)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "agrees, scaled to the mains" in done.stdout
    assert all(f"{name} " in done.stdout and f"{kw:.4f}" in done.stdout for name, kw in shares.items())


def test_another_file_of_the_version_is_not_run(service: Service, client: httpx.Client, tmp_path: Path) -> None:
    size = shape_of(client, "kettle")["input_window_size"]
    said = infer(client, "replay-other-file", mains_kw()[5 : 5 + size], 5)
    registry = tmp_path / "registry.json"
    registry.write_text(PACKAGED_REGISTRY.read_text().replace(said["artifact_sha256"], "ab" * 32))
    done = replay(service, "replay-other-file", MODEL_REGISTRY_URI=str(registry))
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"the registry's {said['model_version']} is another file" in done.stdout


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "no prediction of request nobodys is stored"),
        (("--application", "other"), "no application 'other' runs"),
    ],
)
def test_what_cannot_be_found_is_one_sentence(service: Service, more: tuple[str, ...], words: str) -> None:
    done = replay(service, "nobodys", *more)
    assert done.returncode == 2
    assert words in done.stderr
