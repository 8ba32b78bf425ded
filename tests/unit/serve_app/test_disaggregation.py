"""The pure parts of /disaggregate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.contracts import ApplianceStatus
from models.attribution import Attribution
from serve_app.disaggregation import plan_windows, reconcile

FINAL = Attribution.FINAL
MAINS = st.floats(0, 100, allow_subnormal=False)
CLAIMS = st.dictionaries(st.text(max_size=3), st.floats(-5, 200, allow_subnormal=False), max_size=8)


def status(
    name: str, size: int | None, index: int | None, period_s: float | None = 60.0, provisional: int | None = None
) -> ApplianceStatus:
    """`index` is the final sample; the provisional one is the window's last unless told."""
    indices = None
    if size is not None and index is not None:
        last = size - 1 if provisional is None else provisional
        indices = {Attribution.FINAL: index, Attribution.PROVISIONAL: last}
    return ApplianceStatus(
        appliance_id=name,
        model_id=name,
        model_version="1",
        artifact_sha256="",
        input_window_size=size,
        sample_indices=indices,
        sample_period_s=period_s,
        device="cpu",
        loading=False,
        nothing="",
    )


@given(MAINS, CLAIMS)
def test_the_parts_add_up_to_the_mains(aggregate_kw: float, claims: dict[str, float]) -> None:
    shares = reconcile(aggregate_kw, claims)
    total = sum(shares.appliances_kw.values()) + shares.unattributed_kw
    assert math.isclose(total, aggregate_kw, rel_tol=1e-9, abs_tol=1e-12)


@given(MAINS, CLAIMS)
def test_nothing_is_negative_and_no_appliance_is_lost(aggregate_kw: float, claims: dict[str, float]) -> None:
    shares = reconcile(aggregate_kw, claims)
    assert shares.appliances_kw.keys() == claims.keys()
    assert all(kw >= 0 for kw in shares.appliances_kw.values())
    assert shares.unattributed_kw >= 0


@given(MAINS, CLAIMS)
def test_no_appliance_draws_more_than_the_mains(aggregate_kw: float, claims: dict[str, float]) -> None:
    assert all(kw <= aggregate_kw for kw in reconcile(aggregate_kw, claims).appliances_kw.values())


def test_a_product_that_rounds_up_stays_within_the_mains() -> None:
    aggregate_kw, claim_kw = 0.01, 0.29
    assert claim_kw * (aggregate_kw / claim_kw) > aggregate_kw
    assert reconcile(aggregate_kw, {"kettle": claim_kw}).appliances_kw == {"kettle": aggregate_kw}


@given(MAINS, CLAIMS)
def test_proportions_are_kept_and_nothing_grows(aggregate_kw: float, claims: dict[str, float]) -> None:
    shares = reconcile(aggregate_kw, claims)
    positive = {name: max(0.0, kw) for name, kw in claims.items()}
    claimed = sum(positive.values())
    factor = 1.0 if claimed <= aggregate_kw else aggregate_kw / claimed
    for name, kw in positive.items():
        assert math.isclose(shares.appliances_kw[name], kw * factor, rel_tol=1e-9, abs_tol=1e-12)


def test_claims_within_the_mains_are_left_alone() -> None:
    shares = reconcile(2.0, {"kettle": 1.25, "microwave": -0.5})
    assert shares.appliances_kw == {"kettle": 1.25, "microwave": 0.0}
    assert shares.unattributed_kw == 0.75


def test_no_mains_means_no_appliance() -> None:
    assert reconcile(0.0, {"kettle": 2.0}).appliances_kw == {"kettle": 0.0}
    assert reconcile(1.5, {}).unattributed_kw == 1.5


def test_no_ready_model_has_no_plan() -> None:
    for attribution in Attribution:
        assert plan_windows([], attribution) is None
        assert plan_windows([status("kettle", None, None, None)], attribution) is None


SIZE_AND_INDEX = st.integers(1, 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))
SHAPES = st.dictionaries(st.sampled_from("abcdef"), SIZE_AND_INDEX, min_size=1)


@given(SHAPES)
def test_every_model_sees_its_samples_around_the_common_one(shapes: dict[str, tuple[int, int]]) -> None:
    plan = plan_windows((status(name, size, index) for name, (size, index) in shapes.items()), FINAL)
    assert plan is not None
    window = np.arange(plan.input_window_size)
    assert 0 <= plan.output_sample_index < plan.input_window_size
    for name, (size, index) in shapes.items():
        part = window[plan.slices[name]]
        assert len(part) == size
        assert part[index] == plan.output_sample_index


@given(SHAPES)
def test_the_common_window_has_no_sample_that_nobody_needs(shapes: dict[str, tuple[int, int]]) -> None:
    plan = plan_windows((status(name, size, index) for name, (size, index) in shapes.items()), FINAL)
    assert plan is not None
    assert min(part.start for part in plan.slices.values()) == 0
    assert max(part.stop for part in plan.slices.values()) == plan.input_window_size


@pytest.mark.parametrize("order", [1, -1])
def test_the_minority_period_is_left_out_whatever_the_order(order: int) -> None:
    statuses = [status("a", 10, 9, 60.0), status("b", 8, 4, 60.0), status("c", 99, 50, 6.0)][::order]
    plan = plan_windows(statuses, FINAL)
    assert plan is not None
    assert plan.slices.keys() == {"a", "b"}
    assert plan.sample_period_s == 60.0


def test_each_attribution_has_a_plan_of_its_own() -> None:
    statuses = [status("a", 10, 4, provisional=8), status("b", 8, 4, provisional=7)]
    final = plan_windows(statuses, Attribution.FINAL)
    assert final is not None
    assert (final.input_window_size, final.output_sample_index) == (10, 4)
    assert final.slices == {"a": slice(0, 10), "b": slice(0, 8)}
    provisional = plan_windows(statuses, Attribution.PROVISIONAL)
    assert provisional is not None
    assert (provisional.input_window_size, provisional.output_sample_index) == (10, 8)
    assert provisional.slices == {"a": slice(0, 10), "b": slice(1, 9)}
