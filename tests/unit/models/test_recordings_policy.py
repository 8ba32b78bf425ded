"""Every problem of a recording: counted, and treated as the policy says. One broken file each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.training.data_report import Problem
from models.training.recordings import RecordingError
from tests.unit.models.recording_files import frame, inspect

Break = Callable[[pd.DataFrame], pd.DataFrame]


def cell(row: int, column: str, value: object) -> Break:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[row, column] = value
        return table

    return change


def again(rows: list[int], **values: object) -> Break:
    """Appends copies of rows, with changed values."""
    return lambda table: pd.concat([table, table.loc[rows].assign(**values)])


def without(rows: range) -> Break:
    return lambda table: table.drop(index=list(rows))


def many(column: str, rows: slice, value: float) -> Break:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[rows, column] = value
        return table

    return change


def swapped(table: pd.DataFrame) -> pd.DataFrame:
    return table.loc[[1, 0, *range(2, len(table))]]


def clipped(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[40:98:2, "mains"] = 4000.0
    return table


def late(table: pd.DataFrame) -> pd.DataFrame:
    """Row 5 comes 20 s late: one longer and one shorter step."""
    return cell(5, "time", "2014-06-01 10:05:20")(table)


BROKEN: list[tuple[Problem, Break, int]] = [
    (Problem.NO_TIME, cell(3, "time", "05/06/2014 10:03"), 1),
    (Problem.NO_TIME, cell(3, "time", ""), 1),
    (Problem.NO_TIME, cell(3, "time", "1970-01-01 00:00:00"), 1),
    (Problem.UNSORTED, swapped, 1),
    (Problem.REPEATED_ROW, again([7, 8]), 2),
    (Problem.CONFLICTING_ROW, again([7], mains=999.0), 1),
    (Problem.NOT_A_NUMBER, cell(7, "mains", "n.a. (meter)"), 1),
    (Problem.NO_VALUE, cell(7, "mains", ""), 1),
    (Problem.NO_VALUE, cell(7, "mains", "inf"), 1),
    (Problem.NO_VALUE, cell(7, "kettle", 2e6), 1),
    (Problem.ZERO_MAINS, cell(7, "mains", 0), 1),
    (Problem.NEGATIVE_MAINS, cell(7, "mains", -300), 1),
    (Problem.NEGATIVE_APPLIANCE, cell(7, "kettle", -2), 1),
    (Problem.ABOVE_CLIP, cell(7, "mains", 6000), 1),
    (Problem.AT_MAXIMUM, clipped, 30),
    (Problem.OTHER_PERIOD, late, 2),
    (Problem.GAP, without(range(40, 50)), 1),
    (Problem.MINUTE_WITHOUT_MAINS, without(range(40, 50)), 10),
    (Problem.FLAT_MAINS, many("mains", slice(40, 99), 150.0), 60),
    (Problem.MINUTE_WITHOUT_APPLIANCE, cell(7, "kettle", ""), 1),
    (Problem.SUM_ABOVE_MAINS, cell(7, "kettle", 900), 1),
]


@pytest.mark.parametrize(("problem", "change", "count"), BROKEN, ids=lambda value: getattr(value, "name", ""))
def test_the_problem_is_counted(problem, change, count, tmp_path: Path) -> None:
    assert inspect(tmp_path, frame())[1].found() == []
    _, report = inspect(tmp_path, change(frame()))
    assert report.count(problem) == count


def test_every_problem_has_a_broken_file() -> None:
    clock = {problem for problem in Problem if problem.name.startswith(("SKIPPED", "DOUBLED"))}
    assert {problem for problem, _, _ in BROKEN} | clock == set(Problem), "clock changes: test_wall_clock.py"


@pytest.mark.parametrize(
    ("change", "row", "mains", "valid", "kettle"),
    [
        (cell(7, "mains", 0), 7, 0.0, False, 0.0),
        (cell(7, "mains", -300), 7, 0.0, False, 0.0),
        (cell(7, "mains", "broken"), 7, 0.0, False, 0.0),
        (cell(7, "mains", 5e6), 7, 0.0, False, 0.0),
        (cell(7, "mains", 1e300), 7, 0.0, False, 0.0),
        (cell(7, "mains", 7000), 7, 7000.0, True, 0.0),
        (cell(7, "kettle", -2), 7, 203.28, True, 0.0),
        (cell(31, "kettle", ""), 31, 2897.98, False, 0.0),
        (again([7], mains=999.0), 7, 203.28, True, 0.0),
        (swapped, 1, 204.21, True, 0.0),
        (without(range(7, 8)), 7, 0.0, False, 0.0),
        (late, 5, 195.21, True, 0.0),
    ],
)
def test_the_problem_is_treated_as_stated(change, row, mains, valid, kettle, tmp_path: Path) -> None:
    home, _ = inspect(tmp_path, change(frame()))
    assert len(home) == 120
    assert home.start == pd.Timestamp("2014-06-01 10:00:00")
    assert (home.aggregate_w[row], home.valid[row]) == (pytest.approx(mains, abs=0.01), valid)
    assert home.appliances_w["kettle"][row] == kettle
    # Missing is told by `valid` alone: the arrays stay finite.
    assert np.isfinite(home.aggregate_w).all()
    assert np.isfinite(home.appliances_w["kettle"]).all()


def test_the_flat_hour_and_its_borders(tmp_path: Path) -> None:
    home, _ = inspect(tmp_path, many("mains", slice(40, 99), 150.0)(frame()))
    assert not home.valid[40:100].any()
    assert home.valid[:40].all()
    assert home.valid[100:].all()


def test_ten_seconds_become_means_of_minutes(tmp_path: Path) -> None:
    table = frame(rows=600, step_s=10.0, start="2014-06-01 10:00:30")
    table.loc[3, "mains"] = 0.0
    home, report = inspect(tmp_path, table)
    assert home.start == pd.Timestamp("2014-06-01 10:00:00")
    assert len(home) == 101
    assert report.periods == ((10.0, 1.0),)
    # Three samples before the first whole minute; a zero is missing, so it does not pull the mean down.
    assert home.aggregate_w[0] == pytest.approx(np.mean(table["mains"][:3].astype(float)))
    assert home.aggregate_w[1] == pytest.approx(np.mean(table["mains"][4:9].astype(float)))
    # The kettle of rows 30 to 32 is the second half of a minute.
    assert home.appliances_w["kettle"][5:7].tolist() == [1350.0, 0.0]


def test_nothing_is_filled_in_between_reported_changes(tmp_path: Path) -> None:
    table = pd.concat([frame(rows=60, step_s=30.0), frame(rows=5, step_s=180.0, start="2014-06-01 11:00:00")])
    home, report = inspect(tmp_path, table)
    assert home.valid[:30].all()
    assert home.valid[60:].tolist() == [True, False, False] * 4 + [True]
    assert report.count(Problem.GAP) == 5
    assert report.longest_gap_s == 1830.0


def test_kilowatts_become_watts_because_they_are_declared(tmp_path: Path) -> None:
    expected, _ = inspect(tmp_path, frame())
    table = frame()
    table[["mains", "kettle"]] = table[["mains", "kettle"]].astype(float) / 1000.0
    home, _ = inspect(tmp_path, table, unit="kW")
    np.testing.assert_allclose(home.aggregate_w, expected.aggregate_w, rtol=1e-6)
    np.testing.assert_allclose(home.appliances_w["kettle"], expected.appliances_w["kettle"], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (lambda table: table.assign(mains=table["mains"] / 1000.0), {}, "looks like kW"),
        (lambda table: table, {"unit": "kW"}, "looks like W"),
        (lambda table: table.assign(mains=0.0), {}, "no value above zero"),
        (lambda table: table.assign(mains="-"), {}, "no value above zero"),
        (lambda table: table.assign(mains=230.0), {}, "no minute in which the mains were measured"),
        (lambda table: table.assign(kettle=""), {}, "no minute in which the mains and all its appliances"),
        (lambda table: table.iloc[::2], {}, "a sample every 120 s"),
        (lambda table: table.iloc[:0], {}, "no value above zero"),
        (lambda table: table.assign(time="yesterday"), {}, "no row has a readable time"),
        (lambda table: table.rename(columns={"kettle": "Kettle"}), {}, "has no column 'kettle'; it has time, mains"),
        (cell(7, "mains", "1,203.28"), {}, "writes numbers such as '1,203.28' in 'mains'"),
        (cell(7, "kettle", "0,35"), {}, "writes numbers such as '0,35' in 'kettle'"),
        (cell(7, "mains", "1 203"), {}, "writes numbers such as '1 203'"),
        (cell(7, "time", "2014-06-01T10:07:00+01:00"), {}, "some times have an offset"),
    ],
)
def test_what_cannot_be_used_is_refused(change, options, sentence, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"house\.csv") as refused:
        inspect(tmp_path, change(frame()), **options)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(40)), st.lists(st.integers(0, 39), max_size=5))
def test_the_order_of_rows_and_repeated_ones_change_nothing(tmp_path: Path, order: list[int], twice: list[int]) -> None:
    expected, _ = inspect(tmp_path, frame(rows=40))
    home, report = inspect(tmp_path, frame(rows=40).loc[[*order, *twice]])
    np.testing.assert_array_equal(home.aggregate_w, expected.aggregate_w)
    np.testing.assert_array_equal(home.valid, expected.valid)
    assert report.count(Problem.REPEATED_ROW) == len(twice)
    assert report.count(Problem.CONFLICTING_ROW) == 0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.floats(width=64), st.text(max_size=6), st.none()), min_size=1, max_size=20))
def test_whatever_stands_in_the_mains_column_a_home_is_finite_or_refused(tmp_path: Path, cells: list[object]) -> None:
    table = frame()
    table.loc[: len(cells) - 1, "mains"] = cells
    try:
        home, _ = inspect(tmp_path, table)
    except RecordingError:
        return
    assert np.isfinite(home.aggregate_w).all()
    assert (home.aggregate_w[home.valid] > 0).all()
    assert home.aggregate_w.max() <= 1e6
