"""A process to kill: writes one record after another and prints the time of each once it is acknowledged.

Started by `test_stores.py` with a JSON of StoreConfig's fields and the kind of its records: points or journal.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from pathlib import Path

from deployments.contracts import Persisted, PersistResult, PredictionPoint, RecordSet
from deployments.group_commit import GroupCommit
from deployments.journal_contracts import JournalEntry, JournalKind
from deployments.stores import StoreConfig, StoreKind, open_store


class Silent:
    """Observes nothing."""

    def committed(self, *, succeeded: bool, record_sets: int, seconds: float) -> None: ...
    def answered(self, result: PersistResult) -> None: ...


def record_set(kind: str, time_ns: int) -> RecordSet:
    if kind == "journal":
        return RecordSet((), time.time() + 5, journal_entry=JournalEntry(time_ns, JournalKind.APPLIED, "{}"))
    point = PredictionPoint("home-1", "kettle", "1.2.0", "final", time_ns, 1.0, 0.5, 2.0, "r", "u", "s", 1.0)
    return RecordSet((point,), time.time() + 5)


async def write_for_ever(config: StoreConfig, kind: str) -> None:
    commits = GroupCommit(open_store(config), Silent())

    async def one(time_ns: int) -> None:
        result = await commits.persist(record_set(kind, time_ns))
        if isinstance(result, Persisted):
            sys.stdout.write(f"{time_ns}\n")
            sys.stdout.flush()

    for first in itertools.count(1, 4):
        await asyncio.gather(*(one(first + i) for i in range(4)))


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    path = fields.pop("sqlite_path")
    asyncio.run(
        write_for_ever(
            StoreConfig(**{**fields, "kind": StoreKind(fields["kind"])}, sqlite_path=Path(path) if path else None),
            sys.argv[2],
        )
    )
