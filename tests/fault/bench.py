"""A running service with two ingress replicas, the store it writes to, and the means to break either."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.fault.ledger import HEAD, Verdict, Write, check
from tests.fault.traffic import Traffic
from tests.integration.service import ROOT, Service, running_service, service_config, shape_of

FULL = "NILM_LEDGER_SECONDS" in os.environ
"""Every fault on every store, rather than the ones that differ between them."""
SECONDS = float(os.environ.get("NILM_LEDGER_SECONDS", "5"))
"""Of load under each fault: a minute or more for figures, some seconds for a test."""
PER_SECOND = float(os.environ.get("NILM_LEDGER_PER_SECOND", "10"))


@dataclass
class InfluxProcess:
    """The InfluxDB test server, which keeps its port and its log over a restart."""

    log: Path
    port: int = 0
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.servers.influx2", "--log", str(self.log), "--port", str(self.port)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = json.loads(self.process.stdout.readline())["port"]

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fault(self, **settings: Any) -> None:
        httpx.post(f"{self.url}/__control", json=settings, trust_env=False).raise_for_status()

    def rows(self) -> list[dict[str, Any]]:
        rows = httpx.get(f"{self.url}/__rows", timeout=60, trust_env=False).json()
        return [{**row["tags"], **row["fields"]} for row in rows if row["measurement"] == "prediction"]


@dataclass
class Bench:
    """A running service, its store, and the ledger of everything sent to it."""

    service: Service
    influx: InfluxProcess | None
    window: list[float]
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def store(self) -> str:
        return "sqlite" if self.influx is None else "influxdb"

    def traffic(self, name: str) -> Traffic:
        return Traffic(self.service.url, self.service.token(), self.window, f"{name}-{self.store}")

    def judge(self, name: str, writes: list[Write]) -> Verdict:
        """Compare with what is stored, print the line, and insist on a clean ledger."""
        stored = self.service.rows() if self.influx is None else self.influx.rows()
        verdict = check(f"{name}-{self.store}", writes, stored)
        self.verdicts.append(verdict)
        print(f"\n{HEAD}\n{verdict.row()}")
        statuses = Counter(status for write in writes for status in write.statuses)
        print("answers: " + ", ".join(f"{count} x {status or 'none'}" for status, count in sorted(statuses.items())))
        assert verdict.acknowledged > 0
        assert not verdict.lost
        assert not verdict.unexpected
        assert not verdict.duplicated
        return verdict

    def pids(self, deployment: str) -> list[int]:
        """Processes of the replicas that run now."""
        replicas = self.service.deployments()[deployment]["replicas"]
        return [replica["pid"] for replica in replicas if replica["state"] == "RUNNING" and replica["pid"]]

    def signal_one(self, deployment: str, number: signal.Signals) -> int | None:
        """Send a signal to one replica; None when none runs now."""
        for pid in self.pids(deployment):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
            return pid
        return None


def influx_environment(influx: InfluxProcess) -> dict[str, str]:
    return {
        "INFLUX_URL": influx.url,
        "INFLUX_TOKEN": "test-token",
        "INFLUX_ORG": "test-org",
        "INFLUX_BUCKET_PRED": "predictions",
        "INFLUX_BUCKET_RAW": "raw",
    }


def _window(service: Service) -> list[float]:
    """As long as the kettle's; asked again, because a faulty replica may not know its model yet."""
    end = time.monotonic() + 30
    with service.client() as client:
        while True:
            try:
                return [0.2] * int(shape_of(client, "kettle")["input_window_size"])
            except (StopIteration, httpx.HTTPError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)


def start_bench(folder: Path, store: str, ingress_env: dict[str, str] | None = None) -> Iterator[Bench]:
    """One service with two ingress replicas."""
    folder.mkdir(parents=True, exist_ok=True)
    influx = None
    variables: dict[str, str] = {}
    if store == "influxdb":
        influx = InfluxProcess(folder / "influx.log")
        influx.start()
        variables = influx_environment(influx)
    config = service_config(folder / "serve_config.yaml", ingresses=2, ingress_env=ingress_env, appliances=["kettle"])
    try:
        with running_service(folder, config, variables) as service:
            yield Bench(service, influx, _window(service))
    finally:
        if influx is not None:
            influx.kill()
