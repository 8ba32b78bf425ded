"""The service in production mode with two ingresses and two replicas of the model, on one node or on three."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from serve_app.cli.cluster import PRODUCTION_MODE
from serve_app.cli.ports import LOOPBACK
from serve_app.cli.preflight import ALL_INTERFACES
from tests.fault.balancer import Balancer
from tests.fault.bench import influx_environment
from tests.fault.faulty_app import BLOCK_VARIABLE
from tests.fault.network import Network, network
from tests.fault.raylets import Raylet, join
from tests.integration.service import ROOT, Service, running_service, service_config, shape_of
from tests.servers.influx_process import InfluxServer

SETTLE_TIMEOUT_S = 180.0
BATCHES_PER_MINUTE = 120
"""Of one user: what the test of the quota uses up."""
QUOTAS = {"RATE_LIMIT_PER_USER": "1000000", "RATE_LIMIT_PER_IP": "1000000"}
TWICE = ("ingress", "kettle")


@dataclass
class System:
    """A service, its store and its nodes besides the head."""

    service: Service
    folder: Path
    influx: InfluxServer | None = None
    nodes: list[Raylet] = field(default_factory=list)
    network: Network | None = None
    window: list[float] = field(init=False)
    _joined: int = 0

    def __post_init__(self) -> None:
        with self.service.client() as client:
            self.window = [0.2] * int(shape_of(client, "kettle")["input_window_size"])

    @property
    def block_file(self) -> Path:
        """See `tests.fault.faulty_app.BlockableIngress`."""
        return self.folder / "block"

    def balancer(self) -> Balancer | None:
        """Over the nodes that serve; none where they share a port."""
        if self.network is None:
            return None
        port = self.service.url.rsplit(":", 1)[1]
        return Balancer(lambda: [f"http://{node.address}:{port}" for node in self.nodes], "/-/healthz")

    def add_node(self) -> Raylet:
        """One more; returns when it has joined."""
        self._joined += 1
        node = join(self.service, self.folder, f"node-{self._joined}", self.network)
        self.nodes.append(node)
        return node

    def stored(self) -> list[dict[str, Any]]:
        """Every prediction there is, read past the service."""
        return self.service.rows() if self.influx is None else [asdict(point) for point in self.influx.points()]

    def replicas(self, deployment: str) -> list[dict[str, Any]]:
        """Those that run now."""
        found = self.service.deployments()[deployment]["replicas"]
        return [one for one in found if one["state"] == "RUNNING" and one["pid"]]

    def settle(self) -> float:
        """Wait until everything is as it was at the start; returns the seconds that took."""
        began_s = time.monotonic()
        while (missing := self._missing()) is not None:
            assert time.monotonic() - began_s < SETTLE_TIMEOUT_S, missing
            time.sleep(0.5)
        return time.monotonic() - began_s

    def _missing(self) -> str | None:
        try:
            if httpx.get(f"{self.service.url}/ready", timeout=3, trust_env=False).status_code != 200:
                return "not ready"
            deployments = self.service.deployments()
        except (httpx.HTTPError, FileNotFoundError, KeyError, json.JSONDecodeError) as error:
            return f"{type(error).__name__}: {error}"
        for name, one in deployments.items():
            running = sum(replica["state"] == "RUNNING" for replica in one["replicas"])
            if one["status"] != "HEALTHY" or running != len(one["replicas"]) or running < (2 if name in TWICE else 1):
                return f"{name}: {one['status']}, {running} of {len(one['replicas'])}"
        return None


@contextmanager
def one_node(folder: Path) -> Iterator[System]:
    """On the embedded store."""
    environment = _environment(folder)
    with running_service(folder, _config(folder, spread=False), environment) as service:
        system = System(service, folder)
        system.settle()
        yield system


@contextmanager
def three_nodes(
    folder: Path, variables: Mapping[str, str] | None = None, *, apart: bool = False, **config: Any
) -> Iterator[System]:
    """A head without replicas, two nodes that serve, the InfluxDB of the tests. `config`: see `service_config`.

    `apart`: each node in a network of its own, as machines are; needs root.
    """
    with ExitStack() as stack:
        net = stack.enter_context(network()) if apart else None
        influx = InfluxServer(folder / "influx.log", host=net.address if net else LOOPBACK)
        influx.start()
        stack.callback(influx.kill)
        started: list[Raylet] = []
        stack.callback(lambda: [node.kill() for node in started])

        def join_two(service: Service) -> None:
            started.extend(join(service, folder, f"node-{n}", net) for n in (1, 2))

        environment = _environment(folder) | influx_environment(influx) | dict(variables or {})
        file = _config(folder, spread=True, **config)
        host = ALL_INTERFACES if net else None
        service = stack.enter_context(
            running_service(folder, file, environment, num_cpus=0, host=host, others_join=join_two)
        )
        system = System(service, folder, influx, started, net, 2)
        system.settle()
        yield system


def _environment(folder: Path) -> dict[str, str]:
    return {
        **PRODUCTION_MODE,
        **QUOTAS,
        "RATE_LIMIT_BATCHES_PER_USER": str(BATCHES_PER_MINUTE),
        "PYTHONPATH": str(ROOT),
        BLOCK_VARIABLE: str(folder / "block"),
        "DRAIN_DELAY_S": "3",
    }


def _config(folder: Path, *, spread: bool, **options: Any) -> Path:
    config = service_config(folder / "serve_config.yaml", ingresses=2, appliances=["kettle"], **options)
    document = yaml.safe_load(config.read_text())
    document["applications"][0]["import_path"] = "tests.fault.faulty_app:build"
    for deployment in document["applications"][0]["deployments"]:
        if deployment["name"] == "kettle":
            deployment["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2}
        if spread and deployment["name"] in TWICE:
            deployment["max_replicas_per_node"] = 1
    config.write_text(yaml.safe_dump(document, sort_keys=False))
    return config
