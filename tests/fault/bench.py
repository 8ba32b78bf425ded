"""A running service with two ingress replicas, the store it writes to, and the means to break either."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.fault.ledger import HEAD, Verdict, Write, check
from tests.fault.traffic import Traffic
from tests.integration.service import Service, running_service, service_config, shape_of
from tests.servers.influx_process import InfluxServer

FULL = "NILM_LEDGER_SECONDS" in os.environ
"""Every fault on every store, rather than the ones that differ between them."""
SECONDS = float(os.environ.get("NILM_LEDGER_SECONDS", "5"))
"""Of load under each fault: a minute or more for figures, some seconds for a test."""
PER_SECOND = float(os.environ.get("NILM_LEDGER_PER_SECOND", "10"))


@dataclass
class Bench:
    """A running service, its store, and the ledger of everything sent to it."""

    service: Service
    influx: InfluxServer | None
    window: list[float]
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def store(self) -> str:
        return "sqlite" if self.influx is None else "influxdb"

    def traffic(self, name: str) -> Traffic:
        return Traffic(self.service.url, self.service.token(), self.window, f"{name}-{self.store}")

    def stored(self) -> list[dict[str, Any]]:
        """Every prediction there is, read past the service."""
        return self.service.rows() if self.influx is None else [asdict(point) for point in self.influx.points()]

    def judge(self, name: str, writes: list[Write]) -> Verdict:
        """Compare with what is stored, print the line, and insist on a clean ledger."""
        verdict = check(f"{name}-{self.store}", writes, self.stored())
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


def influx_environment(influx: InfluxServer) -> dict[str, str]:
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
        influx = InfluxServer(folder / "influx.log")
        influx.start()
        variables = influx_environment(influx)
    config = service_config(folder / "serve_config.yaml", ingresses=2, ingress_env=ingress_env, appliances=["kettle"])
    try:
        with running_service(folder, config, variables) as service:
            yield Bench(service, influx, _window(service))
    finally:
        if influx is not None:
            influx.kill()
