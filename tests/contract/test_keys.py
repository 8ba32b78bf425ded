"""What every store promises of Idempotency-Keys, run on each of them."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from deployments.contracts import Claim, Completion, KeyedRequest, NotPersisted, RecordSet, StoredReply
from deployments.stores import PredictionStore, StoreUnavailable, open_store
from deployments.stores.base import KEY_KEPT_S

MakeSet = Callable[..., RecordSet]
RECEIVED_NS = 1_790_000_000_123_456_000
HOSTILE = '{"a":"say \\"hi\\", größe 電気 🔌 \\\\ #, =","b":[1.0,-0.5,1e-07]}'.encode()


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def request(key: str = "key", received_ns: int | None = None, fingerprint: str = "body") -> KeyedRequest:
    return KeyedRequest(digest(key), digest(fingerprint), received_ns, time.time() + 5)


def completed(record_set: RecordSet, key: str = "key", body: bytes = HOSTILE, fingerprint: str = "body") -> RecordSet:
    claim = Claim(digest(key), digest(fingerprint), "token", None)
    return replace(record_set, completion=Completion(claim, body))


def test_a_key_nobody_used_is_unknown(store: PredictionStore) -> None:
    assert store.recall(request()) is None
    assert store.recall(request("other", RECEIVED_NS)) == RECEIVED_NS


def test_a_reply_is_stored_with_its_points_and_recalled_byte_for_byte(
    backend: Any, store: PredictionStore, make_set: MakeSet
) -> None:
    first, second = make_set(), make_set()
    assert store.write([completed(first), completed(second, "other", b"{}")]) == [None, None]
    assert sorted(backend.points(), key=repr) == sorted((*first.points, *second.points), key=repr)
    assert store.recall(request()) == StoredReply(digest("body"), HOSTILE)
    assert store.recall(request("other", RECEIVED_NS)) == StoredReply(digest("body"), b"{}")
    assert store.recall(request("third")) is None


def test_a_reply_survives_a_restart(backend: Any, make_set: MakeSet) -> None:
    store = open_store(backend.config())
    store.write([completed(make_set())])
    store.close()
    backend.crash()
    again = open_store(backend.config())
    assert again.recall(request()) == StoredReply(digest("body"), HOSTILE)
    again.close()


def test_a_refused_record_set_completes_nothing(
    store: PredictionStore, make_set: MakeSet, make_point: Callable[..., Any]
) -> None:
    [outcome] = store.write([completed(make_set(make_point(), make_point(predicted_kw=float("nan"))))])
    assert isinstance(outcome, NotPersisted)
    assert store.recall(request()) is None


def test_an_unusable_store_completes_nothing_and_recalls_nothing(
    backend: Any, store: PredictionStore, make_set: MakeSet
) -> None:
    backend.break_it()
    with pytest.raises(StoreUnavailable):
        store.write([completed(make_set(wait_s=0.3))])
    backend.mend()
    assert store.recall(request()) is None


def test_expired_replies_are_forgotten(
    store: PredictionStore, make_set: MakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write([completed(make_set())])
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + KEY_KEPT_S - 60)
    assert store.recall(request()) == StoredReply(digest("body"), HOSTILE)
    monkeypatch.setattr(time, "time", lambda: now + KEY_KEPT_S + 60)
    assert store.recall(request()) is None
    later = make_set(wait_s=KEY_KEPT_S + 120)
    assert store.write([completed(later, body=b"second", fingerprint="new")]) == [None]
    assert store.recall(request()) == StoredReply(digest("new"), b"second")


def test_sqlite_takes_the_first_reply_of_a_key_and_no_points_of_a_second(
    sqlite_backend: Any, make_set: MakeSet
) -> None:
    store = open_store(sqlite_backend.config())
    first, late, neighbour = make_set(), make_set(), make_set()
    assert store.write([completed(first, body=b"first")]) == [None]
    outcomes = store.write([completed(late, body=b"late"), neighbour])
    assert outcomes == [StoredReply(digest("body"), b"first"), None]
    assert store.write([completed(late, body=b"x", key="k2"), completed(late, body=b"y", key="k2")]) == [
        None,
        StoredReply(digest("body"), b"x"),
    ]
    assert late.points[0] in sqlite_backend.points()
    assert store.recall(request()) == StoredReply(digest("body"), b"first")
    store.close()


def test_sqlite_drops_expired_keys_from_the_file(
    sqlite_backend: Any, make_set: MakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(sqlite_backend.config())
    store.write([completed(make_set(), f"key-{n}") for n in range(5)])
    now, monotonic = time.time(), time.monotonic()
    monkeypatch.setattr(time, "time", lambda: now + KEY_KEPT_S + 1)
    monkeypatch.setattr(time, "monotonic", lambda: monotonic + KEY_KEPT_S)
    store.write([make_set(wait_s=KEY_KEPT_S + 9)])
    store.close()
    with sqlite3.connect(sqlite_backend.path) as connection:
        assert connection.execute("SELECT count(*) FROM idempotent_reply").fetchone() == (0,)


def test_influxdb_keeps_the_first_instant_of_a_key_whose_attempt_died(influx_backend: Any, make_set: MakeSet) -> None:
    store = open_store(influx_backend.config())
    assert store.recall(request(received_ns=RECEIVED_NS)) == RECEIVED_NS
    assert store.recall(request(received_ns=RECEIVED_NS + 5)) == RECEIVED_NS
    assert store.write([completed(make_set())]) == [None]
    assert store.recall(request(received_ns=RECEIVED_NS + 9)) == StoredReply(digest("body"), HOSTILE)
    store.close()


def test_influxdb_never_has_a_reply_without_its_points(influx_backend: Any, make_set: MakeSet) -> None:
    """The points are refused after their time is up; the reply must not have gone ahead."""
    store = open_store(influx_backend.config())
    for fault in ({"kind": "reset_before"}, {"kind": "partial"}, {"kind": "status", "status": 500}):
        influx_backend.server.fault(**fault)
        try:
            [outcome] = store.write([completed(make_set(wait_s=0.4))])
        except StoreUnavailable:
            outcome = NotPersisted
        assert outcome is not None
        influx_backend.server.fault()
        assert store.recall(request()) is None
    store.close()


def test_influxdb_points_without_their_reply_are_not_acknowledged(influx_backend: Any, make_set: MakeSet) -> None:
    store = open_store(influx_backend.config())
    influx_backend.server.fault(refused_text="idempotent_reply")
    keyed, plain = make_set(), make_set()
    outcomes = store.write([completed(keyed), plain])
    assert isinstance(outcomes[0], NotPersisted)
    assert outcomes[1] is None
    assert keyed.points[0] in influx_backend.points()
    store.close()


def test_influxdb_two_keys_at_one_place_are_told_apart(influx_backend: Any, make_set: MakeSet) -> None:
    """As if their digests began alike: the later overwrites, and neither is given the other's reply."""
    store = open_store(influx_backend.config())
    one, other = digest("key"), digest("key")[:32] + "0" * 32
    assert one != other
    store.write([completed(make_set(), body=b"one")])
    asked = replace(request(), key=other)
    assert store.recall(asked) is None
    claim = Claim(other, digest("body"), "token", None)
    # The other one's first attempt meets the reply of the first: fields are merged, and it is not given that reply.
    assert store.recall(replace(asked, received_ns=RECEIVED_NS)) == RECEIVED_NS
    assert not isinstance(store.recall(asked), StoredReply)
    store.write([replace(make_set(), completion=Completion(claim, b"other"))])
    assert store.recall(asked) == StoredReply(digest("body"), b"other")
    assert store.recall(request()) is None
    store.close()


def test_influxdb_sends_the_token_to_no_redirect(influx_backend: Any) -> None:
    store = open_store(influx_backend.config())
    influx_backend.server.fault(kind="redirect", location=f"{influx_backend.server.url}/elsewhere")
    with pytest.raises(StoreUnavailable, match="redirect"):
        store.recall(request())
    store.close()


def test_influxdb_forgets_keys_of_the_days_before_yesterday(
    influx_backend: Any, make_set: MakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(influx_backend.config())
    now = time.time()
    for days in (3, 2, 1, 0):
        monkeypatch.setattr(time, "time", lambda days=days: now - days * 86400)
        store.write([completed(make_set(), f"key-{days}")])
    predictions = influx_backend.points()
    assert len(predictions) == 4
    store.recall(request())

    def kept() -> list[str]:
        rows = [row for row in influx_backend.server.rows() if row["measurement"] == "idempotent_reply"]
        return sorted(row["fields"]["key"] for row in rows)

    assert kept() == sorted(digest(f"key-{days}") for days in (1, 0))
    assert influx_backend.points() == predictions
    # Once a day, and a failure is not the request's.
    asked = len(influx_backend.server.requests())
    store.recall(request())
    assert len(influx_backend.server.requests()) == asked + 1
    monkeypatch.setattr(time, "time", lambda: now + 86400)
    influx_backend.server.fault(kind="status", status=500, times=1)
    assert store.recall(request()) is None
    store.close()
