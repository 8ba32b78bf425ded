"""What every store promises, run on each of them."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.contracts import PersistFailure, PredictionPoint, RecordSet
from deployments.stores import PredictionStore, StoreUnavailable, open_store
from deployments.stores.checks import TEXT_LIMIT, TIME_NS_MAX, TIME_NS_MIN

MakePoint = Callable[..., PredictionPoint]
MakeSet = Callable[..., RecordSet]
STORES = ("sqlite", "influxdb", "tsm")
"""The last is InfluxDB's real storage engine."""

TAGS = ("building_id", "appliance_id", "model_version", "attribution")
TEXT_FIELDS = ("request_id", "user_id", "artifact_sha256")
NUMBERS = ("predicted_kw", "confidence", "aggregate_kw", "latency_ms")

WRITABLE = (
    "a,b=c d",
    'say "hi"',
    "back\\slash",
    "a\\,b",
    "\\=\\ ,x",
    "a\\\\b",
    " leading and trailing ",
    "#comment",
    "x,building_id=other y=1 1",
    "'; DROP TABLE prediction; --",
    "größe-電気-🔌",
    "e\u0301",
    "{}%s${x}",
    "\u2028",
)
UNWRITABLE = ("new\nline", "\r", "tab\t", "nul\x00", "\x7f", "\x85", "lone\ud800", "x" * (TEXT_LIMIT + 1))


def test_a_point_reads_back_as_it_was_written(
    backend: Any, store: PredictionStore, make_point: MakePoint, make_set: MakeSet
) -> None:
    point = make_point(predicted_kw=0.1, confidence=1e-300, aggregate_kw=-0.0, latency_ms=1e16)
    assert store.write([make_set(point)]) == [None]
    assert backend.points() == [point]
    # No store keeps the sign of zero, because SQLite cannot.
    assert math.copysign(1, backend.points()[0].aggregate_kw) == 1


def test_the_same_identity_is_overwritten_and_never_doubled(
    backend: Any, store: PredictionStore, make_point: MakePoint, make_set: MakeSet
) -> None:
    first = make_point()
    second = dataclasses.replace(
        first, predicted_kw=9.0, confidence=0.0, request_id="request-2", user_id="", latency_ms=0.0
    )
    store.write([make_set(first)])
    assert store.write([make_set(second)]) == [None]
    assert backend.points() == [second]


def test_of_two_equal_identities_in_one_commit_the_later_wins(
    backend: Any, store: PredictionStore, make_point: MakePoint, make_set: MakeSet
) -> None:
    first = make_point()
    second = dataclasses.replace(first, predicted_kw=9.0)
    assert store.write([make_set(first), make_set(second)]) == [None, None]
    assert backend.points() == [second]


@pytest.mark.parametrize("part", [*TAGS, "time_ns"])
def test_every_part_of_the_identity_tells_points_apart(
    backend: Any, store: PredictionStore, make_point: MakePoint, make_set: MakeSet, part: str
) -> None:
    first = make_point()
    other = dataclasses.replace(first, **{part: first.time_ns + 1 if part == "time_ns" else "other"})
    assert store.write([make_set(first, other)]) == [None]
    assert sorted(backend.points(), key=repr) == sorted([first, other], key=repr)


@pytest.mark.parametrize("time_ns", [TIME_NS_MIN, -1, 0, 1_700_000_000_123_456_789, TIME_NS_MAX])
def test_times_keep_every_nanosecond(backend: Any, store: PredictionStore, make_set: MakeSet, time_ns: int) -> None:
    assert store.write([make_set(time_ns=time_ns)]) == [None]
    assert [point.time_ns for point in backend.points()] == [time_ns]


def test_hostile_strings_stay_what_they_are(
    backend: Any, store: PredictionStore, make_point: MakePoint, make_set: MakeSet
) -> None:
    points = [make_point(**{name: text}) for name in (*TAGS, *TEXT_FIELDS) for text in WRITABLE]
    assert store.write([make_set(point) for point in points]) == [None] * len(points)
    assert sorted(backend.points(), key=repr) == sorted(points, key=repr)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.sampled_from(' ,="\\ab#\u00e9\n')), min_size=7, max_size=7))
def test_any_string_is_kept_exactly_or_refused(
    backend: Any, store: PredictionStore, make_point: MakePoint, make_set: MakeSet, texts: list[str]
) -> None:
    point = make_point(**dict(zip((*TAGS, *TEXT_FIELDS), texts, strict=True)))
    [outcome] = store.write([make_set(point)])
    assert (point in backend.points()) == (outcome is None)
    assert outcome is None or outcome.failure is PersistFailure.REJECTED


def _bad_values() -> list[tuple[str, Any]]:
    texts = [(name, text) for name in (*TAGS, *TEXT_FIELDS) for text in (*UNWRITABLE, None, 7)]
    tags = [(name, text) for name in TAGS for text in ("", "ends with \\")]
    numbers = [(name, bad) for name in NUMBERS for bad in (math.nan, math.inf, -math.inf, None, "1", True, 10**400)]
    times = [("time_ns", bad) for bad in (TIME_NS_MIN - 1, TIME_NS_MAX + 1, 1.5, None, True)]
    return texts + tags + numbers + times


def test_a_bad_record_set_fails_alone(
    backend: Any, store: PredictionStore, make_point: MakePoint, make_set: MakeSet
) -> None:
    bad = [make_set(make_point(), make_point(**{name: value})) for name, value in _bad_values()]
    bad += [RecordSet((), time.time() + 5), make_set(*[make_point(time_ns=5)] * 2)]
    good = [make_point() for _ in bad]
    mixed = [record_set for pair in zip(bad, map(make_set, good), strict=True) for record_set in pair]
    outcomes = store.write(mixed)
    for outcome, record_set in zip(outcomes[::2], bad, strict=True):
        assert outcome is not None, record_set
        assert outcome.failure is PersistFailure.REJECTED
    assert outcomes[1::2] == [None] * len(good)
    assert sorted(backend.points(), key=repr) == sorted(good, key=repr)


def test_numpy_numbers_are_numbers(backend: Any, store: PredictionStore, make_set: MakeSet) -> None:
    record_set = make_set(
        predicted_kw=np.float32(0.5), confidence=np.float64(0.25), aggregate_kw=2, latency_ms=np.int64(3)
    )
    assert store.write([record_set]) == [None]
    [point] = backend.points()
    assert (point.predicted_kw, point.confidence, point.aggregate_kw, point.latency_ms) == (0.5, 0.25, 2.0, 3.0)


def test_an_unusable_store_says_so_and_comes_back(backend: Any, store: PredictionStore, make_set: MakeSet) -> None:
    store.ping()
    backend.break_it()
    with pytest.raises(StoreUnavailable):
        store.write([make_set()])
    with pytest.raises(StoreUnavailable):
        store.ping()
    backend.mend()
    store.ping()
    assert store.write([make_set()]) == [None]
    assert len(backend.points()) == 1


def test_a_ping_writes_nothing(backend: Any, store: PredictionStore) -> None:
    store.ping()
    assert backend.points() == []


@pytest.mark.parametrize(("seed", "kind"), [(1, "points"), (2, "points"), (3, "points"), (4, "journal")])
def test_what_was_acknowledged_survives_sigkill(backend: Any, seed: int, kind: str) -> None:
    """Kills the writer, and with InfluxDB the server too, in the middle of its work."""
    chance = random.Random(seed)  # noqa: S311
    config = dataclasses.asdict(backend.config())
    config["sqlite_path"] = str(config["sqlite_path"]) if config["sqlite_path"] else None
    program = Path(__file__).with_name("acknowledging_writer.py")
    command = [sys.executable, str(program), json.dumps(config), kind]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = {int(writer.stdout.readline()) for _ in range(chance.randrange(20, 120))}
    # Not right after an acknowledgement: the kill should hit every step of a commit in its turn.
    time.sleep(chance.uniform(0, 0.03))
    writer.send_signal(signal.SIGKILL)
    # What was in the pipe at the kill was acknowledged as well; a torn last line was not.
    acknowledged |= {int(line) for line in writer.stdout.read().split("\n")[:-1]}
    writer.wait()
    writer.stdout.close()
    backend.crash()
    stored = {record.time_ns for record in (backend.journal() if kind == "journal" else backend.points())}
    assert acknowledged - stored == set()
    # At most the one commit that was running is stored and not acknowledged.
    assert len(stored - acknowledged) <= 4
    open_store(backend.config()).close()
