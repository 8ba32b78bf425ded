"""One stored prediction again: the version that made it, on the readings that are stored of its building.

Pure. Windows are not stored with predictions, so a replay says what the stored readings give; minutes that are missing
are not made up. The window is built as a backfill builds it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from deployments.analytics.spans import MINUTE_NS
from deployments.backfill import SAMPLE_PERIOD_S, Stretch, pending, predict
from deployments.contracts import PredictionPoint
from deployments.history_contracts import MinutesQuery, StoredMinutes
from models.attribution import Attribution
from models.loader import LoadedModel
from models.registry import Registry, RegistryEntry, RegistryError

SHOWN_DIGITS = 12
"""Of a SHA-256, enough to tell files apart."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What the version says now, kW, and the mains at the sample it stands for, as the readings have them."""

    predicted_kw: float
    confidence: float
    aggregate_kw: float


@dataclass(frozen=True, slots=True)
class NotReplayed:
    """Why the version could not be run on this point's window, as a sentence for people."""

    reason: str


def version_of(point: PredictionPoint, registry: Registry) -> RegistryEntry | NotReplayed:
    """The version that made a point, if the registry still has that very file."""
    try:
        entry = registry.resolve(point.appliance_id, point.model_version)
    except RegistryError as error:
        return NotReplayed(str(error))
    if entry.artifact_sha256 != point.artifact_sha256:
        return NotReplayed(
            f"the registry's {entry.model_version} is another file ({entry.artifact_sha256[:SHOWN_DIGITS]}) than the "
            f"one that answered ({point.artifact_sha256[:SHOWN_DIGITS]})"
        )
    if entry.sample_period_s != SAMPLE_PERIOD_S:
        return NotReplayed(f"it takes samples of {entry.sample_period_s:g} s, and readings are put together to minutes")
    return entry


def minutes_around(point: PredictionPoint, entry: RegistryEntry) -> MinutesQuery:
    """The minutes of its window. A sample counts for the minute it is in."""
    minute_ns = point.time_ns // MINUTE_NS * MINUTE_NS
    stretch = Stretch(point.building_id, point.appliance_id, point.model_version, minute_ns, minute_ns + MINUTE_NS)
    return stretch.query(entry, Attribution(point.attribution))


def replay(
    point: PredictionPoint, model: LoadedModel, query: MinutesQuery, stored: StoredMinutes
) -> Replayed | NotReplayed:
    """Run the window once. `query` is `minutes_around` the point, `stored` its answer."""
    window = pending(query, model.entry, replace(stored, predicted_ns=np.empty(0, np.int64)))
    if window.mains_missing:
        return NotReplayed(
            f"readings of {len(stored.mains_ns)} of the {model.entry.input_window_size} minutes of its window are "
            "stored; a prediction can be replayed when all of them were ingested (POST /ingest/readings)"
        )
    again = next(predict(model, query, window, point.request_id), None)
    if again is None:
        return NotReplayed("the version gives no finite answer for the stored readings")
    return Replayed(again.predicted_kw, again.confidence, again.aggregate_kw)
