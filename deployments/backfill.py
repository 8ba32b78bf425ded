"""Stored readings through a model, a stretch of time at once: what live traffic would have been answered.

Pure: which minutes still need a prediction, and what the model says of them. Exactly what `/infer` says for the same
window: one forward pass a minute, the final answer, and no answer where a minute of the window is missing.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deployments.analytics.spans import DAY_NS, MINUTE_NS, Span
from deployments.contracts import PredictionPoint
from deployments.history_contracts import MinutesQuery, StoredMinutes
from models.attribution import Attribution
from models.loader import LoadedModel
from models.registry import RegistryEntry
from models.signal import W_PER_KW, complete_windows, sliding_windows

ATTRIBUTION = Attribution.FINAL
"""Of a backfill: the past has both sides of every instant; a provisional answer would say less."""
USER_ID = "backfill"
"""Stored as the caller of these predictions."""
BATCH_WINDOWS = 64
SAMPLE_PERIOD_S = 60.0
"""Of the models it can run: stored readings are put together to minutes."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """One appliance and version over part of the range, at most a day; `start_ns` and `stop_ns` on whole minutes."""

    building_id: str
    appliance_id: str
    model_version: str
    start_ns: int
    stop_ns: int

    def query(self, entry: RegistryEntry, attribution: Attribution = ATTRIBUTION) -> MinutesQuery:
        """What must be read for it: the mains reach as far beyond its ends as the window beyond its output."""
        index = entry.sample_indices[attribution]
        ahead = entry.input_window_size - 1 - index
        return MinutesQuery(
            building_id=self.building_id,
            appliance_id=self.appliance_id,
            model_version=self.model_version,
            attribution=attribution,
            start_ns=self.start_ns,
            stop_ns=self.stop_ns,
            mains_start_ns=self.start_ns - index * MINUTE_NS,
            mains_stop_ns=self.stop_ns + ahead * MINUTE_NS,
        )


def stretches(building_id: str, versions: dict[str, str], start_ns: int, stop_ns: int) -> list[Stretch]:
    """The range, widened to whole minutes and cut at midnight UTC, for each appliance; oldest day first."""
    span = Span.covering(start_ns, stop_ns, MINUTE_NS)
    edges = [span.start_ns, *range(span.start_ns // DAY_NS * DAY_NS + DAY_NS, span.stop_ns, DAY_NS), span.stop_ns]
    return [
        Stretch(building_id, appliance_id, version, start, stop)
        for start, stop in itertools.pairwise(edges)
        for appliance_id, version in versions.items()
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """The minutes of a stretch that need a prediction, arrays of length n, and how many do not get one.

    `windows_kw`: float32 [n, input_window_size]. `time_ns`: int64, `aggregate_kw`: float64, of the instant
    each answer stands for.
    """

    time_ns: npt.NDArray[np.int64]
    aggregate_kw: npt.NDArray[np.float64]
    windows_kw: npt.NDArray[np.float32]
    already_stored: int
    mains_missing: int
    """Minutes whose window lacks a reading; none of them is made up."""


def pending(query: MinutesQuery, entry: RegistryEntry, stored: StoredMinutes) -> Pending:
    """Compare what there is with what should be."""
    index = entry.sample_indices[query.attribution]
    mains_kw = np.full((query.mains_stop_ns - query.mains_start_ns) // MINUTE_NS, np.nan)
    mains_kw[(stored.mains_ns - query.mains_start_ns) // MINUTE_NS] = stored.mains_kw
    series_kw = mains_kw.astype(np.float32)
    windows_kw = sliding_windows(series_kw, entry.input_window_size)
    complete = complete_windows(series_kw, entry.input_window_size)
    done = np.zeros(len(windows_kw), dtype=np.bool_)
    done[(stored.predicted_ns - query.start_ns) // MINUTE_NS] = True
    chosen = np.flatnonzero(complete & ~done)
    return Pending(
        time_ns=query.start_ns + chosen * MINUTE_NS,
        aggregate_kw=mains_kw[index + chosen],
        windows_kw=windows_kw[chosen],
        already_stored=int(done.sum()),
        mains_missing=int((~complete & ~done).sum()),
    )


def predict(model: LoadedModel, query: MinutesQuery, minutes: Pending, request_id: str) -> Iterator[PredictionPoint]:
    """The points of all pending minutes, in the order of time, but those to which the model gives no finite answer."""
    for begin in range(0, len(minutes.time_ns), BATCH_WINDOWS):
        part = slice(begin, begin + BATCH_WINDOWS)
        started = time.perf_counter()
        output = model.predict(np.ascontiguousarray(minutes.windows_kw[part]))[query.attribution]
        forward_ms = 1000.0 * (time.perf_counter() - started)
        for n, (predicted_w, probability) in enumerate(
            zip(output.predicted_w.tolist(), output.on_probability.tolist(), strict=True), start=begin
        ):
            if not (math.isfinite(predicted_w) and math.isfinite(probability)):
                continue
            yield PredictionPoint(
                building_id=query.building_id,
                appliance_id=query.appliance_id,
                model_version=model.entry.model_version,
                attribution=query.attribution.value,
                time_ns=int(minutes.time_ns[n]),
                predicted_kw=predicted_w / W_PER_KW,
                confidence=probability,
                aggregate_kw=float(minutes.aggregate_kw[n]),
                request_id=request_id,
                user_id=USER_ID,
                artifact_sha256=model.entry.artifact_sha256,
                latency_ms=forward_ms,
            )
