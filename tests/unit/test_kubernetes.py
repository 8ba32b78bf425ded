"""The KubeRay file as far as a reader can tell: it deploys what serve_config.yaml does, over nodes, without secrets."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from serve_app.cli.cluster import MMAP_THRESHOLD_BYTES, PRODUCTION_MODE, TRIM_THRESHOLD_BYTES
from serve_app.cli.main import app

ROOT = Path(__file__).parents[2]
STOP_S = 45
"""Ray's own time to stop, and some."""
SPREAD = {"max_replicas_per_node", "autoscaling_config"}
"""What is another on a cluster."""


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, Any]]:
    text = (ROOT / "configs/kubernetes/rayservice.yaml").read_text()
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


@pytest.fixture(scope="module")
def cluster(documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return dict(documents["RayService"]["spec"]["rayClusterConfig"])


@pytest.fixture(scope="module")
def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def deployments(serve: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in serve["applications"][0]["deployments"]}


def test_it_serves_what_serve_config_serves(documents: dict[str, dict[str, Any]]) -> None:
    here = yaml.safe_load(documents["RayService"]["spec"]["serveConfigV2"])
    alone = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    assert here["http_options"] == alone["http_options"] | {"host": "0.0.0.0"}
    assert here["applications"][0]["args"] == alone["applications"][0]["args"]
    assert list(deployments(here)) == list(deployments(alone))
    for name, mine in deployments(here).items():
        its = deployments(alone)[name]
        assert {k: v for k, v in mine.items() if k not in SPREAD} == {k: v for k, v in its.items() if k not in SPREAD}
        ours, others = mine.get("autoscaling_config", {}), its.get("autoscaling_config", {})
        assert {k: v for k, v in ours.items() if "_replicas" not in k} == {
            k: v for k, v in others.items() if "_replicas" not in k
        }


def test_no_node_holds_all_of_anything_that_can_have_two(documents: dict[str, dict[str, Any]]) -> None:
    serve = deployments(yaml.safe_load(documents["RayService"]["spec"]["serveConfigV2"]))
    for name in ("ingress", "kettle", "dishwasher", "washing_machine", "microwave"):
        assert serve[name]["autoscaling_config"]["min_replicas"] >= 2
        assert serve[name]["max_replicas_per_node"] == 1
    assert serve["persistence"]["num_replicas"] == serve["coordinator"]["num_replicas"] == 1


def test_the_head_can_be_lost(cluster: dict[str, Any]) -> None:
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"]
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] >= 3
    spread = [one["topologyKey"] for one in workers["template"]["spec"]["topologySpreadConstraints"]]
    assert spread == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]


def test_a_pod_leaves_before_it_is_stopped(cluster: dict[str, Any]) -> None:
    (workers,) = cluster["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:2] == ["nilm", "leave"]
    assert CliRunner().invoke(app, [*command[1:], "--help"]).exit_code == 0, "the command does not know its options"
    within_s = int(command[command.index("--within-s") + 1])
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] >= within_s + STOP_S


def test_every_pod_runs_serve_as_production_does(pods: list[dict[str, Any]]) -> None:
    wanted = PRODUCTION_MODE | {
        "ENV": "production",
        "FORWARDED_ALLOW_IPS": "",
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(TRIM_THRESHOLD_BYTES),
    }
    images = set()
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        images.add(container["image"])
        assert wanted.items() <= {one["name"]: one["value"] for one in container["env"]}.items()
        assert container["envFrom"] == [{"secretRef": {"name": "nilm-serve"}}]
        assert "memory" in container["resources"]["limits"]
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["securityContext"] == confined
        assert {"containerPort": 8080, "name": "metrics"} in container["ports"]
    assert len(images) == 1


def test_workers_have_probes_that_need_no_program_in_the_image(pods: list[dict[str, Any]]) -> None:
    (container,) = pods[1]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "serve"}
    assert container["livenessProbe"]["httpGet"]["path"] == "/api/local_raylet_healthz"
    assert {"containerPort": 8000, "name": "serve"} in container["ports"]


def test_versions_agree(cluster: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pin = next(one for one in project["dependencies"] if one.startswith("ray[serve]=="))
    assert cluster["rayVersion"].startswith(pin.removeprefix("ray[serve]==").removesuffix("*"))


def test_the_budget_and_the_policy_are_of_these_pods(
    documents: dict[str, dict[str, Any]], pods: list[dict[str, Any]]
) -> None:
    labels = pods[1]["metadata"]["labels"]
    assert labels == pods[0]["metadata"]["labels"]
    budget = documents["PodDisruptionBudget"]["spec"]
    assert budget["minAvailable"] == 2  # not maxUnavailable: a RayCluster has no scale
    assert labels.items() <= budget["selector"]["matchLabels"].items()
    policy = documents["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert all(rule["from"] for rule in policy["ingress"]), "nothing is open to everybody"
    sources = [source for rule in policy["ingress"] for source in rule["from"]]
    assert all(source.get("namespaceSelector", {"here": 1}) for source in sources), "nor to all namespaces"
    namespaces = {
        source["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]: [
            port["port"] for port in rule["ports"]
        ]
        for rule in policy["ingress"]
        if "ports" in rule
        for source in rule["from"]
    }
    # The alerts read what /metrics tells at HAProxy's port, and beside it what Ray tells of its nodes.
    assert namespaces == {"ingress": [8000], "monitoring": [8000, 8080]}


def test_no_secret_is_in_it() -> None:
    text = (ROOT / "configs/kubernetes/rayservice.yaml").read_text()
    for name in re.findall(r"name: (\w+), value:", text):
        assert not re.search(r"TOKEN|SECRET|PASSWORD|KEY", name)
