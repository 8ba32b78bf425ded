"""Series of buckets as a store gives them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class BucketSeries:
    """k buckets that hold at least one sample, in the order of time; arrays of length k.

    `time_ns`: int64, the bucket's start. `mean_kw`: float64, mean of the means of its minutes. `minutes`: int32, how
    many of its minutes hold a sample; 1 for a bucket that is no longer than a minute.
    """

    time_ns: npt.NDArray[np.int64]
    mean_kw: npt.NDArray[np.float64]
    minutes: npt.NDArray[np.int32]

    @classmethod
    def of(cls, rows: list[tuple[int, float, int]]) -> BucketSeries:
        """From (time_ns, mean_kw, minutes)."""
        return cls(
            np.array([row[0] for row in rows], dtype=np.int64),
            np.array([row[1] for row in rows], dtype=np.float64),
            np.array([row[2] for row in rows], dtype=np.int32),
        )

    def __len__(self) -> int:
        return len(self.time_ns)


@dataclass(frozen=True, slots=True, eq=False)
class PredictionSeries:
    """What one version said of one appliance. `confidence`: float64 [k], the mean like that of the power."""

    appliance_id: str
    model_version: str
    attribution: str
    buckets: BucketSeries
    confidence: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Latest:
    """When a building was last heard of, ns since 1970. `predictions`: by appliance."""

    building_id: str
    reading_ns: int | None
    predictions: dict[str, int]
