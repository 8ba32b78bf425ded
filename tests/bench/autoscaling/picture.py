"""Replicas over time as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.bench.autoscaling.observer import INGRESS, KETTLE, WATCHED, Observer, Part

COLOURS = {KETTLE: "#D55E00", "microwave": "#0072B2", INGRESS: "#444444"}
"""Of Okabe and Ito's palette: distinct for all common kinds of colour blindness."""
APART = {KETTLE: 0.0, "microwave": -0.07, INGRESS: 0.07}
"""In replicas, so that lines at the same height are all seen."""


def draw(path: Path, parts: Sequence[Part], observer: Observer, target_windows: float) -> None:
    """A panel for each part: replicas as steps, the load shaded, behind them the windows."""
    figure = Figure(figsize=(9.0, 6.6), layout="constrained")
    panels = figure.subplots(len(parts), squeeze=False)[:, 0]
    for part, axes in zip(parts, panels, strict=True):
        artists = draw_part(axes, part, observer, target_windows)
    figure.legend(handles=artists, loc="outside lower center", ncols=4, frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def draw_part(axes: Axes, part: Part, observer: Observer, target_windows: float) -> list[Artist]:
    """What belongs into the legend."""
    looks, held = part.of(observer.looks), part.of(observer.held)
    # The twin has the background: what is drawn on `axes` must lie above all of it.
    behind = axes.twinx()
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    shades = [
        behind.axvspan(part.minutes(began_s), part.minutes(ended_s), color="0.9", linewidth=0, label="clients there")
        for began_s, ended_s in part.loads
    ]
    (windows,) = behind.plot(
        [part.minutes(one.at_s) for one in held],
        [one.windows[KETTLE] for one in held],
        color="0.55",
        linewidth=0.8,
        label=f"{KETTLE}: windows",
    )
    target = behind.axhline(
        target_windows,
        color="0.55",
        linewidth=0.8,
        linestyle="--",
        label=f"{target_windows:g} windows, for one replica",
    )
    at_min = [part.minutes(look.at_s) for look in looks]
    (wanted,) = axes.step(
        at_min,
        [look.wanted[KETTLE] for look in looks],
        where="post",
        color=COLOURS[KETTLE],
        linewidth=1.2,
        linestyle=":",
        label=f"{KETTLE}: wanted",
    )
    running = [
        axes.step(
            at_min,
            [look.running[name] + APART[name] for look in looks],
            where="post",
            color=COLOURS[name],
            linewidth=1.8,
            label=f"{name}: running",
        )[0]
        for name in reversed(WATCHED)  # the kettle last, above the others
    ]
    most = max((max(*look.running.values(), *look.wanted.values()) for look in looks), default=1)
    axes.set(
        title=part.title,
        xlabel="time (minutes)",
        ylabel="replicas",
        xlim=(0.0, part.minutes(part.ended_s)),
        ylim=(0.0, most + 0.5),
        yticks=range(most + 1),
    )
    behind.set(ylabel="windows that wait or run")
    behind.set_ylim(bottom=0.0)
    return [*reversed(running), wanted, windows, target, shades[0]]
