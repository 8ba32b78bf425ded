"""One InfluxDB 2 server: what we say to it, and what each of its answers means.

2xx                      as asked; a write is durable (InfluxDB OSS fsyncs its WAL before it answers 204)
400, 422, 413            the request, or something in it, is not acceptable
401, 403, 404            the operator's to mend: unavailable, with words that say what
429, 5xx, no connection  worth another attempt
3xx                      unavailable; a redirect is never followed, because the token would go with it
"""

from __future__ import annotations

import time
from datetime import datetime

from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.domain.delete_predicate_request import DeletePredicateRequest
from influxdb_client.rest import ApiException
from influxdb_client.service.delete_service import DeleteService
from influxdb_client.service.write_service import WriteService
from urllib3 import Retry
from urllib3.exceptions import HTTPError, NewConnectionError
from urllib3.exceptions import TimeoutError as Urllib3TimeoutError

from deployments.stores.base import StoreUnavailable
from deployments.stores.flux import FluxQuery

LONGEST_RETRY_AFTER_S = 60
"""A store, or a proxy before it, that asks for more is asked again after this."""

_HANG_S = 1.0
"""Silence for this long is the store's fault; for less, a deadline that was too near."""

_OPERATOR_ERRORS = {
    401: "InfluxDB does not accept the token (401): check INFLUX_TOKEN",
    403: "the InfluxDB token may not use bucket {bucket!r} (403): give it permission to read and to write",
    404: "InfluxDB knows no bucket {bucket!r} in organisation {org!r} (404): create it or correct the settings",
}


class Transient(StoreUnavailable):
    """Worth another attempt, after `asked_s` seconds when the store said so."""

    def __init__(self, detail: str, asked_s: int = 0) -> None:
        super().__init__(detail, max(1, asked_s))
        self.asked_s = asked_s


class Refused(Exception):
    """The request, or something in it, is not acceptable."""


class InfluxConnection:
    """Safe to use from several threads."""

    def __init__(self, *, url: str, token: str, org: str, timeout_s: float) -> None:
        """Contact nothing yet: a store that is down at start-up is an outage, not a broken build."""
        self.timeout_s = timeout_s
        self._org = org
        # No retries and no redirects by the client: the one is ours to bound, the other would take the token along.
        never = Retry(total=0, redirect=False, raise_on_redirect=False)
        self._client = InfluxDBClient(url=url, token=token, org=org, timeout=int(timeout_s * 1000), retries=never)
        self._service = WriteService(self._client.api_client)  # type: ignore[no-untyped-call]
        self._deletions = DeleteService(self._client.api_client)  # type: ignore[no-untyped-call]
        self._not_before = 0.0

    def query(self, query: FluxQuery, bucket: str) -> list[dict[str, object]]:
        """The records of all tables; the query reads `bucket`. Raises StoreUnavailable."""
        try:
            tables = self._client.query_api().query(query.text, self._org, params=query.parameters)
        except (ApiException, HTTPError, UnicodeDecodeError) as error:
            failure = self._failure(error, bucket, self.timeout_s)
            if isinstance(failure, Refused):
                raise StoreUnavailable(f"InfluxDB refused a query: {failure}") from None
            raise failure from None
        return [record.values for table in tables for record in table.records]

    def write(self, body: bytes, bucket: str, timeout_s: float) -> None:
        """Write lines. Returns when they are durable; raises Refused, Transient or StoreUnavailable."""
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
        """What a failed exchange means: Refused, Transient or StoreUnavailable."""
        if isinstance(error, ApiException):
            return self._verdict(error, bucket)
        if isinstance(error, UnicodeDecodeError):
            return StoreUnavailable("what answers at INFLUX_URL is not InfluxDB")
        # A refused connection is filed under timeouts by urllib3.
        if isinstance(error, Urllib3TimeoutError) and not isinstance(error, NewConnectionError):
            detail = f"InfluxDB did not answer within {timeout_s:.1f} s"
            # A hung store is not asked again by the same commit: that would only hang for longer.
            hung = timeout_s >= min(_HANG_S, self.timeout_s)
            return StoreUnavailable(detail) if hung else Transient(detail)
        # Only the kind: the text of a urllib3 error may hold addresses and headers.
        return Transient(f"InfluxDB cannot be reached ({type(error).__name__})")

    def _verdict(self, error: ApiException, bucket: str) -> Exception:
        """What an answer other than 2xx means. Never carries the headers of the exchange."""
        status = error.status or 0
        if status in _OPERATOR_ERRORS:
            detail = _OPERATOR_ERRORS[status].format(bucket=bucket, org=self._org)
            return StoreUnavailable(detail, retry_after_s=5)
        if status in (400, 413, 422):
            return Refused(f"{status} {str(error.body)[:200]}")
        if status == 429 or status >= 500:
            retry_after_s = _retry_after_s(error)
            if retry_after_s is not None:
                self._not_before = time.monotonic() + retry_after_s
            return Transient(f"InfluxDB answered {status}", retry_after_s or 0)
        if 300 <= status < 400:
            return StoreUnavailable(f"INFLUX_URL answers with a redirect ({status}), which is not followed", 5)
        return StoreUnavailable(f"InfluxDB cannot be used (status {status})", 5)

    def delete(self, bucket: str, measurement: str, start: datetime, stop: datetime) -> None:
        """Delete the measurement's points of [start, stop]. Raises StoreUnavailable."""
        predicate = f'_measurement="{measurement}"'
        request = DeletePredicateRequest(start, stop, predicate)  # type: ignore[no-untyped-call]
        try:
            self._deletions.post_delete(  # type: ignore[no-untyped-call]
                delete_predicate_request=request,
                org=self._org,
                bucket=bucket,
                _request_timeout=int(self.timeout_s * 1000),
            )
        except (ApiException, HTTPError, UnicodeDecodeError) as error:
            failure = self._failure(error, bucket, self.timeout_s)
            if isinstance(failure, Refused):
                raise StoreUnavailable(f"InfluxDB refused to delete: {failure}") from None
            raise failure from None

    def asked_to_wait_s(self) -> float:
        """How long the server still wants to be left alone (Retry-After); not positive when it does not."""
        return self._not_before - time.monotonic()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()  # type: ignore[no-untyped-call]


def _retry_after_s(error: ApiException) -> int | None:
    """Retry-After in whole seconds; its other form, a date, counts as none."""
    value = str(error.headers.get("Retry-After", "")) if error.headers is not None else ""
    return min(max(1, int(value)), LONGEST_RETRY_AFTER_S) if value.isascii() and value.isdigit() else None
