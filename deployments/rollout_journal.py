"""Writes what happens to rollouts into the store: in order, beside everything else, again while it is away.

And reads there, once a process, what happened before.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from deployments.contracts import NotPersisted, PersistFailure
from deployments.history_contracts import HistoryFailed
from deployments.journal_contracts import LOOKED_BACK_ENTRIES, JournalEntry, JournalKind

WRITE_S = 10.0
RETRY_S = 5.0
READ_S = 10.0
"""Longer than the store's own patience."""
READ_AGAIN_S = 0.5
KEPT_ENTRIES = 1000
"""While the store is away; more rollouts than that in one outage are noise."""
logger = logging.getLogger("ray.serve")


class RolloutJournal:
    """`persistence`: the handle of the only writer; `history`: of whoever reads."""

    def __init__(self, persistence: Any, history: Any) -> None:
        self._persistence = persistence
        self._history = history
        self._waiting: deque[JournalEntry] = deque(maxlen=KEPT_ENTRIES)
        self._last_ns = 0
        self._writing: asyncio.Task[None] | None = None

    def note(self, kind: JournalKind, document: Mapping[str, object]) -> None:
        """Takes it, and never waits."""
        # Two things in one tick of the clock are two entries.
        self._last_ns = max(self._last_ns + 1, time.time_ns())
        self._waiting.append(JournalEntry(self._last_ns, kind, json.dumps(document)))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def read(self) -> tuple[JournalEntry, ...]:
        """What is in the store, newest first; asks until it answers."""
        away = False
        while True:
            try:
                async with asyncio.timeout(READ_S):
                    entries: tuple[JournalEntry, ...] | HistoryFailed
                    entries = await self._history.journal.remote(LOOKED_BACK_ENTRIES)
                if not isinstance(entries, HistoryFailed):
                    return entries
                reason = entries.detail
            except Exception as error:  # noqa: BLE001 - whatever a dead replica raises, it is asked again
                reason = type(error).__name__
            if not away:
                logger.warning("the journal of rollouts cannot be read yet: %s", reason)
            away = True
            await asyncio.sleep(READ_AGAIN_S)

    async def _write(self) -> None:
        while self._waiting:
            entry = self._waiting[0]
            if await self._is_settled(entry):
                if self._waiting and self._waiting[0] is entry:  # else it was pushed out meanwhile
                    self._waiting.popleft()
            else:
                await asyncio.sleep(RETRY_S)

    async def _is_settled(self, entry: JournalEntry) -> bool:
        try:
            async with asyncio.timeout(WRITE_S):
                result = await self._persistence.record.remote(entry, time.time() + WRITE_S)
        except Exception as error:  # noqa: BLE001 - whatever a dead replica raises, it is written again
            logger.warning("the journal of rollouts waits: %s", type(error).__name__)
            return False
        if isinstance(result, NotPersisted):
            logger.warning("the journal of rollouts: %s: %s", result.failure, result.detail)
            return result.failure is PersistFailure.REJECTED  # never will be
        return True
