"""What was attempted, what was acknowledged, and what is there: the set checker of our promise (after Jepsen's).

Every attempt is written down before it is sent. Afterwards everything stored is read back past the service.

  lost        acknowledged and not stored: never allowed
  unexpected  stored and never attempted, or stored with another answer than was acknowledged: never allowed
  duplicated  one write that was meant once and is stored twice: never allowed
  recovered   stored and not acknowledged: allowed, and the reason why clients repeat a request
  refused     answered with an error that a retry would not mend
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

RETRYABLE = frozenset({0, 408, 409, 429, 500, 502, 503, 504})
"""What a client tries again; 0 is no answer."""


@dataclass
class Write:
    """One write that a client means once; `building_id` is its own and identifies it."""

    building_id: str
    key: str | None
    body: dict[str, Any]
    started_s: float = field(default_factory=time.monotonic)
    statuses: list[int] = field(default_factory=list)
    """Of each attempt; 0 where no answer came."""
    replayed: bool = False
    acknowledged_s: float | None = None
    ended_s: float | None = None
    """When the last attempt had its answer, or none."""
    ours: bool = True
    """Whether the last answer was the service's own, and not that of a proxy which knows no service."""
    reply: dict[str, Any] | None = None

    @property
    def refused(self) -> bool:
        """For good."""
        final = bool(self.statuses) and self.statuses[-1] not in RETRYABLE and self.ours
        return final and self.acknowledged_s is None

    @property
    def gave_up(self) -> bool:
        """Came back until its patience ended."""
        return self.key is not None and self.acknowledged_s is None and not self.refused


@dataclass(frozen=True)
class Verdict:
    """One slice of the ledger against what is stored."""

    name: str
    writes: int
    attempts: int
    acknowledged: int
    lost: frozenset[str]
    unexpected: frozenset[str]
    duplicated: frozenset[str]
    recovered: int
    replayed: int
    refused: int
    gave_up: int
    longest_outage_s: float

    @property
    def clean(self) -> bool:
        return self.acknowledged > 0 and not (self.lost or self.unexpected or self.duplicated)

    def row(self) -> str:
        return (
            f"{self.name:<44}{self.writes:>7}{self.attempts:>9}{self.acknowledged:>13}{len(self.lost):>6}"
            f"{len(self.unexpected):>11}{len(self.duplicated):>11}{self.recovered:>10}{self.replayed:>9}"
            f"{self.refused:>9}{self.gave_up:>9}{self.longest_outage_s:>9.1f} s"
        )


HEAD = (
    f"{'fault':<44}{'writes':>7}{'attempts':>9}{'acknowledged':>13}{'lost':>6}{'unexpected':>11}{'duplicated':>11}"
    f"{'recovered':>10}{'replayed':>9}{'refused':>9}{'gave up':>9}{'outage':>11}"
)


def check(name: str, writes: Iterable[Write], stored: Iterable[Mapping[str, Any]]) -> Verdict:
    """Judges one slice. `stored`: rows with building_id, predicted_kw and request_id, of this slice or of more."""
    written = {write.building_id: write for write in writes}
    prefix = f"{name}--"
    rows = [row for row in stored if str(row["building_id"]).startswith(prefix)]
    counts = Counter(str(row["building_id"]) for row in rows)
    acknowledged = {write.building_id for write in written.values() if write.acknowledged_s is not None}
    unexpected = set(counts) - set(written)
    for row in rows:
        write = written.get(str(row["building_id"]))
        reply = None if write is None else write.reply
        if reply is not None and (reply["request_id"], reply["predicted_kw"]) != (
            row["request_id"],
            row["predicted_kw"],
        ):
            unexpected.add(str(row["building_id"]))
    return Verdict(
        name=name,
        writes=len(written),
        attempts=sum(len(write.statuses) for write in written.values()),
        acknowledged=len(acknowledged),
        lost=frozenset(acknowledged - set(counts)),
        unexpected=frozenset(unexpected),
        duplicated=frozenset(building for building, count in counts.items() if count > 1),
        recovered=len(set(counts) - acknowledged),
        replayed=sum(write.replayed for write in written.values()),
        refused=sum(write.refused for write in written.values()),
        gave_up=sum(write.gave_up for write in written.values()),
        longest_outage_s=longest_outage_s(written.values()),
    )


def longest_outage_s(writes: Iterable[Write]) -> float:
    """The longest time without any acknowledgement while somebody was waiting for one."""
    writes = list(writes)
    if not writes:
        return 0.0
    moments = sorted(write.acknowledged_s for write in writes if write.acknowledged_s is not None)
    waited = [write.ended_s for write in writes if write.acknowledged_s is None and write.ended_s is not None]
    last = [end for end in [max(waited, default=0.0)] if moments and end > moments[-1]]
    bounds = [min(write.started_s for write in writes), *moments, *last]
    return max((later - earlier for earlier, later in itertools.pairwise(bounds)), default=float("inf"))
