"""The configuration that travels, and line protocol as text."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.contracts import RecordSet
from deployments.stores import StoreConfig, StoreKind, StoreUnavailable, open_history, open_store
from deployments.stores.line_protocol import encode
from deployments.stores.ownership import StoreInUse
from serve_app.settings import Environment, Settings


def _influx(**changes: str) -> StoreConfig:
    settings = {"url": "http://h:8086", "org": "o", "bucket_pred": "p", "bucket_raw": "r"}
    return StoreConfig.for_influx(**{**settings, **changes})  # type: ignore[arg-type]


def test_the_token_stays_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a deployment is made with lies in Ray's head, and on Kubernetes in its Redis."""
    monkeypatch.setenv("INFLUX_TOKEN", "s3cret")
    settings = Settings(env=Environment.DEVELOPMENT, influx_url="http://h:8086", influx_org="o")
    assert settings.influx_token.get_secret_value() == "s3cret"
    assert b"s3cret" not in pickle.dumps(settings.store_config())
    monkeypatch.setattr("deployments.stores.influx.InfluxStore", dict)
    assert dict(open_store(settings.store_config()))["token"] == "s3cret"  # type: ignore[call-overload]


def test_it_survives_the_way_to_the_replica() -> None:
    for config in (_influx(), StoreConfig.for_sqlite(Path("x.db"))):
        assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301


@pytest.mark.parametrize("name", ["url", "org", "bucket_pred", "bucket_raw"])
def test_an_incomplete_influx_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"influx_{name}"):
        _influx(**{name: ""})


def test_sqlite_needs_a_path_and_a_timeout_is_positive() -> None:
    with pytest.raises(ValueError, match="sqlite_path"):
        StoreConfig(kind=StoreKind.SQLITE)
    with pytest.raises(ValueError, match="timeout"):
        StoreConfig.for_influx(url="u", org="o", bucket_pred="p", bucket_raw="r", timeout_s=0)


def test_opening_influx_contacts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFLUX_TOKEN", "t")
    store = open_store(_influx(url="http://192.0.2.1:1"))
    assert store.kind == "influxdb"
    store.close()


@pytest.mark.parametrize("open_it", [open_store, open_history])
def test_a_node_without_the_token_says_so(
    monkeypatch: pytest.MonkeyPatch, open_it: Callable[[StoreConfig], object]
) -> None:
    monkeypatch.delenv("INFLUX_TOKEN", raising=False)
    with pytest.raises(StoreUnavailable, match="INFLUX_TOKEN is not set on this node"):
        open_it(_influx())


@pytest.mark.parametrize("failure", [StoreUnavailable("down", 7), StoreInUse("taken", 3)])
def test_failures_survive_pickling(failure: StoreUnavailable) -> None:
    """A constructor's failure crosses from the replica to the controller."""
    copy = pickle.loads(pickle.dumps(failure))  # noqa: S301
    assert (type(copy), copy.detail) == (type(failure), failure.detail)


def test_a_line_is_what_the_reference_says(make_set: Callable[..., RecordSet]) -> None:
    record_set = make_set(
        building_id="a b", appliance_id="x,y=z", request_id='say "hi" \\', user_id="", time_ns=7, aggregate_kw=3
    )
    assert encode(record_set).decode() == (
        r"prediction,appliance_id=x\,y\=z,attribution=final,building_id=a\ b,model_version=1.2.0 "
        r'aggregate_kw=3.0,artifact_sha256="' + "ab" * 32 + r'",confidence=0.875,latency_ms=12.5,'
        r'predicted_kw=1.25,request_id="say \"hi\" \\",user_id="" 7'
    )
