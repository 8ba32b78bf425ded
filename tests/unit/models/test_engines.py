"""Another engine than torch: it says what torch says, or it does not load."""

from __future__ import annotations

import copy
import dataclasses
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import openvino_network
from models.appliances import appliance
from models.architectures import build
from models.engines import F1_MAY_DROP, Engine, unproven
from models.figures import champions
from models.loader import GoldenCheck, LoadedModel, golden_arrays, load_verified
from models.openvino_network import (
    BLOCK_WINDOWS,
    LOGIT_TOLERANCE,
    POWER_TOLERANCE_W,
    OpenVinoNetwork,
    compiled,
)
from models.refusal import ArtifactRefusal, ArtifactRefused
from models.registry import PACKAGED_REGISTRY, Registry, RegistryEntry, RegistryError, registry_text
from models.training.golden import synthetic_windows_kw
from tests.unit.models.engine_evidence import evidence, on_openvino

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = (32, 63)
SIZES = (1, BLOCK_WINDOWS - 1, BLOCK_WINDOWS, 2 * BLOCK_WINDOWS + 3)


def load(published: Any, **figures: float) -> LoadedModel:
    """The published model on OpenVINO."""
    published.entry |= on_openvino(published.entry, **figures)
    entry = Registry.load(published.write()).entries[0]
    return load_verified(entry, published.root)


def refusal(published: Any) -> ArtifactRefused:
    entry = Registry.load(published.write()).entries[0]
    with pytest.raises(ArtifactRefused) as refused:
        load_verified(entry, published.root)
    return refused.value


@pytest.mark.parametrize("entry", champions(Registry.load().entries), ids=lambda entry: entry.model_id)
def test_every_packaged_model_says_on_openvino_what_it_says_on_torch(entry: RegistryEntry) -> None:
    by_torch = load_verified(entry, PACKAGED_REGISTRY.parent)
    wanted = dataclasses.replace(entry, engine=Engine.OPENVINO)
    by_openvino = load_verified(wanted, PACKAGED_REGISTRY.parent, evidence_needed=False)
    assert (by_openvino.engine, by_openvino.golden) == (Engine.OPENVINO, GoldenCheck.PASSED)
    assert isinstance(by_openvino.network, OpenVinoNetwork)
    rng = np.random.default_rng(17)
    largest = dict.fromkeys(("logit", "power_w", "on_probability", "predicted_w", "interval_w"), 0.0)
    for size in SIZES:
        noise_kw = rng.gamma(1.0, 1.0, (size, entry.input_window_size)).astype(np.float32)
        for index in {0, *entry.sample_indices.values()}:
            target = appliance(entry.appliance_id)
            lively_kw = synthetic_windows_kw(target, entry.input_window_size, index, size, seed=size + index)
            for windows_kw in (noise_kw, lively_kw):
                _note_differences(largest, by_torch, by_openvino, windows_kw)
    print(f"{entry.model_id}: largest differences {largest}")
    assert largest["logit"] <= LOGIT_TOLERANCE
    assert largest["power_w"] <= POWER_TOLERANCE_W
    assert largest["on_probability"] <= LOGIT_TOLERANCE
    assert largest["predicted_w"] <= POWER_TOLERANCE_W
    assert largest["interval_w"] <= POWER_TOLERANCE_W


def _note_differences(
    largest: dict[str, float], by_torch: LoadedModel, by_openvino: LoadedModel, windows_kw: np.ndarray
) -> None:
    with torch.inference_mode():
        mains = by_torch.network_input(windows_kw)
        raw = zip(("logit", "power_w"), by_torch.network(mains), by_openvino.network(mains), strict=True)
        pairs = [(name, one.numpy(), other.numpy()) for name, one, other in raw]
    expected, actual = by_torch.predict(windows_kw), by_openvino.predict(windows_kw)
    for attribution, output in expected.items():
        readout = by_torch.network.readout(attribution)
        # Where rounding decides on which side of a gate or an edge a window falls, the answers may lie far apart.
        thresholds = np.append(readout._edges.numpy(), readout.power_gate.numpy())
        clear = np.abs(output.on_probability[:, None] - thresholds).min(axis=1) > 1e-4
        for name in ("on_probability", "predicted_w", "interval_w"):
            one, other = getattr(output, name), getattr(actual[attribution], name)
            assert other.dtype == np.float32
            assert other.shape == one.shape
            pairs.append((name, one[clear], other[clear]))
    for name, one, other in pairs:
        assert np.isfinite(other).all()
        largest[name] = max(largest[name], float(np.abs(one - other).max(initial=0.0)))


@pytest.mark.parametrize(
    ("name", "params", "window"),
    [
        ("CNNTransformer", {"d_model": 8, "n_heads": 2, "n_layers": 1, "input_channels": 2}, 64),
        ("NILMFormer", {"d_model": 16, "n_heads": 2, "n_layers": 1}, 64),
        ("Seq2Point", {}, 32),
        ("TemporalPoolingUNet", {"channels": [8, 16]}, 64),
        ("Ensemble", {"member": "NILMFormer", "members": 5, "member_params": {"d_model": 8, "n_heads": 2}}, 32),
    ],
)
def test_every_architecture_compiles(name: str, params: dict[str, Any], window: int) -> None:
    network = build(name, params, window).eval().requires_grad_(False)
    samples = (window // 2,) * 2 if network.answers_for else (window // 2, window - 1)
    other = compiled(network, torch.randn(2 * BLOCK_WINDOWS + 1, window), samples)
    assert other.answers_for == network.answers_for
    with torch.inference_mode():
        for size in SIZES:
            mains = torch.randn(size, window)
            answers = zip(other.at(mains, samples), network.at(mains, samples), strict=True)
            windows = zip(other(mains), network(mains), strict=True)
            for said, expected in (*answers, *windows):
                torch.testing.assert_close(said, expected, rtol=0, atol=LOGIT_TOLERANCE, equal_nan=True)


def test_a_window_gets_the_same_bits_alone_and_behind_a_block(published: Any) -> None:
    model = load(published)
    windows_kw = np.random.default_rng(1).uniform(0.1, 3.0, (BLOCK_WINDOWS + 2, 1000)).astype(np.float32)
    together, alone = golden_arrays(model.predict(windows_kw)), golden_arrays(model.predict(windows_kw[-1:]))
    for name, values in together.items():
        np.testing.assert_array_equal(values[-1:], alone[name])
    assert golden_arrays(model.predict(windows_kw[:0]))["final_predicted_w"].shape == (0,)


def test_a_network_that_says_something_else_is_refused(published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = openvino_network._onnx

    def perturbed(function: Any, window: int) -> Any:
        other = copy.deepcopy(function)
        other._network.heads.bias += 2 * LOGIT_TOLERANCE
        return exported(other, window)

    monkeypatch.setattr(openvino_network, "_onnx", perturbed)
    published.entry |= on_openvino(published.entry)
    refused = refusal(published)
    assert refused.reason is ArtifactRefusal.ENGINE_MISMATCH
    assert "on_logit differs from torch's by 0.002" in refused.detail


@pytest.mark.parametrize("size", [1, BLOCK_WINDOWS])
def test_both_compiled_shapes_are_compared(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    network = build("TemporalPoolingUNet", {"channels": [8, 16]}, 64).eval().requires_grad_(False)
    honest = OpenVinoNetwork.at

    def wrong_in_one_shape(self: Any, mains: torch.Tensor, samples: Any) -> tuple[torch.Tensor, torch.Tensor]:
        on_logit, power_w = honest(self, mains, samples)
        if (len(mains) >= BLOCK_WINDOWS) == (size == BLOCK_WINDOWS):
            power_w[0, 0] += 2 * POWER_TOLERANCE_W
        return on_logit, power_w

    monkeypatch.setattr(OpenVinoNetwork, "at", wrong_in_one_shape)
    with pytest.raises(ArtifactRefused, match="power_w differs") as refused:
        compiled(network, torch.randn(BLOCK_WINDOWS + 1, 64), SAMPLES)
    assert refused.value.reason is ArtifactRefusal.ENGINE_MISMATCH


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_answer_that_is_no_number_is_a_mismatch(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    network = build("TemporalPoolingUNet", {"channels": [8, 16]}, 64).eval().requires_grad_(False)
    monkeypatch.setattr(
        OpenVinoNetwork, "at", lambda self, mains, _: (torch.full((len(mains), 2), value), torch.zeros(len(mains), 2))
    )
    with pytest.raises(ArtifactRefused, match="differs from torch's by inf"):
        compiled(network, torch.randn(2, 64), SAMPLES)


def test_a_network_that_openvino_does_not_take(published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "models.architectures.cnn_transformer.with_difference",
        lambda mains, channels: torch.diff(mains, dim=1, prepend=mains[:, :1]).unsqueeze(1),
    )
    published.entry |= on_openvino(published.entry)
    refused = refusal(published)
    assert refused.reason is ArtifactRefusal.ENGINE_FAILED
    assert "OpenVINO does not take it: " in refused.detail


def test_it_computes_in_float32_on_one_thread_of_no_chosen_core() -> None:
    """bfloat16 is its default where the CPU has it, and a pinned thread would share its core with every replica's."""
    network = OpenVinoNetwork(build("TemporalPoolingUNet", {"channels": [8, 16]}, 64).eval(), 64, SAMPLES)
    for one in network._answers.compiled.values():
        assert one.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
        assert one.get_property("INFERENCE_NUM_THREADS") == 1
        assert one.get_property("NUM_STREAMS") == 1
        assert one.get_property("ENABLE_CPU_PINNING") is False


def test_without_the_extra_only_such_versions_are_refused(published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert load_verified(Registry.load(published.path).entries[0], published.root).engine is Engine.TORCH
    published.entry |= on_openvino(published.entry)
    refused = refusal(published)
    assert refused.reason is ArtifactRefusal.ENGINE_MISSING
    assert "pip install 'nilm-serve[openvino]'" in refused.detail


def test_importing_openvino_reports_to_nobody(tmp_path: Path) -> None:
    """Its telemetry leaves an identifier in the home folder before it sends anything."""
    code = (
        "import sys; from models.openvino_network import _openvino; openvino = _openvino();"
        "from openvino.tools.ovc import telemetry; print(type(telemetry).__module__)"
    )
    command = [sys.executable, "-c", code]
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin", "PYTHONPATH": str(ROOT)}
    reply = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert reply.stdout.strip() == "openvino.tools.ovc.telemetry_stub"
    assert list(tmp_path.iterdir()) == []


def test_evidence_is_needed_and_must_be_of_these_weights_and_this_engine(published: Any) -> None:
    assert load(published).engine is Engine.OPENVINO
    good = published.entry["engine_evidence"]
    for wrong, said in (
        (None, "nobody has measured it with openvino; do it with: nilm models engine kettle-cnnt 0.1.0 openvino"),
        (evidence("0" * 64), "is not these weights with openvino"),
        (evidence(good["artifact_sha256"], 0.95, 0.948), "drops from 0.9500 to 0.9480 with openvino; 0.001 is allowed"),
    ):
        published.entry["engine_evidence"] = wrong
        refused = refusal(published)
        assert refused.reason is ArtifactRefusal.ENGINE_UNPROVEN
        assert said in refused.detail


def test_any_answer_of_any_test_may_drop_by_no_more_than_rounding(published: Any) -> None:
    published.entry |= on_openvino(published.entry)
    entry = Registry.load(published.write()).entries[0]
    good = entry.engine_evidence
    assert good is not None

    def reason(answer: str, f1: float) -> str | None:
        changed = copy.deepcopy(good)
        changed["tests"].append(copy.deepcopy(changed["tests"][0]))
        changed["tests"][1]["engine"][answer]["f1"] = f1
        return unproven(dataclasses.replace(entry, engine_evidence=changed))

    for answer, f1 in (("final", 0.95), ("provisional", 0.9)):
        assert reason(answer, f1 - 0.9 * F1_MAY_DROP) is None
        assert reason(answer, f1 + 0.05) is None
        assert f"its {answer} answer drops" in (reason(answer, f1 - 1.1 * F1_MAY_DROP) or "")
        assert reason(answer, float("nan")) is not None


def test_without_golden_windows_there_is_nothing_to_compare(published: Any) -> None:
    published.entry |= on_openvino(published.entry) | {"golden_path": None}
    assert refusal(published).reason is ArtifactRefusal.GOLDEN_MISSING


def test_golden_outputs_are_compared_with_what_serves(published: Any) -> None:
    path = published.root / published.entry["golden_path"]
    with np.load(path) as golden:
        arrays = {name: golden[name] for name in golden.files}
    np.savez(path, **arrays | {"final_predicted_w": arrays["final_predicted_w"] + 5.0})
    published.entry |= on_openvino(published.entry)
    assert refusal(published).reason is ArtifactRefusal.GOLDEN_MISMATCH


def test_threads_do_not_meet_in_one_request(published: Any) -> None:
    model = load(published)
    windows_kw = np.random.default_rng(5).uniform(0.1, 3.0, (6, 11, 1000)).astype(np.float32)
    expected = [golden_arrays(model.predict(one)) for one in windows_kw]
    start, faults = threading.Barrier(6), []

    def ask(number: int) -> None:
        try:
            start.wait(10)
            for _ in range(20):
                for name, values in golden_arrays(model.predict(windows_kw[number])).items():
                    np.testing.assert_array_equal(values, expected[number][name])
        except BaseException as fault:  # noqa: BLE001 - told by the main thread
            faults.append(fault)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []


def test_the_registry_says_the_engine_only_where_there_is_one(published: Any) -> None:
    entry = Registry.load(published.path).entries[0]
    assert (entry.engine, entry.engine_evidence) == (Engine.TORCH, None)
    assert "engine" not in registry_text([entry])
    changed = dataclasses.replace(
        entry, engine=Engine.OPENVINO, engine_evidence=on_openvino(published.entry)["engine_evidence"]
    )
    published.path.write_text(registry_text([changed]))
    assert Registry.load(published.path).entries[0] == changed


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"engine": "onnx"}, "/models/0/engine"),
        ({"engine": None}, "/models/0/engine"),
        ({"engine_evidence": {}}, "/models/0/engine_evidence"),
        ({"engine_evidence": evidence("0" * 64) | {"tests": []}}, "/models/0/engine_evidence"),
        ({"engine_evidence": evidence("0" * 64, engine_f1=1.2)}, "/models/0/engine_evidence"),
        ({"engine_evidence": evidence("0" * 64) | {"engine": "torch"}}, "/models/0/engine_evidence"),
    ],
)
def test_what_is_no_engine_or_no_evidence_is_refused_by_the_schema(
    published: Any, change: dict[str, Any], pointer: str
) -> None:
    published.entry |= change
    with pytest.raises(RegistryError, match=pointer):
        Registry.load(published.write())


def test_loading_again_and_again_takes_no_more_memory() -> None:
    """A replica loads each version that is rolled out, and lives long."""
    network = build("TemporalPoolingUNet", {"channels": [8, 16]}, 64).eval().requires_grad_(False)

    def resident_mb(loads: int) -> float:
        for _ in range(loads):
            compiled(network, torch.zeros(2, 64), SAMPLES)
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    before_mb = resident_mb(10)
    grown_mb = resident_mb(20) - before_mb
    print(f"20 more loads: {grown_mb:+.1f} MB")
    assert grown_mb < 2.0
