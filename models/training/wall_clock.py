"""Times as files write them become seconds since 1970, UTC. Nothing about them is guessed.

Text is ISO 8601 (05/06/2014 could be two days, so it is unreadable); numbers are Unix seconds. Times without an
offset are local to the declared time zone, or UTC where none is declared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.training.data_report import DataReport, Problem
from models.training.homes_file import RecordingError

DoubleArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

FIRST_S = pd.Timestamp("1990-01-01", tz="UTC").timestamp()
END_S = pd.Timestamp("2100-01-01", tz="UTC").timestamp()
"""A clock that was never set says 1970; one such row would stretch a recording over decades."""
OFFSET = r".*\d(?:Z|[+-]\d{2}(?::?\d{2})?)"
"""A text time that ends so has an offset; the digit before keeps a date's own -01 out, as does `DATE`."""
CLOCK_BACK_S = 1800.0
"""A smaller step back inside the doubled hour is a repeated or an unsorted row, not the clock."""
DATE = r"\d{4}-\d{2}(?:-\d{2})?"


def utc_seconds(times: pd.Series[Any], timezone: str | None, report: DataReport, channel: str) -> DoubleArray:
    """Seconds since 1970 [n] in the order given, NaN for a row to be dropped, which `report` counts.

    Raises `RecordingError` when no time is readable, or when only some have an offset.
    """
    if pd.api.types.is_numeric_dtype(times.dtype) and not pd.api.types.is_bool_dtype(times.dtype):
        seconds, report.times = times.to_numpy(dtype=np.float64, na_value=np.nan), "Unix seconds"
    elif isinstance(times.dtype, pd.DatetimeTZDtype):
        seconds, report.times = _seconds(pd.DatetimeIndex(times)), "with offsets"
    elif pd.api.types.is_datetime64_any_dtype(times.dtype):
        seconds = _local(pd.DatetimeIndex(times), timezone, report, channel)
    else:
        seconds = _from_text(times, timezone, report, channel)
    with np.errstate(invalid="ignore"):
        unreadable = ~((seconds >= FIRST_S) & (seconds < END_S))
    seconds = np.where(unreadable, np.nan, seconds)
    clock_changes = report.counts[Problem.SKIPPED_HOUR, channel] + report.counts[Problem.DOUBLED_HOUR_DROPPED, channel]
    report.add(Problem.NO_TIME, channel, int(unreadable.sum()) - clock_changes)
    if unreadable.all():
        raise RecordingError(
            "no row has a readable time: times are ISO 8601 such as 2014-06-05 10:00:00, or Unix seconds"
        )
    return seconds


def _from_text(times: pd.Series[Any], timezone: str | None, report: DataReport, channel: str) -> DoubleArray:
    text = times.astype("str").fillna("").str.strip()
    numeric = pd.to_numeric(text, errors="coerce")
    # Compact dates such as 20140605 are numbers too; as Unix seconds they fall in 1970 and are refused there.
    if numeric.notna().any() and numeric.notna().sum() >= 0.5 * len(text):
        report.times = "Unix seconds"
        return numeric.to_numpy(dtype=np.float64, na_value=np.nan)
    parsed = pd.DatetimeIndex(pd.to_datetime(text, format="ISO8601", utc=True, errors="coerce"))
    with_offset = (text.str.fullmatch(OFFSET) & ~text.str.fullmatch(DATE)).to_numpy(dtype=np.bool_)
    readable = np.asarray(parsed.notna())
    if with_offset[readable].any():
        if not with_offset[readable].all():
            raise RecordingError("some times have an offset and others have none: write all of them one way")
        report.times = "with offsets"
        return _seconds(parsed)
    return _local(parsed.tz_convert(None), timezone, report, channel)


def _local(times: pd.DatetimeIndex, timezone: str | None, report: DataReport, channel: str) -> DoubleArray:
    """Times without an offset [n]."""
    if timezone is None:
        report.times = "without offsets, no time zone declared: taken as UTC"
        return _seconds(times.tz_localize("UTC"))
    report.times = f"local times of {timezone}"
    known = np.asarray(times.notna())
    doubled = known & np.asarray(times.tz_localize(timezone, ambiguous="NaT", nonexistent="shift_forward").isna())
    summer, resolved = _by_order(times, doubled)
    localised = times.tz_localize(timezone, ambiguous=summer, nonexistent="NaT")
    skipped = known & np.asarray(localised.isna())
    report.add(Problem.SKIPPED_HOUR, channel, int(skipped.sum()))
    report.add(Problem.DOUBLED_HOUR_RESOLVED, channel, int(resolved.sum()))
    report.add(Problem.DOUBLED_HOUR_DROPPED, channel, int((doubled & ~resolved).sum()))
    return np.where(doubled & ~resolved, np.nan, _seconds(localised))


def _by_order(times: pd.DatetimeIndex, doubled: BoolArray) -> tuple[BoolArray, BoolArray]:
    """(summer time, resolved), both [n]: in each run of doubled times the clock must go back exactly once."""
    summer, resolved = np.zeros(len(times), dtype=np.bool_), np.zeros(len(times), dtype=np.bool_)
    positions = np.flatnonzero(doubled)
    if positions.size == 0:
        return summer, resolved
    seconds = _seconds(times.tz_localize("UTC"))
    for run in np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1):
        back = np.flatnonzero(np.diff(seconds[run]) <= -CLOCK_BACK_S)
        if back.size == 1:
            summer[run[: back[0] + 1]] = True
            resolved[run] = True
    return summer, resolved


def _seconds(times: pd.DatetimeIndex) -> DoubleArray:
    """[n] of times with a zone."""
    naive = np.asarray(times.tz_convert("UTC").tz_localize(None), dtype="datetime64[us]")
    return np.where(np.isnat(naive), np.nan, naive.astype(np.int64) / 1e6)
