"""The cache of grants: one fetch for all who ask, nothing believed for too long, no failure taken for an answer."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.access.grants import ALL, GrantCache, Grants, GrantSourceError, is_requestable_id
from serve_app.access.principal import Principal, Role
from serve_app.problems import Problem, Problems

ALICE, BOB = Principal("alice"), Principal("bob")


class Source:
    """A source whose answers, failures and pace a test decides."""

    def __init__(self) -> None:
        self.asked: list[Principal] = []
        self.buildings: dict[str, frozenset[str]] = {"home": frozenset({"kettle"})}
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self._arrivals = asyncio.Semaphore(0)
        self.closed = False

    async def fetch(self, principal: Principal) -> Grants:
        self.asked.append(principal)
        self._arrivals.release()
        read = dict(self.buildings)  # as the tables are when the question arrives
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Grants(principal.token_role or Role.USER, read)

    async def was_asked(self) -> None:
        """Waits for a question, for a test that changes something after it has arrived."""
        async with asyncio.timeout(5):
            await self._arrivals.acquire()

    async def aclose(self) -> None:
        self.closed = True


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(source: Source, clock: Clock) -> GrantCache:
    return GrantCache(source, ttl_s=60, clock=clock)


async def refused(cache: GrantCache, principal: Principal = ALICE, timeout_s: float = 5) -> Problem:
    with pytest.raises(Problem) as caught:
        await cache.grants(principal, timeout_s)
    assert caught.value.kind is Problems.GRANTS_UNAVAILABLE
    assert (caught.value.kind.value.status, caught.value.kind.value.retryable) == (503, True)
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s >= 1
    return caught.value


# What grants say


def test_only_granted_buildings_and_appliances_may_be_used_in_the_order_they_are_served() -> None:
    grants = Grants(Role.USER, {"home": frozenset({"kettle", "dryer", "unserved"}), "barn": frozenset()})
    assert grants.may_use("home")
    assert grants.may_use("barn")
    assert not grants.may_use("elsewhere")
    assert grants.appliances_of("home", ("dryer", "fridge", "kettle")) == ("dryer", "kettle")
    assert grants.appliances_of("barn", ("kettle",)) == ()
    assert grants.appliances_of("elsewhere", ("kettle",)) == ()


def test_an_admin_may_use_no_more_buildings_than_a_user_and_a_super_admin_every_one() -> None:
    assert not Grants(Role.ADMIN, {}).may_use("home")
    assert Grants(Role.ADMIN, {}).appliances_of("home", ("kettle",)) == ()
    assert Grants(Role.SUPER_ADMIN, {}).may_use("home")
    assert Grants(Role.SUPER_ADMIN, {}).appliances_of("home", ("kettle", "fridge")) == ("kettle", "fridge")


def test_a_star_means_every_building_or_every_appliance() -> None:
    grants = Grants(Role.USER, {ALL: frozenset({"kettle"}), "home": frozenset({ALL})})
    assert grants.may_use("anywhere")
    assert grants.appliances_of("anywhere", ("fridge", "kettle")) == ("kettle",)
    assert grants.appliances_of("home", ("fridge", "kettle")) == ("fridge", "kettle")


def test_grants_cannot_be_changed_by_one_of_the_requests_that_share_them() -> None:
    given_buildings = {"home": frozenset({"kettle"})}
    grants = Grants(Role.USER, given_buildings)
    given_buildings["barn"] = frozenset()
    assert not grants.may_use("barn")
    with pytest.raises(TypeError):
        grants.buildings["barn"] = frozenset()  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        grants.role = Role.SUPER_ADMIN  # type: ignore[misc]
    assert grants == Grants(Role.USER, {"home": frozenset({"kettle"})})


@pytest.mark.parametrize("value", ["a", "home-1", "A_b-9", "x" * 64])
def test_ids_that_a_route_accepts(value: str) -> None:
    assert is_requestable_id(value)


@pytest.mark.parametrize("value", ["", "x" * 65, "home\n", "ho me", "*", "a,b", "a)", '"a"', "ä", "a%2C", "a.b"])
def test_ids_that_no_route_accepts(value: str) -> None:
    assert not is_requestable_id(value)


# How long they are believed


async def test_within_the_time_the_source_is_asked_once_and_after_it_again(
    cache: GrantCache, source: Source, clock: Clock
) -> None:
    first = await cache.grants(ALICE, 5)
    clock.now_s += 59.9
    assert await cache.grants(ALICE, 5) is first
    source.buildings = {}
    clock.now_s += 0.1
    assert not (await cache.grants(ALICE, 5)).may_use("home")
    assert (cache.stats().hits, cache.stats().misses, cache.stats().fetches) == (1, 2, 2)


async def test_the_time_counts_from_when_the_fetch_began(cache: GrantCache, source: Source, clock: Clock) -> None:
    source.gate.clear()
    asking = asyncio.create_task(cache.grants(ALICE, 5))
    await source.was_asked()
    clock.now_s += 40
    source.gate.set()
    await asking
    clock.now_s += 20
    await cache.grants(ALICE, 5)
    assert len(source.asked) == 2


async def test_another_token_role_is_another_question(cache: GrantCache) -> None:
    assert (await cache.grants(Principal("alice", Role.ADMIN), 5)).role is Role.ADMIN
    assert (await cache.grants(ALICE, 5)).role is Role.USER
    assert cache.stats().entries == 2
    assert cache.invalidate("alice") == 2


async def test_without_a_lifetime_nothing_is_remembered(source: Source, clock: Clock) -> None:
    cache = GrantCache(source, ttl_s=0, clock=clock)
    await cache.grants(ALICE, 5)
    await cache.grants(ALICE, 5)
    assert (len(source.asked), cache.stats().entries) == (2, 0)


async def test_the_least_recently_used_goes_first(source: Source, clock: Clock) -> None:
    cache = GrantCache(source, max_entries=2, clock=clock)
    for principal in (ALICE, BOB, ALICE, Principal("carol")):
        await cache.grants(principal, 5)
    assert (cache.stats().entries, cache.stats().evictions) == (2, 1)
    source.asked.clear()
    await cache.grants(ALICE, 5)
    assert source.asked == []
    await cache.grants(BOB, 5)
    assert source.asked == [BOB]


@given(st.lists(st.integers(0, 12), max_size=60))
def test_the_bound_holds_whoever_asks(users: list[int]) -> None:
    async def ask() -> None:
        cache = GrantCache(Source(), max_entries=5)
        for user in users:
            await cache.grants(Principal(str(user)), 5)
        stats = cache.stats()
        assert stats.entries == min(5, len(set(users)))
        assert stats.hits + stats.misses == len(users)
        assert stats.fetches - stats.evictions == stats.entries

    asyncio.run(ask())


@pytest.mark.parametrize(("ttl_s", "max_entries"), [(-1, 10), (60, 0)])
def test_bounds_that_make_no_sense_are_refused(source: Source, ttl_s: float, max_entries: int) -> None:
    with pytest.raises(ValueError, match="ttl_s"):
        GrantCache(source, ttl_s=ttl_s, max_entries=max_entries)


# One fetch for all


async def test_five_hundred_who_ask_at_once_share_one_fetch(cache: GrantCache, source: Source) -> None:
    source.gate.clear()
    asking = [asyncio.create_task(cache.grants(ALICE, 5)) for _ in range(500)]
    await source.was_asked()
    source.gate.set()
    answers = await asyncio.gather(*asking)
    assert len(source.asked) == 1
    assert all(answer is answers[0] for answer in answers)
    assert (cache.stats().fetches, cache.stats().misses) == (1, 500)


async def test_a_caller_that_leaves_or_runs_out_of_time_leaves_the_fetch_to_the_others(
    cache: GrantCache, source: Source
) -> None:
    source.gate.clear()
    leaver, stayer = (asyncio.create_task(cache.grants(ALICE, 5)) for _ in range(2))
    await source.was_asked()
    leaver.cancel()
    await refused(cache, timeout_s=0.01)
    with pytest.raises(asyncio.CancelledError):
        await leaver
    source.gate.set()
    assert (await stayer).may_use("home")
    assert len(source.asked) == 1


async def test_a_fetch_that_everyone_gave_up_on_still_fills_the_cache(cache: GrantCache, source: Source) -> None:
    source.gate.clear()
    await refused(cache, timeout_s=0.01)
    source.gate.set()
    await asyncio.sleep(0.01)
    await cache.grants(ALICE, 5)
    assert (len(source.asked), cache.stats().hits) == (1, 1)


# Failures


@pytest.mark.parametrize("error", [GrantSourceError("away"), RuntimeError("a bug")])
async def test_a_failure_is_503_for_all_who_wait_and_is_not_remembered(
    cache: GrantCache, source: Source, error: Exception
) -> None:
    source.error = error
    source.gate.clear()
    asking = [asyncio.create_task(refused(cache)) for _ in range(20)]
    await source.was_asked()
    source.gate.set()
    problems = await asyncio.gather(*asking)
    assert len({id(problem) for problem in problems}) == 20
    assert "away" not in problems[0].detail
    assert "bug" not in problems[0].detail
    assert (cache.stats().failures, cache.stats().entries) == (1, 0)
    source.error = None
    assert (await cache.grants(ALICE, 5)).may_use("home")


async def test_who_is_remembered_is_served_while_the_source_fails(
    cache: GrantCache, source: Source, clock: Clock
) -> None:
    await cache.grants(ALICE, 5)
    source.error = GrantSourceError("away")
    clock.now_s += 59
    assert (await cache.grants(ALICE, 5)).may_use("home")
    await refused(cache, BOB)
    clock.now_s += 1
    await refused(cache, ALICE)  # not served for longer because the source is down


async def test_the_log_tells_an_outage_from_a_bug(
    cache: GrantCache, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    source.error = GrantSourceError("Supabase answered 503")
    with caplog.at_level(logging.WARNING, logger="nilm"):
        await refused(cache)
        source.error = KeyError("id")
        await refused(cache)
    assert [(r.levelname, bool(r.exc_info)) for r in caplog.records] == [("WARNING", False), ("ERROR", True)]
    assert caplog.records[0].fields == {"user_id": "alice", "reason": "Supabase answered 503"}  # type: ignore[attr-defined]


# Invalidation


async def test_invalidating_one_user_or_everyone_says_how_many_went(cache: GrantCache, source: Source) -> None:
    for principal in (ALICE, BOB):
        await cache.grants(principal, 5)
    source.buildings = {}
    assert (cache.invalidate("alice"), cache.invalidate("alice"), cache.invalidate("nobody")) == (1, 0, 0)
    assert not (await cache.grants(ALICE, 5)).may_use("home")
    assert (await cache.grants(BOB, 5)).may_use("home")
    assert cache.invalidate(None) == 2
    assert (cache.stats().entries, cache.stats().invalidated) == (0, 3)


@pytest.mark.parametrize("whom", ["alice", None])
async def test_a_fetch_that_ran_when_access_was_revoked_serves_nobody_after(
    cache: GrantCache, source: Source, whom: str | None
) -> None:
    source.gate.clear()
    before = asyncio.create_task(cache.grants(ALICE, 5))
    await source.was_asked()
    source.buildings = {}
    cache.invalidate(whom)
    after = asyncio.create_task(cache.grants(ALICE, 5))
    await source.was_asked()
    source.gate.set()
    assert (await before).may_use("home")  # asked before the revocation
    assert not (await after).may_use("home")
    assert not (await cache.grants(ALICE, 5)).may_use("home")
    assert len(source.asked) == 2


async def test_a_disowned_fetch_that_ends_last_does_not_overwrite_the_new_answer(
    cache: GrantCache, source: Source
) -> None:
    slow = source.gate = asyncio.Event()
    before = asyncio.create_task(cache.grants(ALICE, 5))
    await source.was_asked()
    cache.invalidate("alice")
    source.buildings, source.gate = {}, asyncio.Event()
    source.gate.set()
    assert not (await cache.grants(ALICE, 5)).may_use("home")
    slow.set()
    assert (await before).may_use("home")
    assert not (await cache.grants(ALICE, 5)).may_use("home")
    assert (len(source.asked), cache.stats().hits) == (2, 1)


async def test_closing_ends_the_fetches_under_way_and_closes_the_source(cache: GrantCache, source: Source) -> None:
    source.gate.clear()
    asking = asyncio.create_task(refused(cache))
    await source.was_asked()
    await cache.aclose()
    await asking
    assert source.closed
