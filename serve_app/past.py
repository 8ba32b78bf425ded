"""What the analytics routes have in common: who may see it, which range is meant, and the reply with its tag."""

from __future__ import annotations

import asyncio
import gzip
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Request, Response

from deployments.analytics.spans import Resolution, Span
from deployments.history_contracts import HistoryAnswer, HistoryQuery
from serve_app.access.grants import ALL, Grants
from serve_app.access.principal import Principal
from serve_app.access.scopes import Requires, Scope
from serve_app.instants import parse_moment, to_ns
from serve_app.middleware import RequestContext
from serve_app.problems import FieldError, Problem, Problems
from serve_app.services import Services, context_from, services_of

_TAG = re.compile(r'(?:W/)?"([\x21\x23-\x7e]{1,64})"')


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks about the past, and by what means it is answered."""

    request: Request
    principal: Principal
    services: Services
    context: RequestContext

    async def grants(self) -> Grants:
        """What the caller may see. Raises Problem."""
        with self.context.timed("auth"):
            return await self.services.grants.grants(self.principal, self.context.remaining_s())

    async def appliances(self, building_id: str, appliance_id: str | None = None) -> tuple[str, ...] | None:
        """The appliances of a building to tell of, None being all. Raises Problem when the caller may not see it."""
        grants = await self.grants()
        grants.check_building(building_id, "building_id")
        if appliance_id is None:
            return _sorted(grants.granted_appliances(building_id))
        grants.check_appliance(building_id, appliance_id, "appliance_id")
        return (appliance_id,)

    async def buildings(self) -> dict[str, tuple[str, ...] | None] | None:
        """The caller's buildings, None being all, with the appliances to tell of, None being all."""
        grants = await self.grants()
        if grants.may_use(ALL):
            return None
        return {one: _sorted(grants.granted_appliances(one)) for one in sorted(grants.buildings)}

    async def answer(self, query: HistoryQuery) -> Response:
        """The document, or 304 when the caller has it. Raises Problem."""
        known = frozenset(_TAG.findall(self.request.headers.get("if-none-match", "")))
        with self.context.timed("history"):
            asked = replace(query, known_tags=known, deadline_s=self.context.deadline_s)
            answer = await self.services.history.ask(asked)
        return await _response(self.request, answer)


def asker(
    request: Request,
    principal: Annotated[Principal, Depends(Requires(Scope.USER))],
    services: Annotated[Services, Depends(services_of)],
    context: Annotated[RequestContext, Depends(context_from)],
) -> Asker:
    """FastAPI dependency."""
    return Asker(request, principal, services, context)


def _sorted(granted: frozenset[str] | None) -> tuple[str, ...] | None:
    return None if granted is None else tuple(sorted(granted))


async def _response(request: Request, answer: HistoryAnswer) -> Response:
    headers = {
        # Weak: the same rows, whether compressed or not.
        "ETag": f'W/"{answer.tag}"',
        # May be kept, by the one it is for, and is asked for again before each use.
        "Cache-Control": "private, no-cache",
        "Vary": "Accept-Encoding, Authorization",
    }
    if answer.gzipped is None:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", "").lower():
        headers["Content-Encoding"] = "gzip"
        return Response(answer.gzipped, media_type="application/json", headers=headers)
    # In a thread: the largest documents take a tenth of a second.
    body = await asyncio.to_thread(gzip.decompress, answer.gzipped)
    return Response(body, media_type="application/json", headers=headers)


def time_range(start: str, end: str, longest_ns: int, what: str) -> tuple[int, int]:
    """[start, end) in ns, not beyond now: there are no rows for what has not begun. Raises Problem.

    `what`: for the message of a range that is longer than `longest_ns`.
    """
    now = datetime.now(UTC)
    moments = []
    for name, text in (("start", start), ("end", end)):
        try:
            moments.append(to_ns(parse_moment(text, now)))
        except ValueError as error:
            raise Problem(Problems.VALIDATION, f"`{name}` {error}.", [FieldError(name, str(error))]) from None
    start_ns, stop_ns = moments
    if start_ns >= stop_ns:
        raise Problem(Problems.VALIDATION, "`start` must be before `end`.", [FieldError("start", "is not before end")])
    stop_ns = max(min(stop_ns, to_ns(now)), start_ns + 1)
    if stop_ns - start_ns > longest_ns:
        detail = f"{what} a range may last {longest_ns / 86400e9:g} days."
        raise Problem(Problems.VALIDATION, detail, [FieldError("start", detail)])
    return start_ns, stop_ns


def whole_buckets(start: str, end: str, resolution: Resolution) -> Span:
    """The buckets of a range. Raises Problem."""
    start_ns, stop_ns = time_range(start, end, resolution.longest_ns, f"At a resolution of {resolution.value}")
    return Span.covering(start_ns, stop_ns, resolution.step_ns)
