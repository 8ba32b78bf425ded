"""Sampling, training, calibration, export: on two tiny synthetic homes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from models.appliances import appliance
from models.loader import ArtifactRefusal, ArtifactRefused, GoldenCheck, load_verified
from models.registry import Registry
from models.training.calibrate import Calibration, expected_calibration_error, fit, sigmoid
from models.training.evaluate import Decision, only_valid, raw_outputs, report
from models.training.export import VersionExists, apply_decision, export, register
from models.training.loop import Recipe, train
from models.training.recordings import TRAINING_RECORDINGS, Home, split
from models.training.sampling import BatchSampler

WINDOW = 64
RECIPE = Recipe(seed=5, steps=6, batch_size=8, window=WINDOW, architecture_params=(("channels", (8, 12)),))
KETTLE = appliance("kettle")


def home(seed: int, samples: int = 6000) -> Home:
    """A base load, kettles of three minutes and washing machines of an hour."""
    rng = np.random.default_rng(seed)
    kettle, washing = np.zeros(samples, dtype=np.float32), np.zeros(samples, dtype=np.float32)
    for start in rng.integers(0, samples - 70, 60):
        kettle[start : start + 3] = 2700.0
    for start in rng.integers(0, samples - 70, 6):
        washing[start : start + 60] = 300.0
    base = (100.0 + rng.normal(0, 10, samples)).astype(np.float32)
    return Home(
        recording=TRAINING_RECORDINGS[0],
        start=pd.Timestamp("2014-01-01"),
        aggregate_w=base + kettle + washing,
        valid=np.ones(samples, dtype=np.bool_),
        appliances_w={"kettle": kettle, "washing_machine": washing},
    )


HOMES = (home(1), home(2))


def trained(seed: int = 5) -> torch.nn.Module:
    recipe = dataclasses.replace(RECIPE, seed=seed)
    return train(BatchSampler(HOMES, KETTLE, WINDOW, seed), recipe, "cpu", lambda step, loss: None)


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


def test_windows_of_missing_mains_are_not_sampled_and_missing_samples_weigh_nothing():
    gone = dataclasses.replace(HOMES[0], valid=np.zeros(len(HOMES[0]), dtype=np.bool_))
    valid = HOMES[1].valid.copy()
    valid[::10] = False
    sampler = BatchSampler((gone, dataclasses.replace(HOMES[1], valid=valid)), KETTLE, WINDOW, seed=3)
    weight = sampler.batch(32).weight
    assert 0.8 < weight.mean() < 0.95
    with pytest.raises(ValueError, match="no usable window"):
        BatchSampler((gone,), KETTLE, WINDOW, seed=3)


def test_the_split_leaves_a_day_between():
    whole = home(3, samples=20_000)
    training, validation = split(whole)
    gap_s = (validation.start - training.start).total_seconds() - 60 * len(training)
    assert gap_s == 86_400
    assert len(training) + len(validation) + 1440 == len(whole)


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


def test_export_register_and_serve(tmp_path):
    network = trained()
    served_index = WINDOW - 6
    (outputs,) = raw_outputs(network, HOMES[0], KETTLE, WINDOW, [served_index])
    decision = Decision(fit(outputs.logit, outputs.state), power_gate=0.01, state_threshold=0.5)
    apply_decision(network, decision)
    entry = export(network, KETTLE, RECIPE, served_index, "1.0.0", tmp_path, (), {"on": 0.5}, True)
    register(entry, tmp_path)

    registry = Registry.load(tmp_path / "registry.json")
    model = load_verified(registry.active("kettle"), registry.root)
    assert model.golden is GoldenCheck.PASSED
    # What evaluation scores is what the service says, for the same windows.
    windows_kw = np.lib.stride_tricks.sliding_window_view(HOMES[0].aggregate_w, WINDOW)[:200] / 1000
    probability, power_w = decision.served(outputs.logit, outputs.power_w, KETTLE)
    said = model.predict(windows_kw.astype(np.float32))
    np.testing.assert_allclose(said.on_probability, probability[:200], atol=1e-4)
    np.testing.assert_allclose(said.predicted_w, power_w[:200], atol=0.5)

    with pytest.raises(VersionExists):
        register(entry, tmp_path)
    register(dataclasses.replace(entry, model_version="1.1.0"), tmp_path)
    registry = Registry.load(tmp_path / "registry.json")
    assert [(known.model_version, known.is_active) for known in registry.entries] == [
        ("1.0.0", False),
        ("1.1.0", True),
    ]
    assert not list(tmp_path.rglob(".*"))


def test_a_model_that_forgot_is_caught_by_its_golden_output(tmp_path):
    network = trained()
    entry = export(network, KETTLE, RECIPE, WINDOW - 6, "1.0.0", tmp_path, (), {}, True)
    network.heads.weight.data.mul_(-1.5)
    changed = export(network, KETTLE, RECIPE, WINDOW - 6, "1.0.1", tmp_path, (), {}, True)
    swapped = dataclasses.replace(changed, golden_path=entry.golden_path)
    with pytest.raises(ArtifactRefused) as refused:
        load_verified(swapped, tmp_path)
    assert refused.value.reason is ArtifactRefusal.GOLDEN_MISMATCH


def test_the_report_covers_every_window_and_only_measured_samples():
    network = trained()
    valid = HOMES[0].valid.copy()
    valid[1000:1100] = False
    partly = dataclasses.replace(HOMES[0], valid=valid)
    served, centred = raw_outputs(network, partly, KETTLE, WINDOW, [WINDOW - 6, WINDOW // 2])
    assert served.position[0] == WINDOW - 6
    assert len(served.position) == len(partly) - WINDOW + 1
    np.testing.assert_array_equal(centred.true_w, partly.appliances_w["kettle"][centred.position])
    result = report(served, Decision(Calibration(1.0, 0.0), 0.5, 0.5), KETTLE, WINDOW - 6)
    assert result.scores.samples == len(partly) - WINDOW + 1 - 100
    assert len(only_valid([served, centred]).logit) == 2 * result.scores.samples
    json.dumps(result.scores.as_dict(), allow_nan=False)
