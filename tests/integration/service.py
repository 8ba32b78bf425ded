"""Starts the real service with `nilm run`, as a user would, on a free port and with a data folder of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import yaml

from serve_app.access.development import mint_development_token
from serve_app.access.development_grants import grant_development_access
from serve_app.cli.announcement import SHELL_FILE_NAME
from serve_app.cli.cluster import PRODUCTION_MODE, TEMP_LINK_NAME, ray_token_path
from serve_app.cli.ports import free_port
from serve_app.cli.processes import OwnedProcesses
from serve_app.cli.serve_api import APPLICATIONS_PATH, ServeApi
from tests.told import Told

ROOT = Path(__file__).resolve().parents[2]
SECRET = "integration-tests-only-" + "0" * 32
ADMIN_TOKEN = "integration-tests-admin-token-of-more-than-32-characters"
READY_TIMEOUT_S = 240.0
FRESH_FIGURES = {"RAY_metrics_report_interval_ms": "3000"}
"""For a service whose `/metrics` a test reads: Ray's agents are told every three seconds instead of every ten. Not more
often: they forget a gauge after two reports, and Ray itself sets some of its own every five seconds."""
LEARNT_S = 15.0
FIGURES_LATE_S = 6.0
"""Then; a replica passes on what it counted each second, and what others counted comes to it each second."""


@dataclass
class Service:
    """A running service and what a test needs to talk to it."""

    url: str
    data_dir: Path
    config: Path
    process: subprocess.Popen[bytes]
    output: Path
    environment: Mapping[str, str]

    def start_again(self) -> None:
        """The same command, after its process has ended; returns at once."""
        (self.data_dir / SHELL_FILE_NAME).unlink(missing_ok=True)  # it names the old run's dashboard
        with self.output.open("ab") as sink:
            self.process = _start(self.process.args, self.environment, sink)

    def wait_ready(self) -> None:
        """Until `/ready` says so; raises AssertionError with its own words when it ends or takes too long."""
        _wait(self, "/ready")
        _wait_for_announcement(self)

    @property
    def database(self) -> Path:
        return self.data_dir / "predictions.sqlite3"

    def token(self, *buildings: str) -> str:
        # The file holds one entry a user: another set of buildings is another user.
        user = "-".join(("tester", *buildings))
        grant_development_access(self.data_dir, user, buildings or ("*",))
        return mint_development_token(SECRET, user, 60, "nilm-development")

    def client(self, *buildings: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token(*buildings)}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)

    def rows(self, where: str = "1=1") -> list[dict[str, Any]]:
        """Stored predictions, read by a connection of our own."""
        with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(f"SELECT * FROM prediction WHERE {where}")]  # noqa: S608

    @property
    def metrics_port(self) -> int:
        """Where the agent of its node tells Ray's figures."""
        said = re.search(r"http://127\.0\.0\.1:(\d+)/metrics\)", self.output.read_text())
        assert said is not None
        return int(said[1])

    def figures(self) -> Told:
        """What `GET /metrics` says."""
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        reply = httpx.get(f"{self.url}/metrics", headers=headers, timeout=30, trust_env=False)
        assert reply.status_code == 200, reply.text
        return Told(reply.text)

    def kill_everything(self) -> int:
        """SIGKILL to every process at once; returns how many there were."""
        pids = OwnedProcesses(self.data_dir).find()
        if self.process.poll() is None:
            pids.append(self.process.pid)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return len(pids)

    @property
    def dashboard(self) -> tuple[str, str]:
        """Address and token of this run's own cluster."""
        script = (self.data_dir / SHELL_FILE_NAME).read_text()
        address = script.split("RAY_DASHBOARD_ADDRESS=")[1].split()[0]
        return address, ray_token_path(self.data_dir).read_text().strip()

    def serve_api(self) -> ServeApi:
        """The Serve REST API of this run's own cluster."""
        return ServeApi(*self.dashboard)

    def deployments(self) -> dict[str, Any]:
        """The application's deployments as Serve reports them, replicas and their processes included."""
        address, token = self.dashboard
        headers = {"Authorization": f"Bearer {token}"}
        reply = httpx.get(address + APPLICATIONS_PATH, headers=headers, timeout=30, trust_env=False)
        return dict(reply.json()["applications"]["nilm"]["deployments"])


def _start(command: Any, environment: Mapping[str, str], sink: BinaryIO) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT)


def service_config(
    path: Path,
    *,
    ingresses: int | None = None,
    ingress_env: Mapping[str, str] | None = None,
    plans: Mapping[str, object] | None = None,
    **args: object,
) -> Path:
    """serve_config.yaml with other `args`, a number of ingress replicas or variables of theirs, written to `path`.

    `plans`: of appliances whose rollout is another than the file's.
    """
    document = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    application = document["applications"][0]
    dropped = set(application["args"]["appliances"])
    application["args"].update(args)
    dropped -= set(application["args"]["appliances"])
    application["deployments"] = [one for one in application["deployments"] if one["name"] not in dropped]
    rollout = next(one for one in application["deployments"] if one["name"] == "rollout")
    kept = {name: plan for name, plan in rollout["user_config"].items() if name not in dropped}
    rollout["user_config"] = kept | dict(plans or {})
    ingress = next(d for d in document["applications"][0]["deployments"] if d["name"] == "ingress")
    if ingress_env is not None:
        ingress["ray_actor_options"]["runtime_env"] = {"env_vars": dict(ingress_env)}
    if ingresses is not None:
        ingress["autoscaling_config"] |= {"min_replicas": ingresses, "max_replicas": ingresses}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@contextmanager
def running_service(
    folder: Path,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    wait_ready: bool = True,
    num_cpus: int = 4,
    host: str | None = None,
    others_join: Callable[[Service], None] | None = None,
) -> Iterator[Service]:
    """Start, wait until ready, hand over, end; a failed start shows the service's own words.

    `others_join` is called while it starts, for nodes without which it cannot be ready.
    With NILM_TEST_PRODUCTION_MODE set, Serve runs as in production.
    """
    port = free_port()
    data_dir = folder / "data"
    config = config or ROOT / "serve_config.yaml"
    output = folder / "output.txt"
    env = {
        **os.environ,
        "ENV": "development",
        "SUPABASE_JWT_SECRET": SECRET,
        "CORS_ORIGINS": "http://app.local",
        "ADMIN_TOKEN": ADMIN_TOKEN,
        **(PRODUCTION_MODE if "NILM_TEST_PRODUCTION_MODE" in os.environ else {}),
        **(environment or {}),
    }
    command = [sys.executable, "-m", "serve_app.cli.main", "run", "--config", str(config), "--port", str(port)]
    command += ["--data-dir", str(data_dir), "--num-cpus", str(num_cpus)]
    command += [] if host is None else ["--host", host]
    with output.open("wb") as sink:
        process = _start(command, env, sink)
    service = Service(f"http://127.0.0.1:{port}", data_dir, config, process, output, env)
    try:
        if others_join is not None:
            others_join(service)
        _wait(service, "/ready" if wait_ready else "/live")
        # Alive is not loaded: this file is written when everything that can serve does, and tests read it.
        _wait_for_announcement(service)
        yield service
    finally:
        end_run(service.process, data_dir)


def end_run(process: subprocess.Popen[Any], data_dir: Path) -> None:
    """A `nilm run`, at once: what a stop does is asked in `test_run_command.py`, and takes 13 to 45 s."""
    if process.poll() is None:
        process.kill()
    process.wait()
    OwnedProcesses(data_dir).end(grace_s=0.0)
    # A killed run leaves its temporary directory to the next one, which no test starts.
    link = data_dir / TEMP_LINK_NAME
    if link.is_symlink():
        shutil.rmtree(link.readlink(), ignore_errors=True)


def _wait(service: Service, path: str) -> None:
    end = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < end:
        if service.process.poll() is not None:
            break
        try:
            if httpx.get(service.url + path, timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"the service did not start:\n{service.output.read_text()[-4000:]}")


def _wait_for_announcement(service: Service) -> None:
    end = time.monotonic() + READY_TIMEOUT_S
    while not (service.data_dir / SHELL_FILE_NAME).exists():
        if service.process.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"the service did not start:\n{service.output.read_text()[-4000:]}")
        time.sleep(0.5)


def read_models(client: httpx.Client) -> dict[str, Any]:
    reply = client.get("/models")
    reply.raise_for_status()
    return dict(json.loads(reply.text))


def shape_of(client: httpx.Client, appliance: str) -> dict[str, Any]:
    """Window and output sample of the version that serves the appliance now."""
    # Ready is what one ingress says; of several, another may have asked the replicas when they were still loading.
    end_s = time.monotonic() + LEARNT_S
    while True:
        models = read_models(client)["models"]
        if found := [m for m in models if m["appliance_id"] == appliance and m["serving"]]:
            return dict(found[0])
        assert time.monotonic() < end_s, models
        time.sleep(0.5)
