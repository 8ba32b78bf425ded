"""The alerts, the scrape configuration and the dashboards as files: what promtool and a reader can tell."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers.packages import PartsMissing, do_without
from tests.servers.prometheus import install_prometheus, promtool

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs/prometheus"
DASHBOARDS = sorted((ROOT / "configs/grafana").glob("*.json"))
ALERTS = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]


@pytest.fixture(scope="module", autouse=True)
def _promtool() -> None:
    try:
        install_prometheus()
    except PartsMissing as missing:
        do_without(missing)


def test_promtool_takes_the_rules_and_their_tests_pass() -> None:
    promtool("check", "rules", "alerts.yaml", folder=FOLDER)
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yaml", folder=FOLDER)


def test_a_rule_that_is_wrong_is_found(tmp_path: Path) -> None:
    rules = (FOLDER / "alerts.yaml").read_text()
    tests = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())
    tests["tests"] = [one for one in tests["tests"] if one["name"].startswith("two in a hundred fail")]
    (tmp_path / "alerts.yaml").write_text(rules)
    (tmp_path / "alerts_test.yaml").write_text(yaml.safe_dump(tests))
    promtool("test", "rules", "alerts_test.yaml", folder=tmp_path)
    (tmp_path / "alerts.yaml").write_text(rules.replace("14.4", "144").replace("> 6 *", "> 60 *"))
    with pytest.raises(AssertionError, match="NilmErrorsBurnsFast"):
        promtool("test", "rules", "alerts_test.yaml", folder=tmp_path)


def test_prometheus_takes_the_scrape_configuration(tmp_path: Path) -> None:
    for name in ("alerts.yaml", "scrape.yaml"):
        shutil.copy(FOLDER / name, tmp_path / name)
    scrape = (tmp_path / "scrape.yaml").read_text()
    (tmp_path / "token").write_text("x")
    (tmp_path / "scrape.yaml").write_text(scrape.replace("/etc/prometheus/nilm-admin-token", str(tmp_path / "token")))
    promtool("check", "config", "scrape.yaml", folder=tmp_path)


@pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])
def test_every_alert_is_tested_and_has_a_section_in_the_runbook(alert: dict[str, Any]) -> None:
    tests = (FOLDER / "alerts_test.yaml").read_text()
    assert len(re.findall(rf"alertname: {alert['alert']}\b", tests)) >= 2, "once silent, once firing"
    page, anchor = alert["annotations"]["runbook"].split("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in {heading.strip("`").lower() for heading in headings}
    assert alert["labels"]["severity"] in {"page", "ticket"}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_can_be_provisioned(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["uid"] == f"nilm-{path.stem}"
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len(panels) >= 8
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in panels:
        assert panel["title"]
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"  # no uid of somebody's own Grafana


def test_there_is_a_dashboard_for_the_service_a_rollout_and_the_store() -> None:
    assert {path.stem for path in DASHBOARDS} == {"service", "rollout", "store"}
