"""`nilm backfill` on a running service: what `/infer` would have said, all of it, whatever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest

from serve_app.cli.announcement import SHELL_FILE_NAME
from serve_app.cli.processes import OwnedProcesses
from serve_app.instants import to_ns
from tests.integration.service import ROOT, Service, shape_of

pytestmark = pytest.mark.integration
START = (datetime.now(UTC) - timedelta(days=20)).replace(hour=0, minute=0, second=0, microsecond=0)
NILM = Path(sys.executable).with_name("nilm")


def mains_kw(minutes: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    minute = np.arange(minutes)
    return np.round(0.2 + 2.6 * (minute % 61 < 3) + 1.1 * (minute % 97 < 2) + rng.uniform(0, 0.02, minutes), 4)


def send(client: httpx.Client, building_id: str, powers_kw: np.ndarray) -> None:
    start_s = int(START.timestamp())
    lines = [
        f"sensor_reading,building_id={building_id} aggregate_kw={kw} {start_s + 60 * n}"
        for n, kw in enumerate(powers_kw)
    ]
    for first in range(0, len(lines), 5000):
        body = "\n".join(lines[first : first + 5000])
        reply = client.post("/ingest/readings?precision=s", content=body, headers={"Content-Type": "text/plain"})
        assert reply.status_code == 200, reply.text
        assert reply.json()["refused"] == 0


def command(building_id: str, minutes: int, *more: str) -> list[str]:
    stop = START + timedelta(minutes=minutes)
    times = ["--from", START.isoformat(), "--to", stop.isoformat()]
    return [str(NILM), "backfill", "--building", building_id, *times, *more]


def environment(service: Service) -> dict[str, str]:
    """As `. .nilm/serve-env.sh` makes it."""
    script = (service.data_dir / SHELL_FILE_NAME).read_text()
    words = script.replace("export ", "").split()
    return {**os.environ, **dict(word.split("=", 1) for word in words), "COLUMNS": "160"}


def run(service: Service, building_id: str, minutes: int, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(building_id, minutes, *more),
        check=False,
        cwd=ROOT,
        env=environment(service),
        capture_output=True,
        text=True,
        timeout=200,
    )


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "the backfill ended too early to be disturbed"
        assert time.monotonic() < end
        time.sleep(0.05)


def worker_pids(service: Service) -> list[int]:
    pids = OwnedProcesses(service.data_dir).find()
    return [pid for pid in pids if b"MapWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_it_stores_what_infer_says_once(service: Service) -> None:
    powers_kw = mains_kw(640)
    with service.client() as client:
        send(client, "old-mill", powers_kw)
        shape = shape_of(client, "kettle")
        size, index, version = shape["input_window_size"], shape["output_sample_index"], shape["model_version"]
        first = run(service, "old-mill", 640, "--appliance", "kettle")
        assert first.returncode == 0, first.stderr
        rows = {row["time_ns"]: row for row in service.rows("building_id = 'old-mill'")}
        assert len(rows) == 640 - size + 1
        assert max(row["predicted_kw"] for row in rows.values()) > 1
        for n in range(0, 640 - size, 16):
            end = START + timedelta(minutes=n + size - 1)
            body = {"building_id": "parity-mill", "appliance_id": "kettle", "timestamp": end.isoformat()}
            reply = client.post("/infer", json=body | {"window": powers_kw[n : n + size].tolist()})
            assert reply.status_code == 200, reply.text
            row = rows[to_ns(START + timedelta(minutes=n + index))]
            assert row["predicted_kw"] == pytest.approx(reply.json()["predicted_kw"], abs=1e-5)
            assert row["confidence"] == pytest.approx(reply.json()["confidence"], abs=1e-5)
            assert (row["model_version"], row["attribution"]) == (version, "final")
    again = run(service, "old-mill", 640, "--appliance", "kettle")
    assert again.returncode == 0, again.stderr
    counts = next(line.split("│")[3:6] for line in again.stdout.splitlines() if "kettle" in line)
    assert [int(count) for count in counts[:2]] == [0, len(rows)]
    assert len(service.rows("building_id = 'old-mill'")) == len(rows)
    assert {row["request_id"] for row in service.rows("building_id = 'old-mill'")} == {
        row["request_id"] for row in rows.values()
    }


def test_nothing_is_missing_after_its_driver_its_worker_and_the_writer_were_killed(service: Service) -> None:
    minutes = 3 * 1440
    with service.client() as client:
        send(client, "cursed-mill", mains_kw(minutes))
        size = shape_of(client, "kettle")["input_window_size"]
        body = {"building_id": "live-mill", "appliance_id": "kettle", "window": [0.2] * size}

        def stored() -> int:
            return len(service.rows("building_id = 'cursed-mill'"))

        arguments = command("cursed-mill", minutes)
        with subprocess.Popen(arguments, cwd=ROOT, env=environment(service), stderr=subprocess.DEVNULL) as driver:
            until(lambda: stored() > 1000, driver)
            driver.kill()
        before = stored()

        stop, statuses = threading.Event(), []

        def live() -> None:
            while not stop.wait(0.1):
                statuses.append(client.post("/infer", json=body, headers={"X-Request-ID": "live"}).status_code)

        traffic = threading.Thread(target=live)
        traffic.start()
        with subprocess.Popen(arguments, cwd=ROOT, env=environment(service), stderr=subprocess.PIPE) as driver:
            until(lambda: stored() > before + 500, driver)
            killed = worker_pids(service)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            assert killed
            until(lambda: stored() > before + 3000, driver)
            for replica in service.deployments()["persistence"]["replicas"]:
                os.kill(replica["pid"], signal.SIGKILL)
            _, said = driver.communicate(timeout=200)
        stop.set()
        traffic.join()
        assert driver.returncode == 0, said.decode()
        rows = service.rows("building_id = 'cursed-mill'")
        appliances = {row["appliance_id"] for row in rows}
        assert len(rows) == len(appliances) * (minutes - size + 1)
        assert len(appliances) == 4
        # The writer's successor starts within the deadline of those who wait for it.
        assert len(statuses) > 20
        assert set(statuses) == {200}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--appliance", "toaster"), "toaster is not served"),
        (("--model-version", "9.9.9"), "no version '9.9.9'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(service: Service, arguments: tuple[str, ...], words: str) -> None:
    done = run(service, "old-mill", 640, *arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_building_without_readings_is_said_to_have_none(service: Service) -> None:
    done = run(service, "empty-mill", 640, "--appliance", "kettle")
    assert done.returncode == 1
    assert "nothing could be predicted" in done.stderr
    assert service.rows("building_id = 'empty-mill'") == []
