"""What InfluxDB can answer, and what becomes of the record sets."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.contracts import NotPersisted, PersistFailure, RecordSet
from deployments.stores import StoreUnavailable
from deployments.stores.influx import InfluxStore

MakeSet = Callable[..., RecordSet]


def _open(server: Any, **changes: Any) -> InfluxStore:
    settings = {"token": "test-token", "org": "test-org", "bucket_pred": "predictions", "bucket_raw": "raw"}
    return InfluxStore(**{"url": server.url, **settings, "timeout_s": 2.0, **changes})


@pytest.fixture
def store(influx_server: Any) -> Iterator[InfluxStore]:
    store = _open(influx_server)
    yield store
    store.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token": "wrong-secret"}, "token"),
        ({"bucket_pred": "nowhere"}, "'nowhere'"),
        ({"org": "nobody"}, "'nobody'"),
    ],
)
def test_what_the_operator_must_mend_is_said_without_the_token(
    influx_server: Any, make_set: MakeSet, changes: dict[str, str], words: str
) -> None:
    store = _open(influx_server, **changes)
    for use in (lambda: store.write([make_set()]), store.ping):
        with pytest.raises(StoreUnavailable, match=words) as failure:
            use()
        told = f"{failure.value!r} {failure.value.detail} {failure.value.__cause__}"
        assert "wrong-secret" not in told
        assert "test-token" not in told
    # Never retried: it cannot get better by itself.
    assert len(influx_server.requests()) == 2


def test_a_missing_permission_is_the_operators_too(influx_server: Any, store: InfluxStore, make_set: MakeSet) -> None:
    influx_server.fault(kind="status", status=403)
    with pytest.raises(StoreUnavailable, match="may not use"):
        store.write([make_set()])


def test_a_line_only_the_server_refuses_fails_alone(influx_server: Any, store: InfluxStore, make_set: MakeSet) -> None:
    influx_server.fault(refused_text="poison")
    outcomes = store.write([make_set(request_id="poison" if i in (3, 11) else f"r{i}") for i in range(16)])
    assert [i for i, outcome in enumerate(outcomes) if outcome is not None] == [3, 11]
    assert all(isinstance(o, NotPersisted) and o.failure is PersistFailure.REJECTED for o in outcomes if o is not None)
    assert len(influx_server.points()) == 14


def test_a_partial_write_is_sent_again_until_it_is_whole(
    influx_server: Any, store: InfluxStore, make_set: MakeSet
) -> None:
    influx_server.fault(kind="partial", times=1)
    assert store.write([make_set() for _ in range(6)]) == [None] * 6
    assert len(influx_server.points()) == 6


def test_a_record_set_kept_in_part_is_not_acknowledged(
    influx_server: Any, store: InfluxStore, make_point: Any, make_set: MakeSet
) -> None:
    influx_server.fault(kind="partial")
    [outcome] = store.write([make_set(make_point(), make_point())])
    assert outcome is not None
    assert outcome.failure is PersistFailure.REJECTED


def test_too_much_at_once_is_halved(influx_server: Any, store: InfluxStore, make_set: MakeSet) -> None:
    influx_server.fault(largest_body=1000)
    assert store.write([make_set() for _ in range(9)]) == [None] * 9
    assert len(influx_server.points()) == 9


def test_a_single_record_set_that_is_too_large_is_rejected(
    influx_server: Any, store: InfluxStore, make_set: MakeSet
) -> None:
    influx_server.fault(largest_body=10)
    outcomes = store.write([make_set(), make_set()])
    assert [o.failure for o in outcomes if o is not None] == [PersistFailure.REJECTED] * 2


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_passing_error_is_tried_again(influx_server: Any, store: InfluxStore, make_set: MakeSet, status: int) -> None:
    influx_server.fault(kind="status", status=status, times=2)
    assert store.write([make_set()]) == [None]
    assert len(influx_server.requests()) == 3


@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
def test_a_lost_connection_is_tried_again_and_leaves_one_row(
    influx_server: Any, store: InfluxStore, make_set: MakeSet, kind: str
) -> None:
    influx_server.fault(kind=kind, times=1)
    assert store.write([make_set()]) == [None]
    assert len(influx_server.points()) == 1


def test_retries_end_and_nothing_is_acknowledged(influx_server: Any, store: InfluxStore, make_set: MakeSet) -> None:
    influx_server.fault(kind="status", status=503)
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="503"):
        store.write([make_set(wait_s=60)])
    assert time.monotonic() - started < 3
    assert influx_server.points() == []


def test_retry_after_is_kept(influx_server: Any, store: InfluxStore, make_set: MakeSet) -> None:
    influx_server.fault(kind="status", status=429, retry_after_s=7)
    with pytest.raises(StoreUnavailable) as failure:
        store.write([make_set()])
    assert failure.value.retry_after_s == 7
    with pytest.raises(StoreUnavailable, match="left alone"):
        store.ping()
    assert len(influx_server.requests()) == 1


def test_retry_after_is_waited_for_when_there_is_time(
    influx_server: Any, store: InfluxStore, make_set: MakeSet
) -> None:
    influx_server.fault(kind="status", status=503, retry_after_s=1, times=1)
    assert store.write([make_set()]) == [None]
    first, second = influx_server.requests()
    assert second["time_s"] - first["time_s"] >= 1


def test_a_redirect_does_not_get_the_token(influx_server: Any, store: InfluxStore, make_set: MakeSet) -> None:
    influx_server.fault(kind="redirect", location=f"http://localhost:{influx_server.port}/api/v2/write?stolen")
    with pytest.raises(StoreUnavailable, match="redirect"):
        store.write([make_set()])
    assert len(influx_server.requests()) == 1


def test_a_hung_store_is_left_at_the_timeout(influx_server: Any, make_set: MakeSet) -> None:
    store = _open(influx_server, timeout_s=0.3)
    influx_server.fault(latency_s=2)
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="did not answer"):
        store.write([make_set()])
    assert time.monotonic() - started < 1


def test_a_deadline_too_near_is_not_the_stores_fault(influx_server: Any, store: InfluxStore, make_set: MakeSet) -> None:
    influx_server.fault(latency_s=3)
    [outcome] = store.write([make_set(wait_s=1.0)])
    assert outcome is not None
    assert outcome.failure is PersistFailure.DEADLINE


def test_nobody_there(influx_server: Any, store: InfluxStore, make_set: MakeSet) -> None:
    influx_server.kill()
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        store.write([make_set(wait_s=5.0)])
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        store.ping()


def test_what_was_stored_before_the_outage_is_acknowledged(
    influx_server: Any, store: InfluxStore, make_set: MakeSet
) -> None:
    """413 splits the commit; the server dies after the first half."""
    sets = [make_set(request_id="first"), make_set(request_id="second")]
    calls = iter([None, StoreUnavailable("down", 9)])
    post = store._post

    def failing_post(group: Any) -> None:
        if len(group) == 1 and (failure := next(calls)) is not None:
            raise failure
        post(group)

    influx_server.fault(largest_body=400)
    store._post = failing_post  # type: ignore[method-assign]
    first, second = store.write(sets)
    assert first is None
    assert second == NotPersisted(PersistFailure.UNAVAILABLE, "down", 9)
    assert [point.request_id for point in influx_server.points()] == ["first"]


def test_the_test_server_takes_gzip_and_refuses_bad_lines(influx_server: Any, tmp_path: Path) -> None:
    path = "/api/v2/write?org=test-org&bucket=predictions&precision=s"
    headers = {"Authorization": "Token test-token"}
    line = b'prediction,building_id=b,appliance_id=a,model_version=v request_id="r" 5'
    zipped = headers | {"Content-Encoding": "gzip"}
    assert influx_server.request("POST", path, gzip.compress(line), zipped)[0] == 204
    for bad in (b"m f=1 1", b"m,t= f=1 1", b"m,t=v f=NaN 1", b"m,t=v f=1", b'm,t=v f="x 1', b"m,t=a\nb f=1 1", b"\xff"):
        status, body = influx_server.request("POST", path, bad, headers)
        assert (status, b'"code": "invalid"' in body) == (400, True), bad
    conflict = b"prediction,building_id=b request_id=1 5"
    assert influx_server.request("POST", path, conflict, headers)[0] == 422
    influx_server.kill()
    influx_server.start()
    assert b"5000000000" in influx_server.request("GET", "/__rows")[1]
