"""`nilm leave`: takes one node of a cluster out of service, so that it can stop without anybody noticing.

What runs before SIGTERM where something else stops nodes, as the preStop hook of a Kubernetes pod does.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Annotated

import typer
from rich.console import Console

from serve_app.cli.cluster_connection import Address, joined
from serve_app.cli.serve_api import one_line
from serve_app.cli.train import fail

POLL_S = 0.5
ASK_TIMEOUT_S = 30.0
REPLICA, PROXIES = "ServeReplica:", ("HAProxyManager", "ProxyActor")
"""How the classes of Serve's actors are called, or begin."""


def leave(
    address: Address = "",
    node_id: Annotated[str | None, typer.Option(help="Ray's id of the node. Default: the one this runs on.")] = None,
    within_s: Annotated[int, typer.Option(min=1, help="After so many seconds it stops anyway.")] = 60,
) -> None:
    """Move what serves on a node to others, and come back when nothing is left there. Ends with 1 if something is.

    Serve starts replacements elsewhere first; the node's proxy says no to health checks and goes on answering for at
    least half a minute. The node itself goes on, for others to stop.
    """
    give_up_s = time.monotonic() + within_s
    with joined(address):
        node = node_id or _this_node()
        _ask_to_drain(address, node, within_s)
        with Console(stderr=True).status(f"node {node[:8]} is leaving") as status:
            while left := _serving_on(node):
                if time.monotonic() > give_up_s:
                    fail(f"after {within_s} s there is still on node {node[:8]}: {', '.join(left)}")
                status.update(f"node {node[:8]} is leaving; left: {', '.join(left)}")
                time.sleep(POLL_S)
    typer.echo(f"nothing serves on node {node[:8]} any more")


def _this_node() -> str:
    import ray  # noqa: PLC0415 - it takes seconds to import

    return str(ray.get_runtime_context().get_node_id())


def _ask_to_drain(address: str, node_id: str, within_s: int) -> None:
    """By Ray's own command: its Python function is private."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "nilm leave"]
    command += ["--deadline-remaining-seconds", str(within_s)]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        fail(f"Ray's head did not answer within {ASK_TIMEOUT_S:.0f} s")
    if asked.returncode != 0:
        fail(f"node {node_id} cannot leave: {one_line(asked.stderr) or one_line(asked.stdout)}")


def _serving_on(node_id: str) -> list[str]:
    """The deployments with a replica there, and its proxy."""
    from ray.util.state import list_actors  # noqa: PLC0415 - it takes seconds to import

    actors = list_actors(filters=[("node_id", "=", node_id), ("state", "=", "ALIVE")], limit=1000)
    replicas = {one.class_name.rpartition(":")[2] for one in actors if one.class_name.startswith(REPLICA)}
    proxies = {"its proxy" for one in actors if one.class_name in PROXIES}
    return [*sorted(replicas), *proxies]
