"""Counts a request against a quota, within the request's time."""

from __future__ import annotations

import asyncio
from typing import Protocol

from serve_app.access.quota_window import Verdict
from serve_app.access.quotas import rate_limited
from serve_app.middleware import RequestContext
from serve_app.problems import Problem, Problems


class Quotas(Protocol):
    """The part of SharedQuotas that is used here."""

    def take(self, quota: str, key: str) -> Verdict | asyncio.Future[Verdict]:
        """Grant or refuse one request, now or later."""
        ...


async def count(quotas: Quotas, quota: str, key: str, context: RequestContext) -> None:
    """Takes one request of `key` from `quota` and leaves the verdict in the context, for the RateLimit headers.

    Raises Problem: 429 when the quota is used up, 503 when that was not known in time.
    """
    verdict = quotas.take(quota, key)
    if isinstance(verdict, asyncio.Future):
        try:
            async with asyncio.timeout(context.remaining_s()):
                verdict = await verdict
        except TimeoutError:
            raise Problem(Problems.OVERLOADED, "The quota could not be counted in time.") from None
    context.verdicts.append(verdict)
    if not verdict.allowed:
        raise rate_limited(verdict)
