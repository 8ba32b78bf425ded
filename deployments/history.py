"""The History deployment: answers what was, beside the one replica that writes.

Any number of replicas; with SQLite on the node of the file. Series are read, put together and written as JSON here, so
that a year of quarters holds neither the writer nor the ingress up.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson

from deployments.analytics.dense import Dense, dense, spoken_for
from deployments.analytics.documents import predictions_rows, readings_rows
from deployments.analytics.spans import Resolution, Span
from deployments.contracts import HistoryAnswer, HistoryFailed, HistoryQuery
from deployments.stores import HistoryReader, StoreConfig, StoreUnavailable, open_history

READ_THREADS = 2
GZIP_LEVEL = 4
"""Half the time of the default, and a tenth larger."""


class HistoryReplica:
    """Reads the store on threads of its own."""

    def __init__(self, store_config: StoreConfig) -> None:
        self._reader = open_history(store_config)
        self._threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="history")

    async def ask(self, query: HistoryQuery) -> HistoryAnswer | HistoryFailed:
        """The document a query asks for, or only its tag when the caller has it already."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, answer, self._reader, query)
        except StoreUnavailable as failure:
            return HistoryFailed(failure.detail, failure.retry_after_s)


def answer(reader: HistoryReader, query: HistoryQuery) -> HistoryAnswer:
    """See `HistoryReplica.ask`. Raises StoreUnavailable."""
    # The revision is read before the rows: rows that are newer than their tag cost one more poll, older ones a lie.
    revision = reader.revision(query.building_id)
    tag = None if revision is None else _tag(f"{revision}\n{query.identity}".encode())
    if tag is not None and tag in query.known_tags:
        return HistoryAnswer(tag, None)
    body = orjson.dumps(_document(reader, query))
    if tag is None:
        tag = _tag(body)
    return HistoryAnswer(tag, None if tag in query.known_tags else gzip.compress(body, GZIP_LEVEL, mtime=0))


def _tag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class _Range:
    """The buckets of the answer, and the shorter ones it is read in."""

    span: Span
    read: Span

    @property
    def factor(self) -> int:
        return self.span.step_ns // self.read.step_ns


def _document(reader: HistoryReader, query: HistoryQuery) -> dict[str, Any]:
    resolution = Resolution(query.resolution)
    span = Span(query.start_ns, query.stop_ns, resolution.step_ns)
    where = _Range(span, span.read_with(resolution.read_step_ns))
    head: dict[str, Any] = {"building_id": query.building_id, "resolution": query.resolution}
    if query.what == "predictions":
        return {**head, "rows": predictions_rows(span, _appliances(reader, query, where))}
    mains = dense(reader.mains(query.building_id, where.read), where.read).coarser(where.factor)
    appliances = _appliances(reader, query, where) if query.what == "disaggregation" else None
    return {**head, "rows": readings_rows(span, mains, appliances)}


def _appliances(reader: HistoryReader, query: HistoryQuery, where: _Range) -> dict[str, Dense]:
    one = query.appliance_ids[0] if query.appliance_ids is not None and len(query.appliance_ids) == 1 else None
    series = reader.predictions(query.building_id, where.read, one)
    allowed = [s for s in series if query.appliance_ids is None or s.appliance_id in query.appliance_ids]
    return {name: found.coarser(where.factor) for name, found in spoken_for(allowed, where.read).items()}
