"""Meters of an HDF5 file in NILMTK's layout, read without PyTables: what pandas pickled into it is never executed.

A meter is a group with a dataset `table` of `index` (int64, ns since 1970, UTC) and `values_block_0`, ... (floats
[n, columns]). Its column names are such a pickle, so a meter with several columns is asked for by number.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.training.homes_file import MAINS, Recording, RecordingError, one_line
from models.training.readers import RawTable

BLOCK = re.compile(r"values_block_(\d+)")


def read_meters(path: Path, recording: Recording) -> list[RawTable]:
    """One table for each declared channel, the mains first: every meter has times of its own.

    Raises `RecordingError`, also when h5py is missing or a meter refers to another file.
    """
    try:
        import h5py  # noqa: PLC0415 - of the tools extra; the other formats do without
        import hdf5plugin  # noqa: F401, PLC0415 - registers Blosc and bzip2, which NILMTK compresses with
    except ImportError as error:
        raise RecordingError(f"{path.name} needs the extra: pip install 'nilm-serve[tools]'") from error
    if not recording.columns:
        raise RecordingError(f"{path.name} needs a homes.yaml that says which meter is which")
    channels = sorted(recording.columns, key=lambda pair: pair[0] != MAINS)
    try:
        with h5py.File(path, "r") as file:
            return [_table(file, path, channel, place) for channel, place in channels]
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise RecordingError(f"{path.name} cannot be read as HDF5: {one_line(str(error))}") from error


def _table(file: Any, path: Path, channel: str, place: str) -> RawTable:
    name, _, number = place.partition("#")
    dataset = _dataset(file, path, name)
    columns = [
        (block, column)
        for block in sorted(filter(BLOCK.fullmatch, dataset.dtype.names), key=lambda block: int(block[13:]))
        for column in range(int(np.prod(dataset.dtype[block].shape, dtype=np.int64)))
    ]
    if not number and len(columns) > 1:
        raise RecordingError(
            f"{name} of {path.name} has {len(columns)} columns: write {name}#1 to {name}#{len(columns)}"
        )
    chosen = number or "1"
    if not chosen.isascii() or not chosen.isdigit() or not 1 <= int(chosen) <= len(columns):
        raise RecordingError(f"{name} of {path.name} has {len(columns)} columns, counted from 1, and no {chosen!r}")
    block, column = columns[int(chosen) - 1]
    values = np.asarray(dataset.fields(block)[:], dtype=np.float64).reshape(len(dataset), -1)[:, column]
    times = np.asarray(dataset.fields("index")[:]).astype("datetime64[ns]")
    return RawTable(pd.Series(times).dt.tz_localize("UTC"), {channel: pd.Series(values)})


def _dataset(file: Any, path: Path, name: str) -> Any:
    """The table of a meter, or the dataset itself. Links to other files are refused: a recording is one file."""
    import h5py  # noqa: PLC0415

    node: Any = file
    for part in [part for part in name.split("/") if part] or [name]:
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            raise RecordingError(f"{path.name} has no meter {name}")
        if not isinstance(link, h5py.HardLink):
            raise RecordingError(f"{name} of {path.name} is a link, not a meter")
        node = node[part]
    if isinstance(node, h5py.Group) and isinstance(node.get("table", getlink=True), h5py.HardLink):
        node = node["table"]
    if not isinstance(node, h5py.Dataset) or "index" not in (node.dtype.names or ()) or node.ndim != 1:
        raise RecordingError(f"{name} of {path.name} is not a table of index and values_block_0")
    if node.is_virtual or node.external:
        raise RecordingError(f"{name} of {path.name} keeps its values in another file")
    if node.dtype["index"] != np.dtype("int64"):
        raise RecordingError(f"the index of {name} in {path.name} is not int64 nanoseconds")
    return node
