"""Replicas by the windows that run or wait, wherever they wait."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from deployments import autoscaling
from deployments.autoscaling import WINDOWS, HeldBack, by_windows
from deployments.blocks import InferenceBlock
from deployments.rollout_contracts import Role
from tests.unit.deployments.replica import Kettle, deploy, plan, request
from tests.unit.deployments.test_appliance import Behaviour


def context(reported: dict[str, float] | None, target: int = 2) -> Any:
    metrics = None if reported is None else {WINDOWS: reported}
    return SimpleNamespace(
        aggregated_metrics=metrics,
        target_num_replicas=target,
        config=SimpleNamespace(get_target_ongoing_requests=lambda: 32.0),
    )


@pytest.mark.parametrize(("reported", "wanted"), [({"a": 96.0}, 3.0), ({"a": 30.0, "b": 34.0}, 2.0), ({"a": 0.0}, 0.0)])
def test_each_replica_gets_its_share_of_the_windows(reported: dict[str, float], wanted: float) -> None:
    assert by_windows(context(reported)) == (wanted, {})


@pytest.mark.parametrize("reported", [None, {}])
def test_without_a_report_nothing_changes(reported: dict[str, float] | None) -> None:
    assert by_windows(context(reported)) == (2.0, {})


async def test_a_replica_reports_what_it_holds_and_what_its_senders_hold_back(
    kettle: Kettle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await kettle.model.record_autoscaling_stats() == {WINDOWS: 0.0}
    await deploy(kettle.versions, plan("1.0.0"))
    behaviour = Behaviour(kettle, Role.STABLE, monkeypatch)
    behaviour.open.clear()
    running = asyncio.create_task(kettle.model.infer(InferenceBlock.of([request()] * 3, "ingress", 40)))
    await behaviour.started()
    assert await kettle.model.record_autoscaling_stats() == {WINDOWS: 43.0}
    monkeypatch.setattr(autoscaling, "HELD_S", 0.0)  # long ago
    assert await kettle.model.record_autoscaling_stats() == {WINDOWS: 3.0}
    behaviour.open.set()
    await running
    assert await kettle.model.record_autoscaling_stats() == {WINDOWS: 0.0}


def test_what_senders_hold_back_counts_once_over_all_replicas() -> None:
    """Two ingresses with 60 and 30 windows, three replicas that each of them calls again and again."""
    replicas = [HeldBack() for _ in range(3)]
    for _ in range(5):
        for replica in replicas:
            replica.said("a", 60 / 3)
            replica.said("b", 30 / 3)
    assert sum(replica.windows() for replica in replicas) == 90.0
    replicas[0].said("a", 0.0)
    assert replicas[0].windows() == 10.0
