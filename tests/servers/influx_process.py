"""The InfluxDB test server in a process of its own, which keeps its port and its log over a restart."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployments.contracts import PredictionPoint

_TAGS = {"building_id", "appliance_id", "model_version", "attribution"}
ROOT = Path(__file__).parents[2]


@dataclass
class InfluxServer:
    """The test server's process."""

    log: Path
    port: int = 0
    host: str = "127.0.0.1"
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start, on the port it had before if it had one."""
        command = [sys.executable, "-m", "tests.servers.influx2", "--log", str(self.log)]
        command += ["--host", self.host, "--port", str(self.port)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = json.loads(self.process.stdout.readline())["port"]

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def fault(self, **settings: Any) -> None:
        """Put a fault in force (see tests/servers/influx2.py); without settings, mend."""
        assert self.request("POST", "/__control", json.dumps(settings).encode())[0] == 204

    def requests(self) -> list[dict[str, Any]]:
        return list(json.loads(self.request("GET", "/__requests")[1]))

    def rows(self) -> list[dict[str, Any]]:
        return list(json.loads(self.request("GET", "/__rows")[1]))

    def points(self) -> list[PredictionPoint]:
        """Stored predictions."""
        rows = [row for row in self.rows() if row["measurement"] == "prediction"]
        assert all(row["bucket"] == "predictions" for row in rows)
        assert all(set(row["tags"]) == _TAGS for row in rows)
        return [PredictionPoint(**row["tags"], **row["fields"], time_ns=row["time_ns"]) for row in rows]
