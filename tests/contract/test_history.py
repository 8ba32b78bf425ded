"""Reading back: seeded random series, compared with a reference in numpy, on every store and at every resolution."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deployments.analytics.series import BucketSeries, Latest
from deployments.analytics.spans import DAY_NS, HOUR_NS, MINUTE_NS, QUARTER_NS, SECOND_NS, Span
from deployments.contracts import PredictionPoint, Readings, RecordSet
from deployments.history import minutes
from deployments.history_contracts import MinutesQuery
from deployments.stores import HistoryReader, PredictionStore, open_history, open_store
from models.attribution import Attribution

MIDNIGHT = 1_769_904_000 * 10**9
STEPS = [SECOND_NS, MINUTE_NS, QUARTER_NS, HOUR_NS]
SEEDS = {"sqlite": 40, "influxdb": 6}
"""Fewer where a small interpreter of ours runs the queries."""

Samples = dict[int, float]


@pytest.fixture
def history(backend: Any) -> Iterator[HistoryReader]:
    reader = open_history(backend.config())
    yield reader
    reader.close()


def reference(samples: Samples, span: Span) -> list[tuple[int, float, int]]:
    """Means of the means of minutes (or of seconds), and how many there are, from the definition."""
    times = np.array(sorted(samples), dtype=np.int64)
    values = np.array([samples[int(ns)] for ns in times])
    inside = (times >= span.start_ns) & (times < span.stop_ns)
    times, values = times[inside], values[inside]
    minutes = times // span.inner_step_ns
    means = {int(minute): float(np.mean(values[minutes == minute])) for minute in np.unique(minutes)}
    buckets: dict[int, list[float]] = {}
    for minute, mean in means.items():
        buckets.setdefault(minute * span.inner_step_ns // span.step_ns * span.step_ns, []).append(mean)
    return [(start, float(np.mean(of)), len(of)) for start, of in sorted(buckets.items())]


def check(found: BucketSeries, expected: list[tuple[int, float, int]]) -> None:
    assert found.time_ns.tolist() == [row[0] for row in expected]
    assert found.minutes.tolist() == [row[2] for row in expected]
    np.testing.assert_allclose(found.mean_kw, [row[1] for row in expected], rtol=1e-12, atol=1e-12)


def random_times(chance: np.random.Generator, around_ns: int) -> npt.NDArray[np.int64]:
    """Samples as meters send them: regular, irregular, in bursts, and exactly on the edges of buckets."""
    size = int(chance.integers(1, 60))
    period_ns = int(chance.choice([SECOND_NS, 8 * SECOND_NS, MINUTE_NS, 7 * MINUTE_NS, QUARTER_NS]))
    regular = around_ns + np.arange(size) * period_ns
    irregular = around_ns + chance.integers(0, 6 * HOUR_NS, size)
    edges = around_ns + chance.integers(-4, 24, size) * QUARTER_NS + chance.integers(-1, 2, size)
    times: npt.NDArray[np.int64] = np.unique(np.concatenate([regular, irregular, edges]))
    return times


def random_span(chance: np.random.Generator, times: npt.NDArray[np.int64], step_ns: int) -> Span:
    """Some around all samples, some that begin or end exactly at one."""
    first, last = int(times[0]) - int(chance.integers(0, HOUR_NS)), int(times[-1]) + int(chance.integers(1, HOUR_NS))
    if chance.random() < 0.5:
        first = int(chance.choice(times))
    if chance.random() < 0.5:
        last = max(int(chance.choice(times)), first + 1)
    return Span.covering(first, last, step_ns)


def write_readings(store: PredictionStore, building_id: str, samples: Samples) -> None:
    arrays = Readings.of((building_id, time_ns, kw) for time_ns, kw in samples.items())
    assert store.write([RecordSet((), time.time() + 30, readings=arrays)]) == [None]


def test_hundreds_of_random_mains(store: PredictionStore, history: HistoryReader) -> None:
    for seed in range(SEEDS[store.kind]):
        chance = np.random.default_rng(seed)
        building = f"home-{seed}"
        times = random_times(chance, MIDNIGHT + int(chance.integers(-DAY_NS, DAY_NS)))
        samples: Samples = {}
        # In parts, in any order, some of them twice with another value: only the last one counts.
        order = chance.permutation(np.concatenate([times, chance.choice(times, len(times) // 3)]))
        for part in np.array_split(order, int(chance.integers(1, 4))):
            fresh = {int(ns): float(chance.uniform(0, 9)) for ns in part}
            write_readings(store, building, fresh)
            samples |= fresh
        for step_ns in STEPS:
            span = random_span(chance, times, step_ns)
            check(history.mains(building, span), reference(samples, span))


@pytest.mark.parametrize("one_appliance", [False, True])
def test_random_predictions_of_several_versions(
    store: PredictionStore, history: HistoryReader, make_point: Callable[..., PredictionPoint], one_appliance: bool
) -> None:
    for seed in range(SEEDS[store.kind] // 3):
        chance = np.random.default_rng(1000 + seed)
        building = f"home-{seed}"
        times = random_times(chance, MIDNIGHT)
        power: dict[tuple[str, str, str], Samples] = {}
        confidence: dict[tuple[str, str, str], Samples] = {}
        points = []
        for ns in chance.permutation(np.concatenate([times, times[: len(times) // 3]])):
            identity = (
                str(chance.choice(["kettle", "dish washer,=\\x", "größe"])),
                str(chance.choice(["1.0.0", "2.0.0-rc1"])),
                str(chance.choice(["final", "provisional"])),
            )
            kw, certain = float(chance.uniform(0, 3)), float(chance.uniform(0, 1))
            power.setdefault(identity, {})[int(ns)] = kw
            confidence.setdefault(identity, {})[int(ns)] = certain
            appliance, version, attribution = identity
            changes = {"building_id": building, "appliance_id": appliance, "model_version": version}
            changes |= {"attribution": attribution, "time_ns": int(ns), "predicted_kw": kw, "confidence": certain}
            points.append(make_point(**changes))
        for point in points:
            assert store.write([RecordSet((point,), time.time() + 30)]) == [None]
        wanted = "kettle" if one_appliance else None
        for step_ns in STEPS:
            span = random_span(chance, times, step_ns)
            found = {
                (one.appliance_id, one.model_version, one.attribution): one
                for one in history.predictions(building, span, wanted)
            }
            expected = {identity: rows for identity, rows in power.items() if reference(rows, span)}
            expected = {key: rows for key, rows in expected.items() if wanted in (None, key[0])}
            assert list(found) == sorted(expected)
            for identity, rows in expected.items():
                check(found[identity].buckets, reference(rows, span))
                means = [row[1] for row in reference(confidence[identity], span)]
                np.testing.assert_allclose(found[identity].confidence, means, rtol=1e-12, atol=1e-12)


def test_when_a_building_was_last_heard_of(
    store: PredictionStore, history: HistoryReader, make_point: Callable[..., PredictionPoint]
) -> None:
    now_ns = time.time_ns() // 1000 * 1000
    assert history.latest(None) == []
    write_readings(store, "home", {now_ns - HOUR_NS: 1.0, now_ns: 2.0})
    write_readings(store, "cabin", {now_ns - DAY_NS: 1.0})
    points = [
        make_point(building_id=building, appliance_id=appliance, model_version=version, time_ns=ns)
        for building, appliance, version, ns in (
            ("home", "kettle", "1.0.0", now_ns - 5000),
            ("home", "kettle", "2.0.0", now_ns - 9000),
            ("home", "dish washer", "2.0.0", now_ns - DAY_NS),
            ("barn", "kettle", "2.0.0", now_ns - 3000),
        )
    ]
    store.write([RecordSet(tuple(points), time.time() + 5)])
    home = Latest("home", now_ns, {"dish washer": now_ns - DAY_NS, "kettle": now_ns - 5000})
    assert history.latest(("home",)) == [home]
    assert [one.building_id for one in history.latest(("home", "nobody", "cabin"))] == ["cabin", "home"]
    assert history.latest(None) == [
        Latest("barn", None, {"kettle": now_ns - 3000}),
        Latest("cabin", now_ns - DAY_NS, {}),
        home,
    ]
    assert history.latest(("nobody",)) == []


def test_nothing_stored_is_nothing_found(store: PredictionStore, history: HistoryReader) -> None:
    for step_ns in STEPS:
        span = Span.covering(MIDNIGHT, MIDNIGHT + DAY_NS, step_ns)
        assert len(history.mains("nobody", span)) == 0
        assert history.predictions("nobody", span) == []
        assert history.predictions("nobody", span, "kettle") == []


def test_hostile_names_find_nothing_of_others(store: PredictionStore, history: HistoryReader) -> None:
    write_readings(store, "home", {MIDNIGHT: 1.0})
    span = Span.covering(MIDNIGHT, MIDNIGHT + 1, QUARTER_NS)
    for name in ('home" or true or r.building_id == "x', "home' OR '1'='1", "${home}", "home\\", "HOME", "hom%", ""):
        assert len(history.mains(name, span)) == 0
        assert history.predictions(name, span, name) == []


def test_the_last_nanosecond_of_a_span_belongs_to_it_and_the_next_does_not(
    store: PredictionStore, history: HistoryReader
) -> None:
    end = MIDNIGHT + HOUR_NS
    write_readings(store, "home", {MIDNIGHT - 1: 1.0, MIDNIGHT: 2.0, end - 1: 3.0, end: 4.0})
    for step_ns in STEPS:
        found = history.mains("home", Span.covering(MIDNIGHT, end, step_ns))
        assert found.time_ns[0] == MIDNIGHT
        values = found.mean_kw.tolist()
        assert values == ([2.0, 3.0] if step_ns < HOUR_NS else [2.5])


def test_sqlite_another_revision_after_every_commit_of_a_building(sqlite_backend: Any) -> None:
    store, history = open_store(sqlite_backend.config()), open_history(sqlite_backend.config())
    seen = [history.revision("home")]
    for value in (1.0, 2.0):
        write_readings(store, "home", {MIDNIGHT: value})
        seen.append(history.revision("home"))
        write_readings(store, "other", {MIDNIGHT: value})
        assert history.revision("home") == seen[-1]
    assert len(set(seen)) == 3
    store.close()


def test_sqlite_an_older_file_has_its_rollups_after_the_migration(
    sqlite_backend: Any, make_point: Callable[..., PredictionPoint]
) -> None:
    import sqlite3

    from deployments.stores.sqlite import read_rows

    store = open_store(sqlite_backend.config())
    chance = np.random.default_rng(5)
    times = [*random_times(chance, MIDNIGHT).tolist(), -1, -QUARTER_NS, 0, 7]
    points = tuple(make_point(time_ns=ns, predicted_kw=float(chance.uniform(0, 3))) for ns in times)
    store.write([RecordSet(points, time.time() + 30)])
    store.close()
    rows = "SELECT * FROM prediction_quarter ORDER BY time_ns"
    kept = read_rows(sqlite_backend.path, rows)
    with sqlite3.connect(sqlite_backend.path) as connection:
        for table in (
            "reading_quarter",
            "prediction_quarter",
            "building_revision",
            "sensor_reading",
            "pruned",
            "rollout",
        ):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("PRAGMA user_version = 3")
    open_store(sqlite_backend.config()).close()
    migrated = read_rows(sqlite_backend.path, rows)
    assert [row[:6] for row in migrated] == [row[:6] for row in kept]
    np.testing.assert_allclose([row[6:] for row in migrated], [row[6:] for row in kept], rtol=1e-12)


def test_a_backfill_reads_the_minutes_of_its_version_only(
    store: PredictionStore, history: HistoryReader, make_point: Callable[..., PredictionPoint]
) -> None:
    times = MIDNIGHT + np.array([-2, 0, 1, 5, 61], dtype=np.int64) * MINUTE_NS
    readings = Readings(("home-1",), np.zeros(5, np.int32), times + 7, np.array([1.0, 2, 3, 4, 5]))
    said = [(0, "1.2.0", "final"), (1, "1.2.0", "provisional"), (2, "1.1.0", "final"), (4, "1.2.0", "final")]
    points = tuple(
        make_point(time_ns=MIDNIGHT + minute * MINUTE_NS + 30 * SECOND_NS, model_version=version, attribution=kind)
        for minute, version, kind in said
    )
    other = make_point(time_ns=MIDNIGHT + 3 * MINUTE_NS, appliance_id="microwave")
    written = store.write(
        [RecordSet((), time.time() + 5, readings=readings), RecordSet((*points, other), time.time() + 5)]
    )
    assert written == [None, None]
    query = MinutesQuery(
        "home-1", "kettle", "1.2.0", Attribution.FINAL, MIDNIGHT, MIDNIGHT + HOUR_NS, MIDNIGHT - HOUR_NS,
        MIDNIGHT + HOUR_NS,
    )  # fmt: skip
    found = minutes(history, query)
    assert found.mains_ns.tolist() == [MIDNIGHT + n * MINUTE_NS for n in (-2, 0, 1, 5)]
    assert found.mains_kw.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert found.predicted_ns.tolist() == [MIDNIGHT, MIDNIGHT + 4 * MINUTE_NS]
