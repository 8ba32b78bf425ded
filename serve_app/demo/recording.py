"""A household's mains at the service's sample period, and the windows that can be cut from it.

Owns the rule that missing mains are never "off": a window with a missing sample is skipped and counted,
it is neither padded nor sent as zero. Plain numpy; knows no files and no HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from models.signal import FLAT_GAP_S, W_PER_KW, complete_windows
from serve_app.demo.errors import SourceError

FloatArray = NDArray[np.float64]

# Different data sets name the same thing differently.
_ALIASES = {"electricshower": "shower", "fridgefreezer": "fridge", "washer": "washingmachine"}


def appliance_key(name: str) -> str:
    """One spelling for `WashingMachine`, `washing_machine` and `washing machine`."""
    key = "".join(character for character in name.lower() if character.isalnum())
    return _ALIASES.get(key, key)


@dataclass(frozen=True)
class Recording:
    """Evenly sampled power of one household.

    Attributes:
        title: what the data is and where it comes from, as shown in the picture.
        start: UTC instant at which the first sample's period begins.
        sample_period_s: seconds between samples.
        aggregate_w: mains in W, shape (n,); NaN where missing.
        appliances_w: measured power in W by `appliance_key`, each of shape (n,); NaN where unknown.
            Never sent to the service.
        truth: how `appliances_w` came about, as tables and pictures call it: "measured" or "synthetic".
    """

    title: str
    start: datetime
    sample_period_s: int
    aggregate_w: FloatArray
    appliances_w: Mapping[str, FloatArray] = field(default_factory=dict)
    truth: str = "measured"

    def __len__(self) -> int:
        return int(self.aggregate_w.size)

    def instant(self, index: int) -> datetime:
        """UTC instant of sample `index`."""
        return self.start + timedelta(seconds=index * self.sample_period_s)

    def index_of(self, instant: datetime) -> int:
        """Index of the sample that covers `instant`; may lie outside the recording."""
        return math.floor((instant - self.start).total_seconds() / self.sample_period_s)

    def measured_w(self, appliance_id: str) -> FloatArray | None:
        """Ground truth of an appliance in W, or None where the recording has none."""
        return self.appliances_w.get(appliance_key(appliance_id))


@dataclass(frozen=True)
class WindowRequest:
    """One window to send: `window_kw` ends at `last_sample_at` and is about sample `target`."""

    target: int
    last_sample_at: datetime
    window_kw: FloatArray


@dataclass(frozen=True)
class Plan:
    """What will be sent for the samples `first` .. `first + count - 1` of the recording, in order of time."""

    first: int
    count: int
    windows: tuple[WindowRequest, ...]

    @property
    def skipped(self) -> int:
        """Samples that get no prediction because their window has missing mains."""
        return self.count - len(self.windows)


def mask_missing(aggregate_w: FloatArray, time_s: FloatArray) -> FloatArray:
    """A copy of the mains with NaN for non-positive values and for stretches that stay constant for an hour.

    Args:
        aggregate_w: mains in W, shape (n,).
        time_s: seconds of each sample, ascending, shape (n,).
    """
    masked = np.where(aggregate_w > 0, aggregate_w, np.nan)
    if masked.size < 2:
        return masked
    period_s = float(np.median(np.diff(time_s)))
    starts = np.concatenate(([0], np.flatnonzero(np.diff(masked) != 0) + 1))  # NaN != NaN: a gap ends a stretch
    ends = np.concatenate((starts[1:], [masked.size]))
    duration_s = time_s[ends - 1] - time_s[starts] + period_s
    for start, end in zip(starts[duration_s >= FLAT_GAP_S], ends[duration_s >= FLAT_GAP_S], strict=True):
        if end - start > 1:  # a single sample of a coarse recording is not a stretch
            masked[start:end] = np.nan
    return masked


def plan_windows(
    recording: Recording, window_size: int, output_index: int, start: datetime | None, hours: float
) -> Plan:
    """Cut the windows whose output sample lies in `[start, start + hours)`.

    Args:
        recording: at the service's sample period.
        window_size: samples a window.
        output_index: which sample of its window a prediction is about.
        start: first predicted instant; None takes the first UTC midnight with a whole stretch of `hours`
            behind it and a full window before it, else the earliest instant that has a window at all.
        hours: length of the predicted stretch.

    Raises:
        SourceError: the recording holds no complete window for that stretch.
    """
    ahead = window_size - 1 - output_index  # samples that a window needs after its output sample
    earliest, latest = output_index, len(recording) - 1 - ahead
    if latest < earliest:
        raise SourceError(
            f"The recording is too short: it has {len(recording)} samples of {recording.sample_period_s} s "
            f"and one window takes {window_size}."
        )
    wanted = max(1, round(hours * 3600 / recording.sample_period_s))
    first = recording.index_of(start.astimezone(UTC)) if start else _default_first(recording, earliest, latest, wanted)
    last = min(first + wanted - 1, latest)  # the recording's edges hold no full window: not a gap, not counted
    first = max(first, earliest)
    if last < first:
        raise SourceError(
            f"The recording runs from {_minute(recording, 0)} to {_minute(recording, len(recording) - 1)} UTC "
            "and has no full window in the stretch asked for."
        )
    windows = tuple(
        _window(recording, target, output_index, ahead)
        for target in _complete_targets(recording, window_size, output_index)
        if first <= target <= last
    )
    if not windows:
        raise SourceError(
            f"There is no window of {window_size} samples without missing mains between "
            f"{_minute(recording, first)} and {_minute(recording, last)} UTC: choose another --start."
        )
    return Plan(first=first, count=last - first + 1, windows=windows)


def _minute(recording: Recording, index: int) -> str:
    return f"{recording.instant(index):%Y-%m-%d %H:%M}"


def _default_first(recording: Recording, earliest: int, latest: int, wanted: int) -> int:
    day = timedelta(days=1)
    begin = recording.instant(earliest)
    midnight = begin.replace(hour=0, minute=0, second=0, microsecond=0)
    if midnight < begin:
        midnight += day
    candidate = recording.index_of(midnight)
    return candidate if candidate + wanted - 1 <= latest else earliest


def _complete_targets(recording: Recording, window_size: int, output_index: int) -> list[int]:
    """Output samples whose whole window is known."""
    return [int(begin) + output_index for begin in np.flatnonzero(complete_windows(recording.aggregate_w, window_size))]


def _window(recording: Recording, target: int, output_index: int, ahead: int) -> WindowRequest:
    watts = recording.aggregate_w[target - output_index : target + ahead + 1]
    return WindowRequest(target=target, last_sample_at=recording.instant(target + ahead), window_kw=watts / W_PER_KW)
