"""`nilm run` as a person meets it: start, paste the printed line, stop; and nothing of it survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from serve_app.cli.cluster import KILL_S, PRODUCTION_MODE, STOP_GRACE_S
from serve_app.cli.ports import free_port
from serve_app.cli.processes import OwnedProcesses
from tests.integration.service import ROOT, end_run

pytestmark = pytest.mark.integration

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 90.0
FAILING_APP = """
from ray import serve


@serve.deployment
class Kettle:
    def __init__(self):
        raise RuntimeError("no weights for the kettle")


def build(args):
    return Kettle.bind()
"""


@contextmanager
def nilm_run(
    data_dir: Path, *options: str, config: Path = ROOT / "serve_config.yaml"
) -> Iterator[subprocess.Popen[str]]:
    """The command with its output in one pipe; whatever a test does, nothing of it is left behind."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SUPABASE_", "INFLUX_"))}
    if "NILM_TEST_PRODUCTION_MODE" in os.environ:
        environment |= PRODUCTION_MODE
    command = [sys.executable, "-m", "serve_app.cli.main", "run", "--config", str(config), "--data-dir", str(data_dir)]
    with subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        env={**environment, "ENV": "development", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            end_run(process, data_dir)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has just ended
        return ""


def read_until(process: subprocess.Popen[str], beginning: str) -> tuple[str, list[str]]:
    """The first line that begins so, and the lines before it. pytest's own timeout bounds the wait."""
    assert process.stdout is not None
    seen: list[str] = []
    for line in process.stdout:
        if line.startswith(beginning):
            return line.rstrip("\n"), seen
        seen.append(line)
    raise AssertionError(f"no line begins with {beginning!r}:\n{''.join(seen)}")


@pytest.mark.timeout(START_TIMEOUT_S + STOP_TIMEOUT_S)
def test_start_paste_stop(tmp_path: Path) -> None:
    data_dir, port = tmp_path / "data with a space", free_port()
    with nilm_run(data_dir, "--port", str(port), "--drain-delay", "3") as process:
        curl, before = read_until(process, "curl ")
        assert any("Ready after" in line for line in before), before

        pasted = subprocess.run(
            ["bash", "-c", curl], capture_output=True, text=True, timeout=30, cwd=tmp_path, check=True
        )
        reply = json.loads(pasted.stdout)
        assert reply["persisted"] is True, reply
        assert reply["predicted_kw"] > 0.5, "the pasted window holds a kettle at 2.8 kW"

        token = (data_dir / "dev-token").read_text().strip()
        minted = subprocess.run(
            [sys.executable, "-m", "serve_app.cli.main", "token", "--data-dir", str(data_dir)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "ENV": "development"},
            check=True,
        ).stdout.strip()
        for bearer in (token, minted):
            models = httpx.get(
                f"http://127.0.0.1:{port}/models", headers={"Authorization": f"Bearer {bearer}"}, trust_env=False
            )
            assert models.status_code == 200

        status = next(line.split(maxsplit=1)[1] for line in before if line.strip().startswith("Status "))
        shown = subprocess.run(["bash", "-c", status], capture_output=True, text=True, timeout=60, check=True)
        assert "RUNNING" in shown.stdout

        second = subprocess.run(
            [
                sys.executable,
                "-m",
                "serve_app.cli.main",
                "run",
                "--port",
                str(free_port()),
                "--data-dir",
                str(data_dir),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=ROOT,
            check=False,
        )
        assert second.returncode == 2
        assert f"process {process.pid}" in second.stderr

        owned = OwnedProcesses(data_dir)
        assert len(owned.find()) > 5
        process.send_signal(signal.SIGINT)
        read_until(process, "Stopping: ")
        # Whoever balances in front hears no before anything is refused.
        asked = time.monotonic()
        while (ready := httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False)).status_code == 200:
            assert time.monotonic() < asked + 2, "it is still ready"
        assert ready.json()["reasons"] == ["leaving: about to stop"]
        late = subprocess.run(["bash", "-c", curl], capture_output=True, timeout=30, cwd=tmp_path, check=True)
        assert json.loads(late.stdout)["persisted"] is True, late.stdout
        output, _ = process.communicate(timeout=STOP_TIMEOUT_S)
        assert process.returncode == 0, output
        assert "nothing is left running" in output
        assert not (data_dir / "leaving").exists()
        assert owned.find() == []
        assert not list(data_dir.glob("ray-temp")), "the temporary directory is removed with its link"


@pytest.mark.timeout(START_TIMEOUT_S)
def test_a_deployment_that_cannot_start_ends_the_command_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "failing_app.py").write_text(FAILING_APP)
    config = tmp_path / "config.yaml"
    config.write_text("applications: [{name: failing, route_prefix: /, import_path: 'failing_app:build'}]\n")
    data_dir = tmp_path / "data"
    with nilm_run(data_dir, "--port", str(free_port()), config=config) as process:
        output, _ = process.communicate(timeout=START_TIMEOUT_S)
        assert process.returncode == 1
        assert "deployment Kettle cannot start: RuntimeError: no weights for the kettle" in output
        assert "Traceback" not in output
        assert OwnedProcesses(data_dir).find() == []
        assert list((data_dir / "ray-logs").rglob("controller*.log")), "the logs outlive the cluster"


@pytest.mark.timeout(START_TIMEOUT_S)
@pytest.mark.parametrize("begun", ["gcs_server", "ServeController"])  # with the latter `ray start` drains for 30 s
def test_killing_the_command_takes_ray_along(tmp_path: Path, begun: str) -> None:
    data_dir = tmp_path / "data"
    with nilm_run(data_dir, "--port", str(free_port())) as process:
        owned = OwnedProcesses(data_dir)
        while not any(begun in command_line(pid) for pid in owned.find()):
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
        assert owned.wait_gone(STOP_GRACE_S + 2 * KILL_S), "what runs Ray must notice that its parent was killed"


@pytest.mark.timeout(START_TIMEOUT_S)
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with nilm_run(data_dir, "--port", str(free_port())) as process:
        owned = OwnedProcesses(data_dir)
        read_until(process, "")  # the first line of progress: Ray is being started
        while len(owned.find()) < 3:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        read_until(process, "Stopping: ")
        process.send_signal(signal.SIGINT)
        asked = time.monotonic()
        output, _ = process.communicate(timeout=STOP_TIMEOUT_S)
        assert process.returncode == 130, output
        assert time.monotonic() - asked < 20
        assert owned.find() == []
