"""Debian's Prometheus: the server that scrapes, and promtool."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from serve_app.cli.ports import free_port
from tests.servers.packages import apt_install

READY_S = 30.0


def install_prometheus() -> None:
    """Raises PartsMissing."""
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        apt_install(["prometheus"])


def promtool(*arguments: str, folder: Path) -> str:
    """What it says, run in `folder`. Raises AssertionError with its words when it finds something wrong."""
    command = [str(shutil.which("promtool")), *arguments]
    result = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now. Raises ValueError for one that Prometheus does not take."""
        reply = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30, trust_env=False).json()
        if reply["status"] != "success":
            raise ValueError(f"{expression}: {reply.get('error')}")
        return list(reply["data"]["result"])

    def up(self) -> dict[str, bool]:
        """By job, whether the last scrape of all its targets succeeded."""
        series = self.query("min by (job) (up)")
        return {one["metric"]["job"]: one["value"][1] == "1" for one in series}


@contextmanager
def prometheus(folder: Path, configuration: dict[str, Any]) -> Iterator[Prometheus]:
    """Runs with this configuration, on a port of its own; `folder`: for its files. Raises PartsMissing."""
    install_prometheus()
    port = free_port()
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(configuration))
    command = [str(shutil.which("prometheus")), f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _wait_ready(f"http://127.0.0.1:{port}", process, folder)
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(20)


def _wait_ready(url: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + READY_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/-/ready", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError((folder / "prometheus.log").read_text()[-2000:])
