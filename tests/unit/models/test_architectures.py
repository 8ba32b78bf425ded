"""The protocol every architecture keeps, and the sizes they are known by."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from models.architectures import ArchitectureError, Ensemble, build, names
from models.architectures.base import with_difference
from models.architectures.ensemble import median
from models.architectures.nilmformer import DiagonallyMaskedAttention
from models.architectures.temporal_pooling_unet import TemporalPoolingUNet
from models.architectures.time_convolution import prepare_for_serving
from models.attribution import Attribution
from models.loader import load_verified
from models.refusal import ArtifactRefusal, ArtifactRefused
from models.registry import Registry

LEGACY_PARAMS = {"input_channels": 1, "d_model": 64, "n_heads": 4, "n_layers": 2}


@pytest.mark.parametrize(
    ("name", "params", "window"),
    [
        ("CNNTransformer", LEGACY_PARAMS, 1000),
        ("CNNTransformer", LEGACY_PARAMS | {"input_channels": 2}, 512),
        ("TemporalPoolingUNet", {}, 512),
        ("TemporalPoolingUNet", {"channels": [8, 16]}, 64),
        ("NILMFormer", {}, 128),
        ("NILMFormer", {"d_model": 16, "n_heads": 2, "n_layers": 1}, 99),
    ],
)
def test_every_architecture_maps_windows_to_two_sequences(name, params, window):
    network = build(name, params, window).eval()
    on_logit, power_w = network(torch.randn(3, window))
    assert on_logit.shape == power_w.shape == (3, window)
    assert (power_w >= 0).all()
    estimate = network.estimate(torch.randn(3, window), {Attribution.PROVISIONAL: window - 1})[Attribution.PROVISIONAL]
    assert estimate.on_probability.shape == estimate.power_w.shape == (3,)


@pytest.mark.parametrize(
    ("name", "params", "window", "count"),
    [("CNNTransformer", LEGACY_PARAMS, 1000, 133_320), ("TemporalPoolingUNet", {}, 512, 291_090)],
)
def test_parameter_counts(name, params, window, count):
    assert sum(parameter.numel() for parameter in build(name, params, window).parameters()) == count


@pytest.mark.parametrize(
    ("name", "window", "published_count", "state_count"),
    [("Seq2Point", 599, 30_708_249, 1_025), ("NILMFormer", 512, 383_283, 289)],
)
def test_the_power_alone_has_the_published_parameters(name, window, published_count, state_count):
    network = build(name, {}, window)
    on_logit_unit = network.heads.weight[0].numel() + network.heads.bias[0].numel()
    assert on_logit_unit == state_count
    assert sum(parameter.numel() for parameter in network.parameters()) - on_logit_unit == published_count


@pytest.mark.parametrize(
    ("name", "params", "window"),
    [
        ("CNNTransformer", {}, 64),
        ("NILMFormer", {}, 64),
        ("Seq2Point", {}, 64),
        ("TemporalPoolingUNet", {"channels": [8, 16]}, 64),
    ],
)
def test_every_parameter_learns(name, params, window):
    network = build(name, params, window).train()
    on_logit, power_w = network(torch.randn(8, window))
    (on_logit.nansum() + power_w.nansum()).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize(("window", "middle"), [(64, 32), (99, 49), (1, 0)])
def test_seq2point_answers_for_the_middle_sample_only(window, middle):
    network = build("Seq2Point", {}, window).eval()
    mains = torch.randn(3, window)
    assert network.answers_for == middle
    elsewhere = torch.arange(window) != middle
    for sequence in network(mains):
        assert sequence.shape == (3, window)
        assert torch.isfinite(sequence[:, middle]).all()
        assert sequence[:, elsewhere].isnan().all()
    estimate = network.estimate(mains, {Attribution.FINAL: middle})[Attribution.FINAL]
    assert estimate.on_probability.shape == estimate.power_w.shape == (3,)
    assert (estimate.power_w >= 0).all()
    with pytest.raises(ValueError, match=f"Seq2Point answers for sample {middle} of the window only, not {middle + 1}"):
        network.estimate(mains, {Attribution.FINAL: middle, Attribution.PROVISIONAL: middle + 1})


def test_a_registry_entry_that_asks_for_a_sample_without_an_answer_does_not_load(legacy):
    safetensors.torch.save_file(build("Seq2Point", {}, 64).state_dict(), legacy.artifact)
    legacy.entry |= {"architecture": "Seq2Point", "architecture_params": {}, "input_window_size": 64}

    def load(final, provisional):
        legacy.entry |= {"output_sample_index": final, "provisional_sample_index": provisional}
        legacy.rehash()
        registry = Registry.load(legacy.path)
        return load_verified(registry.resolve("kettle", "0.1.0"), registry.root)

    assert load(32, 32).network.answers_for == 32
    for final, provisional in ((63, 32), (32, 63)):
        with pytest.raises(ArtifactRefused, match="answers for sample 32 of the window only, not 63") as refused:
            load(final, provisional)
        assert refused.value.reason is ArtifactRefusal.WARM_UP_FAILED


def test_nilmformer_knows_level_and_spread_only_from_the_token():
    network = build("NILMFormer", {}, 64).eval()
    mains = torch.randn(3, 64)
    other_home = 3.0 * mains + 2.0
    with torch.inference_mode():
        for here, there in zip(network(mains), network(other_home), strict=True):
            assert not torch.allclose(here, there, rtol=1e-2)
        network.stats_token.weight.zero_()
        for here, there in zip(network(mains), network(other_home), strict=True):
            torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)


def test_nilmformer_restores_the_level_of_the_power():
    network = build("NILMFormer", {}, 64).eval()
    mains = torch.randn(3, 64)
    with torch.inference_mode():
        on_logit, power_w = network(mains)
        network.restore_stats.bias[0] += 1.0
        raised_logit, raised_w = network(mains)
    torch.testing.assert_close(raised_logit, on_logit)
    assert (raised_w > power_w).all()


def test_nilmformer_survives_a_constant_window():
    for sequence in build("NILMFormer", {}, 64).eval()(torch.full((2, 64), -0.27)):
        assert torch.isfinite(sequence).all()


def test_nilmformer_gives_every_sample_its_own_position():
    positions = build("NILMFormer", {}, 512).positions
    assert torch.unique(positions, dim=2).shape == (1, 8, 512)


def test_a_token_does_not_attend_to_itself():
    attention = DiagonallyMaskedAttention(d_model=8, n_heads=2).eval()
    tokens = torch.randn(3, 2, 8)
    mixed = attention(tokens, ~torch.eye(2, dtype=torch.bool))
    torch.testing.assert_close(mixed, attention.output(attention.value(tokens.flip(1))))


def test_power_below_the_gate_is_zero():
    network = build("TemporalPoolingUNet", {"channels": [8, 16]}, 64).eval()
    mains = torch.randn(5, 64)
    indices = {Attribution.FINAL: 32, Attribution.PROVISIONAL: 60}
    assert all((estimate.power_w > 0).all() for estimate in network.estimate(mains, indices).values())
    network.readout(Attribution.PROVISIONAL).power_gate.fill_(1.1)
    gated = network.estimate(mains, indices)
    assert (gated[Attribution.PROVISIONAL].power_w == 0).all()
    assert (gated[Attribution.FINAL].power_w > 0).all()


def test_probability_comes_from_the_logit_not_from_power():
    network = build("TemporalPoolingUNet", {"channels": [8, 16]}, 64).eval()
    mains = torch.randn(5, 64)

    def estimate():
        return network.estimate(mains, {Attribution.FINAL: 10})[Attribution.FINAL]

    before = estimate()
    network.power_scale_w.mul_(0.25)
    after = estimate()
    torch.testing.assert_close(before.on_probability, after.on_probability)
    torch.testing.assert_close(before.power_w, after.power_w * 4)
    network.readout(Attribution.FINAL).calibration_slope.fill_(0.0)
    torch.testing.assert_close(estimate().on_probability, torch.full((5,), 0.5))


@pytest.mark.parametrize(
    ("name", "params", "window", "message"),
    [
        ("Oracle", {}, 512, "known are CNNTransformer, Ensemble, NILMFormer, Seq2Point, TemporalPoolingUNet"),
        ("TemporalPoolingUNet", {}, 500, "multiple of 128"),
        ("TemporalPoolingUNet", {"channels": [8]}, 512, "two or more"),
        ("TemporalPoolingUNet", {"depth": 4}, 512, "takes no depth"),
        ("CNNTransformer", {"d_model": 64, "n_heads": 5}, 1000, "multiple of n_heads"),
        ("CNNTransformer", {"d_model": "64"}, 1000, "refuses its parameters"),
        ("CNNTransformer", {"input_channels": 3}, 1000, "1 or 2"),
        ("CNNTransformer", {}, 1001, "multiple of 4"),
        ("NILMFormer", {"d_model": 90, "n_heads": 9}, 512, "multiple of 4"),
        ("NILMFormer", {"n_heads": 5}, 512, "of n_heads 5"),
        ("NILMFormer", {"n_layers": 0}, 512, "n_layers >= 1"),
        ("NILMFormer", {}, 0, "at least 1 sample"),
        ("Seq2Point", {"channels": 30}, 599, "takes no channels; it takes nothing"),
        ("Seq2Point", {}, 0, "at least 1 sample"),
    ],
)
def test_bad_names_and_parameters(name, params, window, message):
    with pytest.raises(ArchitectureError, match=message):
        build(name, params, window)


def test_names_are_sorted():
    assert list(names()) == sorted(names())


def small_ensemble(members: int = 3) -> Ensemble:
    network = build("Ensemble", {"member": "CNNTransformer", "member_params": SMALL, "members": members}, 64)
    assert isinstance(network, Ensemble)
    return network.eval()


SMALL = {"d_model": 8, "n_heads": 2, "n_layers": 1}


def test_an_ensemble_says_the_median_of_its_members():
    network = small_ensemble()
    mains = torch.randn(5, 64)
    logits, powers = zip(*(member(mains) for member in network.members), strict=True)
    on_logit, power_w = network(mains)
    torch.testing.assert_close(on_logit, torch.stack(logits).sort(dim=0).values[1])
    torch.testing.assert_close(power_w, torch.stack(powers).sort(dim=0).values[1])
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("count", [1, 3, 5, 7, 9])
def test_the_median_is_that_of_torch_with_equals_and_without_a_number(count):
    values = torch.randint(-3, 4, (count, 40, 64)).float()
    values[torch.rand(values.shape) < 0.02] = torch.nan
    expected = values.median(dim=0).values
    assert expected.isnan().any()
    torch.testing.assert_close(median(list(values)), expected, rtol=0, atol=0, equal_nan=True)


def test_the_difference_is_that_of_torch():
    mains = torch.randn(4, 64)
    expected = torch.diff(mains, dim=1, prepend=mains[:, :1])
    torch.testing.assert_close(with_difference(mains, 2), torch.stack((mains, expected), dim=1), rtol=0, atol=0)


def test_an_ensemble_takes_the_weights_of_finished_networks_without_their_readouts():
    trained = [build("CNNTransformer", SMALL, 64).eval() for _ in range(3)]
    network = small_ensemble()
    network.load_members([member.state_dict() for member in trained])
    mains = torch.randn(2, 64)
    torch.testing.assert_close(network(mains)[0], torch.stack([one(mains)[0] for one in trained]).median(dim=0).values)
    assert not any(name.startswith("members.0.readouts") for name in network.state_dict())
    assert sum(name.startswith("readouts.final") for name in network.state_dict()) == 4


@pytest.mark.parametrize(
    "params",
    [
        {"member": "CNNTransformer", "members": 1},
        {"member": "CNNTransformer", "members": 4},
        {"member": "CNNTransformer", "members": 3.0},
        {"member": "CNNTransformer", "members": True},
        {"member": "Ensemble", "members": 3},
        {"member": "Crystal", "members": 3},
        {"member": "CNNTransformer", "members": 3, "member_params": {"nonsense": 1}},
    ],
)
def test_ensembles_that_make_no_sense_are_refused(params):
    with pytest.raises(ArchitectureError):
        build("Ensemble", params, 64)


@pytest.mark.parametrize(
    ("name", "params", "window"),
    [
        ("TemporalPoolingUNet", {}, 128),
        ("TemporalPoolingUNet", {"channels": [8, 16]}, 64),
        ("TemporalPoolingUNet", {"channels": [8, 8, 8, 8]}, 64),
        ("NILMFormer", {"d_model": 16, "n_heads": 2, "n_layers": 1}, 64),
        ("Ensemble", {"member": "TemporalPoolingUNet", "members": 3, "member_params": {"channels": [8, 16]}}, 64),
    ],
)
@pytest.mark.parametrize("prepared", [False, True])
def test_a_few_samples_are_those_of_the_whole_window(name, params, window, prepared):
    """At every sample: near the window's ends, next to each other, and where slices begin at odd samples."""
    torch.manual_seed(5)
    network = build(name, params, window).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    mains = torch.randn(3, window)
    whole = network(mains)
    if prepared:
        prepare_for_serving(network)
        norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm1d)]
        assert bool(norms) is (name == "NILMFormer")  # whose norms follow no convolution
        for said, expected in zip(network(mains), whole, strict=True):
            torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-4)
    for sample in range(window):
        for other in (sample, window - 1 - sample, (sample + 1) % window, 0, window - 1):
            for said, expected in zip(network.at(mains, (sample, other)), whole, strict=True):
                torch.testing.assert_close(said, expected[:, [sample, other]], rtol=1e-4, atol=1e-4)
    for said, expected in zip(network.at(mains, (1, 30, 31)), whole, strict=True):
        torch.testing.assert_close(said, expected[:, [1, 30, 31]], rtol=1e-4, atol=1e-4)


def test_who_overrides_forward_alone_serves_what_it_says():
    class Halved(TemporalPoolingUNet):
        def forward(self, mains):
            on_logit, power_w = super().forward(mains)
            return on_logit, power_w / 2

    network = Halved(input_window_size=64, channels=[8, 16]).eval()
    mains = torch.randn(3, 64)
    for said, expected in zip(network.at(mains, (3, 60)), network(mains), strict=True):
        torch.testing.assert_close(said, expected[:, [3, 60]])
