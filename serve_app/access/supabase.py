"""Reads grants from Supabase's REST interface (PostgREST) with the server-side key.

Refuses to guess: every answer that is not complete and well-formed is a GrantSourceError, never "no buildings". Shows
the key to nobody: not in `repr`, not in an error, not in a log line. The tables are described in docs/supabase.md.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any

import httpx

from serve_app.access.bounded_read import UnreadableBody, read_body
from serve_app.access.grants import Grants, GrantSourceError, is_requestable_id
from serve_app.access.principal import Principal, Role

FETCH_TIMEOUT_S = 2.0
QUEUE_TIMEOUT_S = 30.0
"""Longest wait for a turn. Callers give up earlier, but a late answer still serves their next try from the cache."""
FETCHES_AT_ONCE = 8
"""The rest wait here for their turn, where that does not count against their time: after a start every user's grants
are asked for at once, and calls that queue inside the HTTP client run out of time and cost it quadratic work."""
MAX_CONNECTIONS = 2 * FETCHES_AT_ONCE
"""To Supabase, from one process; a fetch has at most two calls under way while its lists are of ordinary length."""
MAX_RESPONSE_BYTES = 4 * 1024 * 1024
"""Thousand rows, PostgREST's usual most, are about 0.15 MiB."""
MAX_ROWS = 20_000
"""Of one list. A user with more is a mistake in the tables; reading them all would not end within the time."""
BUILDINGS_PER_CALL = 100
"""Ids in one `in.(...)`: 64 characters each and 9 of quotes and comma stay below the 8 KiB of a proxy's URL buffer."""

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_CONTENT_RANGE = re.compile(r"(?:\*|([0-9]{1,9})-([0-9]{1,9}))/([0-9]{1,9})")
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+")
_JWT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")

_Row = Mapping[str, object]


def in_list(values: Iterable[str]) -> str:
    """PostgREST's `in.(...)` filter. Each value is quoted, so commas, parentheses and quotes in it stay text.

    One empty value alone reads as an empty list there; ids are never empty.
    """
    quoted = ('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values)
    return f"in.({','.join(quoted)})"


class SupabaseGrants:
    """A GrantSource on the tables `buildings`, `building_appliances`, `org_appliances` and `profiles`.

    A fetch makes two calls, three where the token names no role, none for a super admin's token. Only a user with more
    than BUILDINGS_PER_CALL buildings, or with more rows than PostgREST gives at once, costs further ones.
    """

    def __init__(
        self,
        url: str,
        service_role_key: str,
        *,
        timeout_s: float = FETCH_TIMEOUT_S,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        """`url` is the project's, without a path; `timeout_s` bounds a fetch, from its turn on. A `client`
        given is not closed.

        Raises ValueError, without the key in it, for a key that cannot stand in a header: the HTTP library's own
        error would quote it.
        """
        if not _VISIBLE_ASCII.fullmatch(service_role_key):
            raise ValueError("the Supabase service role key must be visible ASCII without spaces or line breaks")
        self._base_url = f"{url.rstrip('/')}/rest/v1"
        self._timeout_s = timeout_s
        self._turns = asyncio.Semaphore(FETCHES_AT_ONCE)
        self._headers = {
            "apikey": service_role_key,
            # PostgREST cuts a long list at `max-rows` with status 200; with the count it has to admit it.
            "Prefer": "count=exact",
            "Accept-Encoding": "identity",
        }
        if _JWT.fullmatch(service_role_key):
            # PostgREST wants a JWT here. For `sb_secret_...`, which is none, Supabase's gateway has one of its own.
            self._headers["Authorization"] = f"Bearer {service_role_key}"
        self._closes_client = client is None
        self._client = client or _new_client(timeout_s)

    def __repr__(self) -> str:
        return f"SupabaseGrants({self._base_url!r})"

    async def fetch(self, principal: Principal) -> Grants:
        """The caller's role and, unless it opens every building, the buildings with their appliances."""
        if principal.token_role is Role.SUPER_ADMIN:
            return Grants(principal.token_role, {})
        if not _UUID.fullmatch(principal.user_id):
            # No row can be this user's, and PostgREST would answer 400, which looks like a fault of Supabase.
            return Grants(principal.token_role or Role.USER, {})
        try:
            async with asyncio.timeout(QUEUE_TIMEOUT_S):
                await self._turns.acquire()
        except TimeoutError:
            raise GrantSourceError(f"no turn to ask Supabase within {QUEUE_TIMEOUT_S:g} s") from None
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._fetch(principal)
        except TimeoutError:
            raise GrantSourceError(f"Supabase was not done within {self._timeout_s:g} s") from None
        finally:
            self._turns.release()

    async def aclose(self) -> None:
        """Close the connections, unless they are the caller's."""
        if self._closes_client:
            await self._client.aclose()

    async def _fetch(self, principal: Principal) -> Grants:
        user = f"eq.{principal.user_id}"
        calls = [self._rows("buildings", {"select": "id", "user_id": user, "order": "id"})]
        if principal.token_role is None:
            calls.append(self._rows("profiles", {"select": "role", "id": user}))
        building_rows, *profiles = await _together(calls)
        role = principal.token_role or _profile_role(profiles[0])
        if role is Role.SUPER_ADMIN:
            return Grants(role, {})
        building_ids = [_text(row, "id") for row in building_rows]
        # An id that no route accepts can never be asked for, and its text would only be a risk in the next call.
        return Grants(role, await self._appliances([i for i in building_ids if is_requestable_id(i)]))

    async def _appliances(self, building_ids: list[str]) -> dict[str, frozenset[str]]:
        """Building id -> its appliances; empty for a building without any."""
        found: dict[str, set[str]] = {building_id: set() for building_id in building_ids}
        select = {"select": "building_id,org_appliances(appliance_id)"}
        # A total order, or pages could overlap and miss rows.
        order = {"order": "building_id,org_appliances(appliance_id)"}
        for rows in await _together(
            self._rows("building_appliances", select | {"building_id": in_list(chunk)} | order)
            for start in range(0, len(building_ids), BUILDINGS_PER_CALL)
            if (chunk := building_ids[start : start + BUILDINGS_PER_CALL])
        ):
            for row in rows:
                appliance = row.get("org_appliances")
                building_id = _text(row, "building_id")
                if not isinstance(appliance, dict) or building_id not in found:
                    raise GrantSourceError("building_appliances: a row without its appliance or for another building")
                appliance_id = _text(appliance, "appliance_id")
                if is_requestable_id(appliance_id):
                    found[building_id].add(appliance_id)
        return {building_id: frozenset(appliances) for building_id, appliances in found.items()}

    async def _rows(self, table: str, params: dict[str, str]) -> list[_Row]:
        """All rows, in as many pages as the server makes of them. A list that changes meanwhile is an error."""
        rows, total = await self._page(table, params, 0)
        while len(rows) < total:
            if total > MAX_ROWS:
                raise GrantSourceError(f"{table}: {total} rows, more than {MAX_ROWS}")
            page, total_now = await self._page(table, params | {"offset": str(len(rows))}, len(rows))
            if not page or total_now != total:
                raise GrantSourceError(f"{table}: the list changed while it was read")
            rows += page
        return rows

    async def _page(self, table: str, params: dict[str, str], offset: int) -> tuple[list[_Row], int]:
        """The rows from `offset` on, as far as the server gives them at once, and how many there are in all."""
        try:
            async with self._client.stream(
                "GET", f"{self._base_url}/{table}", params=params, headers=self._headers, follow_redirects=False
            ) as response:
                # 206 is PostgREST's "these are not all rows", and Content-Range says how many there are.
                if response.status_code not in {200, 206}:
                    raise GrantSourceError(f"{table}: Supabase answered {response.status_code}")
                body = await read_body(response, MAX_RESPONSE_BYTES)
        except httpx.HTTPError as error:
            raise GrantSourceError(f"{table}: no answer from Supabase ({type(error).__name__})") from None
        except UnreadableBody as error:
            raise GrantSourceError(f"{table}: the answer {error}") from None
        try:
            rows = json.loads(body)
        except (ValueError, RecursionError):
            raise GrantSourceError(f"{table}: the answer is not JSON") from None
        counted = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or counted is None:
            raise GrantSourceError(f"{table}: the answer is not a counted list of rows")
        first, last, total = counted.groups()
        if (len(rows), offset) != ((int(last) - int(first) + 1, int(first)) if first else (0, offset)):
            raise GrantSourceError(f"{table}: the answer has other rows than it says")
        return rows, int(total)


def _new_client(timeout_s: float) -> httpx.AsyncClient:
    # trust_env=False: a proxy or .netrc of the machine must not see or replace the key.
    limits = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS)
    return httpx.AsyncClient(timeout=timeout_s, limits=limits, trust_env=False, follow_redirects=False)


async def _together(calls: Iterable[Coroutine[Any, Any, list[_Row]]]) -> list[list[_Row]]:
    """Every call's rows, or the first failure, with the other calls cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _text(row: _Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise GrantSourceError(f"a row has no text in {column!r}")
    return value


def _profile_role(rows: list[_Row]) -> Role:
    """The role of the user's profile; USER where there is none or it names no role of ours."""
    if not rows:
        return Role.USER
    if len(rows) > 1 or "role" not in rows[0]:
        raise GrantSourceError("profiles: not one row with a role")
    named = rows[0]["role"]
    return next((role for role in Role if role == named), Role.USER)
