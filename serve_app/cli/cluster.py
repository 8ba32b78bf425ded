"""The Ray cluster that belongs to one `nilm run`: how it is started, watched and ended.

It has its own session, temporary directory, ports and access token, so it neither meets nor disturbs another Ray
on the machine; `ray stop`, which ends everybody's, is never used.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from serve_app.access.development import write_private_file
from serve_app.cli.ports import free_port, reserve_block
from serve_app.cli.processes import OWNER_VARIABLE, OwnedProcesses

DEFAULT_DASHBOARD_PORT = 8265
DEFAULT_METRICS_PORT = 8080
"""Of the node's agent; also what KubeRay gives its nodes."""
OBJECT_STORE_BYTES = 256 * 1024 * 1024
"""Windows and replies are kilobytes and mostly travel inline; Ray's default would claim 30 % of the memory."""

MMAP_THRESHOLD_BYTES = 32 * 1024 * 1024
"""glibc's own upper bound. Its default gives every batch's activations back to the kernel and faults them in
again, which costs torch a quarter of its throughput at batch 64. Read only when a process starts, hence here."""

TRIM_THRESHOLD_BYTES = 256 * 1024 * 1024
TOKEN_FILE_NAME = "ray-token"  # noqa: S105 - a file name
RAY_OUTPUT_FILE_NAME = "ray-start.log"
KEPT_LOGS_NAME = "ray-logs"
TEMP_LINK_NAME = "ray-temp"
TEMP_PREFIX = "nilm-ray-"
_ADDRESS = re.compile(r"ray start --address='([^']+)'")
STOP_GRACE_S = 15.0
"""Measured: an idle cluster is gone 3.5 s after SIGTERM on two busy cores."""
KILL_S = 5.0
"""For `fate` to look for what is left after that, and to kill it."""


def ray_token_path(data_dir: Path) -> Path:
    """The file with the cluster's access token, made once per data directory."""
    path = data_dir / TOKEN_FILE_NAME
    if not path.is_file():
        write_private_file(path, secrets.token_hex(32))
    return path


CLIENT_TIMEOUT_S = 30
"""For so long HAProxy waits for a client that stopped in the middle of a request; Serve's hour would let anybody hold
all its 4096 connections."""

PRODUCTION_MODE = {
    # Together they cut the CPU time of a request to a quarter; the pair only makes sense together.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.door:door",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(CLIENT_TIMEOUT_S),
    # A replica would keep up to a thousand lines of its log to itself, and take them along when it is killed.
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    # A HAProxy that died is replaced at the third check that it misses: after half a minute with Serve's ten seconds.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # A node that is gone is given up after five checks that failed: 5 s where it refuses connections, 20 s where it is
    # silent. Ray's own 3 and 10 s make that 15 and 65 s, and until then nobody stores when the writer was there.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    # Serve's 30 s are for load balancers that poll; ours learns of a leaving replica within a second.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
}
"""How Serve runs with `ENV=production`."""


def cluster_environment(
    base: Mapping[str, str], data_dir: Path, config_folder: Path, temp_dir: Path, token_path: Path, ports: range
) -> dict[str, str]:
    """The environment of every Ray process of this run, replicas included. `ports`: see `reserve_block`."""
    # An address or token meant for another cluster must not reach ours.
    environment = {
        name: value for name, value in base.items() if name not in {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_TMPDIR"}
    }
    # Right below the temporary directory: Serve adds the node's 56 hex digits, and HAProxy allows a socket 97 bytes.
    haproxy = temp_dir
    environment.update(
        {
            OWNER_VARIABLE: str(data_dir),
            "NILM_DATA_DIR": str(data_dir),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(config_folder), base.get("PYTHONPATH")])),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_path),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.start),
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports.start + 1),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports.stop),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        }
    )
    defaults = {
        "ENV": "development",
        "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(TRIM_THRESHOLD_BYTES),
        "OMP_NUM_THREADS": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port(9101)),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port(8404)),
    }
    if base.get("ENV") == "production":
        defaults |= PRODUCTION_MODE
    return defaults | environment


def head_address(data_dir: Path) -> str:
    """What Ray's head of the run in this data folder has said of its address; empty before.

    Ray chooses the port itself: one that we found free could be an outgoing connection's when Ray takes it.
    """
    path = data_dir / RAY_OUTPUT_FILE_NAME
    said = _ADDRESS.search(path.read_text(errors="replace")) if path.exists() else None
    return said[1] if said else ""


def _remember_temp_dir(data_dir: Path, temp_dir: Path) -> None:
    """Link to it from the data directory, after removing the one that a killed run could not remove."""
    link = data_dir / TEMP_LINK_NAME
    if link.is_symlink():
        earlier = link.readlink()
        if earlier.name.startswith(TEMP_PREFIX):
            shutil.rmtree(earlier, ignore_errors=True)
        link.unlink()
    link.symlink_to(temp_dir)


@dataclass
class RayCluster:
    """A started head node. `process` is `fate`, which leads the run's session, with `ray start --block` under it."""

    data_dir: Path
    temp_dir: Path
    dashboard_port: int
    metrics_port: int
    token_path: Path
    process: subprocess.Popen[bytes]
    owned: OwnedProcesses
    ports: socket.socket
    """Keeps others from the ports that replicas of the ingress have, and what HAProxy turns to without one."""

    @classmethod
    def start(cls, base: Mapping[str, str], data_dir: Path, config_folder: Path, num_cpus: int | None) -> RayCluster:
        """Start the head node and return at once; `ServeApi.wait_until_up` says when it can be used."""
        token_path = ray_token_path(data_dir)
        mark, ports = reserve_block()
        # Not under the data directory: socket paths below it must fit into 107 bytes.
        temp_dir = Path(tempfile.mkdtemp(prefix=TEMP_PREFIX, dir="/tmp"))
        _remember_temp_dir(data_dir, temp_dir)
        environment = cluster_environment(base, data_dir, config_folder, temp_dir, token_path, ports)
        dashboard_port, metrics_port = free_port(DEFAULT_DASHBOARD_PORT), free_port(DEFAULT_METRICS_PORT)
        command = [sys.executable, "-m", "serve_app.cli.fate", str(os.getpid()), str(STOP_GRACE_S), sys.executable]
        command += ["-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0"]
        command += [f"--temp-dir={temp_dir}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
        command += [f"--metrics-export-port={metrics_port}"]
        # 0 lets the kernel choose; Ray would otherwise refuse every port above that lies in 10002-19999.
        command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        command += [f"--ray-client-server-port={free_port()}", "--disable-usage-stats", "--no-monitor"]
        # It copies worker output to drivers, of which there is none, at the price of one more Python process.
        command += ["--include-log-monitor=false"]
        if num_cpus is not None:
            command.append(f"--num-cpus={num_cpus}")
        with (data_dir / RAY_OUTPUT_FILE_NAME).open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        owned = OwnedProcesses(data_dir, {process.pid})
        return cls(data_dir, temp_dir, dashboard_port, metrics_port, token_path, process, owned, mark)

    @property
    def address(self) -> str:
        """Where programs of this machine join the cluster; empty before Ray has said it."""
        return head_address(self.data_dir)

    @property
    def dashboard_url(self) -> str:
        """Ray's dashboard and Serve's REST API, on this machine only."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def serve_logs(self) -> Path:
        """Folder of the log files of Serve's controller, proxies and replicas."""
        return self.temp_dir / "session_latest" / "logs" / "serve"

    def failure(self) -> str | None:
        """Why the cluster is no longer there, or None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        return f"Ray stopped by itself (exit code {code}): {self._last_output_line()}"

    def _last_output_line(self) -> str:
        path = self.data_dir / RAY_OUTPUT_FILE_NAME
        lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
        return f"{lines[-1][:300]} (all of it: {path})" if lines else f"it said nothing in {path}"

    def stop(self, grace_s: float = STOP_GRACE_S + KILL_S) -> None:
        """End every process of the cluster and remove its temporary files. `grace_s` 0 kills at once."""
        if grace_s > 0 and self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=grace_s)
        self.owned.end(grace_s=0.0)
        # Whatever was found above: this wait has no end of its own.
        self.process.kill()
        self.process.wait()
        self.ports.close()
        shutil.rmtree(self.temp_dir, ignore_errors=True)
        (self.data_dir / TEMP_LINK_NAME).unlink(missing_ok=True)

    def keep_logs(self) -> Path:
        """Copy Ray's logs into the data directory, replacing those of an earlier failure."""
        kept = self.data_dir / KEPT_LOGS_NAME
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir()
        for logs in self.temp_dir.glob("session_2*/logs"):
            shutil.copytree(logs, kept, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock"))
        return kept
