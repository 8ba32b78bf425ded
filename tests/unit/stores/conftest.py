"""Record sets for tests that need no server."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest

from deployments.contracts import PredictionPoint, RecordSet

_times = itertools.count(1_700_000_000_000_000_000)


@pytest.fixture
def make_set() -> Callable[..., RecordSet]:
    """A record set of `points` valid points; other arguments replace fields of each."""

    def make(points: int = 1, wait_s: float = 5.0, **changes: Any) -> RecordSet:
        def point() -> PredictionPoint:
            values: dict[str, Any] = {
                "building_id": "home-1",
                "appliance_id": "kettle",
                "model_version": "1.2.0",
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

        return RecordSet(tuple(point() for _ in range(points)), time.time() + wait_s)

    return make
