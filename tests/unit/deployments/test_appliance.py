"""ApplianceModel without Ray: which version it takes, what it refuses, and what a batch does with a bad window."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from deployments.appliance import ApplianceModel, _wanted_version
from deployments.contracts import Inference, InferenceRefusal, InferenceRefused, InferenceRequest, InferenceResult
from models.architectures import build
from models.loader import LoadedModel, ModelOutput

WINDOW = 16
PARAMS = {"input_channels": 1, "d_model": 8, "n_heads": 2, "n_layers": 1}


@dataclass
class Shelf:
    """A registry with versions 1.0.0, 2.0.0 and 3.0.0 of a kettle."""

    root: Path
    entries: list[dict[str, Any]] = field(default_factory=list)

    @property
    def registry(self) -> Path:
        return self.root / "registry.json"

    def add(self, version: str, seed: int) -> None:
        torch.manual_seed(seed)
        relative = f"artifacts/kettle/{version}/model.safetensors"
        path = self.root / relative
        path.parent.mkdir(parents=True)
        safetensors.torch.save_file(build("CNNTransformer", PARAMS, WINDOW).state_dict(), path)
        self.entries.append(
            {
                "model_id": "kettle-net",
                "model_version": version,
                "appliance_id": "kettle",
                "architecture": "CNNTransformer",
                "architecture_params": PARAMS,
                "artifact_path": relative,
                "artifact_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "input_window_size": WINDOW,
                "preprocessing": {"type": "standard", "mean": 500.0, "std": 800.0},
                "is_active": version == "1.0.0",
            }
        )
        self.registry.write_text(json.dumps({"models": self.entries}), encoding="utf-8")

    def artifact(self, version: str) -> Path:
        return self.root / f"artifacts/kettle/{version}/model.safetensors"


@pytest.fixture(scope="module")
def _packed(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    for seed, version in enumerate(("1.0.0", "2.0.0", "3.0.0")):
        shelf.add(version, seed)
    return shelf


@pytest.fixture
def shelf(_packed: Shelf, tmp_path: Path) -> Shelf:
    import shutil

    shutil.copytree(_packed.root, tmp_path, dirs_exist_ok=True)
    return Shelf(tmp_path, list(_packed.entries))


@pytest.fixture
def kettle(shelf: Shelf) -> ApplianceModel:
    return ApplianceModel("kettle", registry_path=str(shelf.registry), device="cpu")


async def settled(model: ApplianceModel) -> None:
    """Until no deploy is under way."""
    if model._swap_task is not None:
        await asyncio.wait_for(model._swap_task, 20)


async def deploy(model: ApplianceModel, version: str) -> None:
    await model.reconfigure({"model_version": version})
    await settled(model)


def request(window: object = None, *, deadline_s: float | None = None) -> InferenceRequest:
    values = np.full(WINDOW, 0.5, dtype=np.float32) if window is None else np.asarray(window, dtype=np.float32)
    return InferenceRequest(values, time.time() + 60 if deadline_s is None else deadline_s)


async def run_batch(model: ApplianceModel, *requests: InferenceRequest) -> list[InferenceResult]:
    """The batch function itself: `serve.batch` around it reads the replica's context, which only Serve has."""
    function = ApplianceModel._run_batch.__wrapped__
    results: list[InferenceResult] = await function(model, [(r, time.perf_counter()) for r in requests])
    return results


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
    assert (status.input_window_size, status.output_sample_index, status.device) == (WINDOW, WINDOW - 1, "cpu")


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


def flip_a_byte(shelf: Shelf) -> None:
    path = shelf.artifact("2.0.0")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


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
    "sha256_mismatch": [flip_a_byte, truncate],
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
    flip_a_byte(shelf)
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


class SlowLoads:
    """Loads that wait until they are released, per version."""

    def __init__(self, model: ApplianceModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gates = {version: threading.Event() for version in ("1.0.0", "2.0.0", "3.0.0", "9.9.9")}
        self.begun = {version: threading.Event() for version in self.gates}
        self.loaded: list[str] = []
        real = model._load

        def load(version: str) -> LoadedModel:
            self.loaded.append(version)
            self.begun[version].set()
            assert self.gates[version].wait(5)
            return real(version)

        monkeypatch.setattr(model, "_load", load)

    async def started(self, version: str) -> None:
        assert await asyncio.to_thread(self.begun[version].wait, 5)

    def release(self, *versions: str) -> None:
        for version in versions:
            self.gates[version].set()


async def test_a_deploy_does_not_wait_for_the_load_and_the_old_version_answers_meanwhile(
    kettle: ApplianceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle, "1.0.0")
    loads = SlowLoads(kettle, monkeypatch)
    async with asyncio.timeout(2):
        await kettle.reconfigure({"model_version": "2.0.0"})
    await loads.started("2.0.0")
    status = await kettle.status()
    assert (status.model_version, status.wanted_version, status.loading) == ("1.0.0", "2.0.0", True)
    (result,) = await run_batch(kettle, request())
    assert isinstance(result, Inference)
    assert result.model_version == "1.0.0"
    loads.release("2.0.0")
    await settled(kettle)
    assert (await kettle.status()).model_version == "2.0.0"


async def test_a_later_deploy_overtakes_the_ones_that_wait(
    kettle: ApplianceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle, "1.0.0")
    loads = SlowLoads(kettle, monkeypatch)
    await kettle.reconfigure({"model_version": "2.0.0"})
    await loads.started("2.0.0")
    await kettle.reconfigure({"model_version": "9.9.9"})
    await kettle.reconfigure({"model_version": "3.0.0"})
    loads.release("2.0.0", "3.0.0", "9.9.9")
    await settled(kettle)
    status = await kettle.status()
    assert (status.model_version, status.wanted_version, status.refused) == ("3.0.0", "3.0.0", None)
    assert loads.loaded == ["2.0.0", "3.0.0"]


async def test_a_rollback_during_a_load_never_serves_the_version_it_rolled_back(
    kettle: ApplianceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle, "1.0.0")
    loads = SlowLoads(kettle, monkeypatch)
    await kettle.reconfigure({"model_version": "2.0.0"})
    await loads.started("2.0.0")
    await kettle.reconfigure({"model_version": "1.0.0"})
    loads.release("2.0.0")
    await loads.started("1.0.0")
    assert (await kettle.status()).model_version == "1.0.0"
    loads.release("1.0.0")
    await settled(kettle)
    assert (await kettle.status()).model_version == "1.0.0"


async def test_an_overtaken_version_that_fails_leaves_no_refusal(
    kettle: ApplianceModel, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle, "1.0.0")
    flip_a_byte(shelf)
    loads = SlowLoads(kettle, monkeypatch)
    await kettle.reconfigure({"model_version": "2.0.0"})
    await loads.started("2.0.0")
    await kettle.reconfigure({"model_version": "3.0.0"})
    loads.release("2.0.0", "3.0.0")
    await settled(kettle)
    status = await kettle.status()
    assert (status.model_version, status.refused) == ("3.0.0", None)


async def test_at_the_first_start_an_overtaken_version_is_better_than_none(
    kettle: ApplianceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = SlowLoads(kettle, monkeypatch)
    first = asyncio.create_task(kettle.reconfigure({"model_version": "1.0.0"}))
    await loads.started("1.0.0")
    second = asyncio.create_task(kettle.reconfigure({"model_version": "9.9.9"}))
    await asyncio.sleep(0)
    loads.release("1.0.0", "9.9.9")
    await asyncio.gather(first, second)
    status = await kettle.status()
    assert (status.model_version, status.wanted_version) == ("1.0.0", "9.9.9")
    assert status.refused is not None


async def test_a_cancelled_first_deploy_goes_on(kettle: ApplianceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = SlowLoads(kettle, monkeypatch)
    first = asyncio.create_task(kettle.reconfigure({"model_version": "1.0.0"}))
    await loads.started("1.0.0")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    loads.release("1.0.0")
    await settled(kettle)
    assert (await kettle.status()).model_version == "1.0.0"


async def test_each_bad_window_of_a_batch_fails_alone(kettle: ApplianceModel) -> None:
    await deploy(kettle, "1.0.0")
    good = np.linspace(0, 3, WINDOW, dtype=np.float32)
    (alone,) = await run_batch(kettle, request(good))
    batch = [
        request(good),
        request(good[:-1]),
        request([*good[:-1], np.nan]),
        request([np.inf, *good[1:]]),
        request(good[None]),
        request(good, deadline_s=time.time() - 1),
        request([]),
        request(good),
    ]
    results = await run_batch(kettle, *batch)
    refusals = [r.reason if isinstance(r, InferenceRefused) else None for r in results]
    length, finite = InferenceRefusal.WINDOW_LENGTH, InferenceRefusal.NOT_FINITE
    assert refusals == [None, length, finite, finite, length, InferenceRefusal.DEADLINE, length, None]
    first, last = results[0], results[-1]
    assert isinstance(alone, Inference)
    assert isinstance(first, Inference)
    assert isinstance(last, Inference)
    assert first.predicted_w == last.predicted_w == pytest.approx(alone.predicted_w, abs=1e-2)
    assert (first.batch_size, first.aggregate_kw) == (2, 3.0)
    assert isinstance(results[1], InferenceRefused)
    assert results[1].input_window_size == WINDOW
    status = await kettle.status()
    assert (status.windows_total, status.batches_total, status.largest_batch) == (3, 2, 2)


async def test_a_batch_of_bad_windows_runs_nothing(kettle: ApplianceModel) -> None:
    await deploy(kettle, "1.0.0")
    results = await run_batch(kettle, request([1.0]), request([]))
    assert all(isinstance(result, InferenceRefused) for result in results)
    assert (await kettle.status()).batches_total == 0


async def test_an_output_that_is_not_finite_is_refused_alone(
    kettle: ApplianceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle, "1.0.0")
    assert kettle._serving is not None

    def predict(windows_kw: Any) -> ModelOutput:
        power = np.array([5.0, np.nan, 7.0], dtype=np.float32)
        return ModelOutput(power, np.full(3, 0.5, dtype=np.float32))

    monkeypatch.setattr(kettle._serving, "predict", predict)
    results = await run_batch(kettle, request(), request(), request())
    assert [getattr(r, "reason", None) for r in results] == [None, InferenceRefusal.BAD_OUTPUT, None]


async def test_every_caller_of_a_batch_gets_its_own_answer(
    kettle: ApplianceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(kettle, "1.0.0")
    assert kettle._serving is not None

    def predict(windows_kw: Any) -> ModelOutput:
        return ModelOutput(windows_kw[:, 0] * 1000, windows_kw[:, 0] / 4)

    monkeypatch.setattr(kettle._serving, "predict", predict)
    levels = [0.0, 1.0, 2.0, 3.0]
    windows = [request(np.full(WINDOW, level)) for level in levels]
    results = await run_batch(kettle, windows[0], request([]), *windows[1:])
    answers = [r for r in results if isinstance(r, Inference)]
    assert [r.predicted_w for r in answers] == [0.0, 1000.0, 2000.0, 3000.0]
    assert [r.on_probability for r in answers] == [0.0, 0.25, 0.5, 0.75]
    assert [r.aggregate_kw for r in answers] == levels
    assert isinstance(results[1], InferenceRefused)


async def test_without_a_model_every_call_of_a_batch_is_refused(kettle: ApplianceModel) -> None:
    results = await run_batch(kettle, request(), request())
    assert [r.reason for r in results if isinstance(r, InferenceRefused)] == [InferenceRefusal.NO_MODEL] * 2
