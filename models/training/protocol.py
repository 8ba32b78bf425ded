"""Which homes teach, which part of them chooses, and which home tests: the rules that make a figure honest.

Leave one home out: a fold trains on all homes but one and is tested on that one, whole. Inside each training home,
in time: training, a day's embargo, validation (chooses calibration, thresholds and intervals), a day's embargo, and
the last fifth, which tests on homes the model has seen. The left-out home decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from models.appliances import Appliance
from models.training.recordings import SAMPLE_PERIOD_S, Home, RecordingError, known_homes, load_home

SEEN_TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1
"""Of the measured samples; long enough for dozens of cycles of the rarest appliance."""
EMBARGO_S = 86400.0
"""A day between two parts: neighbouring windows would otherwise share a cycle."""
HEADLINE_TEST_HOME = "uk-dale-2"
FOLD_HOMES = ("uk-dale-2", "refit-2", "refit-20")
"""The homes that take turns at being the unseen one."""
SEEN_TEST_FROM = {"ideal-65": "2018-04-01"}
"""IDEAL Home 65 was kept for three separate months; the last of them is held out whole."""


@dataclass(frozen=True, slots=True)
class HomeParts:
    """One home of the training side, cut in time."""

    training: Home
    validation: Home
    seen_test: Home


@dataclass(frozen=True, slots=True)
class Fold:
    """The homes of one training and its test. `test` is None when no home was left out: then nothing is unseen."""

    parts: tuple[HomeParts, ...]
    test: Home | None
    training_names: tuple[str, ...]
    test_name: str | None
    """As in `known_homes`."""

    @property
    def training(self) -> tuple[Home, ...]:
        return tuple(part.training for part in self.parts)

    @property
    def validation(self) -> tuple[Home, ...]:
        return tuple(part.validation for part in self.parts)

    @property
    def seen_tests(self) -> tuple[Home, ...]:
        return tuple(part.seen_test for part in self.parts)


def split(home: Home, seen_test_from: str | None = None) -> HomeParts:
    """Cuts a home by its measured samples, the last part from a date (ISO 8601) if one is given.

    Raises `RecordingError` when a part would be empty.
    """
    measured = np.cumsum(home.valid)
    embargo = int(EMBARGO_S / SAMPLE_PERIOD_S)

    def reached(share: float) -> int:
        return int(np.searchsorted(measured, share * float(measured[-1])))

    if seen_test_from is None:
        test_from = reached(1.0 - SEEN_TEST_SHARE)
    else:
        test_from = int((pd.Timestamp(seen_test_from) - home.start).total_seconds() // SAMPLE_PERIOD_S)
    share_before = float(measured[max(test_from - 1, 0)]) / max(float(measured[-1]), 1.0)
    validation_from = reached(share_before * (1.0 - VALIDATION_SHARE / (1.0 - SEEN_TEST_SHARE)))
    bounds = ((0, validation_from - embargo), (validation_from, test_from - embargo), (test_from, len(home)))
    if any(first >= end or not home.valid[max(first, 0) : end].any() for first, end in bounds):
        raise RecordingError(f"the recording of {home.recording.home} is too short to split")
    return HomeParts(*(home.part(first, end) for first, end in bounds))


def load_fold(
    data: Path, appliance: Appliance, test_home: str | None = None, training_homes: Sequence[str] | None = None
) -> Fold:
    """The fold of one appliance that leaves `test_home` out; homes are named as in `known_homes`.

    `test_home` defaults to UK-DALE House 2 where it has the appliance. With one home there is none to leave out.
    `training_homes`: who teaches, instead of all others. Raises `RecordingError`.
    """
    homes = {name: load_home(data, recording) for name, recording in known_homes(data).items()}
    owners = [name for name, home in homes.items() if appliance.appliance_id in home.appliances_w]
    if not owners:
        raise RecordingError(f"no home in {data} has a {appliance.appliance_id}")
    if test_home is None and len(owners) > 1:
        test_home = HEADLINE_TEST_HOME
    if test_home is not None and test_home not in owners:
        raise RecordingError(f"no home {test_home!r} has a {appliance.appliance_id}; choose of {', '.join(owners)}")
    # The named homes of the published folds keep those folds whatever else lies in the folder.
    pool = FOLD_HOMES if test_home in FOLD_HOMES else owners
    teachers = list(training_homes or [name for name in owners if name in pool and name != test_home])
    for name in teachers:
        if name not in owners:
            raise RecordingError(f"no home {name!r} has a {appliance.appliance_id}; choose of {', '.join(owners)}")
        if name == test_home:
            raise RecordingError(f"{name} cannot both teach and be the home that was never seen")
    if not teachers:
        raise RecordingError(f"no home is left to learn from when {test_home} is the one never seen")
    parts = tuple(split(homes[name], SEEN_TEST_FROM.get(name)) for name in teachers)
    return Fold(parts, homes[test_home] if test_home else None, tuple(teachers), test_home)
