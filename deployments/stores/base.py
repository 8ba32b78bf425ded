"""The protocol every store keeps. Blocking on purpose: it runs on threads of the Persistence deployment.

All methods may be called from several threads at once: predictions and readings have a writer each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from deployments.analytics.series import BucketSeries, Latest, PredictionSeries
from deployments.analytics.spans import Span
from deployments.contracts import KeyedRequest, NotPersisted, PredictionPoint, RecordSet, StoredReply
from deployments.journal_contracts import JournalEntry

KEY_KEPT_S = 24 * 3600
"""How long a completed Idempotency-Key is remembered."""


MAX_BUILDINGS = 1000
"""Listed at once."""

MAX_REQUEST_POINTS = 100
"""Given of one request id: a request stores one point an appliance, but a backfill's id is on all that it made."""

WriteOutcome = StoredReply | NotPersisted | None
"""Of one record set: None where it is durable; `StoredReply` where its key was completed before, nothing written."""


class StoreUnavailable(Exception):
    """The store cannot be used now; nothing of the call is known to be durable. Retryable.

    `retry_after_s` is the store's own wish (HTTP Retry-After) or our default.
    """

    def __init__(self, detail: str, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s


class PredictionStore(Protocol):
    """A durable place for predictions."""

    kind: str

    def write(self, record_sets: Sequence[RecordSet]) -> list[WriteOutcome]:
        """Make record sets durable in one commit; an outcome per record set.

        A reply is never durable without the points it acknowledges.

        A record set the store cannot take (for example, not finite) fails alone.
        Raises StoreUnavailable when none of them is known to be durable.
        """
        ...

    def recall(self, request: KeyedRequest) -> StoredReply | int | None:
        """The reply stored for this key, or else the instant its points stand for.

        That is `received_ns` of the request, or of an earlier attempt that may have stored points already.
        Raises StoreUnavailable.
        """
        ...

    def ping(self, *, readings: bool = False) -> None:
        """Raise StoreUnavailable unless a write, of predictions or of `readings`, could be accepted now."""
        ...

    def close(self) -> None:
        """Release files and sockets; everything acknowledged is already durable."""
        ...


def first_of_request(points: Iterable[PredictionPoint]) -> list[PredictionPoint]:
    """In the order of `HistoryReader.predictions_of`, and no more than it gives."""

    def order(point: PredictionPoint) -> tuple[int, str, str, str, str]:
        return point.time_ns, point.building_id, point.appliance_id, point.model_version, point.attribution

    return sorted(points, key=order)[:MAX_REQUEST_POINTS]


class HistoryReader(Protocol):
    """Reads what a store holds. Blocking, and safe to call from several threads. Every call raises StoreUnavailable.

    Spans have buckets of 1 s, 1 min, 15 min or 1 h; the stores give the same answers for the same rows.
    """

    def mains(self, building_id: str, span: Span) -> BucketSeries:
        """The building's readings."""
        ...

    def predictions(self, building_id: str, span: Span, appliance_id: str | None = None) -> list[PredictionSeries]:
        """One series for each appliance, version and attribution, in that order; of one appliance or of all."""
        ...

    def latest(self, building_ids: tuple[str, ...] | None) -> list[Latest]:
        """When these buildings, or all, were last heard of; sorted, the first `MAX_BUILDINGS` that have any row."""
        ...

    def predictions_of(self, request_id: str, start_ns: int, stop_ns: int) -> list[PredictionPoint]:
        """The points of [start, stop) that were stored for this request, by time, building, appliance, version and
        attribution; the first `MAX_REQUEST_POINTS`. Nothing is indexed by it: this reads all points of the range.
        """
        ...

    def journal(self, limit: int) -> list[JournalEntry]:
        """The latest entries, at most `limit` (at least 1), newest first; of one instant the last kind by its name."""
        ...

    def revision(self, building_id: str) -> str | None:
        """Another text after every commit that touched the building; None when the store cannot tell."""
        ...

    def close(self) -> None:
        """Release files and sockets."""
        ...
