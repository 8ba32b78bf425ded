"""Series on all buckets of a span: which version speaks for a bucket, and how short buckets make long ones."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deployments.analytics.series import BucketSeries, PredictionSeries
from deployments.analytics.spans import Span
from models.attribution import Attribution

_VERSION = re.compile(r"(\d+(?:\.\d+)*)(.*)", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """One value for every bucket of a span, arrays of length n.

    `kw`: float64, NaN where nothing was measured. `minutes`: int64, how many minutes were (of a bucket no longer than
    one: 0 or 1). `confidence`: float64 or None, NaN like `kw`.
    """

    kw: npt.NDArray[np.float64]
    minutes: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64] | None = None

    def coarser(self, factor: int) -> Dense:
        """Buckets `factor` times as long; every minute counts the same."""
        if factor == 1:
            return self
        minutes = self.minutes.reshape(-1, factor)
        total = minutes.sum(axis=1)
        return Dense(
            _weighted(self.kw, minutes, total),
            total,
            None if self.confidence is None else _weighted(self.confidence, minutes, total),
        )


def _weighted(
    values: npt.NDArray[np.float64], minutes: npt.NDArray[np.int64], total: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    sums = (np.nan_to_num(values).reshape(minutes.shape) * minutes).sum(axis=1)
    return np.where(total > 0, sums / np.maximum(total, 1), np.nan)


def dense(buckets: BucketSeries, span: Span, confidence: npt.NDArray[np.float64] | None = None) -> Dense:
    """A store's series on the buckets of `span`, of the same step."""
    places = (buckets.time_ns - span.start_ns) // span.step_ns
    kw = np.full(span.buckets, np.nan)
    minutes = np.zeros(span.buckets, dtype=np.int64)
    kw[places], minutes[places] = buckets.mean_kw, buckets.minutes
    if confidence is None:
        return Dense(kw, minutes)
    certain = np.full(span.buckets, np.nan)
    certain[places] = confidence
    return Dense(kw, minutes, certain)


def spoken_for(series: Iterable[PredictionSeries], span: Span) -> dict[str, Dense]:
    """By appliance: in each bucket the final answers, where there are none the provisional ones; of the newest version.

    A final answer of an old version goes before a provisional one of a new version: it saw the whole programme.
    """
    found: dict[str, Dense] = {}
    for one in sorted(series, key=lambda one: (one.attribution == Attribution.FINAL, version_order(one.model_version))):
        # The later in this order speaks over the earlier.
        new = dense(one.buckets, span, one.confidence)
        old = found.get(one.appliance_id, new)
        speaks = new.minutes > 0
        assert new.confidence is not None  # noqa: S101 - given above
        assert old.confidence is not None  # noqa: S101 - given above
        found[one.appliance_id] = Dense(
            np.where(speaks, new.kw, old.kw),
            np.where(speaks, new.minutes, old.minutes),
            np.where(speaks, new.confidence, old.confidence),
        )
    return dict(sorted(found.items()))


def version_order(version: str) -> tuple[tuple[int, ...], bool, str]:
    """Sorts versions by their numbers; 1.10 is after 1.9, and a release after what was tagged before it (1.2.0-rc1)."""
    found = _VERSION.fullmatch(version)
    if found is None:
        return (), False, version
    return tuple(int(part) for part in found[1].split(".")), not found[2], found[2]
