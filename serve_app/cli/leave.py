"""`nilm leave`: takes one node of a cluster out of service, so that it can stop without anybody noticing.

What runs before SIGTERM where something else stops nodes, as the preStop hook of a Kubernetes pod does. It asks Ray's
head over HTTP and does not join the cluster: the raylet that it would join through is the one that goes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from serve_app.cli.cluster_connection import Address, expect_address, silence_at
from serve_app.cli.serve_api import one_line
from serve_app.cli.train import fail

POLL_S = 0.5
AS_IT_IS: Any = {"limit": 10_000, "timeout": 5, "raise_on_missing_output": False}
"""Ray calls it missing output, too, when it counts what lives and has the dead in its total."""
ASK_TIMEOUT_S = 30.0
ALIVE = "ALIVE"
REPLICA, PROXIES = "ServeReplica:", ("HAProxyManager", "ProxyActor")
"""How the classes of Serve's actors are called, or begin."""
Answer = TypeVar("Answer")
UNKNOWN = "what Ray's head did not tell"


HOPELESS = ("uthenticat", "version mismatch")
"""What Ray says of a token or a Ray of ours that does not fit; to ask again would not mend it."""


class _Silent(Exception):
    """The head does not answer now. It may be starting again, as when its machine is upgraded before this one."""


def leave(
    address: Address = "",
    node_id: Annotated[str | None, typer.Option(help="Ray's id of the node. Default: that of this machine.")] = None,
    within_s: Annotated[int, typer.Option(min=1, help="After so many seconds it is to be stopped anyway.")] = 60,
) -> None:
    """Move what serves on a node to others, and come back when nothing is left there. Ends with 1 if something is.

    Serve starts replacements elsewhere first; without room for one it stops the replica shortly before the time is up.
    The node's proxy says no to health checks and goes on answering for at least half a minute. A node that has
    nothing to do any more ends by itself. A head that does not answer is asked again until the time is up.
    """
    expect_address(address)
    # Ray's functions put these above what they are told.
    os.environ["RAY_ADDRESS"] = address
    os.environ.pop("RAY_API_SERVER_ADDRESS", None)
    give_up_s = time.monotonic() + within_s
    with Console(stderr=True).status("asking Ray's head") as status:
        node = _chosen(_answer_of(lambda: _nodes(address), give_up_s), node_id)
        _answer_of(lambda: _ask_to_drain(address, node, give_up_s), give_up_s)
        status.update(f"node {node[:8]} is leaving")
        while left := _left_on(node):
            if time.monotonic() > give_up_s:
                fail(f"after {within_s} s there is still on node {node[:8]}: {', '.join(left)}")
            status.update(f"node {node[:8]} is leaving; left: {', '.join(left)}")
            time.sleep(POLL_S)
    typer.echo(f"nothing serves on node {node[:8]} any more")


def _answer_of(ask: Callable[[], Answer], give_up_s: float) -> Answer:
    """What the head says, as soon as it says something; ends with one sentence when it has not by then."""
    while True:
        try:
            return ask()
        except _Silent as silence:
            if time.monotonic() > give_up_s or any(one in str(silence) for one in HOPELESS):
                fail(str(silence))
        time.sleep(POLL_S)


def _nodes(address: str) -> list[Any]:
    """Those that live. Raises _Silent."""
    # Ray itself would try for half a minute, and tell in ten lines.
    if silence := silence_at(address):
        raise _Silent(silence)
    from ray.util.state import list_nodes  # noqa: PLC0415 - it takes seconds to import

    try:
        return list(list_nodes(filters=[("state", "=", ALIVE)], **AS_IT_IS))
    except Exception as error:  # noqa: BLE001 - Ray's, those of its HTTP client, and of the way it finds its head
        reason = one_line(str(error)) or type(error).__name__
        raise _Silent(f"Ray's head does not say which nodes there are: {reason}") from None


def _chosen(nodes: Sequence[Any], node_id: str | None) -> str:
    """The id of a node that may leave; ends with one sentence when it may not."""
    from ray.util import get_node_ip_address  # noqa: PLC0415 - it takes seconds to import

    here = get_node_ip_address()  # type: ignore[no-untyped-call]
    mine = [one for one in nodes if (one.node_id == node_id if node_id else one.node_ip == here)]
    if not mine:
        fail(f"no living node is called {node_id}" if node_id else f"no living node has the address {here}")
    if len(mine) > 1:
        fail(f"name one by --node-id: {', '.join(one.node_id for one in mine)} have the address {here}")
    (node,) = mine
    if node.is_head_node:
        fail("this is the cluster's head, and the cluster ends with it: stop the service instead")
    if not any((one.resources_total or {}).get("CPU") for one in nodes if one is not node):
        fail("no other node could take over what serves here: stop the service, or add a node first")
    return str(node.node_id)


def _ask_to_drain(address: str, node_id: str, give_up_s: float) -> None:
    """By Ray's own command: its Python function is private. Raises _Silent."""
    left_s = max(1.0, give_up_s - time.monotonic())
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address, "--node-id", node_id]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "nilm leave"]
    command += ["--deadline-remaining-seconds", str(round(left_s))]
    try:
        asked = subprocess.run(  # noqa: S603 - our own interpreter and arguments
            command, capture_output=True, text=True, timeout=min(ASK_TIMEOUT_S, left_s), check=False
        )
    except subprocess.TimeoutExpired as late:
        raise _Silent(f"Ray's head did not answer within {late.timeout:.0f} s") from None
    if asked.returncode != 0:
        # Ray lets every node go that is to be preempted, so mostly its head could not be asked.
        raise _Silent(f"node {node_id} cannot leave: {one_line(asked.stderr) or one_line(asked.stdout)}")


def _left_on(node_id: str) -> list[str]:
    """The deployments with a replica there, and its proxy. Nothing once the node has ended."""
    from ray.util.state import list_actors  # noqa: PLC0415 - it takes seconds to import

    try:
        actors = list_actors(filters=[("node_id", "=", node_id), ("state", "=", ALIVE)], **AS_IT_IS)
    except Exception:  # noqa: BLE001 - see above; a head that restarts must not end the wait
        return [UNKNOWN]
    replicas = {one.class_name.rpartition(":")[2] for one in actors if one.class_name.startswith(REPLICA)}
    proxies = {"its proxy" for one in actors if one.class_name in PROXIES}
    return [*sorted(replicas), *proxies]
