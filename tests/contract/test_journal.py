"""What every store promises of the journal of rollouts, run on each of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from deployments.contracts import NotPersisted, PersistFailure, RecordSet
from deployments.journal_contracts import JournalEntry, JournalKind
from deployments.stores import PredictionStore, StoreUnavailable, open_store
from deployments.stores.checks import DOCUMENT_LIMIT_BYTES, TIME_NS_MAX, TIME_NS_MIN

STORES = ("sqlite", "influxdb", "tsm")
"""The last is InfluxDB's real storage engine, which is read past our code: it has no Flux."""
NOW_NS = time.time_ns()
HOSTILE = (
    'say "hi"',
    "new\nline\r\n\ttab",
    "back\\slash\\",
    "a,b=c d #",
    'x" or true or r.kind == "y',
    "'; DROP TABLE rollout; --",
    "größe 電気 🔌 e\u0301 \u2028",
    "{}%s${1 + 1}",
    "\x00\x7f\x85",
    "",
)


def entry(age_ns: int = 0, kind: JournalKind = JournalKind.APPLIED, document: str = "{}") -> JournalEntry:
    return JournalEntry(NOW_NS - age_ns, kind, document)


def write(store: PredictionStore, *entries: JournalEntry, wait_s: float = 5.0) -> list[Any]:
    return store.write([RecordSet((), time.time() + wait_s, journal_entry=one) for one in entries])


def hostile_documents() -> list[str]:
    plain = [json.dumps({text: [text]}) for text in HOSTILE]
    # DEL and C1 are refused unless escaped, which JSON leaves to its writer.
    return plain + [json.dumps(text, ensure_ascii=False) for text in HOSTILE if "\x7f" not in text]


def test_hostile_documents_stay_what_they_are(backend: Any, store: PredictionStore) -> None:
    entries = [entry(age, document=document) for age, document in enumerate(hostile_documents())]
    assert write(store, *entries) == [None] * len(entries)
    assert sorted(backend.journal(), key=repr) == sorted(entries, key=repr)


def test_the_same_identity_is_overwritten_and_never_doubled(backend: Any, store: PredictionStore) -> None:
    first, second = entry(document='{"long": "before"}'), entry(document="[]")
    other_kind, other_time = entry(kind=JournalKind.REFUSED), entry(1)
    write(store, first, other_kind, other_time)
    assert write(store, second) == [None]
    assert sorted(backend.journal(), key=repr) == sorted([second, other_kind, other_time], key=repr)


@pytest.mark.parametrize("time_ns", [TIME_NS_MIN, -1, 0, 1_700_000_000_123_456_789, TIME_NS_MAX])
def test_times_keep_every_nanosecond(backend: Any, store: PredictionStore, time_ns: int) -> None:
    assert write(store, JournalEntry(time_ns, JournalKind.DEMOTED, "{}")) == [None]
    assert backend.journal() == [JournalEntry(time_ns, JournalKind.DEMOTED, "{}")]


def test_a_document_may_have_64_kib_and_not_a_byte_more(backend: Any, store: PredictionStore) -> None:
    largest = '"' + "ö" * (DOCUMENT_LIMIT_BYTES // 2 - 1) + '"'
    assert write(store, entry(document=largest)) == [None]
    [refused] = write(store, entry(1, document=largest + " "))
    assert refused.failure is PersistFailure.REJECTED
    assert backend.journal() == [entry(document=largest)]


BAD: dict[str, Any] = {
    "not JSON": {"document": "{"},
    "empty": {"document": ""},
    "not a number of JSON": {"document": "NaN"},
    "a raw newline": {"document": "{\n}"},
    "a control character": {"document": '"\x85"'},
    "a lone surrogate": {"document": '"\ud800"'},
    "bytes": {"document": b"{}"},
    "no kind": {"kind": "applied"},
    "before all time": {"time_ns": TIME_NS_MIN - 1},
    "after all time": {"time_ns": TIME_NS_MAX + 1},
    "no integer": {"time_ns": 1.5},
}


def test_a_bad_entry_fails_alone(backend: Any, store: PredictionStore, make_set: Callable[..., RecordSet]) -> None:
    whole = {"time_ns": NOW_NS, "kind": JournalKind.APPLIED, "document": "{}"}
    bad = [JournalEntry(**{**whole, **changes}) for changes in BAD.values()]
    sets = [RecordSet((), time.time() + 5, journal_entry=one) for one in (*bad, entry(1))]
    outcomes = store.write([*sets, make_set()])
    for name, outcome in zip(BAD, outcomes, strict=False):
        assert isinstance(outcome, NotPersisted), name
        assert outcome.failure is PersistFailure.REJECTED
    assert outcomes[len(BAD) :] == [None, None]
    assert backend.journal() == [entry(1)]
    assert len(backend.points()) == 1


def test_it_survives_a_restart_of_everything(backend: Any) -> None:
    store = open_store(backend.config())
    assert write(store, entry()) == [None]
    store.close()
    backend.crash()
    open_store(backend.config()).close()
    assert backend.journal() == [entry()]


def test_an_unusable_store_keeps_nothing_and_says_so(backend: Any, store: PredictionStore) -> None:
    backend.break_it()
    with pytest.raises(StoreUnavailable):
        write(store, entry(), wait_s=0.3)
    backend.mend()
    assert backend.journal() == []
