"""The protocol every store keeps. Blocking on purpose: it runs on threads of the Persistence deployment.

`write` is called from one thread at a time; `ping` may be called from another one meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from deployments.contracts import NotPersisted, RecordSet


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

    def write(self, record_sets: Sequence[RecordSet]) -> list[NotPersisted | None]:
        """Make record sets durable in one commit; an entry per record set, None where it is durable.

        A record set the store cannot take (for example, not finite) fails alone.
        Raises StoreUnavailable when none of them is known to be durable.
        """
        ...

    def ping(self) -> None:
        """Raise StoreUnavailable unless a write could be accepted now."""
        ...

    def close(self) -> None:
        """Release files and sockets; everything acknowledged is already durable."""
        ...
