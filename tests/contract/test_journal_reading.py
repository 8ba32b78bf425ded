"""The journal read back by our own code, and through its deployments, on every store that has queries."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from deployments.contracts import NotPersisted, Persisted, PersistFailure
from deployments.history import HistoryReplica
from deployments.history_contracts import HistoryFailed
from deployments.journal_contracts import JournalKind
from deployments.persistence import PersistenceReplica
from deployments.stores import HistoryReader, PredictionStore, flux, open_history
from tests.contract.test_journal import entry, hostile_documents, write


@pytest.fixture
def history(backend: Any) -> Iterator[HistoryReader]:
    reader = open_history(backend.config())
    yield reader
    reader.close()


def test_nothing_happened_yet(store: PredictionStore, history: HistoryReader) -> None:
    assert history.journal(10) == []


def test_the_newest_come_first_and_no_more_than_asked_for(store: PredictionStore, history: HistoryReader) -> None:
    second_ns = 10**9
    entries = [entry(age, kind) for age in (0, 1, 2, 999, second_ns, 400 * 86_400 * second_ns) for kind in JournalKind]
    for one in entries[::2] + entries[1::2]:
        assert write(store, one) == [None]
    expected = sorted(entries, key=lambda one: (one.time_ns, one.kind), reverse=True)
    assert history.journal(len(entries) + 1) == expected
    for limit in (1, 2, 7):
        assert history.journal(limit) == expected[:limit]


def test_hostile_documents_read_back_as_they_were_written(store: PredictionStore, history: HistoryReader) -> None:
    largest = json.dumps('"\\' * 16_000)
    entries = [entry(age, document=document) for age, document in enumerate([*hostile_documents(), largest])]
    assert write(store, *entries) == [None] * len(entries)
    assert history.journal(1000) == entries


@pytest.fixture
async def replica(backend: Any) -> AsyncIterator[PersistenceReplica]:
    started = PersistenceReplica(backend.config())
    yield started
    closing = started.__del__()
    assert closing is not None
    await closing


async def test_the_deployments_record_and_tell(backend: Any, replica: PersistenceReplica) -> None:
    history = HistoryReplica(backend.config())
    assert isinstance(await replica.record(entry(), time.time() + 5), Persisted)
    assert await history.journal(10) == (entry(),)
    refused = await replica.record(entry(1, document="{"), time.time() + 5)
    late = await replica.record(entry(1), time.time() - 1)
    assert isinstance(refused, NotPersisted)
    assert isinstance(late, NotPersisted)
    assert (refused.failure, late.failure) == (PersistFailure.REJECTED, PersistFailure.DEADLINE)
    assert await history.journal(10) == (entry(),)


async def test_an_unusable_store_is_an_answer_of_the_deployments(backend: Any, replica: PersistenceReplica) -> None:
    backend.break_it()
    away = await replica.record(entry(), time.time() + 3)
    assert isinstance(away, NotPersisted)
    assert away.failure is PersistFailure.UNAVAILABLE
    backend.mend()
    assert backend.journal() == []


async def test_influxdb_what_cannot_be_read_is_an_answer(influx_backend: Any) -> None:
    influx_backend.break_it()
    assert isinstance(await HistoryReplica(influx_backend.config()).journal(10), HistoryFailed)


async def test_sqlite_what_cannot_be_read_is_an_answer(sqlite_backend: Any) -> None:
    assert isinstance(await HistoryReplica(sqlite_backend.config()).journal(10), HistoryFailed)


def test_influxdb_what_reaches_the_server_is_our_text(influx_backend: Any) -> None:
    history = open_history(influx_backend.config())
    history.journal(3)
    [sent] = [one["document"] for one in influx_backend.server.requests() if "document" in one]
    assert sent["query"] == flux.JOURNAL
    history.close()
