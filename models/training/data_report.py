"""What was found in a recording and what was done about it: one stated treatment for each problem, with its count.

Refuses nothing itself: `cleaning` raises what makes a recording unusable.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from models.signal import MAINS_CLIP_W

GAP_PERIODS = 3.0
"""A step longer than this many usual steps is a gap: one or two lost samples still leave a minute its mean."""
STUCK_AT_MAXIMUM = 30
"""As many samples exactly at one recording's maximum: the meter, or whoever prepared the file, cut the peaks off."""
PERIODS_SHOWN = 4


class Problem(Enum):
    """(what is counted, what is done with it). Rows and values are those of the file; minutes those of training."""

    NO_TIME = ("rows without a readable time from 1990 to 2099", "dropped")
    SKIPPED_HOUR = ("rows in the hour that summer time skips", "dropped")
    DOUBLED_HOUR_RESOLVED = ("rows in the doubled hour of autumn, in order", "kept, told apart by their order")
    DOUBLED_HOUR_DROPPED = ("rows in the doubled hour of autumn, order unclear", "dropped")
    UNSORTED = ("rows before an earlier row's time", "sorted by time")
    REPEATED_ROW = ("rows with a time and values seen before", "the first is kept")
    CONFLICTING_ROW = ("rows with a time seen before and other values", "the first is kept")
    NOT_A_NUMBER = ("values that are text", "missing")
    NO_VALUE = ("values that are empty, infinite or above 1 MW", "missing")
    ZERO_MAINS = ("mains of zero", "missing")
    NEGATIVE_MAINS = ("mains below zero", "missing")
    NEGATIVE_APPLIANCE = ("appliance power below zero", "set to 0 W: the offset of a meter, no load gives power")
    ABOVE_CLIP = (f"mains at {MAINS_CLIP_W:g} W or above", f"kept; training and serving clip at {MAINS_CLIP_W:g} W")
    AT_MAXIMUM = ("mains exactly at the recording's maximum", "kept: the recording is clipped there")
    OTHER_PERIOD = ("steps other than the usual one", "averaged over the samples of each minute")
    GAP = (f"gaps longer than {GAP_PERIODS:g} usual steps", "not filled")
    MINUTE_WITHOUT_MAINS = ("minutes without any mains", "missing")
    FLAT_MAINS = ("minutes of mains that do not change for an hour", "missing: a stuck meter")
    MINUTE_WITHOUT_APPLIANCE = ("measured minutes without a sample of this appliance", "missing")
    SUM_ABOVE_MAINS = ("minutes whose appliances draw more than the mains", "kept; many mean a wrong column or unit")

    def __init__(self, label: str, treatment: str) -> None:
        self.label = label
        self.treatment = treatment


@dataclass(slots=True)
class DataReport:
    """Filled while a recording is read; each count belongs to a channel (mains, an appliance id, or all of them)."""

    counts: Counter[tuple[Problem, str]] = field(default_factory=Counter)
    times: str = ""
    """How the times were read, in words."""
    rows: int = 0
    """Rows of the mains' table, before anything was dropped."""
    usual_step_s: float = 0.0
    """Median time between samples of the mains, s."""
    periods: tuple[tuple[float, float], ...] = ()
    """The commonest steps that are no gaps, as (s, share of all steps), commonest first."""
    longest_gap_s: float = 0.0
    maximum_w: float = 0.0
    """Of the mains, before averaging."""

    def add(self, problem: Problem, channel: str, count: int) -> None:
        """Counts `count` more; zero leaves no trace."""
        if count:
            self.counts[problem, channel] += int(count)

    def count(self, problem: Problem) -> int:
        """How often, over all channels."""
        return sum(count for (found, _), count in self.counts.items() if found is problem)

    def found(self) -> list[tuple[Problem, str, int]]:
        """(problem, channel, count), in the order of `Problem`."""
        order = list(Problem)
        return sorted(
            ((problem, channel, count) for (problem, channel), count in self.counts.items()),
            key=lambda row: (order.index(row[0]), row[1]),
        )

    def describe_steps(self, channel: str, times_s: npt.NDArray[np.float64]) -> None:
        """Periods and gaps of sorted, distinct times [n] in s."""
        steps_s = np.diff(times_s)
        if steps_s.size == 0:
            return
        usual = float(np.median(steps_s))
        is_gap = steps_s > GAP_PERIODS * usual
        # To a tenth of a second: clocks of real meters jitter by less.
        lengths, numbers = np.unique(np.round(steps_s[~is_gap], 1), return_counts=True)
        commonest = np.argsort(-numbers, kind="stable")[:PERIODS_SHOWN]
        self.usual_step_s = usual
        self.periods = tuple((float(lengths[i]), float(numbers[i] / steps_s.size)) for i in commonest)
        self.longest_gap_s = float(steps_s[is_gap].max(initial=0.0))
        self.add(Problem.GAP, channel, int(is_gap.sum()))
        self.add(Problem.OTHER_PERIOD, channel, int(np.sum(~is_gap & (np.abs(steps_s - usual) > 0.1))))
