"""Where the metrics of the cluster's nodes can be had."""

from __future__ import annotations

from typing import NamedTuple

import ray


class Node(NamedTuple):
    """A node that is alive. `metrics_url`: its agent's figures in the Prometheus text format."""

    node_id: str
    metrics_url: str


def nodes() -> list[Node]:
    """Those alive now. Asks Ray's head and blocks until it answers: not for an event loop."""
    return [
        Node(one["NodeID"], f"http://{_host(one['NodeManagerAddress'])}:{one['MetricsExportPort']}/metrics")
        for one in ray.nodes()  # type: ignore[no-untyped-call]
        if one["Alive"]
    ]


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
