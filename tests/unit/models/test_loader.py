"""`load_verified`: each step refuses what it exists to refuse, and a good artifact predicts."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from models.attribution import Attribution
from models.loader import (
    GOLDEN_TOLERANCE_PROBABILITY,
    GOLDEN_TOLERANCE_W,
    GoldenCheck,
    LoadedModel,
    ModelOutput,
    golden_arrays,
    load_verified,
)
from models.refusal import ArtifactRefusal, ArtifactRefused
from models.registry import Registry

WINDOWS = np.random.default_rng(3).uniform(0.1, 3.0, (3, 1000)).astype(np.float32)


def load(legacy) -> LoadedModel:
    registry = Registry.load(legacy.path)
    return load_verified(registry.resolve("kettle", "0.1.0"), registry.root)


def refusal(legacy) -> ArtifactRefused:
    with pytest.raises(ArtifactRefused) as refused:
        load(legacy)
    return refused.value


def final(model: LoadedModel, windows_kw: np.ndarray) -> ModelOutput:
    return model.predict(windows_kw)[Attribution.FINAL]


def write_golden(legacy, **changes: np.ndarray | None) -> None:
    """The golden file of the model as it is; `name=None` leaves an array out."""
    arrays = {"windows_kw": WINDOWS, **golden_arrays(load(legacy).predict(WINDOWS)), **changes}
    np.savez(legacy.root / "golden.npz", **{name: array for name, array in arrays.items() if array is not None})
    legacy.entry["golden_path"] = "golden.npz"
    legacy.write()


def test_a_legacy_entry_loads_and_predicts(legacy):
    model = load(legacy)
    outputs = model.predict(WINDOWS)
    assert model.golden is GoldenCheck.SKIPPED
    assert set(outputs) == set(Attribution)
    for output in outputs.values():
        assert output.predicted_w.shape == output.on_probability.shape == (3,)
        assert output.interval_w.shape == (3, 2, 2)
        assert output.predicted_w.dtype == output.on_probability.dtype == output.interval_w.dtype == np.float32
        assert (output.predicted_w >= 0).all()
        assert (output.predicted_w <= 3100).all()
        assert ((output.on_probability >= 0) & (output.on_probability <= 1)).all()
        # Nobody fitted intervals for it: they are the power itself.
        np.testing.assert_array_equal(output.interval_w, np.broadcast_to(output.predicted_w[:, None, None], (3, 2, 2)))
    # It has one output sample, so both answers are the same.
    for name, values in golden_arrays({Attribution.FINAL: outputs[Attribution.FINAL]}).items():
        np.testing.assert_array_equal(values, golden_arrays(outputs)[name.replace("final", "provisional")])


def test_each_answer_stands_for_its_own_sample_with_its_own_readout(legacy, edited_weights):
    # A gate above 1 silences the answer, whatever the network says.
    edited_weights(lambda weights: weights["readouts.provisional.power_gate"].fill_(2.0))
    edited_weights(lambda weights: weights["readouts.final.calibration_bias"].fill_(0.5))
    legacy.entry |= {"output_sample_index": 300, "provisional_sample_index": 990}
    legacy.write()
    model = load(legacy)
    outputs = model.predict(WINDOWS)
    with torch.inference_mode():
        on_logit, power_w = model.network(torch.from_numpy((WINDOWS * 1000 - 522.0) / 814.0))
    expected = torch.sigmoid(on_logit[:, 300] + 0.5)
    np.testing.assert_allclose(outputs[Attribution.FINAL].on_probability, expected, atol=1e-5)
    np.testing.assert_allclose(outputs[Attribution.FINAL].predicted_w, power_w[:, 300], atol=0.1)
    expected = torch.sigmoid(on_logit[:, 990])
    np.testing.assert_allclose(outputs[Attribution.PROVISIONAL].on_probability, expected, atol=1e-5)
    np.testing.assert_array_equal(outputs[Attribution.PROVISIONAL].predicted_w, np.zeros(3))
    assert (power_w[:, 990] > 0).all()


def test_the_batch_a_window_is_in_does_not_change_its_output(legacy):
    model = load(legacy)
    together = golden_arrays(model.predict(WINDOWS))
    alone = [golden_arrays(model.predict(WINDOWS[i : i + 1])) for i in range(3)]
    for name, values in together.items():
        np.testing.assert_allclose(values, np.concatenate([arrays[name] for arrays in alone]), atol=0.01)


def test_another_window_length_is_a_value_error(legacy):
    with pytest.raises(ValueError, match=r"\[n, 1000\]"):
        load(legacy).predict(WINDOWS[:, :999])


def test_input_in_kw_and_in_w_agree(legacy):
    in_w = final(load(legacy), WINDOWS)
    legacy.entry |= {
        "input_unit": "kW",
        "preprocessing": {"type": "standard", "mean": 0.522, "std": 0.814, "clip_w": None},
    }
    legacy.write()
    np.testing.assert_allclose(final(load(legacy), WINDOWS).predicted_w, in_w.predicted_w, atol=0.05)


def test_mains_above_the_clip_look_like_the_clip(legacy):
    legacy.entry["preprocessing"]["clip_w"] = 6000.0
    legacy.write()
    model = load(legacy)
    high = np.full((1, 1000), 9.0, dtype=np.float32)
    clipped = final(model, np.full_like(high, 6.0))
    np.testing.assert_array_equal(final(model, high).predicted_w, clipped.predicted_w)


@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_corrupted_byte(legacy, position):
    content = bytearray(legacy.artifact.read_bytes())
    content[position] ^= 1
    legacy.artifact.write_bytes(content)
    assert refusal(legacy).reason is ArtifactRefusal.SHA256_MISMATCH


def test_truncated(legacy):
    legacy.artifact.write_bytes(legacy.artifact.read_bytes()[:-100])
    assert refusal(legacy).reason is ArtifactRefusal.SHA256_MISMATCH
    legacy.rehash()
    assert refusal(legacy).reason is ArtifactRefusal.NOT_SAFETENSORS


def test_missing(legacy):
    legacy.artifact.unlink()
    assert refusal(legacy).reason is ArtifactRefusal.ARTIFACT_MISSING


def test_a_pickle_named_safetensors_is_refused_and_never_run(legacy, tmp_path):
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return Path.touch, (marker,)

    legacy.artifact.write_bytes(pickle.dumps(Hostile()))
    legacy.rehash()
    assert refusal(legacy).reason is ArtifactRefusal.NOT_SAFETENSORS
    torch.save({"weight": torch.zeros(1)}, legacy.artifact)
    legacy.rehash()
    assert refusal(legacy).reason is ArtifactRefusal.NOT_SAFETENSORS
    assert not marker.exists()


def test_an_empty_file(legacy):
    legacy.artifact.write_bytes(b"")
    legacy.rehash()
    assert refusal(legacy).reason is ArtifactRefusal.NOT_SAFETENSORS


def test_wrong_shape(legacy, edited_weights):
    edited_weights(lambda weights: weights.update({"heads.bias": torch.zeros(9)}))
    refused = refusal(legacy)
    assert refused.reason is ArtifactRefusal.WEIGHTS_MISMATCH
    assert "heads.bias" in refused.detail


def test_missing_and_surplus_weights(legacy, edited_weights):
    edited_weights(lambda weights: weights.pop("heads.bias"))
    assert refusal(legacy).reason is ArtifactRefusal.WEIGHTS_MISMATCH
    edited_weights(lambda weights: weights.update({"heads.bias": torch.zeros(8), "other": torch.zeros(1)}))
    assert refusal(legacy).reason is ArtifactRefusal.WEIGHTS_MISMATCH


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(legacy, edited_weights, value):
    edited_weights(lambda weights: weights["heads.weight"].view(-1)[5].fill_(value))
    refused = refusal(legacy)
    assert refused.reason is ArtifactRefusal.WEIGHTS_NOT_FINITE
    assert "heads.weight" in refused.detail


def test_finite_weights_that_overflow_fail_the_warm_up(legacy, edited_weights):
    edited_weights(lambda weights: weights["heads.weight"].fill_(3e38))
    assert refusal(legacy).reason is ArtifactRefusal.WARM_UP_FAILED


@pytest.mark.parametrize("attribution", Attribution)
def test_an_interval_that_overflows_fails_the_warm_up(legacy, edited_weights, attribution):
    legacy.entry["max_power_w"] = None  # no clamp that would hide it
    # Two finite numbers whose sum is not: the power and its offset.
    edited_weights(lambda weights: weights["power_scale_w"].fill_(3e38))
    assert load(legacy).golden is GoldenCheck.SKIPPED
    edited_weights(lambda weights: weights[f"readouts.{attribution}.interval_offsets_w"].fill_(3.4e38))
    assert refusal(legacy).reason is ArtifactRefusal.WARM_UP_FAILED


def test_unknown_architecture_and_parameter(legacy):
    legacy.entry["architecture_params"]["d_modle"] = 64
    legacy.write()
    refused = refusal(legacy)
    assert refused.reason is ArtifactRefusal.UNKNOWN_ARCHITECTURE
    assert "d_modle" in refused.detail
    legacy.entry["architecture"] = "Oracle"
    legacy.write()
    assert refusal(legacy).reason is ArtifactRefusal.UNKNOWN_ARCHITECTURE


def test_golden_passes(legacy):
    write_golden(legacy)
    assert load(legacy).golden is GoldenCheck.PASSED


ANSWERS = [
    (attribution, field) for attribution in Attribution for field in ("predicted_w", "on_probability", "interval_w")
]


@pytest.mark.parametrize(("attribution", "field"), ANSWERS)
def test_a_golden_array_that_differs_or_is_missing_is_named(legacy, attribution, field):
    name = f"{attribution}_{field}"
    golden = golden_arrays(load(legacy).predict(WINDOWS))[name]
    tolerance = GOLDEN_TOLERANCE_PROBABILITY if field == "on_probability" else GOLDEN_TOLERANCE_W
    one_off, within = golden.copy(), golden.copy()
    one_off.flat[-1] += 2 * tolerance
    within.flat[-1] += tolerance / 2
    write_golden(legacy, **{name: within})
    assert load(legacy).golden is GoldenCheck.PASSED
    for wrong in (one_off, np.full_like(golden, np.nan), golden[:-1], None):
        legacy.entry["golden_path"] = None
        legacy.write()
        write_golden(legacy, **{name: wrong})
        refused = refusal(legacy)
        assert refused.reason is ArtifactRefusal.GOLDEN_MISMATCH
        assert name in refused.detail


@pytest.mark.parametrize(
    "changes",
    [
        {"windows_kw": WINDOWS[:, :10]},
        {"windows_kw": WINDOWS[:0]},
        {"windows_kw": None},
        {"final_interval_w": np.zeros((3, 4), dtype=np.float32)},
        {"final_predicted_w": np.array([{}, {}, {}], dtype=object)},
        {"centred_predicted_w": np.zeros(3, dtype=np.float32)},
    ],
    ids=["short windows", "no windows", "windows missing", "another shape", "pickled", "surplus"],
)
def test_a_golden_file_of_another_form_is_a_mismatch(legacy, changes):
    write_golden(legacy, **changes)
    assert refusal(legacy).reason is ArtifactRefusal.GOLDEN_MISMATCH


def test_golden_missing_and_garbled(legacy):
    legacy.entry["golden_path"] = "golden.npz"
    legacy.write()
    assert refusal(legacy).reason is ArtifactRefusal.GOLDEN_MISSING
    (legacy.root / "golden.npz").write_bytes(b"not a zip")
    assert refusal(legacy).reason is ArtifactRefusal.GOLDEN_MISMATCH


def test_a_symlink_out_of_the_root_is_not_followed(legacy, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "model.safetensors"
    outside.write_bytes(legacy.artifact.read_bytes())
    legacy.artifact.unlink()
    legacy.artifact.symlink_to(outside)
    refused = refusal(legacy)
    assert refused.reason is ArtifactRefusal.ARTIFACT_MISSING
    assert "outside" in refused.detail


def test_a_device_this_machine_lacks_is_a_refusal(legacy):
    registry = Registry.load(legacy.path)
    with pytest.raises(ArtifactRefused) as refused:
        load_verified(registry.entries[0], registry.root, device="cuda:99")
    assert refused.value.reason is ArtifactRefusal.WARM_UP_FAILED


def test_a_refusal_survives_pickling():
    refused = pickle.loads(pickle.dumps(ArtifactRefused(ArtifactRefusal.GOLDEN_MISMATCH, "by 3 W")))  # noqa: S301
    assert (refused.reason, refused.detail) == (ArtifactRefusal.GOLDEN_MISMATCH, "by 3 W")
    assert str(refused) == "golden_mismatch: by 3 W"
