"""Fixtures of every tier."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

from deployments.contracts import PredictionPoint

# A busy machine is no fault: no test asserts a time.
settings.register_profile("ours", deadline=None)
settings.load_profile("ours")

_times = itertools.count(1_700_000_000_000_000_000)


@pytest.fixture
def make_point() -> Callable[..., PredictionPoint]:
    """A valid point with a time of its own; anything can be replaced."""

    def make(**changes: Any) -> PredictionPoint:
        values: dict[str, Any] = {
            "building_id": "home-1",
            "appliance_id": "kettle",
            "model_version": "1.2.0",
            "attribution": "final",
            "time_ns": next(_times),
            "predicted_kw": 1.25,
            "confidence": 0.875,
            "aggregate_kw": 2.5,
            "request_id": "request-1",
            "user_id": "user-1",
            "artifact_sha256": "ab" * 32,
            "latency_ms": 12.5,
        }
        return PredictionPoint(**{**values, **changes})

    return make
