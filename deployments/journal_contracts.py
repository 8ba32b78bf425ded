"""The journal of rollouts: what happened to the versions of this service, kept as long as its store is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LOOKED_BACK_ENTRIES = 1000
"""How far back whoever reads the journal looks: over some hundred starts."""


class JournalKind(StrEnum):
    """What can happen to a rollout."""

    APPLIED = "applied"
    """A configuration was taken."""
    REFUSED = "refused"
    """A configuration was not taken; nothing changed."""
    DEMOTED = "demoted"
    """A canary was taken from its buildings."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One thing that happened. Identity: (time_ns, kind); writing it again overwrites it, so a retry is harmless.

    `time_ns`: when, and what the writer makes unique. `document`: JSON, at most `stores.checks.DOCUMENT_LIMIT_BYTES`
    of UTF-8, without control characters, as `json.dumps` writes it unless asked to indent.
    """

    time_ns: int
    kind: JournalKind
    document: str
