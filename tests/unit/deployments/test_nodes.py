"""The embedded store is a file of one node, and says so where there are more."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments import nodes
from deployments.nodes import Node, refuse_a_file_on_several_nodes
from deployments.stores import StoreConfig, StoreUnavailable

INFLUX = StoreConfig.for_influx(url="http://127.0.0.1:1", org="o", bucket_pred="p", bucket_raw="r")
SQLITE = StoreConfig.for_sqlite(Path("predictions.sqlite3"))


@pytest.mark.parametrize(
    ("config", "count", "refused"), [(SQLITE, 1, False), (SQLITE, 2, True), (INFLUX, 1, False), (INFLUX, 3, False)]
)
def test_a_file_is_refused_on_several_nodes(
    monkeypatch: pytest.MonkeyPatch, config: StoreConfig, count: int, refused: bool
) -> None:
    monkeypatch.setattr(nodes.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(nodes, "nodes", lambda: [Node(str(n), "http://127.0.0.1:1") for n in range(count)])
    if refused:
        with pytest.raises(StoreUnavailable, match=f"one node, and this cluster has {count}: set INFLUX_URL"):
            refuse_a_file_on_several_nodes(config)
    else:
        refuse_a_file_on_several_nodes(config)


def test_outside_of_a_cluster_nothing_is_asked() -> None:
    refuse_a_file_on_several_nodes(SQLITE)
