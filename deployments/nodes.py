"""The nodes of the cluster: where their metrics can be had, and which store suits them."""

from __future__ import annotations

from typing import NamedTuple

import ray

from deployments.stores import StoreConfig, StoreKind, StoreUnavailable


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


def refuse_a_file_on_several_nodes(config: StoreConfig) -> None:
    """Raises StoreUnavailable for the embedded store on a cluster of more than one node.

    The writer that is started again on another one would begin an empty file there. Blocks as `nodes`.
    """
    if config.kind is StoreKind.SQLITE and ray.is_initialized() and (count := len(nodes())) > 1:
        raise StoreUnavailable(
            f"the embedded store is a file of one node, and this cluster has {count}: set INFLUX_URL"
        )


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
