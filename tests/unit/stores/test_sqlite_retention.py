"""RETENTION_DAYS: old rows leave in small steps, their quarters stay what they were, and nothing late spoils them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from deployments.analytics.spans import DAY_NS, HOUR_NS, MINUTE_NS, QUARTER_NS, Span
from deployments.contracts import NotPersisted, PersistFailure, PredictionPoint, Readings, RecordSet
from deployments.journal_contracts import JournalEntry, JournalKind
from deployments.stores import sqlite_retention
from deployments.stores.base import StoreUnavailable
from deployments.stores.sqlite import SqliteStore, read_rows
from deployments.stores.sqlite_history import SqliteHistory
from deployments.stores.sqlite_maintenance import check_file

NOW = time.time_ns() // DAY_NS * DAY_NS
DAYS = 30
OLDEST = NOW - 40 * DAY_NS
HOURS = 40 * 24
MakePoint = Callable[..., PredictionPoint]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "predictions.sqlite3"


def readings(times_ns: np.ndarray, kw: float = 1.0) -> RecordSet:
    count = len(times_ns)
    arrays = Readings(("home", "cabin"), np.arange(count, dtype=np.int32) % 2, times_ns, np.full(count, kw))
    return RecordSet((), time.time() + 5, readings=arrays)


@pytest.fixture
def filled(path: Path, make_point: MakePoint) -> Path:
    """Forty days with a row an hour, written when nothing had to leave."""
    times = OLDEST + np.arange(HOURS, dtype=np.int64) * HOUR_NS
    store = SqliteStore(path)
    points = [
        make_point(building_id="home", appliance_id=appliance, time_ns=int(ns), predicted_kw=0.5)
        for appliance in ("kettle", "microwave")
        for ns in times
    ]
    assert store.write([readings(times), RecordSet(tuple(points), time.time() + 5)]) == [None, None]
    store.close()
    return path


@pytest.fixture
def open_with(path: Path) -> Iterator[Callable[[int], SqliteStore]]:
    opened: list[SqliteStore] = []

    def open_store(days: int) -> SqliteStore:
        if opened:
            opened.pop().close()
        opened.append(SqliteStore(path, retention_days=days))
        return opened[-1]

    yield open_store
    opened.pop().close()


def sweep(store: SqliteStore, make_point: MakePoint) -> None:
    """As many commits as a sweep takes."""
    while True:
        assert store.write([RecordSet((make_point(building_id="other", time_ns=NOW),), time.time() + 5)]) == [None]
        if store._retention._sweep is None:
            return


def oldest(path: Path, table: str) -> int:
    return int(read_rows(path, f"SELECT min(time_ns) FROM {table}")[0][0])  # noqa: S608


def test_old_rows_leave_and_their_quarters_stay(
    filled: Path, open_with: Callable[[int], SqliteStore], make_point: MakePoint
) -> None:
    history = SqliteHistory(filled)
    span = Span(OLDEST, NOW, QUARTER_NS)
    before = (history.mains("home", span), history.predictions("home", span), history.revision("home"))
    sweep(open_with(DAYS), make_point)
    horizon = time.time_ns() - DAYS * DAY_NS
    for table in ("sensor_reading", "prediction"):
        assert abs(oldest(filled, table) - horizon) <= HOUR_NS
    after = (history.mains("home", span), history.predictions("home", span), history.revision("home"))
    assert after[0].mean_kw.tolist() == before[0].mean_kw.tolist()
    assert [one.buckets.time_ns.tolist() for one in after[1]] == [one.buckets.time_ns.tolist() for one in before[1]]
    # What is answered by the minute has changed, so tags that clients hold must not fit any more.
    assert after[2] != before[2]
    assert len(history.mains("home", Span(OLDEST, OLDEST + DAY_NS, MINUTE_NS))) == 0
    assert check_file(filled).faults == ()


def test_what_comes_too_late_is_refused_and_spoils_nothing(
    filled: Path, open_with: Callable[[int], SqliteStore], make_point: MakePoint
) -> None:
    store = open_with(DAYS)
    sweep(store, make_point)
    late_point = RecordSet((make_point(building_id="home", time_ns=OLDEST),), time.time() + 5)
    mixed = readings(np.array([OLDEST, NOW], dtype=np.int64), kw=9.0)
    fresh = readings(np.array([NOW + 1, NOW + 2], dtype=np.int64))
    outcomes = store.write([late_point, mixed, fresh])
    assert outcomes[2] is None
    for outcome in outcomes[:2]:
        assert isinstance(outcome, NotPersisted)
        assert outcome.failure is PersistFailure.TOO_OLD
        assert "RETENTION_DAYS" in outcome.detail
        assert outcome.oldest_kept_ns is not None
        assert OLDEST < outcome.oldest_kept_ns < NOW
    assert SqliteHistory(filled).mains("home", Span(OLDEST, OLDEST + QUARTER_NS, QUARTER_NS)).mean_kw.tolist() == [1.0]


def test_the_journal_stays_whole(filled: Path, open_with: Callable[[int], SqliteStore], make_point: MakePoint) -> None:
    entries = [JournalEntry(OLDEST + age, JournalKind.APPLIED, "{}") for age in (0, 1)]
    record_sets = [RecordSet((), time.time() + 5, journal_entry=entry) for entry in entries]
    store = open_with(DAYS)
    assert store.write(record_sets[:1]) == [None]
    sweep(store, make_point)
    assert store.write(record_sets[1:]) == [None]
    assert SqliteHistory(filled).journal(10) == entries[::-1]


@pytest.mark.parametrize("days", [0, 3650])
def test_what_has_left_is_refused_for_ever(
    filled: Path, open_with: Callable[[int], SqliteStore], make_point: MakePoint, days: int
) -> None:
    store = open_with(DAYS)
    sweep(store, make_point)
    outcome = open_with(days).write([readings(np.array([OLDEST], dtype=np.int64))])[0]
    assert isinstance(outcome, NotPersisted)


def test_without_retention_nothing_leaves(
    filled: Path, open_with: Callable[[int], SqliteStore], make_point: MakePoint
) -> None:
    sweep(open_with(0), make_point)
    assert oldest(filled, "prediction") == OLDEST


def test_a_sweep_is_many_small_steps(
    filled: Path, open_with: Callable[[int], SqliteStore], make_point: MakePoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_retention, "CHUNK_ROWS", 10)
    monkeypatch.setattr(sqlite_retention, "STEP_S", 0.0)
    store = open_with(DAYS)
    gone = []
    for n in range(60):
        store.write([RecordSet((make_point(building_id="other", time_ns=NOW + n),), time.time() + 5)])
        gone.append(HOURS * 3 + n + 1 - sum(check_counts(filled)))
    steps = np.diff([0, *gone])
    assert steps.max() == 10
    assert gone[-1] > 300


def check_counts(path: Path) -> tuple[int, int]:
    counts = read_rows(path, "SELECT (SELECT count(*) FROM sensor_reading), (SELECT count(*) FROM prediction)")[0]
    return int(counts[0]), int(counts[1])


def test_a_sweep_whose_commit_failed_begins_again(
    filled: Path, open_with: Callable[[int], SqliteStore], make_point: MakePoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_with(DAYS)

    def fail(*_: object) -> None:
        raise StoreUnavailable("the disk is full")

    whole = check_counts(filled)
    step = store._retention.step

    def step_and_fail(connection: object) -> None:
        step(connection)  # type: ignore[arg-type]
        fail()

    monkeypatch.setattr(store._retention, "step", step_and_fail)
    with pytest.raises(StoreUnavailable):
        store.write([RecordSet((make_point(time_ns=NOW),), time.time() + 5)])
    assert check_counts(filled) == whole
    monkeypatch.undo()
    sweep(store, make_point)
    assert oldest(filled, "prediction") > OLDEST


def test_a_step_that_deletes_is_a_new_revision_whatever_becomes_of_the_sweep(
    filled: Path, open_with: Callable[[int], SqliteStore], make_point: MakePoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_retention, "STEP_S", 0.0)
    history = SqliteHistory(filled)
    store = open_with(DAYS)
    revisions, counts = [history.revision("cabin")], [len(history.mains("cabin", Span(OLDEST, NOW, MINUTE_NS)))]
    for _ in range(3):
        store.write([RecordSet((make_point(building_id="other", time_ns=NOW),), time.time() + 5)])
        revisions.append(history.revision("cabin"))
        counts.append(len(history.mains("cabin", Span(OLDEST, NOW, MINUTE_NS))))
    changed = [a != b for a, b in itertools.pairwise(counts)]
    assert any(changed)
    assert [a != b for a, b in itertools.pairwise(revisions)] == changed


def test_a_row_that_waited_for_the_writer_meets_the_new_horizon(
    filled: Path, open_with: Callable[[int], SqliteStore]
) -> None:
    """Readings and predictions have a writer each: one may move the horizon while the other waits for its turn."""
    store = open_with(0)
    outcomes: list[object] = []
    late = readings(np.array([OLDEST], dtype=np.int64), kw=9.0)
    with store._lock:
        waiting = threading.Thread(target=lambda: outcomes.extend(store.write([late])))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        store._retention._before_ns = NOW
    waiting.join(5)
    assert isinstance(outcomes[0], NotPersisted)


def test_rows_that_cannot_leave_keep_no_new_one_from_coming(
    filled: Path, open_with: Callable[[int], SqliteStore], make_point: MakePoint
) -> None:
    store = open_with(DAYS)
    store._connection.execute(
        "CREATE TRIGGER stuck BEFORE DELETE ON sensor_reading BEGIN SELECT raise(ABORT, 'a bad page'); END"
    )
    for n in range(3):
        point = make_point(building_id="other", time_ns=NOW + n)
        assert store.write([RecordSet((point,), time.time() + 5)]) == [None]
    assert len(read_rows(filled, "SELECT * FROM prediction WHERE building_id = 'other'")) == 3
    assert oldest(filled, "sensor_reading") == OLDEST


def test_a_commit_never_visits_every_building(
    path: Path, open_with: Callable[[int], SqliteStore], make_point: MakePoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_retention, "STEP_S", 0.0)
    store = open_with(DAYS)
    points = [make_point(building_id=f"home-{n}", time_ns=NOW) for n in range(200)]
    store.write([RecordSet(tuple(points), time.time() + 5)])
    store._retention._next_sweep_s = float("-inf")
    commits = 0
    while commits == 0 or store._retention._sweep is not None:
        store.write([RecordSet((make_point(building_id="home-1", time_ns=NOW),), time.time() + 5)])
        commits += 1
    assert commits > 200


def test_buildings_whose_rows_have_left_are_still_listed(
    filled: Path, open_with: Callable[[int], SqliteStore], make_point: MakePoint
) -> None:
    history = SqliteHistory(filled)
    store = open_with(1)
    before = {one.building_id: one for one in history.latest(None)}
    for table in ("sensor_reading", "prediction"):
        store._connection.execute(f"DELETE FROM {table}")  # noqa: S608
    after = {one.building_id: one for one in history.latest(None)}
    assert set(after) == set(before) == {"cabin", "home"}
    assert after["home"].predictions == before["home"].predictions
    assert after["home"].reading_ns == before["home"].reading_ns
