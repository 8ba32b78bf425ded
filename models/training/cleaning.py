"""The policy for household recordings: from raw tables to one regular grid of minutes, every decision counted.

Nothing is filled in. A minute is the mean of the samples the file has in it, and a minute without one is missing,
also between the readings of a meter that reports only changes: how long its last value held is not in the file.
Refuses recordings coarser than a minute, without usable mains, or declared in what is plainly the other unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.appliances import APPLIANCES
from models.signal import MAINS_CLIP_W, kw_to_w, resample_mean, valid_mask
from models.training.data_report import STUCK_AT_MAXIMUM, DataReport, Problem
from models.training.homes_file import MAINS, Recording, RecordingError
from models.training.readers import RawTable, numbers
from models.training.wall_clock import utc_seconds

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

SAMPLE_PERIOD_S = 60.0
"""The period of training and serving: means over whole minutes, labelled by their start."""
IMPOSSIBLE_W = 1e6
"""No home's supply carries a megawatt; such values are what broken meters send, and would ruin a mean."""
PEAK_PERCENTILE = 99.9
LOWEST_PEAK_W = 30.0
"""A home whose mains stay below is measured in kW: with one load on it draws more."""
HIGHEST_PEAK_KW = 100.0
"""A home whose mains are above is measured in W."""


@dataclass(frozen=True, slots=True)
class CleanTables:
    """A recording on a regular grid of n minutes from `start_s` (s since 1970, UTC). Powers in W, float32 [n]."""

    start_s: float
    aggregate_w: FloatArray
    """0 where missing."""
    valid: BoolArray
    """False where the mains or an appliance were not measured."""
    appliances_w: dict[str, FloatArray]


def clean(tables: list[RawTable], recording: Recording, path: Path) -> tuple[CleanTables, DataReport]:
    """Applies the policy; `path` is only for messages. Raises `RecordingError` when the recording is not usable."""
    report = DataReport()
    columns = dict(recording.columns)
    minutes: dict[str, tuple[DoubleArray, FloatArray]] = {}
    for table in tables:
        rows = "rows" if len(tables) == 1 else ", ".join(table.values)
        powers_w = {}
        for channel, raw in table.values.items():
            values, text = numbers(raw, path, columns.get(channel, channel))
            report.add(Problem.NOT_A_NUMBER, channel, text)
            report.add(Problem.NO_VALUE, channel, int(np.sum(~np.isfinite(values))) - text)
            powers_w[channel] = _watts(values, channel, recording, path, report)
        try:
            times_s = utc_seconds(table.times, recording.timezone, report, rows)
        except RecordingError as error:
            raise RecordingError(f"{path.name}: {error}") from error
        kept = _in_order(times_s, powers_w, report, rows)
        times_s = times_s[kept]
        usual_s = float(np.median(np.diff(times_s))) if times_s.size > 1 else 0.0
        if usual_s > SAMPLE_PERIOD_S:
            raise RecordingError(
                f"{path.name} has a sample every {usual_s:g} s ({rows}); training needs one every "
                f"{SAMPLE_PERIOD_S:g} s, and what is coarser cannot be made finer"
            )
        if MAINS in powers_w:
            report.rows = len(table.times)
            report.describe_steps(MAINS, times_s)
        for channel, power_w in powers_w.items():
            minutes[channel] = resample_mean(times_s, power_w[kept], SAMPLE_PERIOD_S)
    return _joined(minutes, path, report), report


def _watts(values: DoubleArray, channel: str, recording: Recording, path: Path, report: DataReport) -> FloatArray:
    """Declared units to W [n], NaN where missing."""
    if channel == MAINS:
        _refuse_other_unit(values, recording, path)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and so missing
        power = values.astype(np.float32)
        power_w = kw_to_w(power) if recording.unit == "kW" else power
    impossible = np.isfinite(values) & ~(np.abs(power_w) <= IMPOSSIBLE_W)
    report.add(Problem.NO_VALUE, channel, int(impossible.sum()))
    power_w = np.where(np.isfinite(values) & ~impossible, power_w, np.float32(np.nan))
    if channel != MAINS:
        report.add(Problem.NEGATIVE_APPLIANCE, channel, int(np.sum(power_w < 0)))
        return np.where(power_w < 0, np.float32(0.0), power_w)
    report.add(Problem.ZERO_MAINS, channel, int(np.sum(power_w == 0)))
    report.add(Problem.NEGATIVE_MAINS, channel, int(np.sum(power_w < 0)))
    measured = power_w[power_w > 0]
    report.maximum_w = float(measured.max(initial=0.0))
    report.add(Problem.ABOVE_CLIP, channel, int(np.sum(measured >= MAINS_CLIP_W)))
    at_maximum = int(np.sum(measured == measured.max(initial=0.0)))
    if at_maximum >= STUCK_AT_MAXIMUM:
        report.add(Problem.AT_MAXIMUM, channel, at_maximum)
    return np.where(power_w > 0, power_w, np.float32(np.nan))


def _refuse_other_unit(values: DoubleArray, recording: Recording, path: Path) -> None:
    measured = values[np.isfinite(values) & (values > 0)]
    if measured.size == 0:
        raise RecordingError(f"the mains of {path.name} have no value above zero")
    peak = float(np.percentile(measured, PEAK_PERCENTILE))
    said = f"the mains of {path.name} are declared in {recording.unit}, but"
    if recording.unit == "W" and peak < LOWEST_PEAK_W:
        raise RecordingError(f"{said} hardly exceed {peak:.3g} W, which looks like kW; correct the declaration")
    if recording.unit == "kW" and peak > HIGHEST_PEAK_KW:
        raise RecordingError(f"{said} reach {peak:.5g} kW, which looks like W; correct the declaration")


def _in_order(
    times_s: DoubleArray, powers_w: dict[str, FloatArray], report: DataReport, label: str
) -> npt.NDArray[np.int64]:
    """Positions of the rows to keep, by time, each time once: of rows with one time the file's first."""
    known = np.flatnonzero(np.isfinite(times_s))
    report.add(Problem.UNSORTED, label, int(np.sum(times_s[known] < np.maximum.accumulate(times_s[known]))))
    order = known[np.argsort(times_s[known], kind="stable")]
    repeated = np.concatenate(([False], np.diff(times_s[order]) == 0))
    first_of_its_time = order[~repeated][np.cumsum(~repeated) - 1]
    same = np.ones(order.size, dtype=np.bool_)
    for power_w in powers_w.values():
        here, first = power_w[order], power_w[first_of_its_time]
        same &= (here == first) | (np.isnan(here) & np.isnan(first))
    report.add(Problem.REPEATED_ROW, label, int(np.sum(repeated & same)))
    report.add(Problem.CONFLICTING_ROW, label, int(np.sum(repeated & ~same)))
    kept: npt.NDArray[np.int64] = order[~repeated]
    return kept


def _joined(minutes: dict[str, tuple[DoubleArray, FloatArray]], path: Path, report: DataReport) -> CleanTables:
    """All channels on the grid of the mains; what an appliance's meter has before or after is not used."""
    starts_s, aggregate_w = minutes[MAINS]
    report.add(Problem.MINUTE_WITHOUT_MAINS, MAINS, int(np.isnan(aggregate_w).sum()))
    valid = valid_mask(aggregate_w, SAMPLE_PERIOD_S)
    report.add(Problem.FLAT_MAINS, MAINS, int(np.sum(np.isfinite(aggregate_w) & ~valid)))
    if not valid.any():
        raise RecordingError(f"{path.name} has no minute in which the mains were measured")
    measured = valid.copy()
    appliances_w: dict[str, FloatArray] = {}
    for appliance_id in APPLIANCES:
        if appliance_id not in minutes:
            continue
        power_w = _on_grid(starts_s, *minutes[appliance_id])
        missing = np.isnan(power_w)
        report.add(Problem.MINUTE_WITHOUT_APPLIANCE, appliance_id, int(np.sum(measured & missing)))
        valid &= ~missing
        appliances_w[appliance_id] = np.nan_to_num(power_w, nan=0.0)
    if not valid.any():
        raise RecordingError(f"{path.name} has no minute in which the mains and all its appliances were measured")
    if appliances_w:
        total_w = np.sum(list(appliances_w.values()), axis=0)
        report.add(Problem.SUM_ABOVE_MAINS, "minutes", int(np.sum(valid & (total_w > aggregate_w))))
    return CleanTables(float(starts_s[0]), np.nan_to_num(aggregate_w, nan=0.0), valid, appliances_w)


def _on_grid(grid_s: DoubleArray, starts_s: DoubleArray, power_w: FloatArray) -> FloatArray:
    """Minutes [m] of another meter as minutes of the grid [n]; NaN where it has none."""
    placed = np.full(grid_s.size, np.nan, dtype=np.float32)
    position = np.rint((starts_s - grid_s[0]) / SAMPLE_PERIOD_S).astype(np.int64)
    inside = (position >= 0) & (position < grid_s.size)
    placed[position[inside]] = power_w[inside]
    return placed
