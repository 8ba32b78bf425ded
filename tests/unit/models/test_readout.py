"""`Readout` by hand: calibration, gate, the group of an on-probability, offsets, clamping."""

from __future__ import annotations

import math

import pytest
import torch

from models.architectures.readout import COVERAGES, INTERVAL_EDGES, Readout

GROUPS = len(INTERVAL_EDGES) + 1


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


@pytest.fixture
def numbered() -> Readout:
    """Offsets that tell their group g: [-g, g] W for the first coverage, [-10 g, 10 g] for the second."""
    readout = Readout()
    for group in range(GROUPS):
        readout.interval_offsets_w[:, group] = torch.tensor([[-1.0, 1.0], [-10.0, 10.0]]) * group
    return readout


def test_before_it_is_fitted_it_changes_nothing():
    estimate = Readout()(torch.tensor([-3.0, 0.0, 3.0]), torch.tensor([1.0, 20.0, 300.0]), None)
    torch.testing.assert_close(estimate.on_probability, torch.tensor([0.04742587, 0.5, 0.95257413]))
    assert estimate.power_w.tolist() == [1.0, 20.0, 300.0]
    assert estimate.interval_w.shape == (3, len(COVERAGES), 2)
    assert estimate.interval_w.tolist() == [[[power] * 2] * 2 for power in (1.0, 20.0, 300.0)]


def test_the_calibration_is_a_slope_and_a_bias_on_the_logit():
    readout = Readout()
    readout.calibration_slope.fill_(0.5)
    readout.calibration_bias.fill_(-1.0)
    # 0.5 * 4 - 1 = 1; sigmoid(1) = 0.7310586.
    assert readout.on_probability(torch.tensor([4.0])).item() == pytest.approx(0.7310586, abs=1e-6)


@pytest.mark.parametrize(("on_logit", "power_w"), [(-0.01, 0.0), (0.0, 800.0), (0.01, 800.0)])
def test_below_the_gate_there_is_no_power_and_on_it_there_is(on_logit, power_w):
    readout = Readout()
    readout.power_gate.fill_(0.5)
    estimate = readout(torch.tensor([on_logit]), torch.tensor([800.0]), None)
    assert estimate.power_w.tolist() == [power_w]


def test_the_gate_is_on_the_calibrated_probability():
    readout = Readout()
    readout.power_gate.fill_(0.5)
    readout.calibration_bias.fill_(-2.0)
    assert readout(torch.tensor([1.0, 3.0]), torch.tensor([800.0, 800.0]), None).power_w.tolist() == [0.0, 800.0]


@pytest.mark.parametrize(
    ("probability", "group"),
    [(0.001, 0), (0.0199, 0), (0.0201, 1), (0.0999, 1), (0.1001, 2), (0.29, 2), (0.31, 3), (0.59, 3), (0.61, 4),
     (0.89, 4), (0.91, 5), (0.979, 5), (0.981, 6), (0.9999, 6)],
)  # fmt: skip
def test_the_offsets_are_those_of_the_probabilitys_group(numbered, probability, group):
    estimate = numbered(torch.tensor([logit(probability)]), torch.tensor([500.0]), None)
    assert estimate.interval_w.tolist() == [[[500.0 - group, 500.0 + group], [500.0 - 10 * group, 500.0 + 10 * group]]]


@pytest.mark.parametrize(("edge", "group"), [(edge, number + 1) for number, edge in enumerate(INTERVAL_EDGES)])
def test_a_probability_on_an_edge_belongs_to_the_group_above(numbered, edge, group, monkeypatch):
    monkeypatch.setattr(numbered, "on_probability", lambda _: torch.tensor([edge]))
    assert numbered(torch.zeros(1), torch.tensor([500.0]), None).interval_w[0, 0, 1].item() == 500.0 + group


def test_each_window_of_a_batch_has_the_offsets_of_its_own_group(numbered):
    logits = torch.tensor([logit(0.95), logit(0.01), logit(0.5)])
    estimate = numbered(logits, torch.tensor([100.0, 200.0, 300.0]), None)
    assert estimate.interval_w[:, 0].tolist() == [[95.0, 105.0], [200.0, 200.0], [297.0, 303.0]]
    assert estimate.interval_w[:, 1].tolist() == [[50.0, 150.0], [200.0, 200.0], [270.0, 330.0]]


def test_power_and_bounds_stay_within_what_the_appliance_can_draw(numbered):
    surely_on = torch.full((3,), logit(0.99))
    estimate = numbered(surely_on, torch.tensor([2.0, 2990.0, 5000.0]), 3000.0)
    assert estimate.power_w.tolist() == [2.0, 2990.0, 3000.0]
    assert estimate.interval_w.tolist() == [
        [[0.0, 8.0], [0.0, 62.0]],
        [[2984.0, 2996.0], [2930.0, 3000.0]],
        # Around the clamped power, not around what the network said.
        [[2994.0, 3000.0], [2940.0, 3000.0]],
    ]
    unlimited = numbered(surely_on, torch.tensor([2.0, 2990.0, 5000.0]), None)
    assert unlimited.interval_w[2].tolist() == [[4994.0, 5006.0], [4940.0, 5060.0]]
    assert unlimited.interval_w[0, 1].tolist() == [0.0, 62.0]


def test_a_gated_power_has_an_interval_from_nothing_up(numbered):
    numbered.power_gate.fill_(0.5)
    estimate = numbered(torch.tensor([logit(0.4)]), torch.tensor([800.0]), 3000.0)
    assert estimate.power_w.tolist() == [0.0]
    assert estimate.interval_w.tolist() == [[[0.0, 3.0], [0.0, 30.0]]]


def test_what_was_fitted_travels_in_the_weights():
    names = {"calibration_slope", "calibration_bias", "power_gate", "interval_offsets_w"}
    assert set(Readout().state_dict()) == names
