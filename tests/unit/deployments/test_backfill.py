"""A stretch of the past through a model: which minutes, and that each is what `/infer` says for its window."""

from __future__ import annotations

import numpy as np
import pytest

from deployments.analytics.spans import DAY_NS, MINUTE_NS
from deployments.backfill import ATTRIBUTION, Stretch, pending, predict, stretches
from deployments.history_contracts import MinutesQuery, StoredMinutes
from models.loader import LoadedModel, load_verified
from models.registry import Registry, RegistryEntry

MIDNIGHT = 1_769_904_000 * 10**9
NOTHING = np.empty(0, np.int64)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    registry = Registry.load()
    return load_verified(registry.active("kettle"), registry.root)


@pytest.fixture
def entry(model: LoadedModel) -> RegistryEntry:
    return model.entry


def hours(count: float) -> Stretch:
    return Stretch("mill", "kettle", "2.1.0", MIDNIGHT, MIDNIGHT + round(count * 60) * MINUTE_NS)


def all_minutes(query: MinutesQuery) -> StoredMinutes:
    times = np.arange(query.mains_start_ns, query.mains_stop_ns, MINUTE_NS, dtype=np.int64)
    mains_kw = 0.2 + 2.7 * ((times // MINUTE_NS) % 97 < 3) + 0.001 * ((times // MINUTE_NS) % 7)
    return StoredMinutes(times, mains_kw, NOTHING)


def without(stored: StoredMinutes, time_ns: int) -> StoredMinutes:
    kept = stored.mains_ns != time_ns
    return StoredMinutes(stored.mains_ns[kept], stored.mains_kw[kept], stored.predicted_ns)


def test_a_range_is_cut_at_midnight_and_covers_every_minute_once() -> None:
    start, stop = MIDNIGHT + 7 * MINUTE_NS + 1, MIDNIGHT + 2 * DAY_NS + 5
    found = stretches("mill", {"kettle": "2.1.0", "microwave": "2.0.0"}, start, stop)
    assert {(one.appliance_id, one.model_version) for one in found} == {("kettle", "2.1.0"), ("microwave", "2.0.0")}
    edges = [(one.start_ns, one.stop_ns) for one in found if one.appliance_id == "kettle"]
    assert edges == [
        (MIDNIGHT + 7 * MINUTE_NS, MIDNIGHT + DAY_NS),
        (MIDNIGHT + DAY_NS, MIDNIGHT + 2 * DAY_NS),
        (MIDNIGHT + 2 * DAY_NS, MIDNIGHT + 2 * DAY_NS + MINUTE_NS),
    ]


def test_every_minute_gets_what_its_own_window_gives(model: LoadedModel, entry: RegistryEntry) -> None:
    query = hours(2.5).query(entry)
    stored = all_minutes(query)
    minutes = pending(query, entry, stored)
    points = list(predict(model, query, minutes, "backfill-1"))
    assert [p.time_ns for p in points] == list(range(query.start_ns, query.stop_ns, MINUTE_NS))
    index = entry.sample_indices[ATTRIBUTION]
    for n in (0, 63, 64, 149):
        window_kw = stored.mains_kw[n : n + entry.input_window_size].astype(np.float32)
        said = model.predict(window_kw[None])[ATTRIBUTION]
        assert points[n].predicted_kw == pytest.approx(float(said.predicted_w[0]) / 1000, abs=1e-5)
        assert points[n].confidence == pytest.approx(float(said.on_probability[0]), abs=1e-5)
        assert points[n].aggregate_kw == stored.mains_kw[n + index]
    assert max(p.predicted_kw for p in points) > 1.0
    assert {(p.model_version, p.attribution, p.artifact_sha256) for p in points} == {
        (entry.model_version, "final", entry.artifact_sha256)
    }


def test_a_missing_reading_costs_the_windows_that_hold_it_and_nothing_is_made_up(entry: RegistryEntry) -> None:
    query = hours(24).query(entry)
    gone = MIDNIGHT + 600 * MINUTE_NS
    minutes = pending(query, entry, without(all_minutes(query), gone))
    index = entry.sample_indices[ATTRIBUTION]
    ahead = entry.input_window_size - 1 - index
    missing = set(range(gone - ahead * MINUTE_NS, gone + (index + 1) * MINUTE_NS, MINUTE_NS))
    expected = [ns for ns in range(query.start_ns, query.stop_ns, MINUTE_NS) if ns not in missing]
    assert minutes.time_ns.tolist() == expected
    assert (minutes.mains_missing, minutes.already_stored) == (entry.input_window_size, 0)
    assert np.isfinite(minutes.windows_kw).all()


def test_what_is_stored_is_passed_over(entry: RegistryEntry) -> None:
    query = hours(1).query(entry)
    stored = all_minutes(query)
    predicted = np.array([MIDNIGHT, MIDNIGHT + 59 * MINUTE_NS], dtype=np.int64)
    minutes = pending(query, entry, StoredMinutes(stored.mains_ns, stored.mains_kw, predicted))
    assert minutes.time_ns.tolist() == [MIDNIGHT + n * MINUTE_NS for n in range(1, 59)]
    assert (minutes.already_stored, minutes.mains_missing) == (2, 0)


def test_a_building_without_readings_has_nothing_to_predict(model: LoadedModel, entry: RegistryEntry) -> None:
    query = hours(1).query(entry)
    minutes = pending(query, entry, StoredMinutes(NOTHING, np.empty(0), NOTHING))
    assert minutes.mains_missing == 60
    assert list(predict(model, query, minutes, "backfill-1")) == []
