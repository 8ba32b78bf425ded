"""Answers that no healthy Supabase gives, but a proxy, a cut connection or another schema may: each one is an error."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from serve_app.access.grants import Grants, GrantSourceError
from serve_app.access.principal import Principal, Role
from serve_app.access.supabase import (
    BUILDINGS_PER_CALL,
    FETCHES_AT_ONCE,
    MAX_RESPONSE_BYTES,
    MAX_ROWS,
    SupabaseGrants,
    in_list,
)

URL, KEY = "https://project.supabase.test", "sb_secret_never_shown"
USER = Principal("11111111-1111-1111-1111-111111111111")
Handler = Callable[[httpx.Request], httpx.Response]


class Body(httpx.AsyncByteStream):
    """Arrives in pieces, as from a socket."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.sent = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._content), 65_536):
            piece = self._content[start : start + 65_536]
            self.sent += len(piece)
            yield piece


def reply(content: object, content_range: str | None = None, status: int = 200, **headers: str) -> httpx.Response:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    if content_range is None:
        count = len(content) if isinstance(content, list) else 0
        content_range = f"0-{count - 1}/{count}" if count else "*/0"
    return httpx.Response(status, stream=Body(raw), headers={"Content-Range": content_range, **headers})


def healthy(table: str) -> httpx.Response:
    rows: dict[str, list[dict[str, Any]]] = {
        "buildings": [{"id": "home"}],
        "profiles": [{"role": "admin"}],
        "building_appliances": [{"building_id": "home", "org_appliances": {"appliance_id": "kettle"}}],
    }
    return reply(rows[table])


async def fetch(handler: Handler, principal: Principal = USER) -> Grants:
    async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
        return await SupabaseGrants(URL + "/", KEY, client=client).fetch(principal)


def answering(**changed: Any) -> Handler:
    """Healthy but for the tables named."""

    def handler(request: httpx.Request) -> httpx.Response:
        table = request.url.path.removeprefix("/rest/v1/")
        made = changed.get(table)
        return healthy(table) if made is None else made() if callable(made) else reply(made)

    return handler


async def test_a_healthy_answer() -> None:
    assert await fetch(answering()) == Grants(Role.ADMIN, {"home": frozenset({"kettle"})})


WRONG: dict[str, dict[str, Any]] = {
    "not JSON": {"buildings": lambda: reply(b"<html>", "0-0/1")},
    "empty": {"buildings": lambda: reply(b"", "*/0")},
    "not UTF-8": {"buildings": lambda: reply(b'[{"id": "\xff"}]', "0-0/1")},
    "nested deeply": {"buildings": lambda: reply(b"[" * 200_000, "0-0/1")},
    "an object": {"buildings": lambda: reply({"message": "no"}, "*/0")},
    "a list of text": {"buildings": ["home"]},
    "no id": {"buildings": [{"name": "home"}]},
    "an id that is a number": {"buildings": [{"id": 7}]},
    "an id that is null": {"buildings": [{"id": None}]},
    "no content range": {"buildings": lambda: httpx.Response(200, stream=Body(b"[]"))},
    "not counted": {"buildings": lambda: reply([{"id": "home"}], "0-0/*")},
    "fewer rows than said": {"buildings": lambda: reply([{"id": "home"}], "0-1/2")},
    "none of the rows there are": {"buildings": lambda: reply([], "*/3")},
    "more rows than may be": {"buildings": lambda: reply([{"id": "home"}], f"0-0/{MAX_ROWS + 1}", 206)},
    "longer than may be": {"buildings": lambda: reply(b" " * (MAX_RESPONSE_BYTES + 1), "*/0")},
    "compressed": {
        "buildings": lambda: reply(gzip.compress(b"[]"), "*/0", **{"Content-Encoding": "gzip"}),
    },
    "no role": {"profiles": [{"name": "x"}]},
    "two profiles": {"profiles": [{"role": "user"}, {"role": "admin"}]},
    "no such profile table": {"profiles": lambda: reply({}, status=404)},
    "an appliance that is null": {"building_appliances": [{"building_id": "home", "org_appliances": None}]},
    "a list of appliances": {"building_appliances": [{"building_id": "home", "org_appliances": []}]},
    "an appliance without an id": {"building_appliances": [{"building_id": "home", "org_appliances": {}}]},
    "another building": {
        "building_appliances": [{"building_id": "barn", "org_appliances": {"appliance_id": "kettle"}}],
    },
    **{
        f"status {status}": {table: lambda status=status: reply([], "*/0", status)}
        for table in ("buildings", "profiles", "building_appliances")
        for status in (201, 204, 300, 307, 400, 401, 404, 416, 429, 500, 503)
    },
}


@pytest.mark.parametrize(("key", "bearer"), [(KEY, None), ("eyJ_a-1.eyJ_b-2.c-3", "Bearer eyJ_a-1.eyJ_b-2.c-3")])
async def test_only_a_key_that_is_a_jwt_is_sent_as_one(key: str, bearer: str | None) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return healthy(request.url.path.rpartition("/")[2])

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        await SupabaseGrants(URL, key, client=client).fetch(USER)
    assert {request.headers["apikey"] for request in asked} == {key}
    assert {request.headers.get("Authorization") for request in asked} == {bearer}


@pytest.mark.parametrize("changed", WRONG.values(), ids=WRONG.keys())
async def test_whatever_is_not_a_complete_list_is_an_error(changed: dict[str, Any]) -> None:
    with pytest.raises(GrantSourceError) as caught:
        await fetch(answering(**changed))
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError],
)
async def test_a_broken_connection_is_an_error(error: type[httpx.TransportError]) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error("broken")

    with pytest.raises(GrantSourceError, match=error.__name__):
        await fetch(handler)


async def test_a_long_body_is_not_read_to_its_end() -> None:
    body = Body(b" " * (4 * MAX_RESPONSE_BYTES))
    with pytest.raises(GrantSourceError, match="longer than"):
        await fetch(answering(buildings=lambda: httpx.Response(200, stream=body)))
    assert body.sent <= MAX_RESPONSE_BYTES + 65_536


class Trickle(httpx.AsyncByteStream):
    """Always sends something, so that no time-out of a single read ends it."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.01)
            yield b" "


def trickling(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, stream=Trickle())


async def test_an_answer_that_trickles_ends_with_the_fetchs_time() -> None:
    async with httpx.AsyncClient(transport=httpx.MockTransport(trickling)) as client:
        with pytest.raises(GrantSourceError, match=r"not done within 0\.1 s"):
            await SupabaseGrants(URL, KEY, timeout_s=0.1, client=client).fetch(USER)


async def test_a_fetch_that_fails_or_is_given_up_gives_back_its_turn() -> None:
    handlers: list[Handler] = [trickling]

    def handler(request: httpx.Request) -> httpx.Response:
        return handlers[0](request)

    async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
        source = SupabaseGrants(URL, KEY, client=client)
        given_up = [asyncio.create_task(source.fetch(USER)) for _ in range(2 * FETCHES_AT_ONCE)]
        await asyncio.sleep(0.05)  # some have their turn, some wait for it
        for fetching in given_up:
            fetching.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        handlers[0] = answering(buildings=lambda: reply([], "*/0", 503))
        for _ in range(2 * FETCHES_AT_ONCE):
            with pytest.raises(GrantSourceError):
                await source.fetch(USER)
        handlers[0] = answering()
        assert (await source.fetch(USER)).may_use("home")


async def test_who_gets_no_turn_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.access.supabase.QUEUE_TIMEOUT_S", 0.05)
    async with httpx.AsyncClient(transport=httpx.MockTransport(trickling)) as client:
        source = SupabaseGrants(URL, KEY, timeout_s=0.5, client=client)
        fetches = [source.fetch(USER) for _ in range(FETCHES_AT_ONCE + 1)]
        errors = await asyncio.gather(*fetches, return_exceptions=True)
    assert all(isinstance(error, GrantSourceError) for error in errors)
    assert sum("no turn" in str(error) for error in errors) == 1


async def test_a_list_that_changes_between_its_pages_is_an_error() -> None:
    totals = iter((2, 3))

    def buildings() -> httpx.Response:
        total = next(totals)
        first = total - 2
        return reply([{"id": f"home-{first}"}], f"{first}-{first}/{total}", 206)

    with pytest.raises(GrantSourceError, match="changed while it was read"):
        await fetch(answering(buildings=buildings))


async def test_a_redirect_is_not_followed_with_the_key() -> None:
    hosts = []

    def handler(request: httpx.Request) -> httpx.Response:
        hosts.append(request.url.host)
        return reply([], "*/0", 307, Location="https://elsewhere.test/rest/v1/buildings")

    async with httpx.AsyncClient(transport=httpx.MockTransport(handler), follow_redirects=True) as client:
        with pytest.raises(GrantSourceError, match="answered 307"):
            await SupabaseGrants(URL, KEY, client=client).fetch(USER)
    assert set(hosts) == {"project.supabase.test"}


async def test_the_longest_list_of_ids_fits_a_proxys_url_buffer() -> None:
    lengths = []

    def handler(request: httpx.Request) -> httpx.Response:
        lengths.append(len(request.url.raw_path))
        table = request.url.path.removeprefix("/rest/v1/")
        if table == "building_appliances":
            return reply([])
        return (
            reply([{"id": f"{i:064}"} for i in range(2 * BUILDINGS_PER_CALL + 1)])
            if table == "buildings"
            else reply([])
        )

    assert len((await fetch(handler)).buildings) == 2 * BUILDINGS_PER_CALL + 1
    assert len(lengths) == 2 + 3
    assert max(lengths) + len("GET  HTTP/1.1\r\n") < 8192


async def test_a_super_admins_token_and_a_user_id_that_is_no_uuid_need_no_call() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise AssertionError(request.url)

    assert await fetch(handler, Principal(USER.user_id, Role.SUPER_ADMIN)) == Grants(Role.SUPER_ADMIN, {})
    assert await fetch(handler, Principal("no-uuid", Role.ADMIN)) == Grants(Role.ADMIN, {})
    assert await fetch(handler, Principal(USER.user_id + "\n")) == Grants(Role.USER, {})


async def test_a_super_admins_profile_opens_every_building() -> None:
    assert await fetch(answering(profiles=[{"role": "super_admin"}])) == Grants(Role.SUPER_ADMIN, {})


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "kéy", "tab\t"])
def test_a_key_that_cannot_be_a_header_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ValueError, match="visible ASCII") as caught:
        SupabaseGrants(URL, key)
    assert not key or key not in str(caught.value)


async def test_the_key_is_not_in_the_repr_and_its_own_client_is_closed() -> None:
    source = SupabaseGrants(URL, KEY)
    assert KEY not in repr(source)
    assert URL in repr(source)
    await source.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await source.fetch(USER)


def test_quotes_and_backslashes_are_escaped() -> None:
    assert in_list(["a", 'b"c', "d\\e", ""]) == 'in.("a","b\\"c","d\\\\e","")'
