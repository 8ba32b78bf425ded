"""A stored prediction again: the same version on the same readings says the same, and what is missing is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from deployments.analytics.spans import MINUTE_NS, SECOND_NS
from deployments.contracts import PredictionPoint
from deployments.history_contracts import MinutesQuery, StoredMinutes
from deployments.replay import NotReplayed, Replayed, minutes_around, replay, version_of
from models.attribution import Attribution
from models.loader import LoadedModel, load_verified
from models.registry import Registry

MINUTE = 1_769_904_000 * 10**9
MakePoint = Callable[..., PredictionPoint]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


@pytest.fixture(scope="module")
def model(registry: Registry) -> LoadedModel:
    return load_verified(registry.active("kettle"), registry.root)


@pytest.fixture
def point_of(make_point: MakePoint, model: LoadedModel) -> MakePoint:
    def point(**changes: object) -> PredictionPoint:
        entry = model.entry
        served = {"model_version": entry.model_version, "artifact_sha256": entry.artifact_sha256}
        return make_point(**{"time_ns": MINUTE, **served, **changes})

    return point


def readings(query: MinutesQuery) -> StoredMinutes:
    times = np.arange(query.mains_start_ns, query.mains_stop_ns, MINUTE_NS, dtype=np.int64)
    mains_kw = 0.2 + 2.7 * ((times // MINUTE_NS) % 8 < 3) + 0.001 * ((times // MINUTE_NS) % 7)
    # As the service answers: this very minute has its prediction.
    return StoredMinutes(times, mains_kw, np.array([query.start_ns], np.int64))


@pytest.mark.parametrize("attribution", list(Attribution))
@pytest.mark.parametrize("into_ns", [0, 1, 30 * SECOND_NS, MINUTE_NS - 1])
def test_it_says_what_the_version_says_of_the_window_around_the_instant(
    point_of: MakePoint, model: LoadedModel, attribution: Attribution, into_ns: int
) -> None:
    point = point_of(time_ns=MINUTE + into_ns, attribution=attribution.value)
    query = minutes_around(point, model.entry)
    stored = readings(query)
    index = model.entry.sample_indices[attribution]
    assert stored.mains_ns[index] == MINUTE
    assert len(stored.mains_ns) == model.entry.input_window_size
    said = model.predict(stored.mains_kw.astype(np.float32)[None])[attribution]
    again = replay(point, model, query, stored)
    assert isinstance(again, Replayed)
    assert again.predicted_kw == pytest.approx(float(said.predicted_w[0]) / 1000, abs=1e-9)
    assert again.confidence == pytest.approx(float(said.on_probability[0]), abs=1e-9)
    assert again.aggregate_kw == stored.mains_kw[index]
    assert again.predicted_kw > 1


def test_a_window_that_lacks_minutes_is_not_run(point_of: MakePoint, model: LoadedModel) -> None:
    query = minutes_around(point_of(), model.entry)
    stored = readings(query)
    size = model.entry.input_window_size
    for kept in (size - 1, 1, 0):
        part = StoredMinutes(stored.mains_ns[:kept], stored.mains_kw[:kept], stored.predicted_ns)
        refused = replay(point_of(), model, query, part)
        assert isinstance(refused, NotReplayed)
        assert f"{kept} of the {size} minutes" in refused.reason
        assert "POST /ingest/readings" in refused.reason


def test_the_version_is_the_very_file(point_of: MakePoint, registry: Registry, model: LoadedModel) -> None:
    assert version_of(point_of(), registry) == model.entry
    other_file = version_of(point_of(artifact_sha256="ab" * 32), registry)
    assert isinstance(other_file, NotReplayed)
    assert f"the registry's {model.entry.model_version} is another file" in other_file.reason
    assert "abababababab)" in other_file.reason
    unknown = version_of(point_of(model_version="9.9.9"), registry)
    assert isinstance(unknown, NotReplayed)
    assert "no version '9.9.9'" in unknown.reason


def test_a_version_of_other_samples_than_minutes_is_not_run(
    point_of: MakePoint, registry: Registry, model: LoadedModel
) -> None:
    entry = dataclasses.replace(model.entry, sample_period_s=8.0)
    refused = version_of(point_of(), Registry((entry,), registry.root))
    assert isinstance(refused, NotReplayed)
    assert "samples of 8 s" in refused.reason
