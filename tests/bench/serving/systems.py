"""The systems that are compared, and how each is started. To compare another one, add it here."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from serve_app.access.development import mint_development_token
from serve_app.access.development_grants import grant_development_access
from serve_app.cli.cluster import PRODUCTION_MODE, RayCluster
from serve_app.cli.ports import free_port
from serve_app.cli.serve_api import RUNNING, ServeApi
from serve_app.settings import DEVELOPMENT_ISSUER
from tests.bench.serving.running import (
    DATABASE_NAME,
    POLL_S,
    START_S,
    Running,
    SystemFailed,
    baseline_environment,
    program,
)
from tests.integration.service import ROOT, SECRET, running_service, service_config

USER = "tester"
APPLIANCE = "kettle"
RAY_CPUS = 4
"""Logical CPUs of a cluster, for both Ray systems: a plain deployment claims one a replica, and three must fit."""
DRAIN_S = 45.0
SERVES = "Application startup complete."
"""uvicorn says so once a worker."""
TOKEN_MINUTES = 24 * 60
"""Longer than any run."""
OUT_OF_THE_WAY = {f"RATE_LIMIT_{quota}": "1000000" for quota in ("PER_USER", "BATCHES_PER_USER", "PER_IP")}
"""One address and one user send everything: the quotas would measure themselves."""


def access_token() -> str:
    """What every request of the benchmark carries."""
    return mint_development_token(SECRET, USER, TOKEN_MINUTES, DEVELOPMENT_ISSUER)


Start = Callable[[Path, str], AbstractContextManager[Running]]
"""Of an empty folder for its files and the version of the model."""


@dataclass(frozen=True)
class System:
    """`key` is for the command line, `title` for tables; `needs`: modules that must be installed."""

    key: str
    title: str
    start: Start
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """What it needs and this environment has not."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def _baseline(module: str, ready: Callable[[str, str], bool]) -> Start:
    """`ready` of its address and its output."""

    @contextmanager
    def start(folder: Path, model_version: str) -> Iterator[Running]:
        port = free_port()
        environment = baseline_environment(folder / DATABASE_NAME, model_version)
        url = f"http://127.0.0.1:{port}"
        with program(
            f"tests.bench.serving.baselines.{module}", port, folder, environment, lambda output: ready(url, output)
        ) as running:
            yield running

    return start


def _workers_serve(workers: int) -> Callable[[str, str], bool]:
    return lambda _url, output: output.count(SERVES) >= workers


def _healthy(url: str, _output: str) -> bool:
    headers = {"Authorization": f"Bearer {access_token()}"}  # LitServe guards this route like its others
    try:
        return httpx.get(f"{url}/health", headers=headers, timeout=5, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


@contextmanager
def plain_serve(folder: Path, model_version: str) -> Iterator[Running]:
    """The plain Serve application on a cluster of its own, as `nilm run` makes one in development."""
    data_dir = folder / "data"
    data_dir.mkdir()
    port = free_port()
    base = baseline_environment(folder / DATABASE_NAME, model_version) | {"ENV": "development"}
    cluster = RayCluster.start(base, data_dir, ROOT, RAY_CPUS)
    api = ServeApi(cluster.dashboard_url, cluster.token_path.read_text().strip())
    document = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "plain",
                "route_prefix": "/",
                "import_path": "tests.bench.serving.baselines.plain_serve:application",
            }
        ],
    }
    try:
        give_up_s = time.monotonic() + START_S
        _wait(cluster, give_up_s, api.is_up)
        api.deploy(document)
        _wait(cluster, give_up_s, lambda: _application_runs(api))
        yield Running(f"http://127.0.0.1:{port}", cluster.process.pid, folder / DATABASE_NAME)
        api.shutdown(DRAIN_S)
    finally:
        cluster.stop()
        api.close()


def _application_runs(api: ServeApi) -> bool:
    applications = api.applications() or ()
    for one in applications:
        if one.failure is not None:
            raise SystemFailed(one.failure)
    return bool(applications) and all(one.status == RUNNING for one in applications)


def _wait(cluster: RayCluster, give_up_s: float, done: Callable[[], bool]) -> None:
    while not done():
        if (failure := cluster.failure()) is not None:
            raise SystemFailed(failure)
        if time.monotonic() > give_up_s:
            raise SystemFailed(f"it was not up within {START_S:.0f} s")
        time.sleep(POLL_S)


def this_system(serve_mode: Mapping[str, str], ingresses: int | None = None) -> Start:
    """The service as `nilm run` starts it in development, with Serve as `serve_mode` says and that many ingresses.

    The rest of production needs an identity provider.
    """

    @contextmanager
    def start(folder: Path, model_version: str) -> Iterator[Running]:
        config = service_config(
            folder / "serve_config.yaml",
            ingresses=ingresses,
            appliances=[APPLIANCE],
            plans={APPLIANCE: {"stable": model_version}},
        )
        _keep_one_model_replica(config)
        with ExitStack() as stack:
            try:
                service = stack.enter_context(running_service(folder, config, {**serve_mode, **OUT_OF_THE_WAY}))
            except AssertionError as error:  # how that helper of tests says that the service did not start
                raise SystemFailed(str(error)) from None
            grant_development_access(service.data_dir, USER, ("*",))
            yield Running(service.url, service.process.pid, service.database)

    return start


def _keep_one_model_replica(config: Path) -> None:
    """A second one that starts in the middle of a slice would be measured with it."""
    document = yaml.safe_load(config.read_text())
    for deployment in document["applications"][0]["deployments"]:
        if deployment["name"] == APPLIANCE:
            deployment["autoscaling_config"]["max_replicas"] = 1
    config.write_text(yaml.safe_dump(document, sort_keys=False))


SYSTEMS: Mapping[str, System] = {
    one.key: one
    for one in (
        System("naive", "naive monolith", _baseline("naive", _workers_serve(1))),
        System("tuned", "tuned monolith, 2 workers", _baseline("tuned", _workers_serve(2)), ("msgspec", "uvloop")),
        System("litserve", "LitServe", _baseline("with_litserve", _healthy), ("litserve",)),
        System("serve", "Serve with defaults", plain_serve),
        System("development", "this system, development", this_system({})),
        System("production", "this system, production", this_system(PRODUCTION_MODE)),
    )
}
COMPARED = ("naive", "tuned", "litserve", "serve", "production")
"""What is measured unless asked otherwise."""
OURS = "production"
"""What the others are set against."""
THIS_SYSTEM = frozenset({"development", "production"})
"""Who takes all kinds of requests that this service knows."""
