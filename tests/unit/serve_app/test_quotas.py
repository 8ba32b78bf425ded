"""Several replicas' quotas over one ledger, on a loop whose time jumps: minutes of traffic in a moment of ours."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from itertools import pairwise
from typing import Any

import pytest

from deployments.contracts import QuotaState, QuotaUse
from deployments.quota_ledger import QuotaLedger
from serve_app.access.quota_window import ahead
from serve_app.access.quotas import (
    PATIENCE_S,
    USES_PER_REPORT,
    SharedQuotas,
    Verdict,
    policy_header,
    rate_limited,
    state_header,
)
from serve_app.problems import Problems, problem_response
from tests.unit.handles import outcome_of

QUOTA, WINDOW_S = 60, 60
LOGGER = logging.getLogger("nilm.test-quotas")


class JumpingLoop(asyncio.SelectorEventLoop):
    """Instead of sleeping, its time jumps to the next timer. Waiting for nothing at all is a lost wake-up: it fails."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0
        select = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None = None) -> Any:
            if timeout is None:
                raise AssertionError("everything waits and nothing will ever happen")
            self._now += max(0.0, timeout)
            return select(0)

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now


def run(test: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(test)


def now() -> float:
    return asyncio.get_running_loop().time()


class Fleet:
    """Replicas over one ledger. `fault`, when set, is run in place of the ledger."""

    def __init__(self, replicas: int = 1, *, limit: int = QUOTA, seed: int = 0, **settings: Any) -> None:
        self.random = random.Random(seed)  # noqa: S311 - repeatable, not a secret
        self.latency_s = (0.001, 0.003)
        self.ledger = QuotaLedger({"user": limit, "ip": 2 * limit}, clock=now)
        self.reports: list[tuple[QuotaUse, ...]] = []
        self.in_flight = 0
        self.fault: Callable[[], Awaitable[tuple[QuotaState, ...]]] | None = None
        self.limit = limit
        self.granted: list[float] = []
        self.replicas = [
            SharedQuotas(
                self._reporter(), {"user": limit, "ip": 2 * limit}, WINDOW_S, clock=now, logger=LOGGER, **settings
            )
            for _ in range(replicas)
        ]

    def _reporter(self) -> Callable[[tuple[QuotaUse, ...]], Awaitable[tuple[QuotaState, ...]]]:
        busy = False

        async def report(uses: tuple[QuotaUse, ...]) -> tuple[QuotaState, ...]:
            nonlocal busy
            assert not busy, "a replica has two reports in flight"
            busy = True
            try:
                self.reports.append(uses)
                await asyncio.sleep(self.random.uniform(*self.latency_s))
                if self.fault is not None:
                    return await self.fault()
                states = await self.ledger.report(uses)
                await asyncio.sleep(self.random.uniform(*self.latency_s))
                return states
            finally:
                busy = False

        return report

    async def take(self, replica: int = 0, key: str = "ann") -> Verdict:
        verdict = await outcome_of(self.replicas[replica].take("user", key))
        if verdict.allowed:
            self.granted.append(now())
        return verdict

    @staticmethod
    def digest(quota: str = "user", key: str = "ann") -> str:
        """What the ledger knows a key by."""
        return hashlib.sha256(f"{quota}\0{key}".encode()).hexdigest()[:32]

    def most_in_a_window(self) -> int:
        """The most grants in any half-open window."""
        times, first, most = sorted(self.granted), 0, 0
        for last, time in enumerate(times):
            while times[first] <= time - WINDOW_S:
                first += 1
            most = max(most, last - first + 1)
        return most

    def bound(self) -> int:
        n = len(self.replicas)
        return min(n * self.limit, self.limit + n * ahead(self.limit) - 1)

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.close()


def settled(fleet: Fleet) -> Awaitable[None]:
    """Long enough for every report to be answered."""
    return asyncio.sleep(1.0)


async def _even(fleet: Fleet) -> None:
    for number in range(1500):
        await fleet.take(number % len(fleet.replicas))
        await asyncio.sleep(0.2)


async def _bursts(fleet: Fleet) -> None:
    for _ in range(20):
        count = fleet.random.randrange(1, 80)
        await asyncio.gather(*(fleet.take(fleet.random.randrange(len(fleet.replicas))) for _ in range(count)))
        await asyncio.sleep(fleet.random.uniform(0, 30))


async def _impatient(fleet: Fleet) -> None:
    """Every replica is asked again as soon as it said a place falls free, and often in between."""

    async def client(replica: int) -> None:
        end = now() + 300
        while now() < end:
            verdict = await fleet.take(replica)
            if not verdict.allowed:
                await asyncio.sleep(min(verdict.reset_after_s, fleet.random.uniform(0.001, 2)))

    await asyncio.gather(*(client(number) for number in range(len(fleet.replicas)) for _ in range(3)))


async def _edges(fleet: Fleet) -> None:
    """All at once, at the end of each window and at the start of the next."""
    for _ in range(5):
        for pause_s in (59.9, 0.2):
            await asyncio.gather(*(fleet.take(n % len(fleet.replicas)) for n in range(100)))
            await asyncio.sleep(pause_s)


async def _dense(fleet: Fleet) -> None:
    """Every replica is asked some times while each of its reports is under way."""

    async def client(replica: int) -> None:
        end = now() + 70
        while now() < end:
            await fleet.take(replica)
            await asyncio.sleep(fleet.random.uniform(0, 0.02))

    await asyncio.gather(*(client(number) for number in range(len(fleet.replicas))))


TRAFFIC = {"dense": _dense, "even": _even, "bursts": _bursts, "impatient": _impatient, "edges": _edges}


@pytest.mark.parametrize("latency_s", [(0.0005, 0.002), (0.001, 0.12)], ids=["fast", "slow"])
@pytest.mark.parametrize("replicas", [1, 2, 5, 10])
@pytest.mark.parametrize("traffic", TRAFFIC)
def test_replicas_together_never_pass_the_stated_bound(
    traffic: str, replicas: int, latency_s: tuple[float, float]
) -> None:
    async def test() -> None:
        fleet = Fleet(replicas, seed=replicas)
        fleet.latency_s = latency_s
        await TRAFFIC[traffic](fleet)
        assert not any(replica.alone for replica in fleet.replicas)
        most = fleet.most_in_a_window()
        print(f"{traffic}: {replicas} replicas, {latency_s} s: {most} of at most {fleet.bound()}")
        assert most <= fleet.bound()
        # And the quota is not eaten: who asks all the time gets all of it.
        assert most >= (QUOTA if traffic != "bursts" else 1)

    run(test())


@pytest.mark.parametrize("limit", [1, 2, 7, 400])
def test_the_bound_holds_for_small_and_large_quotas(limit: int) -> None:
    async def test() -> None:
        fleet = Fleet(4, limit=limit)
        fleet.latency_s = (0.001, 0.1)
        await _impatient(fleet)
        assert limit <= fleet.most_in_a_window() <= fleet.bound()

    run(test())


@pytest.mark.parametrize("replicas", [2, 5])
def test_three_hundred_requests_of_one_user_in_a_minute(replicas: int) -> None:
    async def test() -> None:
        fleet = Fleet(replicas)
        told: list[list[Verdict]] = [[] for _ in range(replicas)]
        for number in range(300):
            told[number % replicas].append(await fleet.take(number % replicas))
            await asyncio.sleep(0.195)
        assert QUOTA <= len(fleet.granted) <= fleet.bound()
        for verdicts in told:
            remaining = [verdict.remaining for verdict in verdicts]
            assert all(before >= after for before, after in pairwise(remaining)), remaining
            assert remaining[-1] == 0
            for number, verdict in enumerate(verdicts):
                assert (verdict.quota, verdict.limit, verdict.window_s) == ("user", QUOTA, WINDOW_S)
                # The first place falls free when the first grant of all is a window old, and not much later.
                asked_at_s = 0.195 * (number * replicas)
                assert WINDOW_S - asked_at_s - 1 <= verdict.reset_after_s <= WINDOW_S
                assert verdict.allowed or verdict.remaining == 0

    run(test())


def test_what_is_used_slides_out_one_by_one_and_not_at_an_edge() -> None:
    async def test() -> None:
        fleet = Fleet()
        for number in range(60):  # one a second, 59 s in all
            assert (await fleet.take()).remaining == 59 - number
            await asyncio.sleep(1)
        assert [(await fleet.take()).allowed for _ in range(60)].count(True) <= 1
        assert fleet.most_in_a_window() <= 60
        await asyncio.sleep(10)
        assert 9 <= [(await fleet.take()).allowed for _ in range(60)].count(True) <= 11

    run(test())


@pytest.mark.parametrize("replicas", [1, 3])
def test_who_honours_retry_after_is_granted(replicas: int) -> None:
    async def test() -> None:
        fleet = Fleet(replicas, seed=7)
        fleet.latency_s = (0.001, 0.05)
        tries: list[int] = []
        for number in range(600):
            verdict = await fleet.take(number % replicas)
            tries.append(0)
            while not verdict.allowed:
                seconds = int(rate_limited(verdict).headers["Retry-After"])
                assert seconds >= max(1, verdict.reset_after_s)
                await asyncio.sleep(seconds)
                verdict = await fleet.take(number % replicas)
                tries[-1] += 1
            await asyncio.sleep(fleet.random.uniform(0, 0.5))
        retried = [count for count in tries if count]
        assert len(retried) > 20
        # With several replicas a grant that another one had not reported yet can cost one more try, rarely.
        assert max(retried) <= (1 if replicas == 1 else 2)
        assert retried.count(1) >= 0.8 * len(retried)

    run(test())


def test_the_common_path_waits_for_nothing() -> None:
    async def test() -> None:
        fleet = Fleet()
        fleet.latency_s = (0.1, 0.1)
        before = now()
        for _ in range(ahead(QUOTA)):
            assert (await fleet.take()).allowed
        assert now() == before
        assert (await fleet.take()).allowed  # the one after what may be granted ahead
        assert now() - before == pytest.approx(0.2)

    run(test())


def test_all_keys_go_in_one_call_and_a_lone_request_at_once() -> None:
    async def test() -> None:
        fleet = Fleet()
        await fleet.take(key="first")
        before = now()
        for _ in range(3):  # turns of the loop, no time
            await asyncio.sleep(0)
        assert now() == before
        assert [len(uses) for uses in fleet.reports] == [1]
        for number in range(50):
            await fleet.take(key=f"user-{number}")
        await settled(fleet)
        assert [len(uses) for uses in fleet.reports] == [1, 50]
        assert {use.used for uses in fleet.reports for use in uses} == {1}

    run(test())


def test_a_large_number_of_keys_is_split() -> None:
    async def test() -> None:
        fleet = Fleet()
        count = 2 * USES_PER_REPORT + 10
        for number in range(count):
            await fleet.take(key=str(number))
        await settled(fleet)
        assert [len(uses) for uses in fleet.reports] == [USES_PER_REPORT, USES_PER_REPORT, 10]

    run(test())


def test_who_waits_goes_before_the_rest_of_a_long_queue() -> None:
    async def test() -> None:
        fleet = Fleet()
        fleet.latency_s = (0.05, 0.05)
        for number in range(20 * USES_PER_REPORT):
            await fleet.take(key=str(number))
        before = now()
        for _ in range(ahead(QUOTA) + 1):
            assert (await fleet.take()).allowed
        assert now() - before <= 0.2 + 1e-6  # the report in flight, then the one that is waited for

    run(test())


def test_keys_are_hashed_and_apart_per_quota() -> None:
    async def test() -> None:
        fleet = Fleet()
        await outcome_of(fleet.replicas[0].take("user", "ann"))
        await outcome_of(fleet.replicas[0].take("ip", "ann"))
        await outcome_of(fleet.replicas[0].take("user", "\ud800" * 10_000))
        await settled(fleet)
        keys = [use.key for uses in fleet.reports for use in uses]
        assert len(set(keys)) == 3
        assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)
        with pytest.raises(ValueError, match="admin"):
            await outcome_of(fleet.replicas[0].take("admin", "ann"))

    run(test())


def test_a_key_that_was_empty_is_asked_for_before_it_is_granted_again() -> None:
    async def test() -> None:
        fleet = Fleet(2)
        await fleet.ledger.report([QuotaUse("user", fleet.digest(), QUOTA)])
        await fleet.take()
        await settled(fleet)
        refused = await fleet.take()
        assert not refused.allowed
        # In the moment places fall free, somebody else takes them all.
        await asyncio.sleep(refused.reset_after_s)
        await fleet.ledger.report([QuotaUse("user", fleet.digest(), QUOTA)])
        assert not (await fleet.take()).allowed

    run(test())


def test_a_refused_key_costs_no_report() -> None:
    async def test() -> None:
        fleet = Fleet(2)
        for number in range(100):
            await fleet.take(number % 2)
        await settled(fleet)
        reports, before = len(fleet.reports), now()
        for number in range(1000):
            assert not (await fleet.take(number % 2)).allowed
        assert now() == before
        await settled(fleet)
        assert len(fleet.reports) == reports

    run(test())


def test_a_burst_waits_in_order_and_all_are_answered() -> None:
    async def test() -> None:
        fleet = Fleet()
        fleet.latency_s = (0.01, 0.01)
        order: list[int] = []

        async def one(number: int) -> bool:
            verdict = await fleet.take()
            order.append(number)
            return verdict.allowed

        before = now()
        verdicts = await asyncio.gather(*(one(number) for number in range(500)))
        assert verdicts == [True] * QUOTA + [False] * 440
        assert order == sorted(order)
        assert now() - before <= 21 * 0.02 + 1e-6  # 21 reports, as documented
        assert not fleet.replicas[0].alone

    run(test())


def test_cancelled_waiters_take_nothing_from_the_others() -> None:
    async def test() -> None:
        fleet = Fleet()
        fleet.latency_s = (0.05, 0.05)
        tasks = [asyncio.create_task(fleet.take()) for _ in range(50)]
        await asyncio.sleep(0.01)
        for task in tasks[3::2]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[3:]].count(True) == 24
        assert all(o.allowed for o in outcomes if isinstance(o, Verdict))
        await settled(fleet)
        # Those that were cancelled while they waited have used nothing.
        assert (await fleet.take()).remaining == QUOTA - len(fleet.granted)

    run(test())


def test_a_cancelled_first_waiter_leaves_the_report_running() -> None:
    async def test() -> None:
        fleet = Fleet()
        fleet.latency_s = (0.05, 0.05)
        for _ in range(3):
            await fleet.take()
        waiter = asyncio.create_task(fleet.take())
        await asyncio.sleep(0.01)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert (await fleet.take()).allowed
        await settled(fleet)
        assert (await fleet.take()).remaining == QUOTA - 5

    run(test())


async def _refused() -> tuple[QuotaState, ...]:
    raise ConnectionError("the coordinator is away")


async def _hangs() -> tuple[QuotaState, ...]:
    await asyncio.sleep(3600)
    return ()


async def _short() -> tuple[QuotaState, ...]:
    return ()


async def _not_a_number() -> tuple[QuotaState, ...]:
    return (QuotaState(1, float("nan")),)


async def _cancels() -> tuple[QuotaState, ...]:
    raise asyncio.CancelledError


FAULTS = [_refused, _hangs, _short, _not_a_number, _cancels]


@pytest.mark.parametrize("fault", FAULTS)
def test_without_the_ledger_each_replica_limits_by_itself(
    fault: Callable[[], Awaitable[tuple[QuotaState, ...]]], caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        fleet = Fleet(3)
        fleet.fault = fault
        before = now()
        for number in range(300):
            verdict = await fleet.take(number % 3)
        assert now() - before <= 2 * PATIENCE_S, "an outage is waited for once, not by every request"
        assert len(fleet.granted) == 3 * QUOTA
        assert not verdict.allowed
        assert verdict.reset_after_s == pytest.approx(WINDOW_S, abs=1)
        assert all(replica.alone for replica in fleet.replicas)
        await asyncio.sleep(30)
        assert not (await fleet.take()).allowed
        await asyncio.sleep(31)
        assert (await fleet.take()).allowed
        assert fleet.most_in_a_window() <= 3 * QUOTA
        assert [r.message for r in caplog.records].count("quota ledger gone, limits per replica") == 3
        await fleet.close()

    with caplog.at_level(logging.INFO, LOGGER.name):
        run(test())


@pytest.mark.parametrize("fault", FAULTS)
def test_it_recovers_by_itself_and_reports_what_it_granted_meanwhile(
    fault: Callable[[], Awaitable[tuple[QuotaState, ...]]], caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        fleet = Fleet(2)
        fleet.fault = fault
        for _ in range(40):
            assert (await fleet.take(0)).allowed
        fleet.fault = None
        await asyncio.sleep(12)  # the hanging call is given up, and the longest pause between two tries passes
        assert not fleet.replicas[0].alone
        assert [r.message for r in caplog.records].count("quota ledger back, limits shared again") == 1
        # The other replica hears of the forty.
        remaining = [(await fleet.take(1)).remaining for _ in range(10)][-1]
        assert remaining <= QUOTA - 50
        await fleet.close()

    with caplog.at_level(logging.INFO, LOGGER.name):
        run(test())


def test_a_ledger_that_is_always_a_little_slow_is_one_outage(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        fleet = Fleet()
        fleet.latency_s = (0.2, 0.2)
        waited = 0.0
        for _ in range(200):
            before = now()
            await fleet.take()
            waited += now() - before
            await asyncio.sleep(0.1)
        assert waited <= PATIENCE_S
        assert len(caplog.records) == 1
        assert 0 < len(fleet.reports) <= 20.1 / 0.4 + 1
        await fleet.close()

    with caplog.at_level(logging.INFO, LOGGER.name):
        run(test())


def test_the_pauses_between_tries_grow() -> None:
    async def test() -> None:
        fleet = Fleet()
        fleet.fault = _refused
        for _ in range(590):
            await fleet.take()
            await asyncio.sleep(0.1)
        # 59 s: a few quick ones, then one every two to four seconds.
        assert 15 <= len(fleet.reports) <= 35
        # What is older than the window is no longer reported, so the tries end with it.
        await asyncio.sleep(70)
        reports = len(fleet.reports)
        await asyncio.sleep(600)
        assert len(fleet.reports) == reports

    run(test())


def test_a_ledger_that_forgot_everything_does_not_undo_a_replicas_own_window() -> None:
    async def test() -> None:
        fleet = Fleet()
        for number in range(200):
            if number % 10 == 0:
                fleet.ledger = QuotaLedger({"user": QUOTA, "ip": QUOTA}, clock=now)
            await fleet.take()
            await asyncio.sleep(0.1)
        assert len(fleet.granted) == QUOTA

    run(test())


def test_state_is_bounded_and_forgotten_after_the_window() -> None:
    async def test() -> None:
        async def report(uses: tuple[QuotaUse, ...]) -> tuple[QuotaState, ...]:
            await asyncio.sleep(0.001)
            return tuple(QuotaState(QUOTA - use.used, float(WINDOW_S)) for use in uses)

        quotas = SharedQuotas(report, {"ip": QUOTA}, WINDOW_S, clock=now, max_keys=500, logger=LOGGER)
        for number in range(200_000):
            assert (await outcome_of(quotas.take("ip", str(number)))).allowed
            if number % 1000 == 0:  # twice as many as are kept, so that some are pushed out before their report
                await asyncio.sleep(0.01)
        assert quotas.keys == 500
        assert len(quotas._dirty) <= 500
        await asyncio.sleep(1)
        assert not quotas._dirty
        await asyncio.sleep(WINDOW_S)
        await outcome_of(quotas.take("ip", "later"))
        assert quotas.keys == 1

    run(test())


def test_keys_with_waiters_are_answered_even_when_they_are_pushed_out() -> None:
    async def test() -> None:
        fleet = Fleet(max_keys=2)
        fleet.latency_s = (0.05, 0.05)
        tasks = [asyncio.create_task(fleet.take()) for _ in range(10)]
        await asyncio.sleep(0)
        for number in range(10):
            await fleet.take(key=str(number))
        assert all(verdict.allowed for verdict in await asyncio.gather(*tasks))

    run(test())


def test_closing_answers_who_waits_and_limits_alone() -> None:
    async def test() -> None:
        fleet = Fleet()
        fleet.fault = _hangs
        tasks = [asyncio.create_task(fleet.take()) for _ in range(10)]
        await asyncio.sleep(0.01)
        await fleet.close()
        await fleet.close()
        assert all(verdict.allowed for verdict in await asyncio.gather(*tasks))
        assert [(await fleet.take()).allowed for _ in range(60)].count(True) == QUOTA - 10

    run(test())


def test_a_report_is_no_part_of_the_request_that_started_it() -> None:
    """Ray Serve cancels the calls of a request that is cancelled; it tells whose a call is by a context variable."""
    import contextvars

    request: contextvars.ContextVar[str] = contextvars.ContextVar("request")

    async def test() -> None:
        seen: list[str | None] = []

        async def report(uses: tuple[QuotaUse, ...]) -> tuple[QuotaState, ...]:
            seen.append(request.get(None))
            return tuple(QuotaState(QUOTA, 0.0) for _ in uses)

        quotas = SharedQuotas(report, {"user": QUOTA}, logger=LOGGER, clock=now)
        request.set("r-1")
        await outcome_of(quotas.take("user", "ann"))
        await asyncio.sleep(1)
        assert seen == [None]

    run(test())


def _parsed(header: str) -> list[tuple[str, dict[str, int]]]:
    """A list of strings with integer parameters, by the grammar of RFC 9651 (sections 3.1, 3.1.2, 3.3.1, 3.3.3)."""
    members = []
    for member in re.split(r"[ \t]*,[ \t]*", header):
        match = re.fullmatch(r'"([\x20-\x21\x23-\x5b\x5d-\x7e]*)"((?:;[ ]*[a-z*][a-z0-9_.*-]*=-?[0-9]{1,15})*)', member)
        assert match, member
        parameters = (p.strip(" ").split("=") for p in match[2].split(";")[1:])
        members.append((match[1], {name: int(value) for name, value in parameters}))
    return members


def test_the_headers_are_structured_fields() -> None:
    user = Verdict("user", True, 60, 59, 11.2, 60)
    ip = Verdict("ip", True, 120, 7, 0.0, 60)
    assert policy_header([user]) == '"user";q=60;w=60'
    assert state_header([user]) == '"user";r=59;t=12'
    assert _parsed(policy_header([ip, user])) == [("ip", {"q": 120, "w": 60}), ("user", {"q": 60, "w": 60})]
    assert _parsed(state_header([ip, user])) == [("ip", {"r": 7, "t": 1}), ("user", {"r": 59, "t": 12})]


@pytest.mark.parametrize(("reset_after_s", "seconds"), [(0.0, 1), (0.001, 1), (1.0, 1), (1.001, 2), (59.5, 60)])
def test_retry_after_is_never_zero_and_never_before_t(reset_after_s: float, seconds: int) -> None:
    verdict = Verdict("user", False, 60, 0, reset_after_s, 60)
    problem = rate_limited(verdict)
    assert problem.kind is Problems.RATE_LIMITED
    assert problem.headers["Retry-After"] == str(seconds)
    assert _parsed(state_header([verdict])) == [("user", {"r": 0, "t": seconds})]
    response = problem_response(problem, instance="/infer", request_id="r")
    assert response.status_code == 429
    assert response.headers["Retry-After"] == str(seconds)


@pytest.mark.parametrize(
    ("limits", "settings"),
    [({'us"er': 60}, {}), ({"": 60}, {}), ({"user": 0}, {}), ({"user": 1}, {"window_s": 0}), ({}, {"max_keys": 0})],
)
def test_unusable_settings_are_refused(limits: dict[str, int], settings: dict[str, int]) -> None:
    async def report(uses: Sequence[QuotaUse]) -> tuple[QuotaState, ...]:
        raise AssertionError("nobody is asked")

    with pytest.raises(ValueError, match="quotas"):
        SharedQuotas(report, limits, logger=LOGGER, **settings)  # type: ignore[arg-type]
