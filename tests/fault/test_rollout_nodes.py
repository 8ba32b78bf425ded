"""Two nodes, each with a replica of the kettle and a cache of its own: what is reloaded and rolled out is on both."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.cli.processes import OwnedProcesses
from tests.fault.rollout_bench import A, B, RolloutBench, registry_with_all_sorts
from tests.integration.service import Service, running_service, service_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


class Handler(SimpleHTTPRequestHandler):
    """Counts what is asked for."""

    server: Files

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        return


class Files(ThreadingHTTPServer):
    """A folder over HTTP."""

    def __init__(self, folder: Path) -> None:
        self.asked: Counter[str] = Counter()
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=self.serve_forever, daemon=True).start()


@dataclass
class Nodes:
    """The service, the server its models come from, and the kettle's replicas."""

    service: Service
    files: Files
    bench: RolloutBench = field(init=False)

    def __post_init__(self) -> None:
        self.bench = RolloutBench(self.service, [])

    def reload(self) -> list[dict[str, Any]]:
        """POST /admin/reload-models, by replica."""
        end = time.monotonic() + 60
        while True:
            with self.service.client() as client:
                reply = client.post("/admin/reload-models", headers=self.bench.operator)
            if reply.status_code == 200:
                return list(reply.json()["replicas"])
            # A node that starts leaves two cores no time for anything else; the answer says to come back.
            assert reply.status_code == 503, reply.text
            assert time.monotonic() < end, reply.text
            time.sleep(float(reply.headers["Retry-After"]))

    def until_two(self) -> list[dict[str, Any]]:
        """Their reports, once there are two and nothing is under way."""
        end = time.monotonic() + 120
        while True:
            found = self.reload()
            if len(found) == len({one["node"] for one in found}) == 2 and all(one["settled"] for one in found):
                return found
            assert time.monotonic() < end, found
            time.sleep(1)


def join_node(service: Service, folder: Path) -> None:
    """Another raylet, with the environment of the first, and a data folder of its own."""
    head = next(pid for pid in OwnedProcesses(service.data_dir).find() if "raylet" in _command(pid))
    environment = dict(
        entry.split("=", 1) for entry in Path(f"/proc/{head}/environ").read_text().split("\0") if "=" in entry
    )
    address = next(
        word.split("=", 1)[1]
        for word in (service.data_dir / "serve-env.sh").read_text().split()
        if word.startswith("RAY_ADDRESS=")
    )
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--block", "--num-cpus=2"]
    command += [
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--dashboard-agent-listen-port=0",
        "--disable-usage-stats",
    ]
    with (folder / "node.log").open("wb") as output:
        subprocess.Popen(
            command,
            env={**os.environ, **environment, "NILM_DATA_DIR": str(folder / "second")},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]
    except OSError:
        return ""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    (tmp_path / "registry").mkdir()
    registry_with_all_sorts(tmp_path / "registry")
    files = Files(tmp_path / "registry")
    config = service_config(tmp_path / "serve_config.yaml", appliances=["kettle"], plans={"kettle": {"stable": A}})
    environment = {"MODEL_REGISTRY_URI": f"http://127.0.0.1:{files.server_port}/registry.json"}
    with running_service(tmp_path, config, environment) as service:
        join_node(service, tmp_path)
        document = yaml.safe_load(config.read_text())
        for deployment in document["applications"][0]["deployments"]:
            if deployment["name"] == "kettle":
                # Only so are they on two nodes.
                deployment |= {"num_replicas": 2, "max_replicas_per_node": 1}
                del deployment["autoscaling_config"]
        config.write_text(yaml.safe_dump(document, sort_keys=False))
        one = Nodes(service, files)
        one.bench.deploy({"stable": A})
        yield one
    files.shutdown()


async def test_two_nodes_read_and_serve_the_same(nodes: Nodes) -> None:
    before = nodes.until_two()
    assert len({one["registry_sha256"] for one in before}) == 1
    assert {one["versions"]["stable"] for one in before} == {A}
    assert {path: n for path, n in nodes.files.asked.items() if "model.safetensors" in path} == {
        f"/artifacts/{A}/model.safetensors": 2
    }, "once a node"

    registry = nodes.service.config.parent / "registry" / "registry.json"
    registry.write_text(registry.read_text().replace("4.0.2-nan", "4.0.3-nan"))
    after = nodes.reload()
    assert len(after) == 2
    (changed,) = {one["registry_sha256"] for one in after}
    assert changed != before[0]["registry_sha256"]

    nodes.bench.deploy({"stable": B, "canary": {"version": A, "percent": 50}})
    await nodes.bench.until(lambda state: state["serving_version"] == B and not state["preparing"])
    served = nodes.reload()
    assert {(one["versions"]["stable"], one["versions"]["canary"]) for one in served} == {(B, A)}
    assert len({tuple(one["artifact_sha256"].items()) for one in served}) == 1
    assert nodes.files.asked[f"/artifacts/{B}/model.safetensors"] == 2
    print(
        "\n"
        + "\n".join(
            f"node {one['node'][:8]}: {one['versions']}, registry {one['registry_sha256'][:12]}" for one in served
        )
    )

    nodes.bench.deploy({"stable": "3.0.0-sha"})
    await nodes.bench.until(lambda state: state["refused"])
    assert {one["versions"]["stable"] for one in nodes.reload()} == {B}
