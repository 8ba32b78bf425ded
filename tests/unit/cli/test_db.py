"""`nilm db`: check, back up and export a file while its service has it open."""

from __future__ import annotations

import csv
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from deployments.contracts import PredictionPoint, Readings, RecordSet
from deployments.journal_contracts import JournalEntry, JournalKind
from deployments.stores.sqlite import SqliteStore
from deployments.stores.sqlite_history import SqliteHistory
from serve_app.cli.main import app

T0 = 1_769_904_000 * 10**9
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def store(tmp_path: Path, make_point: Callable[..., PredictionPoint]) -> Iterator[SqliteStore]:
    """Open all the time, as the service has it."""
    store = SqliteStore(tmp_path / "predictions.sqlite3")
    times = T0 + np.arange(300, dtype=np.int64) * 60 * 10**9
    arrays = Readings(("cabin", "home"), np.arange(300, dtype=np.int32) % 2, times, np.linspace(0, 3, 300))
    points = tuple(make_point(building_id="home", time_ns=int(ns), predicted_kw=0.5) for ns in times[:40])
    entry = JournalEntry(T0, JournalKind.APPLIED, "{}")
    sets = [RecordSet((), time.time() + 5, readings=arrays), RecordSet(points, time.time() + 5)]
    store.write([*sets, RecordSet((), time.time() + 5, journal_entry=entry)])
    yield store
    store.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def call(*arguments: str) -> tuple[int, str]:
        environment = {"NILM_DATA_DIR": str(tmp_path), "COLUMNS": "200"}
        result = CliRunner().invoke(app, ["db", *arguments], env=environment)
        return result.exit_code, result.output

    return call


def test_a_whole_file_is_said_to_be_whole(store: SqliteStore, run: Run) -> None:
    code, output = run("check")
    assert code == 0, output
    for text in ("buildings", "2", "readings", "300", "predictions", "40", "journal entries", "1", "whole, schema"):
        assert text in output


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE prediction SET predicted_kw = 9 WHERE time_ns = (SELECT min(time_ns) FROM prediction)",
        "DELETE FROM sensor_reading WHERE building_id = 'home'",
        "DELETE FROM reading_quarter WHERE building_id = 'home'",
        "UPDATE prediction_quarter SET minutes = minutes + 1",
    ],
)
def test_sums_that_are_not_those_of_their_rows_are_found(
    store: SqliteStore, run: Run, tmp_path: Path, damage: str
) -> None:
    with sqlite3.connect(tmp_path / "predictions.sqlite3") as connection:
        connection.execute(damage)
    code, output = run("check")
    assert code == 1
    assert "not the sum" in output


def test_a_damaged_page_is_found(store: SqliteStore, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "predictions.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [page] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'prediction'").fetchone()
    raw = bytearray(path.read_bytes())
    start = (page - 1) * 4096
    raw[start : start + 2000] = b"\xaa" * 2000
    path.write_bytes(raw)
    assert run("check")[0] == 1


def test_a_backup_while_the_service_writes_is_whole(
    store: SqliteStore, run: Run, tmp_path: Path, make_point: Callable[..., PredictionPoint]
) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            store.write([RecordSet((make_point(building_id="busy"),), time.time() + 5)])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        code, output = run("backup", str(tmp_path / "copy.sqlite3"))
    finally:
        stop.set()
        writer.join()
    assert code == 0, output
    restored = tmp_path / "restored"
    restored.mkdir()
    (tmp_path / "copy.sqlite3").rename(restored / "predictions.sqlite3")
    result = CliRunner().invoke(app, ["db", "check", "--data-dir", str(restored)])
    assert result.exit_code == 0, result.output
    assert len(SqliteHistory(restored / "predictions.sqlite3").journal(10)) == 1
    # The copy is a store of its own that can be opened and written.
    again = SqliteStore(restored / "predictions.sqlite3")
    assert again.write([RecordSet((make_point(),), time.time() + 5)]) == [None]
    again.close()
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_backup_replaces_nothing(store: SqliteStore, run: Run, tmp_path: Path) -> None:
    target = tmp_path / "copy.sqlite3"
    target.write_text("mine")
    code, output = run("backup", str(target))
    assert code == 1
    assert "exists" in output
    assert target.read_text() == "mine"
    assert run("backup", str(tmp_path / "no folder" / "copy"))[0] == 1


@pytest.mark.parametrize("chunk", [7, 20_000])
def test_every_row_is_exported_once(
    store: SqliteStore, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("deployments.stores.sqlite_maintenance.CHUNK_ROWS", chunk)
    code, output = run("export", str(tmp_path / "rows.csv"), "--what", "readings")
    assert code == 0, output
    assert "300 rows" in output
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({(row["building_id"], row["time_ns"]) for row in rows}) == 300
    assert float(rows[-1]["aggregate_kw"]) == 3.0
    code, output = run("export", str(tmp_path / "rows.parquet"))
    assert code == 0, output
    import pandas as pd

    frame = pd.read_parquet(tmp_path / "rows.parquet")
    assert len(frame) == 40
    assert frame["time_ns"].dtype == "int64"
    assert frame["predicted_kw"].tolist() == [0.5] * 40


def test_only_one_building_and_a_range(store: SqliteStore, run: Run, tmp_path: Path) -> None:
    arguments = ("--what", "readings", "--building", "home", "--start", "2026-02-01T00:00:00Z")
    assert run("export", str(tmp_path / "some.csv"), *arguments, "--end", "2026-02-01T00:10:00Z")[0] == 0
    rows = (tmp_path / "some.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["home"] * 5


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("export", "rows.txt"), ".csv or .parquet"),
        (("export", "rows.csv", "--start", "yesterday"), "--start"),
        (("export", "/proc/rows.csv"), "rows.csv"),
    ],
)
def test_what_cannot_be_exported(store: SqliteStore, run: Run, arguments: tuple[str, ...], reason: str) -> None:
    code, output = run(*arguments)
    assert code == 1
    assert reason in output


@pytest.mark.parametrize("command", [("check",), ("backup", "x.sqlite3"), ("export", "x.csv")])
def test_without_a_file_there_is_one_sentence(run: Run, command: tuple[str, ...]) -> None:
    code, output = run(*command)
    assert code == 1
    assert "does not exist" in output
    assert "Traceback" not in output


def test_a_file_of_another_schema_is_not_judged(store: SqliteStore, run: Run, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "predictions.sqlite3") as connection:
        connection.execute("PRAGMA user_version = 2")
    code, output = run("check")
    assert code == 1
    assert "schema 2" in output
