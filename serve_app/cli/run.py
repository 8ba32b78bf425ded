"""`nilm run`: one command from a checkout to a service that answers, and back to nothing.

Owns the order of things: check, start Ray, deploy, wait until ready, announce, watch, drain, stop. How each is
done lives beside it: `preflight`, `cluster`, `readiness`, `progress`, `announcement`, `service_logs`.
Exit codes: 0 stopped on request; 1 the service could not start or died; 2 refused before anything was started;
130 stopped by a second Ctrl-C without draining.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from serve_app.access.development import SECRET_VARIABLE, ensure_development_secret, in_production
from serve_app.cli.announcement import announce
from serve_app.cli.cluster import RayCluster
from serve_app.cli.ports import LOOPBACK
from serve_app.cli.preflight import (
    ALL_INTERFACES,
    PreflightRefused,
    ServeConfig,
    check_port_free,
    check_rollout,
    load_serve_config,
    lock_data_directory,
)
from serve_app.cli.processes import OwnedProcesses
from serve_app.cli.progress import StartProgress
from serve_app.cli.readiness import Start, StartFailed
from serve_app.cli.serve_api import ServeApi, ServeApiError
from serve_app.cli.service_logs import LogFollower
from serve_app.settings import LEAVING_NAME, PROXY_TRUST_VARIABLE, SettingsError, load_settings

POLL_S = 0.3
DEVELOPMENT_LIMITS = {
    "RATE_LIMIT_PER_USER": "6000",
    "RATE_LIMIT_BATCHES_PER_USER": "3000",
    "RATE_LIMIT_PER_IP": "12000",
}
"""A developer alone replays days of recordings within minutes. Set them to meet production's."""
PRODUCTION_DRAIN_DELAY_S = 5.0
"""What balances load asks `/ready` every few seconds, and goes on sending until it has heard no."""
DRAIN_TIMEOUT_S = 45.0
"""Serve gives its controller 30 s to stop every replica; a little longer, so that its verdict is heard."""
FAILURE_GRACE_S = 3.0


class StopRequested(Exception):
    """SIGINT or SIGTERM arrived. Raised by the signal handler, so that it ends any wait at once."""


def run(
    config: Annotated[Path, typer.Option(help="The Serve configuration to run.")] = Path("serve_config.yaml"),
    port: Annotated[
        int | None, typer.Option(envvar="PORT", help="HTTP port. Default: the configuration's, else 8000.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            envvar="NILM_HOST",
            help="Address to listen on. Default: 127.0.0.1 in development, 0.0.0.0 in production.",
        ),
    ] = None,
    data_dir: Annotated[
        Path, typer.Option(envvar="NILM_DATA_DIR", help="Everything the service keeps; survives restarts.")
    ] = Path(".nilm"),
    num_cpus: Annotated[
        int | None,
        typer.Option(min=0, help="Logical CPUs. Default: what the machine has; 0: replicas run on other nodes only."),
    ] = None,
    start_timeout: Annotated[float, typer.Option(min=10, help="Seconds to become ready before giving up.")] = 300.0,
    drain_delay: Annotated[
        float | None,
        typer.Option(
            envvar="DRAIN_DELAY_S",
            min=0,
            help="Seconds between /ready turning false and the end of new requests. Default: 5 in production, else 0.",
        ),
    ] = None,
) -> None:
    """Start the service on this machine and keep it running until Ctrl-C."""
    console = Console(highlight=False)
    data_dir = data_dir.absolute()
    production = in_production()
    os.environ["ENV"] = "production" if production else os.environ.get("ENV", "development")
    listen_on = host or (ALL_INTERFACES if production else LOOPBACK)
    if drain_delay is None:
        drain_delay = PRODUCTION_DRAIN_DELAY_S if production else 0.0
    try:
        with stop_on_signals():
            serve_config = load_serve_config(config, port, listen_on)
            lock = lock_data_directory(data_dir)
            _check_settings(data_dir, production)
            _clear_leftovers(console, data_dir)
            check_port_free(serve_config.port, listen_on)
            check_rollout(config)
            code = _serve(console, serve_config, data_dir, num_cpus, start_timeout, drain_delay, production)
            lock.close()
    except (PreflightRefused, SettingsError) as refusal:
        print(refusal, file=sys.stderr)
        raise typer.Exit(2) from None
    except StopRequested:
        code = 0
    raise typer.Exit(code)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """While inside, SIGINT and SIGTERM raise StopRequested in the main thread, however often they come."""

    def request_stop(number: int, frame: FrameType | None) -> None:
        raise StopRequested

    previous = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _check_settings(data_dir: Path, production: bool) -> None:
    """Settle the environment that the replicas will read, and let the service's own rules judge it."""
    os.environ["NILM_DATA_DIR"] = str(data_dir)
    # uvicorn, which Serve starts, would otherwise put X-Forwarded-For from 127.0.0.1 in the peer's place.
    os.environ[PROXY_TRUST_VARIABLE] = ""
    if not production:
        os.environ[SECRET_VARIABLE] = ensure_development_secret(data_dir)
        for name, value in DEVELOPMENT_LIMITS.items():
            os.environ.setdefault(name, value)
    load_settings()


def _clear_leftovers(console: Console, data_dir: Path) -> None:
    """End what an earlier run of this data directory left behind; we hold its lock, so it is nobody's."""
    (data_dir / LEAVING_NAME).unlink(missing_ok=True)
    if ended := OwnedProcesses(data_dir).end(grace_s=5.0):
        console.print(f"An earlier run was killed before it could clean up: ended its {len(ended)} processes.")


def _serve(
    console: Console,
    config: ServeConfig,
    data_dir: Path,
    num_cpus: int | None,
    start_timeout: float,
    drain_delay: float,
    production: bool,
) -> int:
    started = time.monotonic()
    delay_s = 0.0  # nobody sends anything before it is ready
    cluster: RayCluster | None = None
    api: ServeApi | None = None
    try:
        try:
            cluster = RayCluster.start(os.environ, data_dir, config.path.resolve().parent, num_cpus)
        except OSError as error:  # no port is left, or no room for its files
            raise StartFailed(f"Ray cannot be started: {error}") from error
        api = ServeApi(cluster.dashboard_url, cluster.token_path.read_text().strip())
        with StartProgress(console) as progress:
            reasons = Start(api, config, progress, cluster.failure, started + start_timeout).bring_up()
        announce(console, config, cluster, production, time.monotonic() - started, reasons)
        delay_s = drain_delay
        follower = LogFollower(cluster.serve_logs)
        while (failure := cluster.failure()) is None:
            if production:
                follower.poll(sys.stdout)
            time.sleep(POLL_S)
        raise StartFailed(failure)  # noqa: TRY301 - the same ending as a failed start: logs kept, exit 1
    except StopRequested:
        return _stop_gracefully(console, cluster, api, delay_s)
    except (StartFailed, ServeApiError) as failure:
        return _stop_after_failure(console, cluster, str(failure))
    finally:
        # Whatever happened, also an error of ours: nothing of this run survives it.
        with _deaf():
            OwnedProcesses(data_dir, {cluster.process.pid} if cluster else set()).end(grace_s=0.0)
            with suppress(OSError):
                (data_dir / LEAVING_NAME).unlink()
        if api is not None:
            api.close()


def _stop_gracefully(console: Console, cluster: RayCluster | None, api: ServeApi | None, drain_delay: float) -> int:
    if cluster is None or api is None:
        return 0
    started = time.monotonic()
    try:
        console.print("Stopping: requests in flight are finished first. Ctrl-C again stops at once.")
        if drain_delay:
            with suppress(OSError):  # a full disk: then it is told to nobody
                (cluster.data_dir / LEAVING_NAME).touch()
            time.sleep(drain_delay)
        if not api.shutdown(DRAIN_TIMEOUT_S) and cluster.failure() is None and api.is_up():
            console.print("Serve did not finish draining in time; stopping it anyway.")
        cluster.stop()
    except StopRequested:
        _stop_now(console, cluster)
        return 130
    console.print(f"Stopped in {time.monotonic() - started:.0f} s; nothing is left running.")
    return 0


def _stop_after_failure(console: Console, cluster: RayCluster | None, reason: str) -> int:
    print(reason, file=sys.stderr)
    if cluster is None:
        return 1
    try:
        print(f"Ray's logs: {cluster.keep_logs()}", file=sys.stderr)
        # Nothing was promised to anybody yet, or Ray is gone: there is nothing to drain.
        cluster.stop(grace_s=FAILURE_GRACE_S)
    except StopRequested:
        _stop_now(console, cluster)
    console.print("Everything that was started is stopped.")
    return 1


def _stop_now(console: Console, cluster: RayCluster) -> None:
    with _deaf():
        console.print("Stopping at once.")
        cluster.stop(grace_s=0.0)


@contextmanager
def _deaf() -> Iterator[None]:
    """No signal interrupts the last clean-up; it takes a moment and is bounded."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
