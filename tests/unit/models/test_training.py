"""Sampling, training, calibration, export: on two tiny synthetic homes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from models.appliances import appliance
from models.architectures import INTERVAL_EDGES, SequenceModel
from models.attribution import Attribution
from models.loader import GoldenCheck, load_verified
from models.refusal import ArtifactRefusal, ArtifactRefused
from models.registry import Registry
from models.training.calibrate import Calibration, expected_calibration_error, fit, reliability, sigmoid
from models.training.evaluate import Decision, decide, only_valid, raw_outputs, report, served
from models.training.export import export
from models.training.loop import Recipe, train
from models.training.sampling import BatchSampler
from tests.unit.models.synthetic import synthetic_home

WINDOW = 64
RECIPE = Recipe(seed=5, steps=6, batch_size=8, window=WINDOW, architecture_params=(("channels", (8, 12)),))
KETTLE = appliance("kettle")
INDICES = {Attribution.FINAL: WINDOW // 2, Attribution.PROVISIONAL: WINDOW - 6}


HOMES = (synthetic_home(1), synthetic_home(2))


def trained(seed: int = 5) -> SequenceModel:
    recipe = dataclasses.replace(RECIPE, seed=seed)
    return train(BatchSampler(HOMES, KETTLE, WINDOW, seed), recipe, "cpu", lambda report: None)


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    weights = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in weights)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first = trained()
    assert same(first, trained())
    assert not same(first, trained(seed=6))


def test_batches_add_up():
    batch = BatchSampler(HOMES, KETTLE, WINDOW, seed=3).batch(64)
    assert {array.shape for array in dataclasses.astuple(batch)} == {(64, WINDOW)}
    # What the target draws is part of the mains, in composed windows too.
    assert (batch.mains_w + 1e-2 >= batch.power_w).all()
    assert batch.mains_w.max() <= 6000.0
    # Balanced: far more windows hold a kettle than by chance, and at every position of the window.
    assert (batch.state.max(axis=1) > 0).mean() > 0.5
    assert batch.state[:, :16].sum() > 0
    assert batch.state[:, -16:].sum() > 0


def test_a_network_that_answers_for_one_sample_learns_from_cycles_there_and_beside_it():
    state = BatchSampler(HOMES, KETTLE, WINDOW, seed=3).batch(4000, answers_for=WINDOW // 2).state
    at_the_sample = state[:, WINDOW // 2].mean()
    # .6 of the windows hold a cycle by choice, half of them at the sample; by chance hardly any would.
    assert 0.2 < at_the_sample < 0.4
    beside = (state[:, WINDOW // 2] == 0) & (state[:, WINDOW // 2 - 4 : WINDOW // 2 + 5].max(axis=1) > 0)
    assert beside.mean() > 0.1
    balanced_by_window = BatchSampler(HOMES, KETTLE, WINDOW, seed=3).batch(4000).state
    assert balanced_by_window[:, WINDOW // 2].mean() < at_the_sample / 3


def test_windows_of_missing_mains_are_not_sampled_and_missing_samples_weigh_nothing():
    gone = dataclasses.replace(HOMES[0], valid=np.zeros(len(HOMES[0]), dtype=np.bool_))
    valid = HOMES[1].valid.copy()
    valid[::10] = False
    sampler = BatchSampler((gone, dataclasses.replace(HOMES[1], valid=valid)), KETTLE, WINDOW, seed=3)
    weight = sampler.batch(32).weight
    assert 0.8 < weight.mean() < 0.95
    with pytest.raises(ValueError, match="no usable window"):
        BatchSampler((gone,), KETTLE, WINDOW, seed=3)


def test_calibration_recovers_slope_and_bias():
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 3, 40_000).astype(np.float32)
    on = rng.random(logit.size) < sigmoid(0.5 * logit.astype(np.float64) - 2.0)
    found = fit(logit, on)
    assert found.slope == pytest.approx(0.5, abs=0.03)
    assert found.bias == pytest.approx(-2.0, abs=0.1)
    before = expected_calibration_error(Calibration(1.0, 0.0).probability(logit), on)
    after = expected_calibration_error(found.probability(logit), on)
    assert after < 0.01 < before


def test_calibration_of_separable_and_of_one_sided_data_stays_finite():
    logit = np.array([-1.0, -2.0, 1.0, 2.0], dtype=np.float32)
    found = fit(logit, logit > 0)
    assert np.isfinite([found.slope, found.bias]).all()
    assert fit(logit, logit > 9) == Calibration(1.0, 0.0)


def test_ece_by_hand():
    probability = np.array([0.1, 0.1, 0.9, 0.9])
    assert expected_calibration_error(probability, np.array([False, False, True, True])) == pytest.approx(0.1)
    assert expected_calibration_error(probability, np.array([True, True, False, False])) == pytest.approx(0.9)


def test_reliability_bins_by_hand():
    first, last = reliability(np.array([0.0, 0.05, 1.0]), np.array([False, True, True]))
    assert (first.samples, first.mean_probability, first.share_on) == (2, pytest.approx(0.025), 0.5)
    assert (last.samples, last.mean_probability, last.share_on) == (1, 1.0, 1.0)


def decided(network: SequenceModel) -> dict[Attribution, Decision]:
    decisions = {}
    for attribution, outputs in raw_outputs(network, HOMES[0], KETTLE, WINDOW, INDICES, block=1).items():
        # Six steps teach nothing that calibration would leave standing; a steep slope lets the outputs differ.
        fitted = decide(only_valid([outputs]), KETTLE)
        decisions[attribution] = dataclasses.replace(fitted, calibration=Calibration(5.0, 0.0), power_gate=0.01)
        decisions[attribution].apply(network.readout(attribution))
    return decisions


def test_what_evaluation_scores_is_what_the_service_says(tmp_path):
    network = trained()
    decided(network)
    entry = export(network, KETTLE, RECIPE, INDICES, tmp_path, (), {"on": 0.5})
    registry = Registry.load(tmp_path / "registry.json")
    model = load_verified(registry.resolve("kettle", "unreleased"), registry.root)
    assert model.entry == entry
    assert model.golden is GoldenCheck.PASSED
    windows_kw = np.lib.stride_tricks.sliding_window_view(HOMES[0].aggregate_w, WINDOW)[:2000] / 1000
    said = model.predict(windows_kw.astype(np.float32))
    raw = raw_outputs(network, HOMES[0], KETTLE, WINDOW, INDICES, block=1)
    for attribution, index in INDICES.items():
        scored = served(raw[attribution], network.readout(attribution), KETTLE)
        minutes = slice(index, index + 2000)
        # 1e-5 kW.
        np.testing.assert_allclose(said[attribution].predicted_w, scored.power_w[minutes], atol=0.01)
        np.testing.assert_allclose(said[attribution].on_probability, scored.on_probability[minutes], atol=1e-5)
        np.testing.assert_allclose(said[attribution].interval_w, scored.interval_w[minutes], atol=0.01)
        assert np.ptp(said[attribution].on_probability) > 1e-3
    assert not list(tmp_path.rglob(".*"))


def test_a_model_that_forgot_is_caught_by_its_golden_output(tmp_path):
    network = trained()
    entry = export(network, KETTLE, RECIPE, INDICES, tmp_path / "one", (), {})
    network.heads.weight.data.mul_(-1.5)
    changed = export(network, KETTLE, RECIPE, INDICES, tmp_path / "other", (), {})
    swapped = dataclasses.replace(
        changed, golden_path=f"one/{entry.golden_path}", artifact_path="other/model.safetensors"
    )
    with pytest.raises(ArtifactRefused) as refused:
        load_verified(swapped, tmp_path)
    assert refused.value.reason is ArtifactRefusal.GOLDEN_MISMATCH


def test_the_report_covers_every_minute_that_a_window_reaches_and_only_measured_ones():
    network = trained()
    decided(network)
    valid = HOMES[0].valid.copy()
    valid[1000:1100] = False
    partly = dataclasses.replace(HOMES[0], valid=valid)
    outputs = raw_outputs(network, partly, KETTLE, WINDOW, INDICES, block=1)
    for attribution, index in INDICES.items():
        part = outputs[attribution]
        assert not part.valid[:index].any()
        assert not part.valid[1000:1100].any()
        result = report(part, network.readout(attribution), 0.5, KETTLE)
        assert result.scores.samples == len(partly) - WINDOW + 1 - 100
        assert set(result.coverages) == {0.8, 0.9}
        assert result.coverages[0.8] <= result.coverages[0.9]
        assert sum(one.samples for one in result.reliability) == result.scores.samples
        json.dumps(result.scores.as_dict(), allow_nan=False)


def test_a_block_of_minutes_has_the_outputs_of_its_own_windows():
    network = trained()
    exact = raw_outputs(network, HOMES[0], KETTLE, WINDOW, INDICES, block=1)
    blocks = raw_outputs(network, HOMES[0], KETTLE, WINDOW, INDICES, block=4)
    final = Attribution.FINAL
    # The first window of a block answers at its own index too: there both agree.
    minutes = np.arange(INDICES[final], len(HOMES[0]) - WINDOW, 4)
    np.testing.assert_allclose(blocks[final].logit[minutes], exact[final].logit[minutes], atol=1e-4)
    assert blocks[final].valid.sum() >= exact[final].valid.sum() - 4


def test_intervals_hold_on_the_data_that_fitted_them():
    network = trained()
    decisions = decided(network)
    outputs = raw_outputs(network, HOMES[0], KETTLE, WINDOW, INDICES, block=1)[Attribution.FINAL]
    fitted = decide(only_valid([outputs]), KETTLE)
    fitted.apply(network.readout(Attribution.FINAL))
    result = report(outputs, network.readout(Attribution.FINAL), fitted.state_threshold, KETTLE)
    assert result.coverages[0.8] >= 0.8
    assert result.coverages[0.9] >= 0.9
    assert decisions[Attribution.FINAL].interval_offsets_w.shape == (2, len(INTERVAL_EDGES) + 1, 2)
