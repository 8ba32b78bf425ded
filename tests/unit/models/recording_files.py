"""Small invented recordings as files, to be broken on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.training.data_report import DataReport
from models.training.homes_file import Recording
from models.training.recordings import Home, inspect_home


def frame(rows: int = 120, step_s: float = 60.0, start: str = "2014-06-01 10:00:00") -> pd.DataFrame:
    """time, mains, kettle, W: a restless base load and a kettle in rows 30 to 32."""
    times = pd.Timestamp(start) + pd.to_timedelta(np.arange(rows) * step_s, unit="s")
    kettle = np.zeros(rows)
    kettle[30:33] = 2700.0
    return pd.DataFrame(
        {
            "time": times.strftime("%Y-%m-%d %H:%M:%S"),
            "mains": np.round(200.0 + 5.0 * np.sin(np.arange(rows)) + kettle, 2),
            "kettle": kettle,
        }
    ).astype({"mains": "object", "kettle": "object"})


def recording(file_name: str = "house.csv", **changes: Any) -> Recording:
    columns = (("mains", "mains"), ("kettle", "kettle"))
    return Recording(**{"home": "Mine", "file_name": file_name, "attribution": "mine", "columns": columns} | changes)


def inspect(folder: Path, table: pd.DataFrame, **changes: Any) -> tuple[Home, DataReport]:
    """The home that `table` is read as when written as CSV."""
    table.to_csv(folder / "house.csv", index=False)
    return inspect_home(folder, recording(**changes))
