"""The pictures of a model card: how honest its probabilities are, and a day as it saw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from models.appliances import Appliance
from models.study_tables import CurvePoint
from models.training.evaluate import RawOutputs, Served
from models.training.recordings import SAMPLE_PERIOD_S, Home

MINUTES_PER_DAY = 1440
_FIXED = {"Software": None}
"""No version of the plotting library in the file: the same run draws the same bytes."""


def reliability_diagram(path: Path, reliability: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Share on against mean probability, by answer; on the diagonal, 70 % means 7 times out of 10."""
    figure = Figure(figsize=(5.0, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="perfect")
    for name, bins in reliability.items():
        axes.plot([one["mean_probability"] for one in bins], [one["share_on"] for one in bins], marker="o", label=name)
    axes.set(xlabel="on-probability it said", ylabel="share of minutes on", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend()
    _save(figure, path)


def example_day(path: Path, home: Home, appliance: Appliance, truth: RawOutputs, said: Served) -> None:
    """The day of the home with the median energy of the appliance among its days in use: typical, not the best."""
    first = _typical_day(truth)
    day = slice(first, first + MINUTES_PER_DAY)
    time = np.datetime64(home.start.tz_localize(None) if home.start.tz else home.start, "s") + np.arange(
        first, first + len(truth.true_w[day])
    ).astype("timedelta64[m]") * int(SAMPLE_PERIOD_S // 60)
    figure = Figure(figsize=(9.0, 4.5), layout="constrained")
    mains, power = figure.subplots(2, sharex=True)
    mains.plot(time, np.where(home.valid[day], home.aggregate_w[day], np.nan), color="0.4", linewidth=0.8)
    mains.set(
        ylabel="mains (W)", title=f"{home.recording.home}, {appliance.appliance_id.replace('_', ' ')}, final answers"
    )
    power.fill_between(
        time,
        said.interval_w[day, -1, 0],
        said.interval_w[day, -1, 1],
        color="tab:blue",
        alpha=0.2,
        label="90 % interval",
    )
    power.plot(time, truth.true_w[day], color="black", linewidth=1.0, label="sub-meter")
    power.plot(time, said.power_w[day], color="tab:blue", linewidth=1.0, label="predicted")
    power.set(ylabel="power (W)")
    power.legend(loc="upper right")
    locator = AutoDateLocator()
    power.xaxis.set_major_locator(locator)
    power.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    _save(figure, path)


def learning_curve(path: Path, points: Sequence[CurvePoint]) -> None:
    """F1 and MAE against the number of training homes, one line an appliance; dots are the single runs."""
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    f1, error = figure.subplots(1, 2)
    for number, appliance_id in enumerate(dict.fromkeys(point.appliance_id for point in points)):
        own = [point for point in points if point.appliance_id == appliance_id]
        homes = sorted({point.homes for point in own})
        for axes, values in (
            (f1, [(point.homes, point.f1) for point in own]),
            (error, [(point.homes, tuple(w / point.always_off_mae_w for w in point.mae_w)) for point in own]),
        ):
            runs = [(count, value) for count, several in values for value in several]
            axes.scatter(*zip(*runs, strict=True), color=f"C{number}", alpha=0.4)
            means = [float(np.mean([value for count, value in runs if count == home])) for home in homes]
            axes.plot(homes, means, color=f"C{number}", label=appliance_id.replace("_", " "))
    f1.set(xlabel="training homes", ylabel="F1 on UK-DALE House 2", xticks=[1, 2])
    error.set(xlabel="training homes", ylabel="MAE / MAE of always off", xticks=[1, 2])
    error.axhline(1.0, color="0.6", linestyle="--")
    f1.legend()
    _save(figure, path)


def _typical_day(truth: RawOutputs) -> int:
    """First minute of it; days are counted from the start of the recording, and need nine tenths measured."""
    days = len(truth.true_w) // MINUTES_PER_DAY
    if days == 0:
        return 0
    shape = (days, MINUTES_PER_DAY)
    energy = truth.true_w[: days * MINUTES_PER_DAY].reshape(shape).sum(axis=1)
    measured = truth.valid[: days * MINUTES_PER_DAY].reshape(shape).mean(axis=1)
    used = np.flatnonzero((energy > 0) & (measured >= 0.9))
    if used.size == 0:
        return int(np.argmax(energy)) * MINUTES_PER_DAY
    return int(used[np.argsort(energy[used], kind="stable")[used.size // 2]]) * MINUTES_PER_DAY


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, metadata=_FIXED)
