"""What only the SQLite store promises: its file, its schema, its lock, its WAL."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployments.contracts import Claim, Completion, PersistFailure, Readings, RecordSet
from deployments.journal_contracts import JournalEntry, JournalKind
from deployments.stores import StoreUnavailable, sqlite, sqlite_schema
from deployments.stores.ownership import StoreInUse
from deployments.stores.sqlite import SqliteStore, read_rows
from deployments.stores.sqlite_history import SqliteHistory
from deployments.stores.sqlite_maintenance import check_file

MakeSet = Callable[..., RecordSet]

_HOLDER = """
import sys, time
from pathlib import Path
from deployments.stores.sqlite import SqliteStore
store = SqliteStore(Path(sys.argv[1]))
print("open", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "predictions.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path, ownership_wait_s=0.2)
    yield store
    store.close()


def _count(path: Path) -> int:
    return int(read_rows(path, "SELECT count(*) FROM prediction")[0][0])


def test_commits_are_synced_and_in_the_wal(store: SqliteStore) -> None:
    pragma = {
        name: store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")
    }
    assert pragma == {"synchronous": 2, "journal_mode": "wal"}


def test_reopening_keeps_the_rows(path: Path, make_set: MakeSet) -> None:
    for expected in (1, 2):
        store = SqliteStore(path)
        store.write([make_set()])
        store.close()
        assert _count(path) == expected


def test_a_newer_schema_is_refused_and_untouched(path: Path) -> None:
    SqliteStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreUnavailable, match="schema 99"):
        SqliteStore(path)
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (99,)


SCHEMA_1 = """
CREATE TABLE prediction (
  building_id TEXT NOT NULL, appliance_id TEXT NOT NULL, model_version TEXT NOT NULL, time_ns INTEGER NOT NULL,
  predicted_kw REAL NOT NULL, confidence REAL NOT NULL, aggregate_kw REAL NOT NULL, request_id TEXT NOT NULL,
  user_id TEXT NOT NULL, artifact_sha256 TEXT NOT NULL, latency_ms REAL NOT NULL,
  PRIMARY KEY (building_id, appliance_id, time_ns, model_version)
) STRICT, WITHOUT ROWID
"""


@pytest.fixture
def of_version_1(path: Path) -> list[tuple[object, ...]]:
    """A file as the first release wrote it; gives its rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [("home", "kettle", "1.0.0", n, 1.5, 0.9, 2.0, f"r{n}", "user", "ab" * 32, 3.0) for n in range(1000)]
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(SCHEMA_1)
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO prediction VALUES (?,?,?,?,?,?,?,?,?,?,?)", rows)
        connection.execute("COMMIT")
        connection.execute("PRAGMA user_version = 1")
    return rows


def test_a_file_of_the_first_schema_is_migrated_with_every_row(
    path: Path, of_version_1: list[tuple[object, ...]], make_set: MakeSet
) -> None:
    store = SqliteStore(path)
    assert store.write([make_set(attribution="provisional")]) == [None]
    store.close()
    assert read_rows(path, "PRAGMA user_version") == [(sqlite_schema.SCHEMA_VERSION,)]
    expected = [(*row[:3], "final", *row[3:]) for row in of_version_1]
    assert read_rows(path, "SELECT * FROM prediction WHERE attribution = 'final' ORDER BY time_ns") == expected
    assert _count(path) == len(expected) + 1
    SqliteStore(path.with_name("new")).close()
    of_today = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"
    assert read_rows(path, of_today) == read_rows(path.with_name("new"), of_today)
    SqliteStore(path).close()


def test_a_file_without_a_journal_gets_one_and_keeps_everything(path: Path, make_set: MakeSet) -> None:
    """Schema 5, the one before this."""
    store = SqliteStore(path)
    claim = Claim("key", "fingerprint", "token", None)
    mains = Readings.of([("home", n * 60 * 10**9, n / 7) for n in range(100)])
    sets = [make_set(50), RecordSet((), time.time() + 5, readings=mains)]
    sets.append(dataclasses.replace(make_set(), completion=Completion(claim, b"reply")))
    assert store.write(sets) == [None] * 3
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE rollout")
        connection.execute("PRAGMA user_version = 5")
    tables = [name for (name,) in read_rows(path, "SELECT name FROM sqlite_schema WHERE type = 'table'")]
    assert len(tables) == 7
    before = {name: read_rows(path, f"SELECT * FROM {name}") for name in tables}  # noqa: S608
    store = SqliteStore(path)
    assert {name: read_rows(path, f"SELECT * FROM {name}") for name in tables} == before  # noqa: S608
    entry = JournalEntry(1, JournalKind.DEMOTED, "{}")
    assert store.write([RecordSet((), time.time() + 5, journal_entry=entry)]) == [None]
    store.close()
    assert SqliteHistory(path).journal(10) == [entry]
    assert check_file(path).faults == ()


def test_a_migration_that_fails_leaves_the_file_as_it_was(
    path: Path, of_version_1: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = sqlite_schema._MIGRATIONS[1]
    monkeypatch.setitem(sqlite_schema._MIGRATIONS, 1, (*steps[:-1], "DROP TABLE no_such_table"))
    with pytest.raises(StoreUnavailable):
        SqliteStore(path, ownership_wait_s=0)
    assert read_rows(path, "PRAGMA user_version") == [(1,)]
    assert read_rows(path, "SELECT * FROM prediction ORDER BY time_ns") == of_version_1


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(StoreUnavailable, match="another program"):
        SqliteStore(path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreUnavailable, match="not an SQLite database"):
        SqliteStore(path)
    path.unlink()
    # The refused file's lock was given back.
    SqliteStore(path, ownership_wait_s=0).close()


def test_a_path_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable):
        SqliteStore(tmp_path / "file" / "predictions.db")


def test_one_file_has_one_writer_under_every_name(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    alias = tmp_path / "alias.db"
    alias.symlink_to(path)
    for name in (path, alias):
        with pytest.raises(StoreInUse, match=rf"in use by another writer \(process {os.getpid()}\)"):
            SqliteStore(name, ownership_wait_s=0.1)


def test_a_killed_writer_leaves_the_file_free(path: Path, make_set: MakeSet) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(StoreInUse, match=str(holder.pid)):
        SqliteStore(path, ownership_wait_s=0.1)
    threading.Timer(0.2, lambda: holder.send_signal(signal.SIGKILL)).start()
    store = SqliteStore(path, ownership_wait_s=5)  # waits for the old one to go
    assert store.write([make_set()]) == [None]
    store.close()
    holder.wait()
    holder.stdout.close()


def test_a_record_set_the_database_refuses_leaves_no_part(
    store: SqliteStore, path: Path, make_set: MakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the common checks stands the schema: NaN is NULL to SQLite, and the savepoint undoes the first point."""
    monkeypatch.setattr(sqlite, "refusal", lambda record_set: None)
    good, also_good = make_set(), make_set(2)
    bad = make_set(2)
    bad = dataclasses.replace(bad, points=(bad.points[0], dataclasses.replace(bad.points[1], predicted_kw=math.nan)))
    outcomes = store.write([good, bad, also_good])
    assert outcomes[0] is None
    assert outcomes[2] is None
    assert outcomes[1] is not None
    assert outcomes[1].failure is PersistFailure.REJECTED
    assert _count(path) == 3


def test_a_full_disk_is_unavailable_and_undoes_the_commit(store: SqliteStore, path: Path, make_set: MakeSet) -> None:
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreUnavailable, match="disk is full"):
        store.write([make_set(500)])
    assert _count(path) == 0
    store._connection.execute("PRAGMA max_page_count = 1000000")
    assert store.write([make_set(500)]) == [None]


def test_too_little_space_is_not_usable(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "FREE_SPACE_FLOOR_BYTES", 2**62)
    with pytest.raises(StoreUnavailable, match="nearly full"):
        store.ping()


def test_a_read_only_database_is_unavailable(store: SqliteStore, make_set: MakeSet) -> None:
    store._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreUnavailable, match="read-only"):
        store.write([make_set()])


def test_a_corrupted_file_is_unavailable(path: Path, make_set: MakeSet) -> None:
    store = SqliteStore(path)
    store.write([make_set(200)])
    store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(StoreUnavailable, match="corrupted"):
        SqliteStore(path)


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_taken_away_is_not_written_to(store: SqliteStore, path: Path, make_set: MakeSet, how: str) -> None:
    store.write([make_set()])
    path.rename(path.with_name("elsewhere.db"))
    if how == "replaced":
        path.write_bytes(b"")
    for use in (store.ping, lambda: store.write([make_set()])):
        with pytest.raises(StoreUnavailable, match="moved or deleted"):
            use()


def test_overlapping_readers_do_not_let_the_wal_grow(
    store: SqliteStore, path: Path, make_set: MakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 256 * 1024
    monkeypatch.setattr(sqlite, "WAL_LIMIT_BYTES", limit)
    monkeypatch.setattr(sqlite, "TRUNCATE_EVERY_S", 0.0)
    store._connection.execute("PRAGMA wal_autocheckpoint = 0")  # only the bound under test is at work
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            read_rows(path, "SELECT count(*), sum(predicted_kw) FROM prediction")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    largest = 0
    try:
        for _ in range(60):
            assert store.write([make_set(100)]) == [None]
            largest = max(largest, path.with_name(path.name + "-wal").stat().st_size)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    written = 60 * 100 * 250
    assert largest < written
    assert largest < limit * 2
    assert _count(path) == 6000


def test_a_reader_that_stays_delays_no_acknowledgement_for_long(
    store: SqliteStore, path: Path, make_set: MakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "WAL_LIMIT_BYTES", 1024)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM prediction").fetchone()
    started = time.monotonic()
    for _ in range(20):
        assert store.write([make_set()]) == [None]
    assert time.monotonic() - started < 1.5
    reader.close()


def test_a_long_query_is_interrupted(store: SqliteStore, path: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="interrupted"):
        read_rows(path, endless, max_s=0.2)
    assert time.monotonic() - started < 2


def test_readers_cannot_write(store: SqliteStore, path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="read-only"):
        read_rows(path, "DELETE FROM prediction")
