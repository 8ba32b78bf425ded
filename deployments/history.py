"""The History deployment: answers what was, beside the one replica that writes.

Any number of replicas; with SQLite on the node of the file. Series are read, put together and written as JSON here, so
that a year of quarters holds neither the writer nor the ingress up.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np
import orjson

from deployments.analytics.answers import document
from deployments.analytics.spans import MINUTE_NS, Span
from deployments.contracts import PredictionPoint
from deployments.history_contracts import (
    HistoryAnswer,
    HistoryFailed,
    HistoryQuery,
    MinutesQuery,
    RequestQuery,
    StoredMinutes,
)
from deployments.journal_contracts import JournalEntry
from deployments.nodes import refuse_a_file_on_several_nodes
from deployments.stores import HistoryReader, StoreConfig, StoreUnavailable, open_history

READ_THREADS = 2
FORMAT = 1
"""Raised with every change of what a document says: a client's tag is of the rows and of how they are told."""
GZIP_LEVEL = 4
"""Half the time of the default, and a tenth larger."""

Q = TypeVar("Q")
A = TypeVar("A")


class HistoryReplica:
    """Reads the store on threads of its own."""

    def __init__(self, store_config: StoreConfig) -> None:
        refuse_a_file_on_several_nodes(store_config)
        self._reader = open_history(store_config)
        self._threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="history")

    async def ask(self, query: HistoryQuery) -> HistoryAnswer | HistoryFailed:
        """The document a query asks for, or only its tag when the caller has it already."""
        return await self._in_thread(answer, query)

    async def minutes(self, query: MinutesQuery) -> StoredMinutes | HistoryFailed:
        """What a backfill needs to know."""
        return await self._in_thread(minutes, query)

    async def predictions_of(self, query: RequestQuery) -> tuple[PredictionPoint, ...] | HistoryFailed:
        """The points of one request, see `HistoryReader.predictions_of`; may take seconds, for an operator only."""
        return await self._in_thread(predictions_of, query)

    async def journal(self, limit: int) -> tuple[JournalEntry, ...] | HistoryFailed:
        """What happened to rollouts: the latest `limit` entries, at least one, newest first."""
        return await self._in_thread(journal, limit)

    async def _in_thread(self, read: Callable[[HistoryReader, Q], A], query: Q) -> A | HistoryFailed:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, read, self._reader, query)
        except StoreUnavailable as failure:
            return HistoryFailed(failure.detail, failure.retry_after_s)


def minutes(reader: HistoryReader, query: MinutesQuery) -> StoredMinutes:
    """See `HistoryReplica.minutes`. Raises StoreUnavailable."""
    # The minute that runs is not its mean yet, and what is predicted from it would never be predicted again.
    stop_ns = min(query.mains_stop_ns, time.time_ns() // MINUTE_NS * MINUTE_NS)
    mains = reader.mains(query.building_id, Span(query.mains_start_ns, max(stop_ns, query.mains_start_ns), MINUTE_NS))
    series = reader.predictions(query.building_id, Span(query.start_ns, query.stop_ns, MINUTE_NS), query.appliance_id)
    wanted = (query.model_version, query.attribution)
    stored = [one.buckets.time_ns for one in series if (one.model_version, one.attribution) == wanted]
    return StoredMinutes(mains.time_ns, mains.mean_kw, np.concatenate(stored) if stored else np.empty(0, np.int64))


def predictions_of(reader: HistoryReader, query: RequestQuery) -> tuple[PredictionPoint, ...]:
    """See `HistoryReplica.predictions_of`. Raises StoreUnavailable."""
    return tuple(reader.predictions_of(query.request_id, query.start_ns, query.stop_ns))


def journal(reader: HistoryReader, limit: int) -> tuple[JournalEntry, ...]:
    """See `HistoryReplica.journal`. Raises StoreUnavailable."""
    return tuple(reader.journal(limit))


def answer(reader: HistoryReader, query: HistoryQuery) -> HistoryAnswer:
    """See `HistoryReplica.ask`. Raises StoreUnavailable."""
    if time.time() >= query.deadline_s:
        # Whoever asked has gone; the next one in the queue may still be there.
        raise StoreUnavailable("too much is being asked of the past")
    one_building = query.building_ids is not None and len(query.building_ids) == 1
    # The revision is read before the rows: rows that are newer than their tag cost one more poll, older ones a lie.
    revision = reader.revision(query.building_ids[0]) if one_building and query.building_ids else None
    question = f"{FORMAT} {replace(query, known_tags=frozenset(), deadline_s=0.0)!r}"
    tag = None if revision is None else _tag(f"{revision}\n{question}".encode())
    if tag is not None and tag in query.known_tags:
        return HistoryAnswer(tag, None)
    body = orjson.dumps(document(reader, query))
    if tag is None:
        tag = _tag(question.encode() + body)
    return HistoryAnswer(tag, None if tag in query.known_tags else gzip.compress(body, GZIP_LEVEL, mtime=0))


def _tag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
