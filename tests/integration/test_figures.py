"""What an operator sees of a running system: figures of all replicas, dashboards that show something, whole traces."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import yaml

from tests.integration.service import (
    ADMIN_TOKEN,
    FIGURES_LATE_S,
    FRESH_FIGURES,
    ROOT,
    Service,
    read_models,
    running_service,
    service_config,
    shape_of,
)
from tests.servers.collector import Collector, collector
from tests.servers.packages import PartsMissing, do_without
from tests.servers.prometheus import Prometheus, prometheus
from tests.told import Told

pytestmark = pytest.mark.integration
APPLIANCES = ("kettle", "dishwasher", "washing_machine", "microwave")
INGRESSES = 3
ROUNDS = 15
CANARY = {"kettle": {"stable": "2.2.0", "canary": {"version": "2.1.0", "percent": 50.0}}}
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SCRAPE_S = 2
RATE_INTERVAL = "20s"
BY_REPLICA = ("node", "application", "deployment", "replica", "route", "le")
"""Ray's own labels, and the bounds of histograms."""


@dataclass(frozen=True)
class Watched:
    """A service with three ingresses, and where its traces go."""

    service: Service
    traces: Collector


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    config = service_config(folder / "serve_config.yaml", ingresses=INGRESSES, plans=CANARY)
    with collector() as traces:
        environment = {
            **FRESH_FIGURES,
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": traces.url,
            "OTEL_BSP_SCHEDULE_DELAY": "500",
            "RATE_LIMIT_PER_USER": "100000",
            "RATE_LIMIT_PER_IP": "100000",
        }
        with running_service(folder, config, environment) as service:
            yield Watched(service, traces)


def send(service: Service, rounds: int) -> Counter[tuple[str, str]]:
    """Requests of all sorts, each on a connection of its own so that every ingress gets some; counted by their end."""
    seen: Counter[tuple[str, str]] = Counter()
    with service.client() as client:
        windows = {name: [0.3] * shape_of(client, name)["input_window_size"] for name in APPLIANCES}
    headers = {"Authorization": f"Bearer {service.token()}"}
    for n in range(rounds):
        for name, window in windows.items():
            body = {"building_id": f"home-{n}", "appliance_id": name, "window": window}
            for path, sent, given in (
                ("/infer", body, headers),
                ("/infer", body | {"window": [0.3]}, headers),
                ("/infer", body, {}),
            ):
                reply = httpx.post(service.url + path, json=sent, headers=given, timeout=30, trust_env=False)
                seen[path, f"{reply.status_code // 100}xx"] += 1
    return seen


def difference(after: Told, before: Told, name: str, **labels: str) -> float:
    def value(told: Told) -> float:
        return told.value(name, **labels) if told.has(name, **labels) else 0.0

    return value(after) - value(before)


def test_any_ingress_tells_what_all_of_them_counted(watched: Watched) -> None:
    service = watched.service
    send(service, 1)
    time.sleep(FIGURES_LATE_S)
    before = service.figures()
    seen = send(service, ROUNDS)
    time.sleep(FIGURES_LATE_S)
    answers = [service.figures() for _ in range(4)]
    after = answers[0]
    print(f"\nsent: {dict(seen)}")
    for (route, status_class), count in seen.items():
        assert difference(after, before, "nilm_http_requests_total", route=route, status_class=status_class) == count
    answered = seen["/infer", "2xx"]
    assert answered == ROUNDS * len(APPLIANCES)
    assert difference(after, before, "nilm_http_request_seconds_count", route="/infer") == sum(seen.values())
    assert difference(after, before, "nilm_windows_total", outcome="answered") == answered
    for name in APPLIANCES:
        assert difference(after, before, "nilm_windows_total", appliance=name, outcome="answered") == ROUNDS
    assert difference(after, before, "nilm_store_record_sets_total", result="persisted") == answered
    assert difference(after, before, "nilm_stage_seconds_count", stage="persist") == answered
    replicas = {
        one.labels["replica"]: one.value
        for one in after.samples
        if one.name == "nilm_http_requests_total"
        and (one.labels["route"], one.labels["status_class"]) == ("/infer", "2xx")
    }
    print(f"by ingress: {sorted(replicas.values())}; nodes: {after.value('nilm_metrics_nodes', state='answered'):g}")
    assert len(replicas) == INGRESSES
    versions = {one.labels["version"] for one in after.samples if one.name == "nilm_windows_total"}
    assert {"2.2.0", "2.1.0"} <= versions
    assert after.value("nilm_canary_percent", appliance="kettle") == 50
    assert after.value("nilm_slo_availability_target_ratio") == 0.999 * INGRESSES


def test_no_client_makes_a_series(watched: Watched) -> None:
    service = watched.service
    with service.client() as client:
        for n in range(40):
            client.request(f"M{n}", f"/infer/{n}")
            client.get(f"/models/{n}?a={n}")
            client.post("/infer", json={"building_id": f"b{n}", "appliance_id": f"a{n}", "window": [1.0]})
            client.get(f"/nowhere-{n}", headers={"Authorization": f"Bearer {n}", "X-Request-ID": f"{n}"})
    time.sleep(FIGURES_LATE_S)
    told = service.figures()
    series = Counter((one.name, *(one.labels.get(label) for label in BY_REPLICA)) for one in told.samples)
    print(f"\n{len(told.samples)} samples; most series of a metric in a replica: {series.most_common(3)}")
    assert max(series.values()) < 10
    routes = {"/infer", "/models/{model_id}", "/models", "unmatched", "refused", "/live", "/ready", "/metrics"}
    assert told.labels("route") <= routes


def test_metrics_need_the_credential_from_every_replica(watched: Watched) -> None:
    for _ in range(2 * INGRESSES):
        reply = httpx.get(f"{watched.service.url}/metrics", timeout=30, trust_env=False)
        assert reply.status_code == 401


def test_a_trace_has_all_stages_of_all_deployments(watched: Watched) -> None:
    service = watched.service
    time.sleep(2)  # an ingress traces five a second, and those of the tests before may have been more
    with service.client() as client:
        window = [0.3] * shape_of(client, "kettle")["input_window_size"]
        body = {"building_id": "traced", "appliance_id": "kettle", "window": window}
        reply = client.post("/infer", json=body, headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
        assert reply.status_code == 200, reply.text
    assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-01", reply.headers["traceparent"])
    end = time.monotonic() + 30
    expected = {"POST /infer", "auth", "infer", "queue", "forward", "persist", "commit"}
    while {span.name for span in watched.traces.of(TRACE)} != expected and time.monotonic() < end:
        time.sleep(0.2)
    spans = {span.name: span for span in watched.traces.of(TRACE)}
    assert set(spans) == expected
    names = {span.span_id: name for name, span in spans.items()}
    parents = {name: names.get(span.parent_id) for name, span in spans.items()}
    assert parents == {
        "POST /infer": None,
        "auth": "POST /infer",
        "infer": "POST /infer",
        "queue": "infer",
        "forward": "infer",
        "persist": "POST /infer",
        "commit": "persist",
    }
    assert spans["POST /infer"].parent_id == SPAN
    assert {name: span.deployment for name, span in spans.items() if name in {"infer", "forward", "commit"}} == {
        "infer": "ingress",
        "forward": "kettle",
        "commit": "persistence",
    }
    for span in sorted(spans.values(), key=lambda one: one.start_ns):
        began_ms, ended_ms = ((at - spans["POST /infer"].start_ns) / 1e6 for at in (span.start_ns, span.end_ns))
        print(f"{span.name:<12} {span.deployment:<12} {began_ms:7.2f} to {ended_ms:7.2f} ms")
        assert began_ms <= ended_ms
    assert spans["POST /infer"].attributes["nilm.request_id"] == reply.json()["request_id"]


@pytest.fixture(scope="module")
def scraped(watched: Watched, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the service by our own configuration, but for addresses and the pace."""
    folder = tmp_path_factory.mktemp("prometheus")
    document: dict[str, Any] = yaml.safe_load((ROOT / "configs/prometheus/scrape.yaml").read_text())
    token = folder / "token"
    token.write_text(ADMIN_TOKEN)
    document["global"]["scrape_interval"] = f"{SCRAPE_S}s"
    document["rule_files"] = [str(ROOT / "configs/prometheus/alerts.yaml")]
    ours, rays = document["scrape_configs"]
    ours["authorization"]["credentials_file"] = str(token)
    ours["static_configs"][0]["targets"] = [watched.service.url.removeprefix("http://")]
    rays["static_configs"][0]["targets"] = [f"127.0.0.1:{watched.service.metrics_port}"]
    try:
        with prometheus(folder, document) as running:
            yield running
    except PartsMissing as missing:
        do_without(missing)


def test_every_query_of_every_dashboard_returns_something(watched: Watched, scraped: Prometheus) -> None:
    end = time.monotonic() + 25
    while time.monotonic() < end:
        send(watched.service, 6)
    assert scraped.up() == {"nilm-serve": True, "ray": True}
    assert scraped.query('{__name__=~"ray_nilm_.*"}') == []
    empty = []
    for path in sorted((ROOT / "configs/grafana").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                expression = target["expr"].replace("$__rate_interval", RATE_INTERVAL).replace("$appliance", ".*")
                assert "$" not in expression
                series = scraped.query(expression)
                print(f"{path.stem:<8} {panel['title']:<34} {len(series):>3}  {target['expr']}")
                if not series or any(one["value"][1] == "NaN" for one in series):
                    empty.append((path.stem, panel["title"], expression, series))
    assert not empty


def test_the_rules_are_evaluated_on_it(scraped: Prometheus) -> None:
    """Nothing is wrong with the service of this test but the requests that were sent wrong on purpose."""
    end = time.monotonic() + 60
    while not (known := scraped.query('{__name__=~"nilm:.*"}')) and time.monotonic() < end:
        time.sleep(1)
    assert {re.sub("_rate.*", "", one["metric"]["__name__"]) for one in known} == {
        "nilm:errors:ratio",
        "nilm:infer_slow:ratio",
    }
    firing = {one["metric"]["alertname"] for one in scraped.query('ALERTS{alertstate="firing"}')}
    assert firing <= {"NilmSlowInferBurnsFast"}  # a busy machine


def test_the_models_that_serve_are_those_of_the_figures(watched: Watched) -> None:
    with watched.service.client() as client:
        serving = {one["appliance_id"] for one in read_models(client)["appliances"]}
    assert watched.service.figures().labels("appliance") == serving == set(APPLIANCES)
