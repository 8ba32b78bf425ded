"""A file becomes tables as they stand in it: nothing is dropped, sorted or converted here.

CSV and parquet give one table with all channels. Refuses what cannot be read, and numbers written with commas:
of those only the large ones would be lost.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from models.appliances import APPLIANCES
from models.training.homes_file import MAINS, Recording, RecordingError, one_line

DoubleArray = npt.NDArray[np.float64]

DEVICESCOPE_MAINS = "Aggregate"
"""The mains column of the DeviceScope files; their appliance columns are in `models.appliances`."""
HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
SEPARATED = r"[+-]?\d[\d.,'\s]*\d"
"""Digits that are no number because of what stands between them: 1,234 or 0,35 or 1 234."""
ENCODING = "utf-8-sig"
"""UTF-8, with or without the mark that spreadsheets put first."""


@dataclass(frozen=True, slots=True)
class RawTable:
    """Channels that share their times, all of n rows and in the file's order."""

    times: pd.Series[Any]
    """Text, numbers or timestamps, as the file has them."""
    values: dict[str, pd.Series[Any]]
    """By channel: mains or an appliance id."""


def read(path: Path, recording: Recording) -> list[RawTable]:
    """The tables of `path`; the one with the mains first. Raises `RecordingError`."""
    suffix = path.suffix.lower()
    if suffix in HDF5_SUFFIXES:
        from models.training.hdf5 import read_meters  # noqa: PLC0415 - a large library few recordings need

        return read_meters(path, recording)
    if suffix not in {".csv", ".parquet"}:
        raise RecordingError(f"{path.name} is none of .csv, .parquet, {', '.join(HDF5_SUFFIXES)}")
    names = column_names(path)
    channels = _channels(path, recording, names)
    wanted = list(channels.values())
    if suffix == ".csv":
        time_column = recording.time_column or names[0]
        if time_column in wanted:
            raise RecordingError(f"{path.name} has no time in its first column; declare its time_column")
        frame = _csv(path, usecols=_present(path, names, [time_column, *wanted]), dtype={time_column: "str"})
        times = frame[time_column]
    else:
        frame = _parquet(path, _present(path, names, [*filter(None, [recording.time_column]), *wanted]))
        times = _parquet_times(path, frame, recording.time_column)
    values = {name: frame[column].reset_index(drop=True) for name, column in channels.items()}
    return [RawTable(times.reset_index(drop=True), values)]


def column_names(path: Path) -> list[str]:
    """The columns of a CSV or parquet file, without reading its rows. Raises `RecordingError`."""
    if path.suffix.lower() == ".csv":
        return [str(name) for name in _csv(path, nrows=0).columns]
    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, "parquet", error) from error


def _channels(path: Path, recording: Recording, names: list[str]) -> dict[str, str]:
    """Channel to column: the declared ones, or of the DeviceScope names those that the file has."""
    if recording.columns:
        return dict(recording.columns)
    known = {MAINS: DEVICESCOPE_MAINS} | {name: appliance.column for name, appliance in APPLIANCES.items()}
    return {channel: column for channel, column in known.items() if channel == MAINS or column in names}


def _present(path: Path, names: list[str], wanted: list[str]) -> list[str]:
    for name in wanted:
        if names.count(name) != 1:
            problem = "has no column" if name not in names else "has more than one column"
            listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            raise RecordingError(f"{path.name} {problem} {name!r}; it has {listed or 'none'}")
    return wanted


def _csv(path: Path, **options: Any) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            # Rows longer than the header: pandas would warn, cut them and shift the columns.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame: pd.DataFrame = pd.read_csv(path, encoding=ENCODING, index_col=False, low_memory=False, **options)
    except (ValueError, OSError, pd.errors.ParserWarning) as error:  # pandas' own are ValueErrors
        raise _unreadable(path, "CSV", error) from error
    return frame


def _parquet(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, columns=columns)
    except (pa.ArrowException, ValueError, TypeError, KeyError, OSError) as error:
        raise _unreadable(path, "parquet", error) from error


def _parquet_times(path: Path, frame: pd.DataFrame, column: str | None) -> pd.Series[Any]:
    if column is not None and column in frame.columns:
        return frame[column]
    if column is None and not isinstance(frame.index, pd.DatetimeIndex):
        raise RecordingError(f"{path.name} has no time index; declare its time_column")
    return frame.index.to_series()


def _unreadable(path: Path, kind: str, error: Exception) -> RecordingError:
    reason = one_line(str(error) or type(error).__name__)
    return RecordingError(f"{path.name} cannot be read as {kind}: {reason.rstrip('.')}")


def numbers(values: pd.Series[Any], path: Path, column: str) -> tuple[DoubleArray, int]:
    """Values [n], NaN where there is none, and how many were text. Raises `RecordingError` for "1,234"."""
    if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype):
        return values.to_numpy(dtype=np.float64, na_value=np.nan), 0
    text = values.dropna().astype("str").str.strip()
    found = pd.to_numeric(text, errors="coerce")
    not_numbers = text[found.isna() & (text != "") & (text.str.lower() != "nan")]
    separated = not_numbers[not_numbers.str.fullmatch(SEPARATED)]
    if len(separated):
        raise RecordingError(
            f"{path.name} writes numbers such as {separated.iloc[0]!r} in {column!r}: "
            "they need a decimal point and no thousands separators"
        )
    return found.reindex(values.index).to_numpy(dtype=np.float64, na_value=np.nan), len(not_numbers)
