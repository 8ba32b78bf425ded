"""Recordings from files: units, time, gaps, and one clear sentence for each bad file."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from serve_app.demo.errors import SourceError
from serve_app.demo.source import read_recording


def _csv(tmp_path: Path, text: str, name: str = "home.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_csv_in_watts_with_ground_truth(tmp_path: Path) -> None:
    path = _csv(
        tmp_path,
        "Time,Aggregate,Kettle,WashingMachine,Kettle_status,note\n"
        "2026-01-01 00:00:00,200,0,5,0,a\n2026-01-01 00:01:00,2900,2700,5,1,b\n",
    )
    recording = read_recording(path, 60)
    assert recording.start == datetime(2026, 1, 1, tzinfo=UTC)
    assert recording.title == "home.csv"
    np.testing.assert_allclose(recording.aggregate_w, [200, 2900])
    assert set(recording.appliances_w) == {"kettle", "washingmachine"}
    measured = recording.measured_w("washing_machine")
    assert measured is not None
    np.testing.assert_allclose(measured, [5, 5])
    assert recording.measured_w("microwave") is None


def test_kilowatts_become_watts(tmp_path: Path) -> None:
    path = _csv(tmp_path, "timestamp,aggregate_kw\n2026-01-01T00:00Z,0.2\n2026-01-01T00:01Z,2.9\n")
    np.testing.assert_allclose(read_recording(path, 60).aggregate_w, [200, 2900])


def test_offsets_are_honoured(tmp_path: Path) -> None:
    path = _csv(tmp_path, "time,power\n2026-01-01T01:00:00+01:00,200\n2026-01-01T01:01:00+01:00,201\n")
    assert read_recording(path, 60).start == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("scale", [1, 1000])
def test_numbers_are_seconds_or_milliseconds(tmp_path: Path, scale: int) -> None:
    rows = "".join(f"{(1767225600 + 60 * i) * scale},{200 + i}\n" for i in range(3))
    assert read_recording(_csv(tmp_path, "time,mains\n" + rows), 60).instant(2) == datetime(
        2026, 1, 1, 0, 2, tzinfo=UTC
    )


def test_finer_samples_are_averaged_and_gaps_stay_missing(tmp_path: Path) -> None:
    path = _csv(
        tmp_path,
        "time,power\n2026-01-01 00:00:00,100\n2026-01-01 00:00:30,200\n"
        "2026-01-01 00:02:00,300\n2026-01-01 00:02:30,0\n2026-01-01 00:03:00,\n2026-01-01 00:03:30,0\n",
    )
    np.testing.assert_allclose(read_recording(path, 60).aggregate_w, [150, np.nan, 300, np.nan])


def test_a_dead_meter_is_missing_not_constant(tmp_path: Path) -> None:
    watts = 100 + np.arange(200) % 7
    watts[50:120] = 180
    times = pd.date_range("2026-01-01", periods=200, freq="60s")
    path = tmp_path / "home.parquet"
    pd.DataFrame({"Aggregate": watts.astype("float32")}, index=times.rename("Time")).to_parquet(path)
    recording = read_recording(path, 60)
    assert np.isnan(recording.aggregate_w).sum() == 70
    assert not (recording.aggregate_w == 0).any()


def test_unsorted_and_repeated_rows_are_put_right(tmp_path: Path) -> None:
    path = _csv(tmp_path, "time,power\n2026-01-01 00:01,300\n2026-01-01 00:00,100\n2026-01-01 00:01,200\n")
    np.testing.assert_allclose(read_recording(path, 60).aggregate_w, [100, 250])


@pytest.mark.parametrize(
    ("text", "name", "sentence"),
    [
        ("a,power\n1,200\n", "home.csv", "has no time column"),
        ("time,kettle\n2026-01-01,200\n", "home.csv", "has no mains column"),
        ("time,power\nyesterday,200\n", "home.csv", "time column of home.csv cannot be read"),
        ("time,power\n", "home.csv", "has no rows with a time"),
        ("time,power\n2026-01-01,0\n", "home.csv", "no positive value"),
        ("time,power\n2026-01-01 00:00,0.2\n2026-01-01 00:01,2.4\n", "home.csv", "looks like kW: name it aggregate_kw"),
        ("time,power\n2026-01-01 00:00,200\n2026-01-01 00:15,210\n", "home.csv", "one sample every 900 s"),
        ("", "home.csv", "cannot be read as csv"),
        ("not parquet", "home.parquet", "cannot be read as parquet"),
        ("time,power\n", "home.txt", r"neither \.csv nor \.parquet"),
    ],
)
def test_a_bad_file_gets_one_sentence(tmp_path: Path, text: str, name: str, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence) as caught:
        read_recording(_csv(tmp_path, text, name), 60)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="There is no file"):
        read_recording(tmp_path / "nowhere.csv", 60)
