"""What every store promises of mains readings, run on each of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deployments.contracts import NotPersisted, PersistFailure, Readings, RecordSet
from deployments.stores import PredictionStore, StoreUnavailable
from deployments.stores.checks import TIME_NS_MAX

MakeSet = Callable[..., RecordSet]
STORES = ("sqlite", "influxdb", "tsm")
"""The last is InfluxDB's real storage engine."""
T0 = 1_769_882_400 * 10**9


def readings(*rows: tuple[str, int, float], wait_s: float = 5.0) -> RecordSet:
    return RecordSet((), time.time() + wait_s, readings=Readings.of(rows))


def test_readings_read_back_as_they_were_written(backend: Any, store: PredictionStore) -> None:
    rows = [("home", T0, 0.1), ("cabin", T0, 1e-9), ("home", T0 + 1, 0.0), ("größe ,=\\x", T0 + 2, 99.5)]
    assert store.write([readings(*rows)]) == [None]
    assert sorted(backend.readings()) == sorted(rows)


def test_a_reading_written_again_is_overwritten(backend: Any, store: PredictionStore) -> None:
    assert store.write([readings(("home", T0, 1.0))]) == [None]
    assert store.write([readings(("home", T0, 2.0)), readings(("home", T0, 3.0))]) == [None, None]
    assert backend.readings() == [("home", T0, 3.0)]


def test_readings_and_predictions_share_a_commit_and_nothing_else(
    backend: Any, store: PredictionStore, make_set: MakeSet
) -> None:
    prediction = make_set()
    assert store.write([prediction, readings(("home", T0, 1.0))]) == [None, None]
    assert backend.points() == list(prediction.points)
    assert backend.readings() == [("home", T0, 1.0)]


def test_five_thousand_are_one_commit(backend: Any, store: PredictionStore) -> None:
    rows = [(f"home-{n % 7}", T0 + n, n / 100) for n in range(5000)]
    assert store.write([readings(*rows)]) == [None]
    assert sorted(backend.readings()) == sorted(rows)


def broken(**changes: Any) -> RecordSet:
    whole = readings(("home", T0, 1.0), ("cabin", T0, 2.0)).readings
    assert whole is not None
    values = {name: getattr(whole, name) for name in ("building_ids", "building", "time_ns", "aggregate_kw")}
    return RecordSet((), time.time() + 5, readings=Readings(**{**values, **changes}))


BROKEN = {
    "empty": {name: np.empty(0, np.int64) for name in ("building", "time_ns", "aggregate_kw")},
    "lengths": {"aggregate_kw": np.ones(3)},
    "not finite": {"aggregate_kw": np.array([1.0, np.nan])},
    "infinite": {"aggregate_kw": np.array([1.0, np.inf])},
    "no building": {"building": np.array([0, 2], np.int32)},
    "before all buildings": {"building": np.array([-1, 0], np.int32)},
    "float times": {"time_ns": np.array([1.0, 2.0])},
    "time out of range": {"time_ns": np.array([T0, TIME_NS_MAX + 1], np.int64)},
    "same identity": {"building": np.array([0, 0], np.int32)},
    "named twice": {"building_ids": ("home", "home")},
    "newline": {"building_ids": ("home", "a\nb")},
    "empty name": {"building_ids": ("home", "")},
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_set_fails_alone(backend: Any, store: PredictionStore, fault: str) -> None:
    bad, good = store.write([broken(**BROKEN[fault]), readings(("other", T0, 1.0))])
    assert isinstance(bad, NotPersisted)
    assert bad.failure is PersistFailure.REJECTED
    assert good is None
    assert backend.readings() == [("other", T0, 1.0)]


def test_an_unusable_store_keeps_nothing(backend: Any, store: PredictionStore) -> None:
    backend.break_it()
    with pytest.raises(StoreUnavailable):
        store.write([readings(("home", T0, 1.0), wait_s=0.3)])
    backend.mend()
    assert backend.readings() == []


def test_influxdb_keeps_readings_in_their_own_bucket(influx_backend: Any, make_set: MakeSet) -> None:
    from deployments.stores import open_store

    store = open_store(influx_backend.config())
    store.write([readings(("home", T0, 1.0)), make_set()])
    assert {row["measurement"]: row["bucket"] for row in influx_backend.server.rows()} == {
        "sensor_reading": "raw",
        "prediction": "predictions",
    }
    store.close()


def test_influxdb_a_failing_bucket_of_predictions_does_not_unsay_stored_readings(
    influx_backend: Any, make_set: MakeSet
) -> None:
    from deployments.stores import open_store

    store = open_store(influx_backend.config())
    influx_backend.server.fault(refused_text="prediction,")
    outcomes = store.write([make_set(), readings(("home", T0, 1.0))])
    assert isinstance(outcomes[0], NotPersisted)
    assert outcomes[1] is None
    assert influx_backend.readings() == [("home", T0, 1.0)]
    store.close()
