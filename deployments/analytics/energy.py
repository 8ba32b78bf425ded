"""Energy and cost by local day: mains, each appliance, what no appliance explains, what is always on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from deployments.analytics.dense import Dense
from deployments.analytics.documents import instant
from deployments.analytics.spans import DAY_NS, MINUTE_NS, QUARTER_NS, Span

ALWAYS_ON_QUANTILE = 0.05
"""Of a day's quarters of an hour: what is drawn when nobody does anything. The lowest would be a gap or a glitch."""
MINUTES_PER_HOUR = 60
LONGEST_NS = 400 * DAY_NS
"""The longest range."""

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Day:
    """One local day; 23 or 25 hours long when clocks change. [`start_ns`, `stop_ns`)."""

    date: str
    start_ns: int
    stop_ns: int


def local_days(start_ns: int, stop_ns: int, zone: ZoneInfo) -> list[Day]:
    """The days that hold any of [start, stop), whole."""
    moment = datetime.fromtimestamp(start_ns // 10**9, zone)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    days: list[Day] = []
    while _ns(midnight) < stop_ns:
        # Wall-clock arithmetic: the next midnight of the same zone, however many hours away.
        following = (midnight + timedelta(days=1)).replace(fold=0)
        # A date that a place skipped when it changed sides of the date line is no day.
        if _ns(following) > _ns(midnight):
            days.append(Day(midnight.date().isoformat(), _ns(midnight), _ns(following)))
        midnight = following
    return days


def span_of(days: list[Day]) -> Span:
    """The quarters of an hour of all days; every zone's midnight is on one."""
    return Span.covering(days[0].start_ns, days[-1].stop_ns, QUARTER_NS)


def energy_rows(
    days: list[Day], span: Span, mains: Dense, appliances: Mapping[str, Dense], price_per_kwh: float | None
) -> list[Document]:
    """One row a day. Energies are of what was measured only, with the share of the day that was: `coverage`.

    `unattributed`: the mains' energy less the appliances', quarter by quarter, where the mains were measured.
    `always_on`: the `ALWAYS_ON_QUANTILE` of the day's quarters, all day long.
    """
    rows: list[Document] = []
    for day in days:
        first, end = ((time_ns - span.start_ns) // span.step_ns for time_ns in (day.start_ns, day.stop_ns))
        minutes = (day.stop_ns - day.start_ns) / MINUTE_NS
        kw, measured = mains.kw[first:end], mains.minutes[first:end]
        parts = {name: Dense(one.kw[first:end], one.minutes[first:end]) for name, one in appliances.items()}
        rest_kwh, level, level_kwh = None, None, None
        if measured.any():
            energies = np.nan_to_num(kw) * measured
            for one in parts.values():
                energies = energies - np.nan_to_num(one.kw) * one.minutes
            # A quarter in which models claim more than there was leaves nothing, and no debt for the others.
            rest_kwh = float(np.maximum(energies[measured > 0], 0.0).sum()) / MINUTES_PER_HOUR
            level = float(np.quantile(kw[measured > 0], ALWAYS_ON_QUANTILE))
            level_kwh = level * float(measured.sum()) / MINUTES_PER_HOUR
        rows.append(
            {
                "date": day.date,
                "start": instant(day.start_ns),
                "end": instant(day.stop_ns),
                "mains": _share(Dense(kw, measured), minutes, price_per_kwh),
                "appliances": {name: _share(one, minutes, price_per_kwh) for name, one in parts.items()},
                "unattributed": _energy(rest_kwh, price_per_kwh),
                "always_on": {
                    "power_kw": None if level is None else round(level, 6),
                    **_energy(level_kwh, price_per_kwh),
                },
            }
        )
    return rows


def _share(part: Dense, minutes: float, price_per_kwh: float | None) -> Document:
    """Of one day, which has so many minutes."""
    measured = float(part.minutes.sum())
    energy_kwh = float((np.nan_to_num(part.kw) * part.minutes).sum()) / MINUTES_PER_HOUR if measured else None
    return {**_energy(energy_kwh, price_per_kwh), "coverage": round(measured / minutes, 4)}


def _energy(energy_kwh: float | None, price_per_kwh: float | None) -> Document:
    cost = None if energy_kwh is None or price_per_kwh is None else round(energy_kwh * price_per_kwh, 6)
    return {"energy_kwh": None if energy_kwh is None else round(energy_kwh, 6), "cost": cost}


def _ns(moment: datetime) -> int:
    return round(moment.timestamp()) * 10**9
