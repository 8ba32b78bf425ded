"""What `nilm run` tells once the service is ready: addresses, how to ask Serve, and a request to paste."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
from rich.console import Console

from deployments.registry_source import REGISTRY_VARIABLE
from serve_app.access.development import SECRET_VARIABLE, mint_development_token, write_private_file
from serve_app.access.development_grants import grant_development_access, grants_come_from_this_file
from serve_app.access.grants import GrantSourceError
from serve_app.cli.cluster import RayCluster
from serve_app.cli.first_request import DEMO_BUILDING, write_first_request
from serve_app.cli.preflight import ServeConfig
from serve_app.settings import DEVELOPMENT_ISSUER

TOKEN_MINUTES = 8 * 60
"""A working day: the printed curl line should not expire between two cups of tea."""
DEMO_USER = "demo-user"
SHELL_FILE_NAME = "serve-env.sh"


def announce(
    console: Console,
    config: ServeConfig,
    cluster: RayCluster,
    production: bool,
    seconds: float,
    not_ready: Sequence[str],
) -> None:
    """Print it all; in production neither a token nor a request, for whoever reads the log could use them."""
    shell_file = cluster.data_dir / SHELL_FILE_NAME
    registry = os.environ.get(REGISTRY_VARIABLE)
    write_private_file(
        shell_file,
        f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={shlex.quote(str(cluster.token_path))}\n"
        f"export RAY_ADDRESS={cluster.address} RAY_DASHBOARD_ADDRESS={cluster.dashboard_url}"
        + (f"\nexport {REGISTRY_VARIABLE}={shlex.quote(registry)}" if registry else ""),
    )
    serve = f". {shlex.quote(str(shell_file))} && {shlex.quote(str(Path(sys.executable).with_name('serve')))}"
    nilm = shlex.quote(str(Path(sys.executable).with_name("nilm")))
    lines = [
        f"{'Running, NOT ready,' if not_ready else 'Ready'} after {seconds:.0f} s. "
        f"Ctrl-C drains and stops; data stays in {cluster.data_dir}",
        *(f"  Not ready    {reason}" for reason in not_ready),
        "",
        f"  Service      {config.local_url}",
        f"  Dashboard    {cluster.dashboard_url}  (its token: cat {shlex.quote(str(cluster.token_path))})",
        f"  Metrics      {config.local_url}/metrics  (all replicas; Ray's own: http://127.0.0.1:{cluster.metrics_port}/metrics)",
        f"  Logs         {cluster.serve_logs}  (until it stops)",
        f"  Status       {serve} status",
        f"  New models   edit {config.path}, then: . {shlex.quote(str(shell_file))} && "
        f"{nilm} rollout apply --config {shlex.quote(str(config.path.absolute()))}",
    ]
    if not production:
        lines += _first_request(config, cluster)
    for line in lines:
        # Never wrapped: a line that a person pastes must arrive whole.
        console.print(line, soft_wrap=True, markup=False)


def _first_request(config: ServeConfig, cluster: RayCluster) -> list[str]:
    if not grants_come_from_this_file():
        return ["  First request  with a token of a user of SUPABASE_URL who has a building there."]
    token = mint_development_token(os.environ[SECRET_VARIABLE], DEMO_USER, TOKEN_MINUTES, DEVELOPMENT_ISSUER)
    try:
        grant_development_access(cluster.data_dir, DEMO_USER, [DEMO_BUILDING])
    except GrantSourceError as error:
        # The service runs and refuses everyone until the file is mended; that is what the developer must read.
        return [f"  No grants    {error}"]
    lines = [f"  Token        {token}", ""]
    try:
        request = write_first_request(cluster.data_dir, config.local_url, token)
    except httpx.HTTPError as error:
        # The service runs; an example that could not be prepared is no reason to stop it.
        return [*lines, f"No first request to paste: GET /models failed ({error})."]
    return lines + (["First request (a kettle boils):", request] if request else ["No kettle model serves."])
