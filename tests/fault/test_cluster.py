"""Two nodes that serve and a head that does not: both have the same versions, and either may go."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.fault.drill import HEAD, Drill
from tests.fault.operations import FAULTS
from tests.fault.rollout_bench import A, B, RolloutBench, registry_with_all_sorts
from tests.fault.system import System, three_nodes
from tests.integration.service import Service

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
PER_SECOND = 10.0
LOST, LEAVES = (next(one for one in FAULTS if one.number == number and 3 in one.nodes) for number in ("14", "15"))


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
    """The cluster, the server its models come from, and the kettle's replicas."""

    system: System
    files: Files
    bench: RolloutBench = field(init=False)

    def __post_init__(self) -> None:
        self.bench = RolloutBench(self.system.service, [])

    @property
    def service(self) -> Service:
        return self.system.service

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


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "registry").mkdir()
    registry_with_all_sorts(folder / "registry")
    files = Files(folder / "registry")
    variables = {"MODEL_REGISTRY_URI": f"http://127.0.0.1:{files.server_port}/registry.json"}
    with three_nodes(folder, variables, plans={"kettle": {"stable": A}}) as system:
        yield Nodes(system, files)
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
    nodes.bench.deploy({"stable": B})
    await nodes.bench.until(lambda state: not state["refused"])


async def test_a_node_that_is_lost_costs_nobody_a_prediction(nodes: Nodes) -> None:
    done = await Drill(nodes.system, PER_SECOND).run(replace(LOST, at_least_s=25.0))
    print(f"\n{HEAD}\n{done.row()}")
    assert all(verdict.clean for verdict in done.verdicts)
    assert done.never_answered == 0


async def test_a_node_that_leaves_fails_nobody(nodes: Nodes) -> None:
    done = await Drill(nodes.system, PER_SECOND).run(replace(LEAVES, at_least_s=40.0))
    print(f"\n{HEAD}\n{done.row()}")
    assert all(verdict.clean for verdict in done.verdicts)
    assert done.never_answered == 0
    assert not done.failed_once, "those who try once were not to notice"
    assert "nothing serves on node" in done.remark
