"""The protocol every architecture keeps, and the sizes they are known by."""

from __future__ import annotations

import pytest
import torch

from models.architectures import ArchitectureError, build, names

LEGACY_PARAMS = {"input_channels": 1, "d_model": 64, "n_heads": 4, "n_layers": 2}


@pytest.mark.parametrize(
    ("name", "params", "window"),
    [
        ("CNNTransformer", LEGACY_PARAMS, 1000),
        ("CNNTransformer", LEGACY_PARAMS | {"input_channels": 2}, 512),
        ("TemporalPoolingUNet", {}, 512),
        ("TemporalPoolingUNet", {"channels": [8, 16]}, 64),
    ],
)
def test_every_architecture_maps_windows_to_two_sequences(name, params, window):
    network = build(name, params, window).eval()
    on_logit, power_w = network(torch.randn(3, window))
    assert on_logit.shape == power_w.shape == (3, window)
    assert (power_w >= 0).all()
    probability, gated_w = network.estimate(torch.randn(3, window), window - 1)
    assert probability.shape == gated_w.shape == (3,)


@pytest.mark.parametrize(
    ("name", "params", "window", "count"),
    [("CNNTransformer", LEGACY_PARAMS, 1000, 133_320), ("TemporalPoolingUNet", {}, 512, 291_090)],
)
def test_parameter_counts(name, params, window, count):
    assert sum(parameter.numel() for parameter in build(name, params, window).parameters()) == count


def test_power_below_the_gate_is_zero():
    network = build("TemporalPoolingUNet", {"channels": [8, 16]}, 64).eval()
    mains = torch.randn(5, 64)
    assert (network.estimate(mains, 10)[1] > 0).all()
    network.power_gate.fill_(1.1)
    assert (network.estimate(mains, 10)[1] == 0).all()


def test_probability_comes_from_the_logit_not_from_power():
    network = build("TemporalPoolingUNet", {"channels": [8, 16]}, 64).eval()
    mains = torch.randn(5, 64)
    before = network.estimate(mains, 10)
    network.power_scale_w.mul_(0.25)
    after = network.estimate(mains, 10)
    torch.testing.assert_close(before[0], after[0])
    torch.testing.assert_close(before[1], after[1] * 4)
    network.calibration_slope.fill_(0.0)
    torch.testing.assert_close(network.estimate(mains, 10)[0], torch.full((5,), 0.5))


@pytest.mark.parametrize(
    ("name", "params", "window", "message"),
    [
        ("Oracle", {}, 512, "known are CNNTransformer, TemporalPoolingUNet"),
        ("TemporalPoolingUNet", {}, 500, "multiple of 128"),
        ("TemporalPoolingUNet", {"channels": [8]}, 512, "two or more"),
        ("TemporalPoolingUNet", {"depth": 4}, 512, "takes no depth"),
        ("CNNTransformer", {"d_model": 64, "n_heads": 5}, 1000, "multiple of n_heads"),
        ("CNNTransformer", {"d_model": "64"}, 1000, "refuses its parameters"),
        ("CNNTransformer", {"input_channels": 3}, 1000, "1 or 2"),
        ("CNNTransformer", {}, 1001, "multiple of 4"),
    ],
)
def test_bad_names_and_parameters(name, params, window, message):
    with pytest.raises(ArchitectureError, match=message):
        build(name, params, window)


def test_names_are_sorted():
    assert list(names()) == sorted(names())
