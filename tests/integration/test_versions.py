"""What a replica does with versions it must not serve, and with the oldest kind of registry entry."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from models.architectures import build
from models.registry import Registry
from tests.integration.service import Service, read_models, running_service, service_config, shape_of

pytestmark = pytest.mark.integration
LEGACY_PARAMS = {"input_channels": 1, "d_model": 64, "n_heads": 4, "n_layers": 2}


def registry_with_faults(folder: Path) -> Path:
    """The packaged registry, with one byte of the dishwasher flipped and a legacy-shaped microwave 0.9.0."""
    packaged = Registry.load()
    shutil.copytree(packaged.root / "artifacts", folder / "artifacts")
    document = json.loads((packaged.root / "registry.json").read_text())
    dishwasher = folder / packaged.active("dishwasher").artifact_path
    content = bytearray(dishwasher.read_bytes())
    content[len(content) // 2] ^= 0x01
    dishwasher.write_bytes(content)
    torch.manual_seed(0)
    weights = folder / "artifacts" / "legacy.safetensors"
    save_file(build("CNNTransformer", LEGACY_PARAMS, 1000).state_dict(), weights)
    document["models"].append(
        {
            "model_id": "microwave-legacy",
            "model_version": "0.9.0",
            "appliance_id": "microwave",
            "architecture": "CNNTransformer",
            "architecture_params": LEGACY_PARAMS,
            "artifact_path": "artifacts/legacy.safetensors",
            "artifact_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "input_window_size": 1000,
            "preprocessing": {"type": "standard", "mean": 0.4, "std": 0.7},
            "is_active": False,
        }
    )
    path = folder / "registry.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "registry").mkdir()
    config = service_config(folder / "config.yaml", plans={"microwave": {"stable": "0.9.0"}})
    registry = registry_with_faults(folder / "registry")
    with running_service(folder, config, {"MODEL_REGISTRY_URI": str(registry)}, wait_ready=False) as running:
        yield running


def wait_for_refusal(service: Service, appliance: str, version: str) -> str:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with service.client() as client:
            states = {a["appliance_id"]: a for a in read_models(client)["appliances"]}
        refused = states[appliance]["refused"]
        if refused and refused.startswith(f"{version}:"):
            return str(refused)
        time.sleep(0.5)
    raise AssertionError(f"{appliance} {version} was not refused: {states}")


def test_a_corrupted_artifact_is_refused_by_name_and_the_others_serve(faulty: Service) -> None:
    refused = wait_for_refusal(faulty, "dishwasher", Registry.load().active("dishwasher").model_version)
    print(f"dishwasher refused: {refused}")
    assert "sha256" in refused
    with faulty.client() as client:
        window = [0.2] * shape_of(client, "kettle")["input_window_size"]
        for appliance, status in (("dishwasher", 503), ("kettle", 200), ("washing_machine", 200)):
            reply = client.post("/infer", json={"building_id": "b", "appliance_id": appliance, "window": window})
            assert reply.status_code == status, reply.text
        not_ready = client.get("/ready")
    assert not_ready.status_code == 503
    assert any("dishwasher" in reason for reason in not_ready.json()["reasons"])


def test_the_legacy_entry_with_a_window_of_1000_serves(faulty: Service) -> None:
    with faulty.client() as client:
        body = {"building_id": "b", "appliance_id": "microwave", "window": [0.3] * 1000}
        reply = client.post("/infer", json=body)
        assert reply.status_code == 200, reply.text
        assert (reply.json()["model_version"], reply.json()["output_sample_index"]) == ("0.9.0", 999)
        # Its registry entry knows one sample: both answers are the same.
        provisional = client.post("/infer", json=body | {"attribution": "provisional"}).json()
        assert provisional["output_sample_index"] == 999
        assert provisional["predicted_kw"] == pytest.approx(reply.json()["predicted_kw"], abs=1e-4)
        short = client.post("/infer", json=body | {"window": [0.3] * 999})
    assert short.status_code == 422
    assert short.json()["errors"][0]["pointer"] == "/window"
    assert "1000" in short.json()["errors"][0]["detail"]


def test_a_deploy_of_an_unknown_version_keeps_the_old_one_serving(faulty: Service) -> None:
    document = yaml.safe_load(faulty.config.read_text())
    for deployment in document["applications"][0]["deployments"]:
        if deployment["name"] == "rollout":
            deployment["user_config"]["kettle"] = {"stable": "9.9.9"}
    document["http_options"]["port"] = int(faulty.url.rsplit(":", 1)[1])
    faulty.serve_api().deploy(document)
    end = time.monotonic() + 60
    while "9.9.9" not in (reason := rollout_reason(faulty)):
        assert time.monotonic() < end, reason
        time.sleep(0.5)
    print(f"refused: {reason}")
    assert "kettle.stable: there is no version '9.9.9'" in reason
    active = Registry.load().active("kettle").model_version
    with faulty.client() as client:
        states = {a["appliance_id"]: a for a in read_models(client)["appliances"]}
        assert states["kettle"]["serving_version"] == active
        window = [0.2] * shape_of(client, "kettle")["input_window_size"]
        body = {"building_id": "b", "appliance_id": "kettle", "window": window}
        reply = client.post("/infer", json=body)
    assert (reply.status_code, reply.json()["model_version"]) == (200, active)


def rollout_reason(service: Service) -> str:
    """What `serve status` says of the deployment that holds the rollout."""
    (application,) = service.serve_api().applications() or ()
    return next(one.reason for one in application.deployments if one.name == "rollout")
