"""Who teaches, what chooses, what tests: the parts never touch, and the unseen home decides nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.appliances import appliance
from models.training import protocol
from models.training.protocol import load_fold, split
from models.training.recordings import KNOWN_RECORDINGS, Home, RecordingError
from tests.unit.models.synthetic import synthetic_home

KETTLE = appliance("kettle")


@pytest.fixture
def homes(monkeypatch) -> dict[str, Home]:
    """Five homes in no folder: kettles in all but one, microwaves in the three of the folds."""
    made: dict[str, Home] = {}
    for number, name in enumerate(("uk-dale-2", "refit-2", "refit-20", "ideal-65", "my-house")):
        home = synthetic_home(number, samples=20_000)
        appliances_w = dict(home.appliances_w)
        if name == "ideal-65":
            appliances_w = {"electric_shower": appliances_w["kettle"] * 3}
        elif name != "my-house":
            appliances_w["microwave"] = appliances_w["washing_machine"]
        recording = dataclasses.replace(KNOWN_RECORDINGS["refit-2"], home=name)
        start = pd.Timestamp("2018-03-20") if name == "ideal-65" else home.start
        made[name] = dataclasses.replace(home, recording=recording, start=start, appliances_w=appliances_w)
    monkeypatch.setattr(protocol, "known_homes", lambda folder: {name: made[name].recording for name in made})
    monkeypatch.setattr(protocol, "load_home", lambda folder, recording: made[recording.home])
    return made


def minutes(home: Home) -> pd.DatetimeIndex:
    return pd.date_range(home.start, periods=len(home), freq="1min")


def test_the_three_parts_are_in_order_a_day_apart_and_as_large_as_said():
    whole = synthetic_home(3, samples=40_000)
    parts = split(whole)
    day = pd.Timedelta(days=1)
    assert minutes(parts.training)[0] == whole.start
    assert minutes(parts.validation)[0] - minutes(parts.training)[-1] == day + pd.Timedelta(minutes=1)
    assert minutes(parts.seen_test)[0] - minutes(parts.validation)[-1] == day + pd.Timedelta(minutes=1)
    assert minutes(parts.seen_test)[-1] == minutes(whole)[-1]
    assert len(parts.seen_test) == pytest.approx(0.2 * len(whole), abs=2)
    assert len(parts.validation) + 1440 == pytest.approx(0.1 * len(whole), abs=2)


def test_shares_are_of_measured_minutes():
    whole = synthetic_home(3, samples=60_000)
    valid = whole.valid.copy()
    valid[10_000:40_000] = False
    parts = split(dataclasses.replace(whole, valid=valid))
    assert int(parts.seen_test.valid.sum()) == pytest.approx(0.2 * int(valid.sum()), abs=2)


def test_a_recording_too_short_to_split_is_one_sentence():
    with pytest.raises(RecordingError, match="too short to split"):
        split(synthetic_home(3, samples=2000))
    nothing = dataclasses.replace(synthetic_home(3, samples=40_000), valid=np.zeros(40_000, dtype=np.bool_))
    with pytest.raises(RecordingError, match="too short to split"):
        split(nothing)


def test_the_headline_fold_teaches_by_the_other_homes_of_the_folds(homes):
    fold = load_fold(Path(), KETTLE)
    assert (fold.test_name, fold.training_names) == ("uk-dale-2", ("refit-2", "refit-20"))
    assert fold.test is homes["uk-dale-2"]
    taught = {home.recording.home for home in (*fold.training, *fold.validation, *fold.seen_tests)}
    assert taught == {"refit-2", "refit-20"}


def test_each_home_takes_its_turn(homes):
    for name in protocol.FOLD_HOMES:
        fold = load_fold(Path(), KETTLE, name)
        assert fold.test_name == name
        assert set(fold.training_names) == set(protocol.FOLD_HOMES) - {name}


def test_a_home_of_ones_own_is_tested_by_all_others(homes):
    fold = load_fold(Path(), KETTLE, "my-house")
    assert set(fold.training_names) == {"uk-dale-2", "refit-2", "refit-20"}


def test_fewer_homes_may_teach(homes):
    assert load_fold(Path(), KETTLE, "uk-dale-2", ("refit-2",)).training_names == ("refit-2",)


def test_an_appliance_of_one_home_is_split_by_date_and_has_no_unseen_home(homes):
    fold = load_fold(Path(), appliance("electric_shower"))
    assert (fold.test, fold.test_name) == (None, None)
    (month,) = fold.seen_tests
    assert month.start == pd.Timestamp("2018-04-01")


@pytest.mark.parametrize(
    ("test_home", "training_homes", "message"),
    [
        ("mars-1", None, "no home 'mars-1' has a kettle; choose of uk-dale-2"),
        ("ideal-65", None, "no home 'ideal-65' has a kettle"),
        ("uk-dale-2", ("mars-1",), "no home 'mars-1' has a kettle"),
        ("uk-dale-2", ("uk-dale-2", "refit-2"), "cannot both teach and be the home that was never seen"),
    ],
)
def test_folds_that_do_not_exist_are_refused(homes, test_home, training_homes, message):
    with pytest.raises(RecordingError, match=message):
        load_fold(Path(), KETTLE, test_home, training_homes)
