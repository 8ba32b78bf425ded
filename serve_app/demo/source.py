"""Reads a household recording from CSV or parquet into a `Recording` at the service's sample period.

Times without an offset are taken as UTC. Resampling takes the mean of the known samples of each period;
a period without any stays missing. Refuses what it would have to guess: no time, no mains, kW labelled as W.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.signal import W_PER_KW
from serve_app.demo.errors import SourceError
from serve_app.demo.recording import FloatArray, Recording, appliance_key, mask_missing

if TYPE_CHECKING:
    import pandas as pd

_MAINS_W = ("aggregate_w", "aggregate", "mains_w", "mains", "power_w", "power")
_MAINS_KW = ("aggregate_kw", "mains_kw", "power_kw")
_TIME = ("time", "timestamp", "datetime", "date_time", "date", "utc")
# No home's mains stays below 60 W with every load it has, and none draws 60 kW: a lower peak means kW.
_LOWEST_PEAK_W = 60.0


def read_recording(path: Path, sample_period_s: int) -> Recording:
    """Read `path` (.csv, .csv.gz or .parquet) and resample it to `sample_period_s`.

    Raises:
        SourceError: with one sentence that says what the file lacks.
    """
    frame = _by_time(_read(path), path)
    column, to_w = _mains_column(frame, path)
    mains_w = _numbers(frame, column) * to_w
    if not np.any(mains_w > 0):
        raise SourceError(f"The mains column {column!r} of {path.name} has no positive value.")
    if to_w == 1.0 and not column.lower().endswith("_w") and float(np.nanmax(mains_w)) < _LOWEST_PEAK_W:
        raise SourceError(
            f"The mains column {column!r} of {path.name} peaks at {float(np.nanmax(mains_w)):.3g}, "
            "which looks like kW: name it aggregate_kw."
        )
    time_s = _seconds(frame)
    spacing_s = float(np.median(np.diff(time_s))) if time_s.size > 1 else 0.0
    if spacing_s > sample_period_s:
        raise SourceError(
            f"{path.name} has one sample every {spacing_s:g} s, but the service wants one every "
            f"{sample_period_s} s: a coarse recording cannot be made finer."
        )
    columns = {"mains": mask_missing(mains_w, time_s)} | _measured(frame, column)
    even = _resample(frame, columns, sample_period_s)
    start = even.index[0].to_pydatetime()
    return Recording(
        title=path.name,
        start=start,
        sample_period_s=sample_period_s,
        aggregate_w=even["mains"].to_numpy(dtype=np.float64),
        appliances_w={name: even[name].to_numpy(dtype=np.float64) for name in even.columns if name != "mains"},
    )


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise SourceError(f"There is no file {path}.")
    try:
        import pandas as pd  # noqa: PLC0415 - an extra that only recordings need
    except ImportError as error:
        raise SourceError("Reading a recording needs pandas: pip install 'nilm-serve[tools]'.") from error
    suffix = "".join(path.suffixes[-2:]).lower()
    try:
        if suffix.endswith(".parquet"):
            return pd.read_parquet(path)
        if suffix.endswith((".csv", ".csv.gz")):
            return pd.read_csv(path)
    except ImportError as error:
        raise SourceError("Reading parquet needs pyarrow: pip install 'nilm-serve[tools]'.") from error
    except (ValueError, OSError) as error:  # pandas' and pyarrow's parsing errors are ValueErrors
        raise SourceError(f"{path.name} cannot be read as {path.suffix.lstrip('.')}: {_first_line(error)}.") from error
    raise SourceError(f"{path.name} is neither .csv nor .parquet.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _by_time(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The frame with a sorted UTC index."""
    import pandas as pd  # noqa: PLC0415

    named = {str(name).strip().lower(): name for name in frame.columns}
    column = next((named[name] for name in _TIME if name in named), None)
    if column is not None:
        raw = frame[column]
        frame = frame.drop(columns=[column])
    elif isinstance(frame.index, pd.DatetimeIndex):
        raw = frame.index.to_series()
    else:
        raise SourceError(f"{path.name} has no time column: name one of {', '.join(_TIME)}.")
    try:
        if pd.api.types.is_numeric_dtype(raw.dtype):
            # Seconds stay under 1e11 until the year 5138, milliseconds passed it in 1973.
            scale = 1e-3 if float(raw.abs().max()) > 1e11 else 1.0
            times = pd.to_datetime(raw * scale, unit="s", utc=True)
        else:
            times = pd.to_datetime(raw, utc=True)
    except (ValueError, OverflowError) as error:
        raise SourceError(f"The time column of {path.name} cannot be read: {_first_line(error)}.") from error
    frame = frame.set_axis(pd.DatetimeIndex(times), axis="index")
    frame = frame[frame.index.notna()].sort_index()
    if frame.empty:
        raise SourceError(f"{path.name} has no rows with a time.")
    return frame


def _mains_column(frame: pd.DataFrame, path: Path) -> tuple[str, float]:
    """The mains column's name and the factor that makes W of it."""
    named = {str(name).strip().lower(): str(name) for name in frame.columns}
    for names, factor in ((_MAINS_W, 1.0), (_MAINS_KW, W_PER_KW)):
        for name in names:
            if name in named:
                return named[name], factor
    raise SourceError(
        f"{path.name} has no mains column: name one of {', '.join(_MAINS_W)} (in W) or aggregate_kw (in kW)."
    )


def _measured(frame: pd.DataFrame, mains: str) -> dict[str, FloatArray]:
    """Every other numeric column by appliance key, in W. On/off labels are not power."""
    return {
        appliance_key(str(name)): _numbers(frame, str(name))
        for name in frame.columns
        if str(name) != mains
        and not str(name).lower().endswith("_status")
        and np.issubdtype(np.asarray(frame[name]).dtype, np.number)
    }


def _numbers(frame: pd.DataFrame, column: str) -> FloatArray:
    import pandas as pd  # noqa: PLC0415

    values = pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(values), values, np.nan)


def _seconds(frame: pd.DataFrame) -> FloatArray:
    import pandas as pd  # noqa: PLC0415

    index = np.asarray(pd.DatetimeIndex(frame.index).tz_convert(None), dtype="datetime64[ns]")
    return np.asarray(index.astype(np.int64) / 1e9)


def _resample(frame: pd.DataFrame, columns: dict[str, FloatArray], sample_period_s: int) -> pd.DataFrame:
    import pandas as pd  # noqa: PLC0415

    even: pd.DataFrame = pd.DataFrame(columns, index=frame.index).resample(f"{sample_period_s}s").mean()
    return even
