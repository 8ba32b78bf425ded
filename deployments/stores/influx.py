"""InfluxDB 2 as a store: one synchronous write per commit, and a verdict for every answer there is.

  204                      durable (InfluxDB OSS fsyncs its WAL before it answers)
  400, 422, 413            some record set is bad, or too much at once: halve until the bad one stands alone
  401, 403, 404            the operator's to mend: unavailable, with words that say what
  429, 5xx, no connection  tried again with jitter, inside the record sets' deadlines and a small budget
  3xx                      unavailable; a redirect is never followed, because the token would go with it

A record set of several points is one request's lines. InfluxDB has no transaction: when it answers 422 it may have
kept some of them, and a connection lost after the write leaves it open. Identity makes both harmless: the retry
overwrites. The reply to a keyed request goes after its points, never with them: alone, it would acknowledge what is
not there. Refuses to use the client's default write mode, which returns before the write.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from deployments.contracts import KeyedRequest, NotPersisted, PersistFailure, RecordSet, StoredReply
from deployments.stores.base import StoreUnavailable, WriteOutcome
from deployments.stores.checks import refusal
from deployments.stores.influx_connection import InfluxConnection, Refused, Transient
from deployments.stores.influx_keys import MEASUREMENT, intent_line, key_state, recall_query, reply_line
from deployments.stores.line_protocol import encode, encode_readings

logger = logging.getLogger(__name__)

RETRY_BUDGET_S = 1.5
"""No new attempt of one commit later than this after its start: meanwhile everybody else waits behind it."""

FIRST_PAUSE_S = 0.05
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class _Lines:
    """One record set ready to send, and its place in the commit."""

    index: int
    bucket: str
    body: bytes
    deadline_s: float


class InfluxStore:
    """Predictions and the journal in one bucket of InfluxDB 2, readings in another."""

    kind = "influxdb"

    def __init__(
        self, *, url: str, token: str, org: str, bucket_pred: str, bucket_raw: str, timeout_s: float = 2.0
    ) -> None:
        """Contact nothing yet: a store that is down at start-up is an outage, not a broken build.

        Readings are in `bucket_raw`, predictions and replies in `bucket_pred`.
        """
        self._connection = InfluxConnection(url=url, token=token, org=org, timeout_s=timeout_s)
        self._bucket = bucket_pred
        self._bucket_raw = bucket_raw
        self._forgotten_day = 0
        self._forgetting = threading.Lock()

    def write(self, record_sets: Sequence[RecordSet]) -> list[WriteOutcome]:
        """See `PredictionStore.write`. Readings and points first, then the replies of those that are durable."""
        outcomes: list[WriteOutcome] = [refusal(record_set) for record_set in record_sets]
        wanted = [index for index, outcome in enumerate(outcomes) if outcome is None]
        readings, points, replies = [], [], []
        for index in wanted:
            record_set = record_sets[index]
            if record_set.readings is not None:
                lines = encode_readings(record_set.readings)
                readings.append(_Lines(index, self._bucket_raw, lines, record_set.deadline_s))
            if record_set.points or record_set.journal_entry is not None:
                points.append(_Lines(index, self._bucket, encode(record_set), record_set.deadline_s))
            if record_set.completion is not None:
                lines = reply_line(record_set.completion, int(time.time()))
                replies.append(_Lines(index, self._bucket, lines, record_set.deadline_s))
        any_durable = False
        for stage in (readings, points, replies):
            pending = [lines for lines in stage if outcomes[lines.index] is None]
            any_durable = self._send(pending, outcomes, any_durable=any_durable) or any_durable
        return outcomes

    def recall(self, request: KeyedRequest) -> StoredReply | int | None:
        """See `PredictionStore.recall`. A request that names no instant leaves the one it got, for later attempts."""
        now_s = int(time.time())
        self._forget_old_keys(now_s)
        query = recall_query(request.key, self._bucket, now_s)
        state = key_state(request.key, self._connection.query(query, self._bucket), now_s)
        if state.reply is not None or request.received_ns is None:
            return state.reply
        if state.received_ns is not None:
            return state.received_ns
        try:
            self._connection.write(intent_line(request, now_s), self._bucket, self._connection.timeout_s)
        except Refused as refused:
            raise StoreUnavailable(f"InfluxDB refused an Idempotency-Key: {refused}") from None
        return request.received_ns

    def _forget_old_keys(self, now_s: int) -> None:
        """Once a day, so that replies do not pile up for as long as the bucket keeps predictions."""
        today = now_s // _DAY_S
        with self._forgetting:
            if today == self._forgotten_day:
                return
            self._forgotten_day = today
        # Keys are looked for on their own day and the next; what is older is never read again.
        stop = datetime.fromtimestamp((today - 1) * _DAY_S - 1, UTC)
        try:
            self._connection.delete(self._bucket, MEASUREMENT, stop - timedelta(days=30), stop)
        except StoreUnavailable as failure:
            logger.warning("old Idempotency-Keys were not deleted: %s", failure.detail)

    def _send(self, pending: list[_Lines], outcomes: list[WriteOutcome], *, any_durable: bool) -> bool:
        """Send what is pending, of one bucket, in as few requests as the store accepts.

        Notes what did not become durable; True when something did. Raises StoreUnavailable when nothing of the whole
        commit is durable, which `any_durable` says of the part before.
        """
        retry_until = time.time() + RETRY_BUDGET_S
        stack, attempts, any_stored = [pending], 0, False
        while stack:
            group = _alive(stack.pop(), outcomes)
            if not group:
                continue
            try:
                self._post(group)
                any_stored = True
            except Refused as refused:
                stack += _halves(group, refused, outcomes)
            except Transient as failure:
                attempts += 1
                pause_s = _pause_s(failure, attempts)
                now, deadline_s = time.time(), max(lines.deadline_s for lines in group)
                if now >= deadline_s:
                    stack.append(group)  # nobody waits for it any more, which `_alive` notes
                elif now + pause_s < min(retry_until, deadline_s):
                    time.sleep(pause_s)
                    stack.append(group)
                else:
                    _give_up(failure, [*stack, group], outcomes, any_stored=any_stored or any_durable)
                    return any_stored
            except StoreUnavailable as failure:
                _give_up(failure, [*stack, group], outcomes, any_stored=any_stored or any_durable)
                return any_stored
        return any_stored

    def _post(self, group: Sequence[_Lines]) -> None:
        """One request. Returns when it is durable; raises Refused, Transient or StoreUnavailable."""
        remaining_s = max(lines.deadline_s for lines in group) - time.time()
        body = b"\n".join(lines.body for lines in group)
        self._connection.write(body, group[0].bucket, max(0.001, min(self._connection.timeout_s, remaining_s)))

    def ping(self, *, readings: bool = False) -> None:
        """See `PredictionStore.ping`: an empty write.

        It passes the token, the bucket and the permission and stores nothing; InfluxDB answers it with 400
        ("writing requires points"). /ping and /health need no token, and a token that may only write cannot
        look buckets up. Waits no longer than the store last asked for (Retry-After).
        """
        left_s = self._connection.asked_to_wait_s()
        if left_s > 0:
            raise StoreUnavailable("InfluxDB asked to be left alone", max(1, round(left_s)))
        try:
            bucket = self._bucket_raw if readings else self._bucket
            self._connection.write(b"", bucket, min(1.0, self._connection.timeout_s))
        except Refused:
            return

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()


def _alive(group: Sequence[_Lines], outcomes: list[WriteOutcome]) -> list[_Lines]:
    """The group without those whose deadline has passed, who are answered so."""
    now = time.time()
    for lines in group:
        if lines.deadline_s <= now:
            outcomes[lines.index] = NotPersisted(
                PersistFailure.DEADLINE, "the deadline passed during the commit; it may be stored"
            )
    return [lines for lines in group if lines.deadline_s > now]


def _halves(group: list[_Lines], refused: Refused, outcomes: list[WriteOutcome]) -> list[list[_Lines]]:
    """The group in two, or nothing when the bad record set stands alone, which is answered so."""
    if len(group) == 1:
        logger.warning("InfluxDB refused a record set: %s", refused)
        outcomes[group[0].index] = NotPersisted(PersistFailure.REJECTED, "the store refused the record set")
        return []
    middle = len(group) // 2
    # The first half last, so that it is sent first: of two equal identities the later one must win.
    return [group[middle:], group[:middle]]


def _give_up(
    failure: StoreUnavailable,
    rest: list[list[_Lines]],
    outcomes: list[WriteOutcome],
    *,
    any_stored: bool,
) -> None:
    """Raise when nothing of the commit is durable; otherwise answer those that are not."""
    if not any_stored:
        raise failure
    for lines in (lines for group in rest for lines in group):
        outcomes[lines.index] = NotPersisted(PersistFailure.UNAVAILABLE, failure.detail, failure.retry_after_s)


def _pause_s(failure: Transient, attempts: int) -> float:
    """A doubling pause with jitter, never shorter than the store asked for."""
    backoff_s = FIRST_PAUSE_S * 2.0**attempts * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
    return max(backoff_s, failure.asked_s)
