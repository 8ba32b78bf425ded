"""ApplianceModel without Ray: which version it takes, and what it refuses while the old one serves."""

from __future__ import annotations

import hashlib
import json

import pytest
import safetensors.torch
import torch

from deployments.appliance import ApplianceModel, _wanted_version
from deployments.contracts import Inference, InferenceRefusal, InferenceRefused
from models.architectures import build
from models.attribution import Attribution
from models.loader import LoadedModel
from tests.unit.deployments.replica import (
    FINAL_INDEX,
    PARAMS,
    PROVISIONAL_INDEX,
    WINDOW,
    Shelf,
    deploy,
    request,
    run_batch,
)


@pytest.mark.parametrize(
    ("config", "version"),
    [
        ({"model_version": "1.0.0"}, "1.0.0"),
        ({"model_version": ""}, None),
        ({"model_version": 1.0}, None),
        ({"model_version": None}, None),
        ({"model_version": ["1.0.0"]}, None),
        ({"model_version": "1.0.0", "typo": 1}, None),
        ({"version": "1.0.0"}, None),
        ({}, None),
        (None, None),
        ("1.0.0", None),
        ([], None),
        (7, None),
    ],
)
def test_only_one_text_names_a_version(config: object, version: str | None) -> None:
    assert _wanted_version(config) == version


async def test_before_any_deploy_nothing_is_ready(kettle: ApplianceModel) -> None:
    status = await kettle.status()
    assert not status.ready
    assert (status.wanted_version, status.model_version, status.refused) == ("", None, None)
    result = await kettle.infer(request())
    assert isinstance(result, InferenceRefused)
    assert (result.reason, result.detail) == (InferenceRefusal.NO_MODEL, "still loading")


async def test_the_first_deploy_returns_with_a_warm_model(kettle: ApplianceModel, shelf: Shelf) -> None:
    await kettle.reconfigure({"model_version": "1.0.0"})
    status = await kettle.status()
    assert status.ready
    assert (status.wanted_version, status.model_version, status.loading) == ("1.0.0", "1.0.0", False)
    assert status.artifact_sha256 == shelf.entries[0]["artifact_sha256"]
    assert (status.input_window_size, status.device) == (WINDOW, "cpu")
    assert status.sample_indices == {Attribution.FINAL: FINAL_INDEX, Attribution.PROVISIONAL: PROVISIONAL_INDEX}


@pytest.mark.parametrize("config", [None, {}, {"model_version": 2}, {"model_versoin": "2.0.0"}, "2.0.0", [1], object()])
async def test_junk_is_refused_and_the_old_version_serves(kettle: ApplianceModel, config: object) -> None:
    await deploy(kettle, "1.0.0")
    await kettle.reconfigure(config)
    status = await kettle.status()
    assert (status.model_version, status.wanted_version, status.loading) == ("1.0.0", "1.0.0", False)
    assert status.refused is not None
    assert status.refused.reason == "bad_user_config"
    assert isinstance((await run_batch(kettle, request()))[0], Inference)


async def test_junk_at_the_first_start_does_not_raise(kettle: ApplianceModel) -> None:
    await kettle.reconfigure({"model_versoin": "1.0.0"})
    assert not (await kettle.status()).ready
    result = await kettle.infer(request())
    assert isinstance(result, InferenceRefused)
    assert "bad_user_config" in result.detail
    await deploy(kettle, "1.0.0")
    assert (await kettle.status()).refused is None


def truncate(shelf: Shelf) -> None:
    path = shelf.artifact("2.0.0")
    path.write_bytes(path.read_bytes()[:-4])


def poison(shelf: Shelf) -> None:
    weights = safetensors.torch.load_file(shelf.artifact("2.0.0"))
    next(iter(weights.values())).view(-1)[0] = float("nan")
    rewrite(shelf, weights)


def reshape(shelf: Shelf) -> None:
    torch.manual_seed(0)
    rewrite(shelf, build("CNNTransformer", PARAMS | {"d_model": 16}, WINDOW).state_dict())


def rewrite(shelf: Shelf, weights: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(weights, shelf.artifact("2.0.0"))
    shelf.entries[1] = shelf.entries[1] | {
        "artifact_sha256": hashlib.sha256(shelf.artifact("2.0.0").read_bytes()).hexdigest()
    }
    shelf.registry.write_text(json.dumps({"models": shelf.entries}), encoding="utf-8")


DAMAGE = {
    "sha256_mismatch": [Shelf.flip_a_byte, truncate],
    "artifact_missing": [lambda shelf: shelf.artifact("2.0.0").unlink()],
    "weights_not_finite": [poison],
    "weights_mismatch": [reshape],
    "not_registered": [lambda shelf: shelf.registry.write_text("{"), lambda shelf: shelf.registry.unlink()],
}
CASES = [(reason, index) for reason, damages in DAMAGE.items() for index in range(len(damages))]


@pytest.mark.parametrize(("reason", "index"), CASES)
async def test_a_bad_version_is_refused_with_its_reason_and_the_old_one_serves(
    kettle: ApplianceModel, shelf: Shelf, reason: str, index: int
) -> None:
    await deploy(kettle, "1.0.0")
    (before,) = await run_batch(kettle, request())
    DAMAGE[reason][index](shelf)
    await deploy(kettle, "2.0.0")
    status = await kettle.status()
    assert status.refused is not None
    assert (status.refused.model_version, status.refused.reason) == ("2.0.0", reason)
    assert (status.ready, status.model_version, status.wanted_version) == (True, "1.0.0", "2.0.0")
    (after,) = await run_batch(kettle, request())
    assert isinstance(before, Inference)
    assert isinstance(after, Inference)
    assert (after.model_version, after.predicted_w) == ("1.0.0", before.predicted_w)


async def test_an_unregistered_version_is_refused(kettle: ApplianceModel) -> None:
    await deploy(kettle, "1.0.0")
    await deploy(kettle, "9.9.9")
    refused = (await kettle.status()).refused
    assert refused is not None
    assert refused.reason == "not_registered"
    assert "1.0.0, 2.0.0, 3.0.0" in refused.detail


async def test_a_bad_first_version_starts_unready_and_a_repair_brings_it_up(
    kettle: ApplianceModel, shelf: Shelf
) -> None:
    whole = shelf.artifact("2.0.0").read_bytes()
    shelf.flip_a_byte()
    await kettle.reconfigure({"model_version": "2.0.0"})
    status = await kettle.status()
    assert (status.ready, status.loading) == (False, False)
    result = await kettle.infer(request())
    assert isinstance(result, InferenceRefused)
    assert "sha256_mismatch" in result.detail
    shelf.artifact("2.0.0").write_bytes(whole)
    await deploy(kettle, "2.0.0")
    status = await kettle.status()
    assert (status.model_version, status.refused) == ("2.0.0", None)


async def test_whatever_a_load_raises_is_a_refusal(kettle: ApplianceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    await deploy(kettle, "1.0.0")

    def broken(_: str) -> LoadedModel:
        raise MemoryError("at /secret/path")

    monkeypatch.setattr(kettle, "_load", broken)
    await deploy(kettle, "2.0.0")
    status = await kettle.status()
    assert status.refused is not None
    assert (status.refused.reason, status.refused.detail) == ("load_failed", "MemoryError")
    assert status.model_version == "1.0.0"
