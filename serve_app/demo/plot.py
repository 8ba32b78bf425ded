"""The picture of a run: appliances stacked to the mains, and each appliance against its measurement.

Drawn with matplotlib's Agg canvas, so it needs no display. Minutes without a prediction are hatched: missing
is never shown as off.
"""

from __future__ import annotations

from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.signal import W_PER_KW
from serve_app.demo.errors import DemoError
from serve_app.demo.recording import FloatArray, appliance_key
from serve_app.demo.results import ApplianceSummary, Results, label

# Okabe and Ito's palette: distinct for all common kinds of colour blindness. One fixed colour an appliance.
_COLOURS = {
    "fridge": "#56B4E9",
    "dishwasher": "#0072B2",
    "washingmachine": "#009E73",
    "shower": "#F0E442",
    "kettle": "#D55E00",
    "microwave": "#CC79A7",
}
_OTHERS = ("#E69F00", "#882255", "#44AA99", "#999933", "#117733")
_UNATTRIBUTED = "#DDDDDD"
_INK = "#222222"
_MUTED = "#666666"
_AXIS = "#BBBBBB"
_MEASURED = "#555555"
_GAP: dict[str, Any] = {"facecolor": "#F7F7F7", "edgecolor": "#CFCFCF", "hatch": "///", "linewidth": 0}
_EDGED_KW = 0.02
_LEGEND_COLUMNS = 9
_LEFT = 0.062  # of the width: where the axes and the texts above them begin
_WIDTH_IN, _STACK_IN, _ROW_IN, _MARGIN_IN, _DPI = 12.0, 3.9, 0.95, 1.35, 130


def require_matplotlib() -> None:
    """Fail before the run rather than after it.

    Raises:
        DemoError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401, PLC0415 - an extra that only this picture needs
    except ImportError as error:
        raise DemoError("The picture needs matplotlib: pip install 'nilm-serve[tools]'.") from error


def draw(results: Results, building_id: str, path: Path) -> None:
    """Write the picture of `results` as a PNG of 1560 pixels width to `path`.

    Raises:
        DemoError: the file cannot be written.
    """
    figure = _Picture(results, building_id).figure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": "nilm-serve demo", "Title": results.recording.title})
    except (OSError, ValueError) as error:  # ValueError: a suffix matplotlib has no writer for
        raise DemoError(f"The picture cannot be written to {path}: {error}.") from error


class _Picture:
    """One figure: axis 0 is the stack, the others are one appliance each. Powers are kW."""

    def __init__(self, results: Results, building_id: str) -> None:
        self._results = results
        self._building_id = building_id
        self._span = results.span()
        instants = [results.recording.instant(i) for i in range(self._span.start, self._span.stop + 1)]
        self._edges = instants  # where samples begin, and where the last one ends
        self._steps = [instant for instant in instants for _ in range(2)][1:-1]
        self._answered = results.answered[self._span]
        self._colours = _colours(results.appliances)

    def figure(self) -> Any:
        """The finished matplotlib figure."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415

        rows = len(self._results.appliances)
        height_in = _STACK_IN + rows * _ROW_IN + _MARGIN_IN
        figure = Figure(figsize=(_WIDTH_IN, height_in), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1 + rows, 1, sharex=True, squeeze=False, height_ratios=[_STACK_IN, *[_ROW_IN] * rows])[
            :, 0
        ]
        figure.subplots_adjust(hspace=0.16, left=_LEFT, right=0.976, top=1 - 0.98 / height_in, bottom=0.5 / height_in)
        self._stack(axes[0])
        summaries = self._results.summaries()
        for axis, summary in zip(axes[1:], summaries, strict=True):
            self._row(axis, summary)
        self._caption(figure, height_in)
        self._legend(axes[0], any(summary.measured_kwh is not None for summary in summaries))
        self._frame(axes)
        return figure

    def _stack(self, axis: Any) -> None:
        results = self._results
        layers = [(label(name), results.predicted_kw[name], self._colours[name]) for name in results.appliances]
        layers.append(("Unattributed", results.unattributed_kw, _UNATTRIBUTED))
        base = np.zeros(self._answered.size)
        for name, power_kw, colour in layers:
            top = base + np.nan_to_num(power_kw[self._span], nan=0.0)
            self._fill(axis, base, top, colour, name)
            base = top
        mains_kw = results.recording.aggregate_w[self._span] / W_PER_KW
        self._line(axis, mains_kw, 0.5, "Mains")
        self._hatch(axis, self._answered)
        axis.set_ylabel("Power (kW)", color=_INK)
        axis.set_ylim(0, 1.05 * max(_peak(mains_kw), _peak(base)))
        axis.grid(axis="y", color="#EEEEEE", linewidth=0.8)
        axis.set_axisbelow(True)

    def _row(self, axis: Any, summary: ApplianceSummary) -> None:
        """Predicted upwards, measured downwards: laid over each other, a two-minute boil would hide one of them."""
        predicted_kw = self._results.predicted_kw[summary.appliance_id][self._span]
        measured_w = self._results.recording.measured_w(summary.appliance_id)
        self._fill(axis, np.zeros_like(predicted_kw), predicted_kw, self._colours[summary.appliance_id])
        highest, lowest = _peak(predicted_kw), 0.0
        text = f"predicted {summary.predicted_kwh:.2f} kWh"
        if summary.measured_kwh is None or measured_w is None:
            text += ", not metered"
        else:
            measured_kw = measured_w[self._span] / W_PER_KW
            self._fill(axis, -measured_kw, np.zeros_like(measured_kw), _MEASURED)
            highest, lowest = max(highest, _peak(measured_kw)), -max(highest, _peak(measured_kw))
            text += (
                f", {self._results.recording.truth} {summary.measured_kwh:.2f} kWh   |   "
                f"mean error {summary.mae_w:.1f} W, always-off {summary.always_off_mae_w:.1f} W"
            )
        self._hatch(axis, np.isfinite(predicted_kw))
        axis.axhline(0, color=_AXIS, linewidth=0.8, zorder=0.5)
        # Room for the line of text above the tallest peak.
        axis.set_ylim(1.1 * lowest, highest + 0.5 * (highest - lowest))
        place = {"transform": axis.transAxes, "va": "top", "fontsize": 10.5}
        axis.text(0.006, 0.95, label(summary.appliance_id), weight="bold", color=_INK, **place)
        backing = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}  # over a hatched stretch
        axis.text(0.998, 0.95, text, ha="right", color=_MUTED, bbox=backing, **place)
        tick = max(1, round(highest)) if highest >= 0.8 else round(highest, 1)
        axis.set_yticks([0, tick] if lowest == 0 else [-tick, 0, tick])
        axis.set_yticklabels(["0", f"{tick:g}"] if lowest == 0 else [f"{tick:g}", "0", f"{tick:g}"])

    def _fill(self, axis: Any, base: FloatArray, top: FloatArray, colour: str, name: str | None = None) -> None:
        """Fill between two step curves; an edge keeps a boil visible that is one pixel wide."""
        low, high = np.repeat(np.nan_to_num(base), 2), np.repeat(np.nan_to_num(top), 2)
        axis.fill_between(self._steps, low, high, facecolor=colour, linewidth=0, label=name)
        if colour == _UNATTRIBUTED:  # its edge would cover the boil beside it
            return
        on = np.repeat(top - base > _EDGED_KW, 2)  # an edge around a trickle would look like a load; NaN is not on
        axis.fill_between(self._steps, low, high, where=on, facecolor=colour, edgecolor=colour, linewidth=0.9)

    def _line(self, axis: Any, power_kw: FloatArray, width: float, name: str | None = None) -> None:
        axis.plot(self._steps, np.repeat(power_kw, 2), color=_INK, linewidth=width, label=name)

    def _hatch(self, axis: Any, known: NDArray[np.bool_]) -> None:
        """Mark the stretches that have no prediction."""
        changes = np.diff(np.concatenate(([False], ~known, [False])).astype(np.int8))
        for begin, end in zip(np.flatnonzero(changes == 1), np.flatnonzero(changes == -1), strict=True):
            axis.axvspan(self._edges[begin], self._edges[end], zorder=0, **_GAP)

    def _caption(self, figure: Any, height_in: float) -> None:
        results = self._results
        begin, end = self._edges[0], self._edges[-1]
        parts = [
            f"{begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC",
            f"building {self._building_id}",
            f"{results.acknowledged} predictions, each stored before it was acknowledged",
        ]
        title = f"{results.recording.title}: where the power went"
        at = {"x": _LEFT, "va": "top"}
        figure.text(s=title, y=1 - 0.13 / height_in, fontsize=15, weight="bold", color=_INK, **at)
        figure.text(s="   |   ".join(parts), y=1 - 0.42 / height_in, fontsize=10.5, color=_MUTED, **at)

    def _legend(self, axis: Any, measured: bool) -> None:
        from matplotlib.patches import Patch  # noqa: PLC0415

        handles, _ = axis.get_legend_handles_labels()
        if measured:
            handles.append(
                Patch(facecolor=_MEASURED, label=f"{self._results.recording.truth.capitalize()} (below the line)")
            )
        if not self._answered.all():
            handles.append(Patch(label="No prediction", **_GAP))
        axis.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(-0.004, 1.0),
            ncols=min(len(handles), _LEGEND_COLUMNS),
            frameon=False,
            fontsize=9.5,
            handlelength=1.3,
            columnspacing=1.3,
            borderaxespad=0.2,
        )

    def _frame(self, axes: Any) -> None:
        """The time axis, and quiet spines."""
        from matplotlib import dates  # noqa: PLC0415

        for axis in axes:
            axis.spines[["top", "right"]].set_visible(False)
            axis.spines[["left", "bottom"]].set_color(_AXIS)
            axis.tick_params(color=_AXIS, labelcolor=_INK, labelsize=9.5)
        begin, end = self._edges[0], self._edges[-1]
        axes[-1].set_xlim(begin, end)
        short = end - begin <= timedelta(hours=36)
        # mypy sees no types in matplotlib.dates
        axes[-1].xaxis.set_major_locator(dates.AutoDateLocator(minticks=5, maxticks=13))
        axes[-1].xaxis.set_major_formatter(dates.DateFormatter("%H:%M" if short else "%d %b %H:%M"))
        axes[-1].set_xlabel("Time (UTC)", color=_INK)


def _colours(appliances: tuple[str, ...]) -> dict[str, str]:
    others = cycle(_OTHERS)
    return {name: _COLOURS.get(appliance_key(name)) or next(others) for name in appliances}


def _peak(power_kw: FloatArray) -> float:
    """The highest known power, at least 0.1 kW so that an axis has a height."""
    return float(np.nanmax(np.append(power_kw, 0.1)))
