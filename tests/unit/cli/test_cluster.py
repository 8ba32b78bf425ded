"""The environment that every Ray process of a run gets."""

from __future__ import annotations

from pathlib import Path

from serve_app.cli.cluster import cluster_environment, ray_token_path
from serve_app.cli.processes import OWNER_VARIABLE

TEMP_DIR = Path("/tmp/nilm-ray-abcdefgh")  # noqa: S108 - never created
NODE_ID_CHARACTERS = 56
HAPROXY_SOCKET_LIMIT = 97


def environment_of(**base: str) -> dict[str, str]:
    return cluster_environment(
        base, Path("/data"), Path("/app"), TEMP_DIR, Path("/data/ray-token"), range(30101, 30200)
    )


def test_every_process_is_marked_and_needs_the_clusters_token() -> None:
    environment = environment_of()
    assert environment[OWNER_VARIABLE] == environment["NILM_DATA_DIR"] == "/data"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == "/data/ray-token"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"


def test_another_clusters_address_and_token_do_not_reach_ours() -> None:
    environment = environment_of(RAY_ADDRESS="10.0.0.1:6379", RAY_AUTH_TOKEN="theirs", HOME="/h")
    assert "RAY_ADDRESS" not in environment
    assert "RAY_AUTH_TOKEN" not in environment
    assert environment["HOME"] == "/h"


def test_an_operators_tuning_wins_over_our_defaults() -> None:
    assert environment_of()["OMP_NUM_THREADS"] == "1"
    assert environment_of(OMP_NUM_THREADS="4")["OMP_NUM_THREADS"] == "4"


def test_production_runs_behind_haproxy_and_development_does_not() -> None:
    assert environment_of(ENV="production")["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert "RAY_SERVE_ENABLE_HA_PROXY" not in environment_of()


def test_ingresses_take_ports_that_are_this_runs_alone() -> None:
    environment = environment_of(RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT="30000")
    assert environment["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"] == "30101"
    assert environment["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] == "30102"
    assert environment["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] == "30200", "the first that is somebody else's"


def test_haproxys_sockets_fit_into_its_limit() -> None:
    for name, value in environment_of().items():
        if name.startswith("RAY_SERVE_HAPROXY") and value.endswith(".sock"):
            path = Path(value)
            placed = path.parent / ("f" * NODE_ID_CHARACTERS) / path.name
            assert len(str(placed)) <= HAPROXY_SOCKET_LIMIT, name


def test_the_token_is_made_once_and_private(tmp_path: Path) -> None:
    token = ray_token_path(tmp_path).read_text()
    assert ray_token_path(tmp_path).read_text() == token
    assert ray_token_path(tmp_path).stat().st_mode & 0o077 == 0
