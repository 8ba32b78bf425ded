"""More nodes for the cluster of a running service, on this machine: each a raylet with a folder of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from serve_app.access.development_grants import GRANTS_FILE_NAME
from serve_app.cli.cluster import head_address
from serve_app.cli.ports import LOOPBACK, reserve_block
from serve_app.cli.processes import OwnedProcesses
from tests.fault.network import Network
from tests.integration.service import Service

JOIN_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.2
NODE_CPUS = 2
HAPROXY_FILE = "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"


@dataclass
class Raylet:
    """One node. `process` is `ray start --block`, which leads the session of all its processes."""

    name: str
    process: subprocess.Popen[bytes]
    address: str
    files: str
    ports: socket.socket | None
    """Keeps others from those of its ingresses, where it shares all ports with them."""

    def pids(self) -> list[int]:
        """Of everything that runs on it."""
        return [pid for pid in _all_pids() if _session(pid) == self.process.pid]

    def kill(self) -> int:
        """As when its machine loses power; returns how many processes that were."""
        pids = self.pids()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
        shutil.rmtree(self.files, ignore_errors=True)
        if self.ports is not None:
            self.ports.close()
        return len(pids)

    def terminate(self) -> None:
        """As Kubernetes ends a pod: SIGTERM, patience, SIGKILL."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_TIMEOUT_S)
        self.kill()


def join(service: Service, folder: Path, name: str, network: Network | None = None) -> Raylet:
    """Another node, with the environment of the first one; returns when it has joined.

    Without a network of its own it shares all ports with the others.
    """
    own = folder / name
    own.mkdir(exist_ok=True)
    # Who may do what is one file in development; everything else a node keeps is its own.
    (own / GRANTS_FILE_NAME).symlink_to(service.data_dir / GRANTS_FILE_NAME)
    environment = _environment_of_the_head(service) | {"NILM_DATA_DIR": str(own)}
    # Its HAProxy's files, too; right below /tmp, because a socket's path must be short.
    files = tempfile.mkdtemp(prefix="nilm-node-", dir="/tmp")
    heads = str(Path(environment[HAPROXY_FILE]).parent)
    for variable in [one for one in environment if one.startswith("RAY_SERVE_HAPROXY_")]:
        environment[variable] = environment[variable].replace(heads, files)
    before, address, mark = [], LOOPBACK, None
    if network is not None:
        before, address = network.add()
    else:
        mark, block = reserve_block()
        environment["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] = str(block.start)
        environment["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] = str(block.stop)
    command = [
        *before,
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        f"--address={_address(service)}",
        "--block",
    ]
    command += [f"--num-cpus={NODE_CPUS}", f"--node-name={name}", "--object-store-memory=100000000"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    command += ["--disable-usage-stats", *([] if network is None else [f"--node-ip-address={address}"])]
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    end = time.monotonic() + JOIN_TIMEOUT_S
    while "Ray runtime started" not in (said := log.read_text(errors="replace")):
        assert process.poll() is None, said[-2000:]
        assert time.monotonic() < end, said[-2000:]
        time.sleep(POLL_S)
    return Raylet(name, process, address, files, mark)


def node_id(service: Service, name: str) -> str:
    """Ray's id of the living node of that name."""
    address, token = service.dashboard
    reply = httpx.get(
        f"{address}/api/v0/nodes", headers={"Authorization": f"Bearer {token}"}, timeout=30, trust_env=False
    )
    nodes = reply.json()["data"]["result"]["result"]
    return next(str(one["node_id"]) for one in nodes if one["node_name"] == name and one["state"] == "ALIVE")


def _address(service: Service) -> str:
    """Of Ray's head, as soon as it has said it."""
    end = time.monotonic() + JOIN_TIMEOUT_S
    while not (said := head_address(service.data_dir)):
        assert service.process.poll() is None, service.output.read_text()
        assert time.monotonic() < end
        time.sleep(POLL_S)
    return said


def _environment_of_the_head(service: Service) -> dict[str, str]:
    end = time.monotonic() + JOIN_TIMEOUT_S
    while True:
        for pid in OwnedProcesses(service.data_dir).find():
            try:
                if "raylet" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]:
                    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
                    return dict(entry.split("=", 1) for entry in entries if "=" in entry)
            except OSError:
                continue
        assert time.monotonic() < end
        time.sleep(POLL_S)


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None
