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
import time
from collections.abc import Sequence
from dataclasses import dataclass

from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.rest import ApiException
from influxdb_client.service.write_service import WriteService
from urllib3 import Retry
from urllib3.exceptions import HTTPError, NewConnectionError
from urllib3.exceptions import TimeoutError as Urllib3TimeoutError

from deployments.contracts import KeyedRequest, NotPersisted, PersistFailure, RecordSet, StoredReply
from deployments.stores.base import StoreUnavailable, WriteOutcome
from deployments.stores.checks import refusal
from deployments.stores.flux import FluxQuery
from deployments.stores.influx_keys import intent_line, key_state, recall_query, reply_line
from deployments.stores.line_protocol import encode, encode_readings

logger = logging.getLogger(__name__)

RETRY_BUDGET_S = 1.5
"""No new attempt of one commit later than this after its start: meanwhile everybody else waits behind it."""

FIRST_PAUSE_S = 0.05
LONGEST_RETRY_AFTER_S = 60
"""A store, or a proxy before it, that asks for more is asked again after this."""

_HANG_S = 1.0
"""Silence for this long is the store's fault; for less, a deadline that was too near."""

_OPERATOR_ERRORS = {
    401: "InfluxDB does not accept the token (401): check INFLUX_TOKEN",
    403: "the InfluxDB token may not use bucket {bucket!r} (403): give it permission to read and to write",
    404: "InfluxDB knows no bucket {bucket!r} in organisation {org!r} (404): create it or correct the settings",
}


@dataclass(frozen=True, slots=True)
class _Lines:
    """One record set ready to send, and its place in the commit."""

    index: int
    bucket: str
    body: bytes
    deadline_s: float


class _Transient(StoreUnavailable):
    """Worth another attempt, after `asked_s` seconds when the store said so."""

    def __init__(self, detail: str, asked_s: int = 0) -> None:
        super().__init__(detail, max(1, asked_s))
        self.asked_s = asked_s


class _Refused(Exception):
    """The request, or something in it, is not acceptable."""


class InfluxStore:
    """Predictions in one bucket of InfluxDB 2."""

    kind = "influxdb"

    def __init__(
        self, *, url: str, token: str, org: str, bucket_pred: str, bucket_raw: str, timeout_s: float = 2.0
    ) -> None:
        """Contact nothing yet: a store that is down at start-up is an outage, not a broken build.

        Readings are in `bucket_raw`, predictions and replies in `bucket_pred`.
        """
        self._org = org
        self._bucket = bucket_pred
        self._bucket_raw = bucket_raw
        self._timeout_s = timeout_s
        # No retries and no redirects by the client: the one is ours to bound, the other would take the token along.
        never = Retry(total=0, redirect=False, raise_on_redirect=False)
        self._client = InfluxDBClient(url=url, token=token, org=org, timeout=int(timeout_s * 1000), retries=never)
        self._service = WriteService(self._client.api_client)  # type: ignore[no-untyped-call]
        self._not_before = 0.0

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
            if record_set.points:
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
        state = key_state(request.key, self._query(recall_query(request.key, self._bucket, now_s)), now_s)
        if state.reply is not None or request.received_ns is None:
            return state.reply
        if state.received_ns is not None:
            return state.received_ns
        try:
            self._request(intent_line(request, now_s), self._bucket, self._timeout_s)
        except _Refused as refused:
            raise StoreUnavailable(f"InfluxDB refused an Idempotency-Key: {refused}") from None
        return request.received_ns

    def _query(self, query: FluxQuery) -> list[dict[str, object]]:
        """The records of all tables. Raises StoreUnavailable."""
        try:
            tables = self._client.query_api().query(query.text, self._org, params=query.parameters)
        except (ApiException, HTTPError, UnicodeDecodeError) as error:
            failure = self._failure(error, self._bucket, self._timeout_s)
            if isinstance(failure, _Refused):
                raise StoreUnavailable(f"InfluxDB refused a query: {failure}") from None
            raise failure from None
        return [record.values for table in tables for record in table.records]

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
            except _Refused as refused:
                stack += _halves(group, refused, outcomes)
            except _Transient as failure:
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
        """One request. Returns when it is durable; raises _Refused, _Transient or StoreUnavailable."""
        remaining_s = max(lines.deadline_s for lines in group) - time.time()
        body = b"\n".join(lines.body for lines in group)
        self._request(body, group[0].bucket, max(0.001, min(self._timeout_s, remaining_s)))

    def _request(self, body: bytes, bucket: str, timeout_s: float) -> None:
        try:
            self._service.post_write(  # type: ignore[no-untyped-call]
                org=self._org,
                bucket=bucket,
                body=body,
                precision="ns",
                content_type="text/plain; charset=utf-8",
                _request_timeout=max(1, int(timeout_s * 1000)),
            )
        except (ApiException, HTTPError, UnicodeDecodeError) as error:
            raise self._failure(error, bucket, timeout_s) from None

    def _failure(self, error: Exception, bucket: str, timeout_s: float) -> Exception:
        """What a failed exchange means: _Refused, _Transient or StoreUnavailable."""
        if isinstance(error, ApiException):
            return self._verdict(error, bucket)
        if isinstance(error, UnicodeDecodeError):
            return StoreUnavailable("what answers at INFLUX_URL is not InfluxDB")
        # A refused connection is filed under timeouts by urllib3.
        if isinstance(error, Urllib3TimeoutError) and not isinstance(error, NewConnectionError):
            detail = f"InfluxDB did not answer within {timeout_s:.1f} s"
            # A hung store is not asked again by the same commit: that would only hang for longer.
            hung = timeout_s >= min(_HANG_S, self._timeout_s)
            return StoreUnavailable(detail) if hung else _Transient(detail)
        # Only the kind: the text of a urllib3 error may hold addresses and headers.
        return _Transient(f"InfluxDB cannot be reached ({type(error).__name__})")

    def _verdict(self, error: ApiException, bucket: str) -> Exception:
        """What an answer other than 2xx means. Never carries the headers of the exchange."""
        status = error.status or 0
        if status in _OPERATOR_ERRORS:
            detail = _OPERATOR_ERRORS[status].format(bucket=bucket, org=self._org)
            return StoreUnavailable(detail, retry_after_s=5)
        if status in (400, 413, 422):
            return _Refused(f"{status} {str(error.body)[:200]}")
        if status == 429 or status >= 500:
            retry_after_s = _retry_after_s(error)
            if retry_after_s is not None:
                self._not_before = time.monotonic() + retry_after_s
            return _Transient(f"InfluxDB answered {status}", retry_after_s or 0)
        if 300 <= status < 400:
            return StoreUnavailable(f"INFLUX_URL answers with a redirect ({status}), which is not followed", 5)
        return StoreUnavailable(f"InfluxDB cannot be used (status {status})", 5)

    def ping(self) -> None:
        """See `PredictionStore.ping`: an empty write.

        It passes the token, the bucket and the permission and stores nothing; InfluxDB answers it with 400
        ("writing requires points"). /ping and /health need no token, and a token that may only write cannot
        look buckets up. Waits no longer than the store last asked for (Retry-After).
        """
        left_s = self._not_before - time.monotonic()
        if left_s > 0:
            raise StoreUnavailable("InfluxDB asked to be left alone", max(1, round(left_s)))
        try:
            self._request(b"", self._bucket, min(1.0, self._timeout_s))
        except _Refused:
            return

    def close(self) -> None:
        """Close the connections."""
        self._client.close()  # type: ignore[no-untyped-call]


def _alive(group: Sequence[_Lines], outcomes: list[WriteOutcome]) -> list[_Lines]:
    """The group without those whose deadline has passed, who are answered so."""
    now = time.time()
    for lines in group:
        if lines.deadline_s <= now:
            outcomes[lines.index] = NotPersisted(
                PersistFailure.DEADLINE, "the deadline passed during the commit; it may be stored"
            )
    return [lines for lines in group if lines.deadline_s > now]


def _halves(group: list[_Lines], refused: _Refused, outcomes: list[WriteOutcome]) -> list[list[_Lines]]:
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


def _pause_s(failure: _Transient, attempts: int) -> float:
    """A doubling pause with jitter, never shorter than the store asked for."""
    backoff_s = FIRST_PAUSE_S * 2.0**attempts * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
    return max(backoff_s, failure.asked_s)


def _retry_after_s(error: ApiException) -> int | None:
    """Retry-After in whole seconds; its other form, a date, counts as none."""
    value = str(error.headers.get("Retry-After", "")) if error.headers is not None else ""
    return min(max(1, int(value)), LONGEST_RETRY_AFTER_S) if value.isascii() and value.isdigit() else None
