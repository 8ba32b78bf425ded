"""Times of files become UTC: declared zones, the doubled and the skipped hour, offsets, Unix seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.training.data_report import DataReport, Problem
from models.training.recordings import RecordingError
from models.training.wall_clock import utc_seconds
from tests.unit.models.recording_files import frame, inspect

LONDON = "Europe/London"
# Clocks went back on 2014-10-26 at 02:00 summer time, and forward on 2014-03-30 at 01:00.


def read(times: list[str] | pd.Series, timezone: str | None = None) -> tuple[np.ndarray, DataReport]:
    report = DataReport()
    return utc_seconds(pd.Series(times), timezone, report, "rows"), report


def texts(seconds: np.ndarray) -> list[str | None]:
    return [None if np.isnan(s) else str(pd.Timestamp(s, unit="s")) for s in seconds]


def walls(first: str, minutes: int, step_min: int = 10) -> list[str]:
    """What a clock on a London wall shows every `step_min`, from a moment in UTC."""
    moments = pd.date_range(first, periods=minutes // step_min, freq=f"{step_min}min", tz="UTC")
    return list(moments.tz_convert(LONDON).strftime("%Y-%m-%d %H:%M:%S"))


def test_without_a_zone_local_times_are_utc_and_that_is_said() -> None:
    seconds, report = read(["2014-07-01 12:00:00"])
    assert texts(seconds) == ["2014-07-01 12:00:00"]
    assert report.times == "without offsets, no time zone declared: taken as UTC"


def test_a_declared_zone_moves_summer_by_an_hour_and_winter_not() -> None:
    seconds, report = read(["2014-07-01 12:00:00", "2014-12-01 12:00:00"], LONDON)
    assert texts(seconds) == ["2014-07-01 11:00:00", "2014-12-01 12:00:00"]
    assert report.times == "local times of Europe/London"


def test_the_doubled_hour_is_told_apart_by_its_order() -> None:
    seconds, report = read(walls("2014-10-25 23:30", 180), LONDON)
    assert np.diff(seconds).tolist() == [600.0] * 17
    assert report.count(Problem.DOUBLED_HOUR_RESOLVED) == 12
    assert report.count(Problem.DOUBLED_HOUR_DROPPED) == 0


@pytest.mark.parametrize(
    "kept",
    [
        [*range(9), *range(15, 18)],  # one pass only: which of the two is not in the file
        [*range(9), 8, *range(15, 18)],  # one pass with a repeated row: still one pass
        [0, 1, 2, 3, 9, 4, 10, 5, 11, 6, 12, 15, 16],  # both passes interleaved
    ],
)
def test_the_doubled_hour_without_an_order_is_dropped(kept: list[int]) -> None:
    wall = walls("2014-10-25 23:30", 180)
    seconds, report = read([wall[position] for position in kept], LONDON)
    doubled = [wall[position].startswith("2014-10-26 01:") for position in kept]
    assert np.isnan(seconds).tolist() == doubled
    assert report.count(Problem.DOUBLED_HOUR_DROPPED) == sum(doubled)
    assert report.count(Problem.NO_TIME) == 0


def test_each_autumn_is_resolved_by_itself() -> None:
    wall = walls("2014-10-25 23:30", 180)
    one_pass = [f"2015-10-25 0{hour}:{minute}0:00" for hour in (0, 1, 2) for minute in range(6)]
    seconds, report = read([*wall, *one_pass], LONDON)
    assert report.count(Problem.DOUBLED_HOUR_RESOLVED) == 12
    assert report.count(Problem.DOUBLED_HOUR_DROPPED) == 6
    assert int(np.isnan(seconds).sum()) == 6


def test_times_in_the_hour_that_spring_skips_are_dropped() -> None:
    seconds, report = read(["2014-03-30 00:59:00", "2014-03-30 01:30:00", "2014-03-30 02:00:00"], LONDON)
    assert texts(seconds) == ["2014-03-30 00:59:00", None, "2014-03-30 01:00:00"]
    assert report.count(Problem.SKIPPED_HOUR) == 1
    assert report.count(Problem.NO_TIME) == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 365 * 24 * 60), st.sampled_from([LONDON, "America/New_York", "Asia/Kathmandu"]))
def test_what_a_wall_clock_showed_in_order_is_read_back(start_min: int, zone: str) -> None:
    # Four hours hold any change of the clock whole, or end inside it; then its rows may only be dropped.
    moments = pd.date_range("2014-01-01", periods=48, freq="5min", tz="UTC") + pd.Timedelta(minutes=start_min)
    seconds, _ = read(list(moments.tz_convert(zone).strftime("%Y-%m-%d %H:%M:%S")), zone)
    truth = np.array([moment.timestamp() for moment in moments])
    known = ~np.isnan(seconds)
    assert known.any()
    np.testing.assert_array_equal(seconds[known], truth[known])


@pytest.mark.parametrize(
    "times",
    [
        ["2014-07-01 12:00:00+01:00", "2014-07-01 11:01:00Z"],
        ["2014-07-01T12:00+0100", "2014-07-01T16:31+0530"],
        ["1404212400", "1404212460"],
        pd.Series([1404212400, 1404212460]),
        pd.Series(pd.to_datetime(["2014-07-01 11:00:00Z", "2014-07-01 11:01:00Z"])),
        pd.Series(pd.to_datetime(["2014-07-01 11:00:00Z", "2014-07-01 11:01:00Z"])).dt.tz_convert(LONDON),
    ],
)
def test_times_that_say_their_moment_need_no_zone(times: list[str] | pd.Series) -> None:
    for zone in (None, "America/New_York"):
        assert texts(read(times, zone)[0]) == ["2014-07-01 11:00:00", "2014-07-01 11:01:00"]


@pytest.mark.parametrize("times", [["1404212400000"], ["20140701"], ["07/01/2014"], [""], pd.Series([True])])
def test_milliseconds_and_ambiguous_dates_are_not_guessed(times: list[str] | pd.Series) -> None:
    with pytest.raises(RecordingError, match="Unix seconds"):
        read(times)


def test_a_date_alone_is_not_an_offset() -> None:
    assert texts(read(["2014-07-01", "2014-07-01 00:01"])[0]) == ["2014-07-01 00:00:00", "2014-07-01 00:01:00"]


def test_some_times_with_and_some_without_an_offset_are_refused() -> None:
    with pytest.raises(RecordingError, match="some times have an offset"):
        read(["2014-07-01 12:00:00", "2014-07-01 12:00:00+01:00"])


def test_a_home_is_in_utc(tmp_path: Path) -> None:
    home, _ = inspect(tmp_path, frame(start="2014-07-01 12:00:00"), timezone=LONDON)
    assert home.start == pd.Timestamp("2014-07-01 11:00:00")
