"""Record sets for tests that need no server."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from deployments.contracts import PredictionPoint, RecordSet


@pytest.fixture
def make_set(make_point: Callable[..., PredictionPoint]) -> Callable[..., RecordSet]:
    """A record set of `points` valid points; other arguments replace fields of each."""

    def make(points: int = 1, wait_s: float = 5.0, **changes: Any) -> RecordSet:
        return RecordSet(tuple(make_point(**changes) for _ in range(points)), time.time() + wait_s)

    return make
