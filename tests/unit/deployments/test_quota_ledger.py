"""The ledger in memory, its clock in the test's hand."""

from __future__ import annotations

import pickle
import random

import pytest

from deployments.contracts import QuotaState, QuotaUse
from deployments.quota_ledger import BoundedMemoryStorage, LedgerUnavailable, QuotaLedger

WINDOW_S = 60


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> QuotaLedger:
    return QuotaLedger({"user": 60, "ip": 120}, clock=clock)


async def say(ledger: QuotaLedger, used: int, key: str = "ann", quota: str = "user") -> QuotaState:
    (state,) = await ledger.report([QuotaUse(quota, key, used)])
    return state


async def test_what_is_used_is_taken_from_what_is_left(ledger: QuotaLedger, clock: Clock) -> None:
    assert await say(ledger, 0) == QuotaState(60, 0.0)
    assert await say(ledger, 3) == QuotaState(57, 60.0)
    clock.now += 10
    assert await say(ledger, 7) == QuotaState(50, 50.0)
    assert await say(ledger, 0) == QuotaState(50, 50.0)


async def test_many_keys_and_quotas_are_answered_in_order(ledger: QuotaLedger) -> None:
    states = await ledger.report(
        [QuotaUse("user", "a", 1), QuotaUse("ip", "a", 2), QuotaUse("user", "b", 0), QuotaUse("user", "a", 4)]
    )
    assert [state.remaining for state in states] == [59, 118, 60, 55]
    assert await ledger.report([]) == ()


async def test_places_fall_free_one_by_one(ledger: QuotaLedger, clock: Clock) -> None:
    for _ in range(60):
        await say(ledger, 1)
        clock.now += 0.5
    state = await say(ledger, 0)
    assert state == QuotaState(0, 30.0)
    clock.now += state.reset_after_s - 0.01
    assert (await say(ledger, 0)).remaining == 0
    clock.now += 0.01
    assert (await say(ledger, 0)).remaining == 1
    clock.now += 10
    assert (await say(ledger, 0)).remaining == 21


async def test_no_window_hides_a_second_burst_at_its_edge(ledger: QuotaLedger, clock: Clock) -> None:
    await say(ledger, 1)
    clock.now += 59
    assert (await say(ledger, 59)).remaining == 0
    clock.now += 1
    assert (await say(ledger, 0)).remaining == 1  # a fixed window would give 60
    clock.now += 58.99
    assert (await say(ledger, 0)).remaining == 1
    clock.now += 0.01
    assert (await say(ledger, 0)).remaining == 60


async def test_a_report_larger_than_what_is_left_exhausts_the_key(ledger: QuotaLedger, clock: Clock) -> None:
    await say(ledger, 50)
    clock.now += 1
    # 20 more: ten beyond the quota. Empty until the count is 59 again, which is when the fifty are gone.
    assert await say(ledger, 20) == QuotaState(0, 59.0)
    clock.now += 59
    assert await say(ledger, 0) == QuotaState(40, 1.0)


async def test_what_was_granted_beyond_the_quota_is_paid_back(ledger: QuotaLedger, clock: Clock) -> None:
    for _ in range(60):
        await say(ledger, 1)
        clock.now += 0.5
    await say(ledger, 12)
    state = await say(ledger, 0)
    # Twelve in excess: the thirteenth place that falls free is the first to have, 12 * 0.5 s after the first.
    assert state == QuotaState(0, 36.0)
    clock.now += state.reset_after_s
    assert (await say(ledger, 0)).remaining == 1


@pytest.mark.parametrize("used", [61, 120, 121, 10**9])
async def test_a_huge_report_is_cut_and_never_lost(ledger: QuotaLedger, clock: Clock, used: int) -> None:
    assert await say(ledger, used) == QuotaState(0, 60.0)
    assert await say(ledger, used) == QuotaState(0, 60.0)
    clock.now += 60
    assert await say(ledger, 0) == QuotaState(60, 0.0)


async def test_what_of_a_report_does_not_fit_is_cut_off_and_the_rest_counts(ledger: QuotaLedger, clock: Clock) -> None:
    await say(ledger, 100)
    clock.now += 1
    await say(ledger, 50)  # 120 are kept: twenty of these
    clock.now += 59
    assert await say(ledger, 0) == QuotaState(40, 1.0)


async def test_it_counts_as_a_list_of_times_would(ledger: QuotaLedger, clock: Clock) -> None:
    choose = random.Random(3)  # noqa: S311 - repeatable, not a secret
    times: list[float] = []
    for _ in range(3000):
        clock.now += choose.choice([0, 0.125, 1, 5])
        used = choose.choice([0, 0, 1, 1, 2, 5])
        times = [time for time in times if time > clock.now - WINDOW_S]
        times += [clock.now] * used
        state = await say(ledger, used)
        assert state.remaining == max(0, 60 - len(times))
        if len(times) >= 60:
            assert state.reset_after_s == times[len(times) - 60] + WINDOW_S - clock.now
        elif times:
            assert state.reset_after_s == times[0] + WINDOW_S - clock.now
        else:
            assert state.reset_after_s == 0


async def test_fifty_thousand_keys_leave_a_bounded_state(clock: Clock) -> None:
    ledger = QuotaLedger({"ip": 120}, max_keys=2000, clock=clock)
    for start in range(0, 50_000, 200):
        await ledger.report([QuotaUse("ip", str(number), 1) for number in range(start, start + 200)])
    stats = ledger.stats()
    assert (stats.kind, stats.keys, stats.evicted_total) == ("memory", 2000, 48_000)
    assert (stats.reports_total, stats.uses_total, stats.failures_total) == (250, 50_000, 0)
    memory = ledger._memory
    assert memory is not None
    assert len(memory._windows) == 2000
    assert [len(table) for table in (memory.events, memory.locks, memory.storage, memory.expirations)] == [0] * 4
    assert (await say(ledger, 0, "49999", "ip")).remaining == 119
    assert (await say(ledger, 0, "0", "ip")).remaining == 120  # evicted: from a full quota again


async def test_the_key_idle_longest_is_evicted(clock: Clock) -> None:
    ledger = QuotaLedger({"user": 60}, max_keys=2, clock=clock)
    for key in ("a", "b", "a", "c"):
        await say(ledger, 1, key)
    assert [(await say(ledger, 0, key)).remaining for key in ("a", "b", "c")] == [58, 60, 59]


async def test_keys_are_forgotten_after_the_window(ledger: QuotaLedger, clock: Clock) -> None:
    for number in range(100):
        await say(ledger, 1, str(number))
    await say(ledger, 0, "only asked")
    assert ledger.stats().keys == 100
    clock.now += WINDOW_S
    assert await say(ledger, 0, "5") == QuotaState(60, 0.0)  # read while it is old
    await say(ledger, 1, "later")
    stats = ledger.stats()
    assert (stats.keys, stats.evicted_total) == (1, 0)


@pytest.mark.parametrize("uses", [[QuotaUse("admin", "a", 1)], [QuotaUse("user", "a", 5), QuotaUse("user", "a", -1)]])
async def test_a_report_that_makes_no_sense_counts_nothing(ledger: QuotaLedger, uses: list[QuotaUse]) -> None:
    with pytest.raises(ValueError, match=r"admin|-1"):
        await ledger.report(uses)
    assert await say(ledger, 0, "a") == QuotaState(60, 0.0)


@pytest.mark.parametrize(
    ("limits", "settings"), [({"user": 0}, {}), ({"user": 1}, {"window_s": 0}), ({"user": 1}, {"max_keys": 0})]
)
def test_unusable_settings_are_refused(limits: dict[str, int], settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        QuotaLedger(limits, **settings)  # type: ignore[arg-type]


def test_a_url_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        QuotaLedger({"user": 60}, redis_url="localhost:6379")


async def test_storage_of_its_own_forgets_one_key(clock: Clock) -> None:
    storage = BoundedMemoryStorage(10, clock)
    assert await storage.acquire_entry("a", 1, WINDOW_S)
    assert not await storage.acquire_entry("a", 1, WINDOW_S)
    await storage.clear("a")
    await storage.clear("a")
    assert await storage.acquire_entry("a", 1, WINDOW_S)


def test_the_librarys_own_storage_keeps_its_url() -> None:
    from limits.aio.storage import MemoryStorage
    from limits.storage import storage_from_string

    assert type(storage_from_string("async+memory://")) is MemoryStorage


async def test_an_unreachable_redis_is_a_typed_error_that_can_travel() -> None:
    ledger = QuotaLedger({"user": 60}, redis_url="redis://:hunter2@127.0.0.1:1/0")
    with pytest.raises(LedgerUnavailable, match="ConnectionError") as caught:
        await say(ledger, 1)
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert type(copy) is LedgerUnavailable
    assert str(copy) == str(caught.value)
    assert "hunter2" not in str(copy)
    assert ledger.stats().failures_total == 1
    await ledger.close()
