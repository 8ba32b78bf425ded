"""Several rounds as one figure: the median, and between which values it lay."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

SIGNIFICANT_DIGITS = 3


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of some rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None of no value."""
        known = [value for value in values if not math.isnan(value)]
        return cls(statistics.median(known), min(known), max(known)) if known else None

    def __str__(self) -> str:
        if self.low == self.high:
            return figure(self.median)
        return f"{figure(self.median)} ({figure(self.low)}-{figure(self.high)})"


def ratio(numerators: Mapping[int, float], denominators: Mapping[int, float]) -> Spread | None:
    """Of figures by round: each round's own ratio, then the spread of those. None without a round that has both."""
    both = sorted(numerators.keys() & denominators.keys())
    return Spread.of(numerators[n] / denominators[n] for n in both if denominators[n])


def figure(value: float) -> str:
    """Three digits, and no more than a whole number has: 0.0123, 4.57, 83.2, 1240."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, SIGNIFICANT_DIGITS - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"
