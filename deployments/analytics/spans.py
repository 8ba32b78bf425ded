"""Ranges of time cut into buckets of equal length, and how fine and how long they may be."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

SECOND_NS = 10**9
MINUTE_NS = 60 * SECOND_NS
QUARTER_NS = 15 * MINUTE_NS
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS


class Resolution(StrEnum):
    """Lengths of a bucket."""

    SECOND = "1s"
    MINUTE = "1m"
    QUARTER = "15m"
    HOUR = "1h"
    DAY = "1d"

    @property
    def step_ns(self) -> int:
        """Length of a bucket."""
        return _STEPS_NS[self]

    @property
    def read_step_ns(self) -> int:
        """Length of the buckets that are read from a store and put together.

        Shorter than `step_ns` for hours and days: which of several versions speaks for an instant is decided there.
        """
        return {Resolution.HOUR: QUARTER_NS, Resolution.DAY: HOUR_NS}.get(self, self.step_ns)

    @property
    def longest_ns(self) -> int:
        """The longest range: about 45,000 buckets."""
        return _LONGEST_NS[self]


_STEPS_NS = {
    Resolution.SECOND: SECOND_NS,
    Resolution.MINUTE: MINUTE_NS,
    Resolution.QUARTER: QUARTER_NS,
    Resolution.HOUR: HOUR_NS,
    Resolution.DAY: DAY_NS,
}
_LONGEST_NS = {
    Resolution.SECOND: 12 * HOUR_NS,
    Resolution.MINUTE: 31 * DAY_NS,
    Resolution.QUARTER: 400 * DAY_NS,
    Resolution.HOUR: 5 * 366 * DAY_NS,
    Resolution.DAY: 20 * 366 * DAY_NS,
}


@dataclass(frozen=True, slots=True)
class Span:
    """From `start_ns` up to but not including `stop_ns`, whole buckets of `step_ns` counted from 1970, UTC."""

    start_ns: int
    stop_ns: int
    step_ns: int

    @classmethod
    def covering(cls, start_ns: int, stop_ns: int, step_ns: int) -> Span:
        """The buckets that hold any of [start, stop): edges are widened to whole buckets, never cut."""
        return cls(start_ns // step_ns * step_ns, -(-stop_ns // step_ns) * step_ns, step_ns)

    @property
    def buckets(self) -> int:
        """How many there are."""
        return (self.stop_ns - self.start_ns) // self.step_ns

    @property
    def inner_step_ns(self) -> int:
        """Samples are averaged over this first, so that a minute counts once however often it was measured."""
        return min(self.step_ns, MINUTE_NS)

    @property
    def minutes_per_bucket(self) -> int:
        """How many of these a bucket holds."""
        return self.step_ns // self.inner_step_ns

    def starts_ns(self) -> npt.NDArray[np.int64]:
        """The start of each bucket."""
        return np.arange(self.start_ns, self.stop_ns, self.step_ns, dtype=np.int64)

    def read_with(self, step_ns: int) -> Span:
        """The same range in shorter buckets."""
        return Span(self.start_ns, self.stop_ns, step_ns)
