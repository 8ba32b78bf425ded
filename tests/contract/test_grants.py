"""Grants from the real PostgreSQL and PostgREST, with row-level security: whose buildings, for how long, and in which
outages. The same `SupabaseGrants` runs in production; only its clock and its time-outs are the tests'.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.access.grants import GrantCache, Grants, GrantSourceError
from serve_app.access.principal import Principal, Role
from serve_app.access.supabase import BUILDINGS_PER_CALL, MAX_CONNECTIONS, SupabaseGrants, in_list
from serve_app.problems import Problem, Problems
from tests.servers.packages import PartsMissing, do_without
from tests.servers.postgrest import MAX_ROWS, SCHEMA, SupabaseServer

TABLES = ("buildings", "building_appliances", "org_appliances", "profiles")
PATIENT_S = 60.0
"""For what must succeed however busy the machine is."""
TLS = httpx.create_ssl_context()
"""Made once: a client makes its own otherwise, which takes longer than most of the tests."""
HOSTILE = (
    "a,b", "a)", "(a", 'a"b', '"', "a\\", 'a\\"', "a'b", "100%", "%2C", "a\nb", "a b", "a.b", "a&select=*", "*",
    "eq.a", "not.is.null", "a),id.not.is.null,(b", '"),or=(id.not.is.null', "a;drop table buildings",
    "ä", "\u202e", "x" * 65,
)  # fmt: skip


@pytest.fixture(scope="session")
def supabase() -> Iterator[SupabaseServer]:
    """The one server of all tests here; each test makes users of its own."""
    try:
        with SupabaseServer.started() as server:
            yield server
    except PartsMissing as missing:
        do_without(missing)


def text(value: str) -> str:
    """As an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


@pytest.fixture
def settle(supabase: SupabaseServer) -> Callable[..., str]:
    """Makes a user with buildings and returns the user's id; every building gets the appliances named."""

    def make(*building_ids: str, appliances: Sequence[str] = (), role: str | None = None) -> str:
        user_id = str(uuid.uuid4())
        homes = ",".join(f"({text(b)}, '{user_id}'::uuid)" for b in building_ids)
        names = ",".join(f"({text(a)})" for a in appliances)
        statements = [f"insert into buildings values {homes};"]  # noqa: S608
        if appliances:
            statements += [
                f"insert into org_appliances (appliance_id) values {names} on conflict do nothing;",  # noqa: S608
                "insert into building_appliances select b.id, a.id from buildings b, org_appliances a "  # noqa: S608
                f"where b.user_id = '{user_id}' and a.appliance_id in (values {names});",
            ]
        if role is not None:
            statements.append(f"insert into profiles values ('{user_id}', {text(role)});")  # noqa: S608
        supabase.sql("\n".join(statements))
        return user_id

    return make


class Asking:
    """A source on the server, and every request that left for it."""

    def __init__(self, url: str, key: str, timeout_s: float = PATIENT_S) -> None:
        self.requests: list[httpx.Request] = []
        self.client = httpx.AsyncClient(
            event_hooks={"request": [self._record]},
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
            timeout=timeout_s,
            trust_env=False,
            verify=TLS,
        )
        self.source = SupabaseGrants(url, key, timeout_s=timeout_s, client=self.client)

    async def _record(self, request: httpx.Request) -> None:
        self.requests.append(request)

    def tables(self) -> list[str]:
        return sorted(request.url.path.removeprefix("/rest/v1/") for request in self.requests)


@asynccontextmanager
async def ask(supabase: SupabaseServer, **changes: Any) -> AsyncIterator[Asking]:
    asking = Asking(**{"url": supabase.url, "key": supabase.service_role_key, **changes})
    try:
        yield asking
    finally:
        await asking.client.aclose()


async def fetch(supabase: SupabaseServer, user_id: str, token_role: Role | None = None) -> Grants:
    async with ask(supabase) as asking:
        return await asking.source.fetch(Principal(user_id, token_role))


async def unavailable(cache: GrantCache, user_id: str) -> None:
    with pytest.raises(Problem) as caught:
        await cache.grants(Principal(user_id), PATIENT_S)
    assert caught.value.kind is Problems.GRANTS_UNAVAILABLE
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s >= 1


# Whose buildings


async def test_an_owner_gets_the_own_buildings_with_their_own_appliances_and_nothing_of_others(
    supabase: SupabaseServer, settle: Callable[..., str]
) -> None:
    alice = settle("owner-home", "owner-barn", appliances=("kettle", "dryer"))
    bob = settle("owner-other", appliances=("fridge",))
    supabase.sql("delete from building_appliances where building_id = 'owner-barn'")
    async with ask(supabase) as asking:
        grants = await asking.source.fetch(Principal(alice))
        assert asking.tables() == ["building_appliances", "buildings", "profiles"]
    assert grants == Grants(Role.USER, {"owner-home": frozenset({"kettle", "dryer"}), "owner-barn": frozenset()})
    assert (await fetch(supabase, bob)).buildings == {"owner-other": frozenset({"fridge"})}
    assert (await fetch(supabase, alice.upper())) == grants
    assert (await fetch(supabase, str(uuid.uuid4()))).buildings == {}


async def test_each_call_carries_the_key_twice_and_no_cookie_or_redirect_is_followed(
    supabase: SupabaseServer, settle: Callable[..., str]
) -> None:
    async with ask(supabase) as asking:
        await asking.source.fetch(Principal(settle("key-home")))
        for request in asking.requests:
            assert request.headers["apikey"] == supabase.service_role_key
            assert request.headers["Authorization"] == f"Bearer {supabase.service_role_key}"


async def test_row_level_security_shows_a_user_the_own_rows_only_and_anon_none(
    supabase: SupabaseServer, settle: Callable[..., str]
) -> None:
    alice = settle("rls-home", appliances=("rls-kettle",), role="admin")
    settle("rls-other", appliances=("rls-fridge",), role="user")
    own = {
        "buildings": [{"id": "rls-home", "user_id": alice}],
        "org_appliances": [{"appliance_id": "rls-kettle"}],
        "building_appliances": [{"building_id": "rls-home"}],
        "profiles": [{"id": alice, "role": "admin"}],
    }
    async with httpx.AsyncClient(base_url=f"{supabase.url}/rest/v1", trust_env=False, verify=TLS) as client:

        async def rows(table: str, key: str) -> list[dict[str, Any]]:
            select = {"select": ",".join(own[table][0])}
            answer = await client.get(table, params=select, headers={"apikey": key, "Authorization": f"Bearer {key}"})
            return list(answer.raise_for_status().json())

        for table in TABLES:
            assert await rows(table, supabase.user_token(alice)) == own[table]
            assert await rows(table, supabase.anon_key) == []
            assert len(await rows(table, supabase.service_role_key)) >= 2
        forged = await client.get(
            "buildings", headers={"Authorization": f"Bearer {supabase.service_role_key[:-4]}AAAA"}
        )
        assert forged.status_code == 401


async def test_a_users_own_token_in_place_of_the_service_key_shows_no_other_users_buildings(
    supabase: SupabaseServer, settle: Callable[..., str]
) -> None:
    alice, bob = settle("swap-home"), settle("swap-other")
    async with ask(supabase, key=supabase.user_token(alice)) as asking:
        assert (await asking.source.fetch(Principal(alice))).buildings.keys() == {"swap-home"}
        assert (await asking.source.fetch(Principal(bob))).buildings == {}


@pytest.mark.parametrize(
    ("profile", "token_role", "role"),
    [
        (None, None, Role.USER),
        ("user", None, Role.USER),
        ("admin", None, Role.ADMIN),
        ("super_admin", None, Role.SUPER_ADMIN),
        ("SUPER_ADMIN", None, Role.USER),
        ("owner", None, Role.USER),
        ("super_admin", Role.USER, Role.USER),
        ("user", Role.ADMIN, Role.ADMIN),
        (None, Role.SUPER_ADMIN, Role.SUPER_ADMIN),
    ],
)
async def test_the_tokens_role_decides_and_else_the_profiles(
    supabase: SupabaseServer, settle: Callable[..., str], profile: str | None, token_role: Role | None, role: Role
) -> None:
    home = f"role-{uuid.uuid4()}"
    user_id = settle(home, role=profile)
    async with ask(supabase) as asking:
        grants = await asking.source.fetch(Principal(user_id, token_role))
        assert ("profiles" in asking.tables()) is (token_role is None)
        assert len(asking.requests) <= 3
    assert grants.role is role
    assert grants.may_use(home)
    assert grants.may_use("another") is (role is Role.SUPER_ADMIN)


# For how long


async def test_revoked_access_ends_with_the_cache_time_and_at_once_after_invalidation(
    supabase: SupabaseServer, settle: Callable[..., str]
) -> None:
    now_s = 0.0
    homes = ["revoked-1", "revoked-2"]
    users = [Principal(settle(home, appliances=("kettle",))) for home in homes]
    async with ask(supabase) as asking:
        cache = GrantCache(asking.source, ttl_s=60, clock=lambda: now_s)

        async def may_use() -> list[bool]:
            pairs = zip(users, homes, strict=True)
            return [(await cache.grants(user, PATIENT_S)).may_use(home) for user, home in pairs]

        assert await may_use() == [True, True]
        supabase.sql("delete from buildings where id like 'revoked-%'")
        now_s = 59.9
        assert await may_use() == [True, True]
        assert cache.invalidate(users[0].user_id) == 1
        assert await may_use() == [False, True]
        now_s = 60.0
        assert await may_use() == [False, False]


async def test_a_revoked_appliance_ends_too(supabase: SupabaseServer, settle: Callable[..., str]) -> None:
    user = Principal(settle("less-home", appliances=("kettle", "dryer")))
    async with ask(supabase) as asking:
        cache = GrantCache(asking.source)
        assert (await cache.grants(user, PATIENT_S)).appliances_of("less-home", ("dryer", "kettle")) == (
            "dryer",
            "kettle",
        )
        supabase.sql(
            "delete from building_appliances a using org_appliances o where o.id = a.org_appliance_id "
            "and a.building_id = 'less-home' and o.appliance_id = 'kettle'"
        )
        cache.invalidate(None)
        assert (await cache.grants(user, PATIENT_S)).appliances_of("less-home", ("dryer", "kettle")) == ("dryer",)


# Many at once


async def test_five_hundred_users_at_once_cost_one_fetch_each_and_get_their_own_buildings(
    supabase: SupabaseServer,
) -> None:
    users = [str(uuid.uuid4()) for _ in range(500)]
    rows = ",".join(f"('herd-{i}', '{user_id}')" for i, user_id in enumerate(users))
    supabase.sql(f"insert into buildings values {rows}")  # noqa: S608
    async with ask(supabase, timeout_s=5.0) as asking:
        cache = GrantCache(asking.source)
        principals = [Principal(user_id, Role.USER) for user_id in users] * 2
        answers = await asyncio.gather(*(cache.grants(principal, PATIENT_S) for principal in principals))
        assert [set(grants.buildings) for grants in answers] == [{f"herd-{i}"} for i in range(500)] * 2
        asked = [r.url.params["user_id"] for r in asking.requests if r.url.path.endswith("/buildings")]
        assert sorted(asked) == sorted(f"eq.{user_id}" for user_id in users)
        assert len(asking.requests) == 1000  # buildings and their appliances
        assert (cache.stats().fetches, cache.stats().misses, cache.stats().failures) == (500, 1000, 0)


async def test_one_user_five_hundred_times_at_once_costs_one_fetch(
    supabase: SupabaseServer, settle: Callable[..., str]
) -> None:
    user = Principal(settle("single-home", appliances=("kettle",)))
    async with ask(supabase) as asking:
        cache = GrantCache(asking.source)
        answers = await asyncio.gather(*(cache.grants(user, PATIENT_S) for _ in range(500)))
        assert all(grants.may_use("single-home") for grants in answers)
        assert asking.tables() == ["building_appliances", "buildings", "profiles"]


async def test_more_rows_than_the_server_gives_at_once_are_all_read(supabase: SupabaseServer) -> None:
    user_id, buildings, appliances = str(uuid.uuid4()), MAX_ROWS + 1, 12
    assert BUILDINGS_PER_CALL * appliances > MAX_ROWS  # so that both lists are cut
    supabase.sql(
        f"insert into org_appliances (appliance_id) select 'many-' || i from generate_series(1, {appliances}) i;"  # noqa: S608
        f"insert into buildings select 'many-' || i, '{user_id}' from generate_series(1, {buildings}) i;"
        "insert into building_appliances select b.id, a.id from buildings b, org_appliances a "
        f"where b.user_id = '{user_id}' and a.appliance_id like 'many-%';"
    )
    grants = await fetch(supabase, user_id)
    assert grants.buildings.keys() == {f"many-{i}" for i in range(1, buildings + 1)}
    assert set(grants.buildings.values()) == {frozenset(f"many-{i}" for i in range(1, appliances + 1))}


# Outages


async def test_while_postgrest_is_killed_new_users_get_503_and_remembered_ones_are_served(
    supabase: SupabaseServer, settle: Callable[..., str]
) -> None:
    known, new = settle("killed-1"), settle("killed-2")
    async with ask(supabase) as asking:
        cache = GrantCache(asking.source)
        await cache.grants(Principal(known), PATIENT_S)
        supabase.kill_rest()
        try:
            with pytest.raises(GrantSourceError, match="answered 502"):
                await asking.source.fetch(Principal(new))
            await unavailable(cache, new)
            assert (await cache.grants(Principal(known), PATIENT_S)).may_use("killed-1")
        finally:
            supabase.start_rest()
        assert (await cache.grants(Principal(new), PATIENT_S)).may_use("killed-2")
        assert cache.stats().failures == 1


async def test_a_server_that_takes_the_call_and_never_answers_is_503_within_the_fetch_time(
    supabase: SupabaseServer, settle: Callable[..., str]
) -> None:
    known, new = settle("paused-1"), settle("paused-2")
    async with ask(supabase, timeout_s=0.5) as asking:
        cache = GrantCache(asking.source)
        async with ask(supabase) as patient:
            cache_of_before = GrantCache(patient.source)
            await cache_of_before.grants(Principal(known), PATIENT_S)
            supabase.pause_rest()
            try:
                await unavailable(cache, new)
                assert (await cache_of_before.grants(Principal(known), 0)).may_use("paused-1")
            finally:
                supabase.resume_rest()


async def test_a_refused_connection_is_503(supabase: SupabaseServer) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening
        async with ask(supabase, url=f"http://127.0.0.1:{closed.getsockname()[1]}") as asking:
            await unavailable(GrantCache(asking.source), str(uuid.uuid4()))


@pytest.mark.parametrize("table", TABLES)
async def test_a_table_that_cannot_be_read_is_an_error_and_never_no_buildings(
    supabase: SupabaseServer, settle: Callable[..., str], table: str
) -> None:
    home = f"locked-{table}"
    admin = settle(home, appliances=("kettle",), role="admin")
    supabase.sql(f"revoke select on {table} from service_role")  # noqa: S608
    try:
        async with ask(supabase) as asking:
            with pytest.raises(GrantSourceError, match="answered 403"):
                await asking.source.fetch(Principal(admin))
    finally:
        supabase.sql(f"grant select on {table} to service_role")
    assert (await fetch(supabase, admin)).role is Role.ADMIN


async def test_a_wrong_key_is_an_error_and_is_shown_nowhere(
    supabase: SupabaseServer, caplog: pytest.LogCaptureFixture
) -> None:
    key = supabase.service_role_key[:-6] + "forged"
    async with ask(supabase, key=key) as asking:
        with caplog.at_level(logging.DEBUG):
            with pytest.raises(GrantSourceError, match="answered 401") as caught:
                await asking.source.fetch(Principal(str(uuid.uuid4())))
            await unavailable(GrantCache(asking.source), str(uuid.uuid4()))
        assert "grants could not be fetched" in caplog.text
        logged = caplog.text + "".join(str(vars(record)) for record in caplog.records)
        for shown in (repr(asking.source), str(caught.value), repr(caught.value), logged):
            assert key not in shown
            assert key.split(".")[2] not in shown


# Text that wants to be more than a value


@pytest.mark.parametrize("user_id", [*HOSTILE, "", "{11111111-1111-1111-1111-111111111111}", "1" * 32])
async def test_a_user_id_that_is_no_uuid_has_no_buildings_and_costs_no_call(
    supabase: SupabaseServer, settle: Callable[..., str], user_id: str
) -> None:
    async with ask(supabase) as asking:
        assert await asking.source.fetch(Principal(user_id)) == Grants(Role.USER, {})
        assert asking.requests == []


async def test_hostile_building_and_appliance_ids_are_left_out_and_disturb_nothing(
    supabase: SupabaseServer, settle: Callable[..., str]
) -> None:
    settle("hostile-other")
    user_id = settle("hostile-home", *(f"{i}{b}" for i, b in enumerate(HOSTILE)), "", appliances=(*HOSTILE, "kettle"))
    assert (await fetch(supabase, user_id)).buildings == {"hostile-home": frozenset({"kettle"})}


@pytest.mark.parametrize("value", HOSTILE)
async def test_a_hostile_value_in_a_list_finds_exactly_itself(supabase: SupabaseServer, value: str) -> None:
    supabase.sql(
        f"insert into buildings select v, gen_random_uuid() from (values ({text(value)}), ('a'), ('b')) x(v) "  # noqa: S608
        "on conflict do nothing"
    )
    key = supabase.service_role_key
    async with httpx.AsyncClient(base_url=f"{supabase.url}/rest/v1", trust_env=False, verify=TLS) as client:
        for values in ([value], [value, "b"]):
            params = {"select": "id", "id": in_list(values)}
            answer = await client.get("buildings", params=params, headers={"Authorization": f"Bearer {key}"})
            assert sorted(row["id"] for row in answer.raise_for_status().json()) == sorted(values)


# The documents


def test_the_tables_of_the_documentation_are_those_of_the_schema() -> None:
    document = (Path(__file__).parents[2] / "docs" / "supabase.md").read_text(encoding="utf-8")
    documented = re.findall(r"create table \w+ \(.*?\n\);", document, re.DOTALL)
    assert {re.findall(r"\w+", statement)[2] for statement in documented} == set(TABLES)
    schema = SCHEMA.read_text(encoding="utf-8")
    assert all(statement in schema for statement in documented)
