"""compose.yaml as far as a reader can tell: what it mounts exists, no secret is in it, its parts find each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.access.client_address import ClientAddresses
from serve_app.settings import Settings
from tests.servers.packages import PartsMissing, do_without
from tests.servers.prometheus import install_prometheus, promtool

ROOT = Path(__file__).parents[2]
VARIABLE = re.compile(r"\$\{(\w+)(:[-?][^}]*)?\}")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return document


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(compose["services"])


def test_it_has_the_service_its_store_and_whoever_watches_them(services: dict[str, Any]) -> None:
    assert set(services) == {"nilm", "influxdb", "proxy", "prometheus", "certificates", "grafana"}
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        if name != "nilm":
            assert re.fullmatch(r"[\w/.-]+:v?\d[\w.]+", service["image"]), f"{name}: a moving tag"


def test_what_it_mounts_exists_and_volumes_are_declared(compose: dict[str, Any], services: dict[str, Any]) -> None:
    for service in services.values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), mount
                assert mount.endswith(":ro"), mount
            else:
                assert source in compose["volumes"], mount
        for config in service.get("configs", ()):
            assert config["source"] in compose["configs"]
        for secret in service.get("secrets", ()):
            assert secret in compose["secrets"]


def test_no_secret_has_a_value_or_a_default(services: dict[str, Any], compose: dict[str, Any]) -> None:
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|TOKEN|SECRET|KEY", name):
                variable = VARIABLE.fullmatch(value)
                assert variable is not None, name
                assert (variable[2] or "").startswith(":?"), f"{name} has a default"
    assert compose["secrets"] == {"admin-token": {"environment": "ADMIN_TOKEN"}}


def test_only_the_proxy_can_be_reached_from_outside(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert set(published) == {"proxy", "grafana"}
    assert all(port.startswith("127.0.0.1:") for port in published["grafana"])


def test_the_service_is_a_production_one_with_influxdb_and_time_to_drain(services: dict[str, Any]) -> None:
    nilm = services["nilm"]
    environment = nilm["environment"]
    assert environment["ENV"] == "production"
    assert environment["INFLUX_URL"] == "http://influxdb:8086"
    assert nilm["depends_on"] == {"influxdb": {"condition": "service_healthy"}}
    assert int(nilm["stop_grace_period"].removesuffix("s")) >= 75
    known = {name.upper() for name in Settings.model_fields} | {"PORT", "NILM_HOST"}
    assert set(environment) <= known


def test_the_proxys_word_on_its_client_is_believed(services: dict[str, Any], compose: dict[str, Any]) -> None:
    (network,) = compose["networks"]["inside"]["ipam"]["config"]
    trusted = services["nilm"]["environment"]["TRUSTED_PROXIES"].split(",")
    assert network["subnet"] in trusted
    ClientAddresses(trusted)  # raises for what is no network
    assert all(service["networks"] == ["inside"] for service in services.values())
    caddy = (ROOT / "configs/compose/Caddyfile").read_text()
    assert "reverse_proxy nilm:8000" in caddy
    assert "respond @figures 404" in caddy


def test_prometheus_scrapes_services_that_are_there(services: dict[str, Any], tmp_path: Path) -> None:
    text = (ROOT / "configs/compose/prometheus.yaml").read_text()
    document = yaml.safe_load(text)
    targets = [target for job in document["scrape_configs"] for target in job["static_configs"][0]["targets"]]
    assert {target.split(":")[0] for target in targets} <= set(services)
    alone = yaml.safe_load((ROOT / "configs/prometheus/scrape.yaml").read_text())
    mine, its = (
        {job["job_name"]: job.get("metric_relabel_configs") for job in one["scrape_configs"]}
        for one in (document, alone)
    )
    assert its.items() <= mine.items()
    try:
        install_prometheus()
    except PartsMissing as missing:
        do_without(missing)
    (tmp_path / "admin-token").write_text("x")
    text = text.replace("/run/secrets", str(tmp_path)).replace("/etc/nilm/prometheus", str(ROOT / "configs/prometheus"))
    (tmp_path / "prometheus.yaml").write_text(text)
    promtool("check", "config", "prometheus.yaml", folder=tmp_path)


def test_grafana_finds_the_dashboards_and_prometheus(services: dict[str, Any]) -> None:
    provider = yaml.safe_load((ROOT / "configs/compose/grafana-dashboards.yaml").read_text())["providers"][0]
    mounts = dict(mount.split(":")[:2] for mount in services["grafana"]["volumes"])
    assert mounts["./configs/grafana"] == provider["options"]["path"]
    source = yaml.safe_load((ROOT / "configs/compose/grafana-datasource.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"


def test_a_variable_without_a_default_is_asked_for_in_the_head_of_the_file(compose: dict[str, Any]) -> None:
    head = (ROOT / "compose.yaml").read_text().split("name:")[0]
    example = (ROOT / ".env.example").read_text()
    for name, default in VARIABLE.findall((ROOT / "compose.yaml").read_text()):
        if default.startswith(":?"):
            assert f"{name}=" in head + example, name
