"""What only the real engine can show: how it merges fields, refuses types and answers what our test server imitates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from deployments.contracts import Claim, Completion, KeyedRequest, NotPersisted, PersistFailure, RecordSet
from deployments.stores import PredictionStore, StoreUnavailable, open_store
from deployments.stores.influx_keys import MEASUREMENT, intent_line

MakeSet = Callable[..., RecordSet]
KEY = "0123456789abcdef" * 4


@pytest.fixture
def store(tsm_backend: Any) -> Iterator[PredictionStore]:
    store = open_store(tsm_backend.config())
    yield store
    store.close()


def post(backend: Any, lines: str | bytes, bucket: str = "predictions") -> httpx.Response:
    """A write past our code."""
    url = f"{backend.server.url}/api/v2/write"
    return httpx.post(url, params={"bucket": bucket, "precision": "ns"}, content=lines, trust_env=False)


def test_the_reply_joins_the_intent_at_its_place(tsm_backend: Any, store: PredictionStore, make_set: MakeSet) -> None:
    """Two lines of one identity and different fields are one point: InfluxDB merges fields."""
    now_s = int(time.time())
    assert post(tsm_backend, intent_line(KeyedRequest(KEY, "f", 1234, 0.0), now_s)).status_code == 204
    claim = Claim(KEY, "fingerprint", "token", 1234)
    body = '{"a":"say \\"hi\\", größe \\\\ 🔌"}'.encode()
    record_set = RecordSet(make_set().points, time.time() + 5, Completion(claim, body))
    assert store.write([record_set]) == [None]
    [row] = tsm_backend.server.rows("predictions", MEASUREMENT)
    assert row["tags"] == {"shard": KEY[:3]}
    fields = row["fields"]
    assert (fields["key"], fields["fingerprint"], fields["received_ns"]) == (KEY, "fingerprint", 1234)
    assert fields["reply"].encode() == body
    assert now_s <= fields["stored_at_s"] <= now_s + 5


def test_a_partly_written_point_is_completed_by_its_retry(
    tsm_backend: Any, store: PredictionStore, make_set: MakeSet
) -> None:
    record_set = make_set()
    [point] = record_set.points
    tags = f"appliance_id={point.appliance_id},attribution={point.attribution},building_id={point.building_id}"
    line = f"prediction,{tags},model_version={point.model_version} predicted_kw=9.5 {point.time_ns}"
    assert post(tsm_backend, line).status_code == 204
    assert store.write([record_set]) == [None]
    assert tsm_backend.points() == [point]


def test_a_field_of_another_type_is_refused_and_the_neighbours_are_stored(
    tsm_backend: Any, store: PredictionStore, make_set: MakeSet
) -> None:
    """Somebody wrote `predicted_kw` as a string into this series: the engine refuses our float, for good."""
    spoilt = make_set(building_id="spoilt")
    [point] = spoilt.points
    tags = "appliance_id=kettle,attribution=final,building_id=spoilt,model_version=1.2.0"
    assert post(tsm_backend, f'prediction,{tags} predicted_kw="much" {point.time_ns - 1}').status_code == 204
    good = [make_set(building_id=f"good-{n}") for n in range(3)]
    outcomes = store.write([good[0], spoilt, *good[1:]])
    stored = {row["tags"]["building_id"] for row in tsm_backend.server.rows("predictions", "prediction")}
    refused = [outcome for outcome in outcomes if outcome is not None]
    # The engine keeps a field's type by measurement: whichever came first in this shard decides for all.
    assert refused
    for outcome, record_set in zip(outcomes, [good[0], spoilt, *good[1:]], strict=True):
        building_id = record_set.points[0].building_id
        if outcome is None:
            assert building_id in stored
        else:
            assert isinstance(outcome, NotPersisted)
            assert outcome.failure is PersistFailure.REJECTED


@pytest.mark.parametrize("line", ["", "not line protocol", "prediction,building_id=a predicted_kw=NaN 1", 'p x="'])
def test_what_our_test_server_refuses_the_real_one_refuses(tsm_backend: Any, line: str) -> None:
    assert post(tsm_backend, line).status_code in (400, 422) or line == ""


def test_an_unknown_bucket_is_an_outage_for_the_operator(tsm_backend: Any, make_set: MakeSet) -> None:
    import dataclasses

    store = open_store(dataclasses.replace(tsm_backend.config(), influx_bucket_pred="missing"))
    with pytest.raises(StoreUnavailable, match="no bucket 'missing'"):
        store.write([make_set()])
    store.close()
