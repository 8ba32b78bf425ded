"""Rollout plans: every fault of form has its key, a configuration is taken whole or not at all, versions must fit."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployments.rollout_plan import (
    Canary,
    GuardBounds,
    PlanFault,
    PlanRefused,
    RolloutPlan,
    Shadow,
    check_against,
    plain,
    read_plans,
)
from models.registry import Preprocessing, Registry, RegistryEntry

APPLIANCES = ("kettle", "microwave")
MICROWAVE = {"stable": "1.0.0"}


def faults(config: object) -> dict[str, str]:
    """Dotted keys and details of what `read_plans` refuses."""
    with pytest.raises(PlanRefused) as refused:
        read_plans(config, APPLIANCES)
    return {".".join(fault.keys): fault.detail for fault in refused.value.faults}


def kettle(**keys: object) -> dict[str, object]:
    return {"kettle": {"stable": "1.0.0"} | keys, "microwave": MICROWAVE}


def canary(**keys: object) -> dict[str, object]:
    return kettle(canary={"version": "2.0.0", "percent": 5} | keys)


def test_a_whole_plan_is_read_and_the_rest_has_its_defaults() -> None:
    config = kettle(
        canary={"version": "2.0.0", "percent": 5},
        shadow={"version": "3.0.0"},
        guard={"min_windows": 10, "max_error_share": 0},
    )
    assert read_plans(config, APPLIANCES) == {
        "kettle": RolloutPlan(
            "1.0.0", Canary("2.0.0", 5.0), Shadow("3.0.0", 1.0), GuardBounds(min_windows=10, max_error_share=0.0)
        ),
        "microwave": RolloutPlan("1.0.0"),
    }


@pytest.mark.parametrize(
    ("config", "key", "says"),
    [
        (kettle(canry={}), "kettle.canry", "not a key that we know"),
        (canary(pct=5), "kettle.canary.pct", "not a key that we know"),
        (kettle(shadow={"version": "2", "percent": 5}), "kettle.shadow.percent", "not a key that we know"),
        (kettle(guard={"max_eror_share": 0}), "kettle.guard.max_eror_share", "not a key that we know"),
        (kettle(stable=2.2), "kettle.stable", "quotes"),
        (kettle(stable=None), "kettle.stable", "quotes"),
        (kettle(stable=""), "kettle.stable", "at least 1 character"),
        (kettle(stable="1" * 65), "kettle.stable", "at most 64 characters"),
        (canary(version=2.2), "kettle.canary.version", "quotes"),
        (kettle(shadow={"version": 3}), "kettle.shadow.version", "quotes"),
        ({"kettle": {}, "microwave": MICROWAVE}, "kettle.stable", "is missing"),
        (kettle(canary={"version": "2"}), "kettle.canary.percent", "is missing"),
        (kettle(canary={"percent": 5}), "kettle.canary.version", "is missing"),
        (kettle(shadow={}), "kettle.shadow.version", "is missing"),
        (kettle(canary="2.0.0"), "kettle.canary", "not a mapping"),
        (kettle(shadow=["2.0.0"]), "kettle.shadow", "not a mapping"),
        (kettle(guard=None), "kettle.guard", "not a mapping"),
        *((canary(percent=bad), "kettle.canary.percent", "") for bad in (-1, 100.001, 101, "5", True, None)),
        *((canary(percent=bad), "kettle.canary.percent", "finite") for bad in (float("nan"), float("inf"))),
        *((kettle(shadow={"version": "2", "sample": bad}), "kettle.shadow.sample", "") for bad in (0, 1.1, "1", True)),
        *((kettle(guard={"min_windows": bad}), "kettle.guard.min_windows", "") for bad in (0, 1.5, "9", True, 10**8)),
        *((kettle(guard={"max_error_share": b}), "kettle.guard.max_error_share", "") for b in (-0.1, 1.1, "0", None)),
        *((kettle(guard={"slow_ms": bad}), "kettle.guard.slow_ms", "") for bad in (0, -1, float("inf"))),
        *((kettle(guard={"max_power_ratio": bad}), "kettle.guard.max_power_ratio", "") for bad in (1, 0.5)),
        (kettle(guard={"min_windows": 300, "over_windows": 299}), "kettle.guard.over_windows", "min_windows"),
        ({"kettle": {"stable": "1"}, "microwave": "1.0.0"}, "microwave", "not a mapping"),
        ({"kettle": {"stable": "1"}}, "microwave", "is missing"),
        (kettle() | {"fridge": {"stable": "1"}}, "fridge", "not an appliance"),
        (kettle() | {1: {"stable": "1"}}, "1", "is not a text"),
        ({}, "kettle", "is missing"),
        *((junk, "", "a valid dictionary") for junk in (None, [], "kettle", 3, object())),
    ],
)
def test_a_fault_of_form_is_named_by_its_keys(config: object, key: str, says: str) -> None:
    found = faults(config)
    assert key in found
    assert says in found[key]


def test_all_faults_are_told_at_once_and_nothing_is_taken() -> None:
    config = {
        "kettle": {"stable": 2.2, "canary": {"version": "2.0.0", "percent": 101, "pct": 1}, "x": 0},
        "microwave": {"shadow": {"version": "2.0.0", "sample": 0}},
    }
    assert faults(config).keys() == {
        "kettle.stable",
        "kettle.canary.percent",
        "kettle.canary.pct",
        "kettle.x",
        "microwave.stable",
        "microwave.shadow.sample",
    }
    assert faults({"fridge": {"stable": "1"}}).keys() == {"fridge", "kettle", "microwave"}


def test_the_refusal_crosses_processes_and_reads_as_one_line() -> None:
    refused = PlanRefused((PlanFault(("kettle", "stable"), "is missing"), PlanFault((), "is not a mapping")))
    copy = pickle.loads(pickle.dumps(refused))  # noqa: S301 - our own
    assert isinstance(copy, PlanRefused)
    assert copy.faults == refused.faults
    assert str(copy) == "kettle.stable: is missing; user_config: is not a mapping"


@pytest.mark.parametrize(
    "plan",
    [
        RolloutPlan("1.0.0"),
        RolloutPlan("1.0.0", canary=Canary("2.0.0", 12.5)),
        RolloutPlan("1.0.0", shadow=Shadow("2.0.0", 0.25), guard=GuardBounds(slow_ms=50.0, over_windows=300)),
    ],
)
def test_plain_is_what_would_be_written_and_reads_back(plan: RolloutPlan) -> None:
    document = plain(plan)
    assert read_plans({"kettle": document}, ("kettle",)) == {"kettle": plan}
    assert ("guard" in document) == (plan.guard != GuardBounds())
    assert None not in document.values()


def test_versions_are_named_once_the_stable_one_first() -> None:
    assert RolloutPlan("1", Canary("2", 5.0), Shadow("2")).versions == ("1", "2")
    assert RolloutPlan("3", shadow=Shadow("2")).versions == ("3", "2")


ENTRY = RegistryEntry(
    model_id="kettle-net",
    model_version="1.0.0",
    appliance_id="kettle",
    architecture="CNNTransformer",
    architecture_params={},
    artifact_path="a",
    artifact_sha256="0" * 64,
    input_window_size=16,
    preprocessing=Preprocessing("standard", 0.0, 1.0),
    is_active=True,
    sample_period_s=60.0,
    input_unit="W",
    output_unit="W",
    output_sample_index=8,
    provisional_sample_index=14,
)


def registry(*changes: dict[str, Any]) -> Registry:
    """Kettle 1.0.0, and a kettle 2.0.0 for each of `changes`."""
    others = (replace(ENTRY, **({"model_version": "2.0.0"} | change)) for change in changes)
    return Registry((ENTRY, *others), Path())


def misfits(plan: RolloutPlan, known: Registry) -> dict[str, str]:
    with pytest.raises(PlanRefused) as refused:
        check_against(known, {"kettle": plan})
    return {".".join(fault.keys): fault.detail for fault in refused.value.faults}


TWO = {"canary": RolloutPlan("1.0.0", Canary("2.0.0", 5.0)), "shadow": RolloutPlan("1.0.0", shadow=Shadow("2.0.0"))}


@pytest.mark.parametrize("role", TWO)
def test_a_version_that_takes_the_same_windows_fits(role: str) -> None:
    check_against(registry({}), {"kettle": TWO[role]})


@pytest.mark.parametrize("role", TWO)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"input_window_size": 32}, "2.0.0 has windows of 32 samples, the stable 1.0.0 windows of 16 samples"),
        ({"sample_period_s": 6.0}, "samples of 6 s"),
        ({"output_sample_index": 9}, "the final answer for sample 9"),
        ({"provisional_sample_index": 15}, "the provisional answer for sample 15"),
        ({"appliance_id": "microwave"}, "no version '2.0.0' of appliance 'kettle'"),
        ({"model_version": "3.0.0"}, "its versions are 1.0.0, 3.0.0"),
    ],
)
def test_a_version_that_does_not_fit_is_named(role: str, change: dict[str, Any], says: str) -> None:
    found = misfits(TWO[role], registry(change))
    assert found.keys() == {f"kettle.{role}.version"}
    assert says in found[f"kettle.{role}.version"]


def test_a_stable_version_may_take_other_windows_than_the_one_before() -> None:
    check_against(registry({"input_window_size": 32}), {"kettle": RolloutPlan("2.0.0")})


@pytest.mark.parametrize(
    "plan", [RolloutPlan("1.0.0", Canary("1.0.0", 5.0)), RolloutPlan("1.0.0", None, Shadow("1.0.0"))]
)
def test_the_stable_version_is_no_second_one(plan: RolloutPlan) -> None:
    assert set(misfits(plan, registry()).values()) == {"1.0.0 is the stable version already"}


def test_an_unregistered_stable_version_and_other_faults_are_told_together() -> None:
    plan = RolloutPlan("9.9.9", Canary("9.9.9", 5.0), Shadow("8.8.8"))
    assert misfits(plan, registry()).keys() == {"kettle.stable", "kettle.canary.version", "kettle.shadow.version"}
