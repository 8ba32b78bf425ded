"""Household recordings: which files, whose, under which licence, and how one becomes arrays.

Who teaches and who tests is `protocol`; what is done to faulty recordings is `cleaning`.
Needs the `tools` extra (pandas, pyarrow).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from models.training.cleaning import SAMPLE_PERIOD_S, clean
from models.training.data_report import DataReport
from models.training.homes_file import HOMES_FILE, Recording, RecordingError, read_homes_file
from models.training.readers import read

__all__ = [
    "COLLECTION",
    "KNOWN_RECORDINGS",
    "SAMPLE_PERIOD_S",
    "Home",
    "Recording",
    "RecordingError",
    "inspect_home",
    "known_homes",
    "load_home",
]

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

UK_DALE = "UK-DALE, Kelly & Knottenbelt 2015, doi:10.1038/sdata.2015.7, CC BY 4.0"
REFIT = "REFIT, Murray, Stankovic & Stankovic 2017, doi:10.1038/sdata.2016.122, CC BY 4.0"
IDEAL = "IDEAL, Pullinger et al. 2021, doi:10.1038/s41597-021-00921-y, CC BY 4.0"
COLLECTION = "by way of the DeviceScope collection (Petralia et al.), resampled to 60 s means"

KNOWN_RECORDINGS = {
    recording.home_id: recording
    for recording in (
        Recording("UK-DALE House 2", "UKDALE_House2_1min.parquet", UK_DALE, "uk-dale-2"),
        Recording("REFIT House 2", "REFIT_House2_1min.parquet", REFIT, "refit-2"),
        Recording("REFIT House 20", "REFIT_House20_1min.parquet", REFIT, "refit-20"),
        Recording("IDEAL Home 65", "IDEAL_House65_1min.parquet", IDEAL, "ideal-65"),
    )
}
"""The files of the DeviceScope collection, recognised by name where a folder has no `homes.yaml`."""


@dataclass(frozen=True, slots=True)
class Home:
    """One home on a regular grid of n samples, oldest first. Powers in W, float32 [n]."""

    recording: Recording
    start: pd.Timestamp
    aggregate_w: FloatArray
    valid: BoolArray
    """False where the mains were not measured: such samples are neither learnt from nor scored."""
    appliances_w: dict[str, FloatArray]

    def __len__(self) -> int:
        return int(self.aggregate_w.size)

    @property
    def first_day(self) -> str:
        return str(self.start.date())

    @property
    def last_day(self) -> str:
        return str((self.start + pd.Timedelta(seconds=SAMPLE_PERIOD_S * (len(self) - 1))).date())

    def part(self, first: int, end: int) -> Home:
        """Samples [first, end) as a home of their own."""
        return Home(
            recording=self.recording,
            start=self.start + pd.Timedelta(seconds=SAMPLE_PERIOD_S * first),
            aggregate_w=self.aggregate_w[first:end],
            valid=self.valid[first:end],
            appliances_w={name: power[first:end] for name, power in self.appliances_w.items()},
        )


def known_homes(folder: Path) -> dict[str, Recording]:
    """The homes of a data folder by name, each for `load_home(folder, recording)`.

    Those that its `homes.yaml` declares, in that order, whether or not their files are there; without that file,
    the DeviceScope files it has. Raises `RecordingError` for a wrong declaration and for a folder without homes.
    """
    if not folder.is_dir():
        raise RecordingError(f"the data folder {folder} does not exist")
    if (folder / HOMES_FILE).exists():
        return read_homes_file(folder / HOMES_FILE)
    found = {name: known for name, known in KNOWN_RECORDINGS.items() if (folder / known.file_name).is_file()}
    if not found:
        names = ", ".join(known.file_name for known in KNOWN_RECORDINGS.values())
        raise RecordingError(f"{folder} has no {HOMES_FILE}, nor any of {names}")
    return found


def load_home(folder: Path, recording: Recording) -> Home:
    """Reads one recording of `known_homes(folder)`, cleaned by the policy of `models.training.cleaning`.

    Raises `RecordingError`, with a sentence that says what is wrong.
    """
    return inspect_home(folder, recording)[0]


def inspect_home(folder: Path, recording: Recording) -> tuple[Home, DataReport]:
    """`load_home`, with the counts of all that the policy did. Raises `RecordingError`."""
    if not folder.is_dir():
        raise RecordingError(f"the data folder {folder} does not exist")
    path = folder / recording.file_name
    if not path.is_file():
        raise RecordingError(f"{folder} has no {recording.file_name} (the recording of {recording.home})")
    tables, report = clean(read(path, recording), recording, path)
    start = pd.Timestamp(tables.start_s, unit="s")
    return Home(recording, start, tables.aggregate_w, tables.valid, tables.appliances_w), report
