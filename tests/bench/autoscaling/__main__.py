"""Autoscaling by appliance: replicas over time, while one of two appliances gets much more to do and then no more.

    python -m tests.bench.autoscaling --plot docs/images/autoscaling.png

Starts this service in its production mode with two appliances, whose `autoscaling_config` is that of serve_config.yaml.
Each gets a few requests a second throughout (open loop); beyond those, `--clients` ask the kettle (closed loop):

- step: until its second replica has run for 20 s, at most for 150; then not, until that replica is given back;
- sawtooth: for 20 s of each 40, during `--sawtooth-minutes`.

Looks once a second at how many replicas run and are wanted, by Serve's REST API, and every three seconds at the windows
that wait or run, by `GET /metrics`. Prints a table and draws the replicas. Takes 20 minutes with the delays of that
file. Asserts nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from models.registry import Registry
from serve_app.access.development_grants import grant_development_access
from serve_app.cli.cluster import PRODUCTION_MODE
from tests.bench.autoscaling.load import Clients, ask_calmly, requests_of, sawtooth, step
from tests.bench.autoscaling.observer import APPLIANCES, KETTLE, Observer, Part
from tests.bench.autoscaling.picture import draw
from tests.bench.autoscaling.report import report
from tests.bench.serving.connections import Reply
from tests.bench.serving.systems import OUT_OF_THE_WAY, USER
from tests.integration.service import FRESH_FIGURES, Service, running_service, service_config


def main() -> None:
    """Start, load, print, draw."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--plot", type=Path, help="a PNG to draw; none unless named")
    arguments.add_argument("--clients", type=int, default=192, help="of the kettle; an ingress lets 256 requests in")
    arguments.add_argument("--calm-per-second", type=float, default=5.0, help="requests to each appliance throughout")
    arguments.add_argument("--sawtooth-minutes", type=float, default=10.0)
    arguments.add_argument("--upscale-delay-s", type=float, help="default: what serve_config.yaml says")
    arguments.add_argument("--downscale-delay-s", type=float, help="default: what serve_config.yaml says")
    chosen = arguments.parse_args()
    if chosen.plot is not None:
        chosen.plot.parent.mkdir(parents=True, exist_ok=True)
    delays = {"upscale_delay_s": chosen.upscale_delay_s, "downscale_delay_s": chosen.downscale_delay_s}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "serve_config.yaml"
        scaling = write_config(config, {name: value for name, value in delays.items() if value is not None})
        print(f"{KETTLE}: {scaling}", flush=True)
        with running_service(folder, config, {**PRODUCTION_MODE, **OUT_OF_THE_WAY, **FRESH_FIGURES}) as service:
            grant_development_access(service.data_dir, USER, ("*",))
            with Observer(service) as observer:
                parts, replies = load(service, folder, observer, scaling["downscale_delay_s"], chosen)
    report(parts, observer, replies)
    if chosen.plot is not None:
        draw(chosen.plot, parts, observer, scaling["target_ongoing_requests"])


def write_config(path: Path, delays: Mapping[str, float]) -> dict[str, Any]:
    """serve_config.yaml with our appliances alone and these delays; gives the `autoscaling_config` of the kettle."""
    versions = {name: {"stable": Registry.load().active(name).model_version} for name in APPLIANCES}
    service_config(path, appliances=list(APPLIANCES), plans=versions)
    document = yaml.safe_load(path.read_text())
    scaling: dict[str, dict[str, Any]] = {}
    for deployment in document["applications"][0]["deployments"]:
        if deployment["name"] in APPLIANCES:
            deployment["autoscaling_config"] |= delays
            scaling[deployment["name"]] = deployment["autoscaling_config"]
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return scaling[KETTLE]


def load(
    service: Service, folder: Path, observer: Observer, downscale_delay_s: float, chosen: argparse.Namespace
) -> tuple[list[Part], dict[str, list[Reply]]]:
    """Both parts, with a few requests to everybody beside them. Gives the replies of each appliance as well."""
    url = urlsplit(service.url)
    address = url.hostname or "", url.port or 80
    requests = {name: requests_of(name, folder / name, address) for name in APPLIANCES}
    clients = Clients(address, requests[KETTLE], chosen.clients)
    over = threading.Event()
    with ThreadPoolExecutor(len(APPLIANCES)) as threads:
        calm = {
            name: threads.submit(ask_calmly, address, requests[name], chosen.calm_per_second, seed, over)
            for seed, name in enumerate(APPLIANCES)
        }
        try:
            parts = [step(observer, clients, downscale_delay_s), sawtooth(clients, chosen.sawtooth_minutes)]
        finally:
            over.set()
    replies = {name: future.result() for name, future in calm.items()}
    replies[KETTLE] += clients.replies
    return parts, replies


if __name__ == "__main__":
    main()
