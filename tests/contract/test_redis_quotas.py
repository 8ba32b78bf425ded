"""Quotas in a real Redis: two ledgers share one count, and what happens when it is killed.

Needs `redis-server`; installs it (Debian package) where that is possible, and skips with a word where it is not.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from deployments.contracts import QuotaState, QuotaUse
from deployments.quota_ledger import LedgerUnavailable, QuotaLedger
from serve_app.access.quotas import USES_PER_REPORT, SharedQuotas
from serve_app.cli.ports import free_port
from tests.servers.packages import PartsMissing, apt_install, do_without
from tests.unit.handles import outcome_of

LOGGER = logging.getLogger("nilm.test-redis-quotas")
WINDOW_S = 2
PASSWORD = "redis-test-password"


class Redis:
    """The server's process; it keeps its port when it is started again, and nothing else."""

    def __init__(self, binary: str, folder: Path) -> None:
        self._command = [binary, "--save", "", "--appendonly", "no", "--dir", str(folder), "--bind", "127.0.0.1"]
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = [*self._command, "--port", str(self.port), "--requirepass", PASSWORD]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("redis-server did not start")

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _binary() -> str:
    if shutil.which("redis-server") is None:
        try:
            apt_install(["redis-server"])
        except PartsMissing as missing:
            do_without(missing)
    found = shutil.which("redis-server")
    assert found is not None
    return found


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(_binary(), tmp_path)
    server.start()
    yield server
    server.kill()


MakeLedger = Callable[[], QuotaLedger]


@pytest.fixture
async def make_ledger(redis: Redis) -> AsyncIterator[MakeLedger]:
    ledgers: list[QuotaLedger] = []

    def make() -> QuotaLedger:
        ledgers.append(QuotaLedger({"user": 60, "ip": 120}, WINDOW_S, redis_url=redis.url))
        return ledgers[-1]

    yield make
    for ledger in ledgers:
        await ledger.close()


async def say(ledger: QuotaLedger, used: int, key: str = "ann", quota: str = "user") -> QuotaState:
    (state,) = await ledger.report([QuotaUse(quota, key, used)])
    return state


async def test_two_ledgers_share_one_count(make_ledger: MakeLedger) -> None:
    one, other = make_ledger(), make_ledger()
    assert await say(one, 0) == QuotaState(60, 0.0)
    assert (await say(one, 20)).remaining == 40
    state = await say(other, 15)
    assert state.remaining == 25
    assert WINDOW_S - 1 < state.reset_after_s <= WINDOW_S
    assert (await say(one, 0)).remaining == 25
    assert (await say(one, 0, "bob")).remaining == 60
    assert (await say(other, 1, "ann", "ip")).remaining == 119
    assert (one.stats().kind, one.stats().keys, one.stats().uses_total) == ("redis", 0, 20)


async def test_a_report_larger_than_what_is_left_exhausts_the_key(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    await say(ledger, 50)
    await asyncio.sleep(0.5)
    # Ten more than the quota: as in memory, empty until the fifty leave, and the excess is remembered.
    state = await say(ledger, 20)
    assert state.remaining == 0
    assert 1 < state.reset_after_s <= 1.5
    await asyncio.sleep(state.reset_after_s + 0.01)
    assert (await say(ledger, 0)).remaining == 40
    assert (await say(ledger, 10**9)).remaining == 0


async def test_ledgers_that_report_at_once_lose_no_use(make_ledger: MakeLedger) -> None:
    ledgers = [make_ledger(), make_ledger()]
    await asyncio.gather(*(say(ledgers[number % 2], 1) for number in range(50)))
    assert (await say(ledgers[0], 0)).remaining == 10
    # More than fits from both sides: full, not over-full, and nobody hangs.
    await asyncio.gather(*(say(ledgers[number % 2], 50) for number in range(10)))
    assert (await say(ledgers[1], 0)).remaining == 0


async def test_every_use_of_a_full_report_is_counted(make_ledger: MakeLedger) -> None:
    ledger = make_ledger()
    uses = [QuotaUse("user", str(number), 1) for number in range(USES_PER_REPORT)]
    await ledger.report(uses)  # connects
    started = time.perf_counter()
    states = await ledger.report(uses)
    print(f"{USES_PER_REPORT} keys: {(time.perf_counter() - started) * 1000:.0f} ms")
    assert {state.remaining for state in states} == {58}


async def test_keys_leave_redis_after_the_window(make_ledger: MakeLedger, redis: Redis) -> None:
    from redis.asyncio import Redis as Client

    await say(make_ledger(), 1)
    client = Client.from_url(redis.url)
    try:
        assert await client.dbsize() == 1
        await asyncio.sleep(WINDOW_S + 0.2)
        assert await client.dbsize() == 0
    finally:
        await client.aclose()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_redis_that_is_gone_is_said_in_time_and_used_again_when_it_is_back(
    redis: Redis, make_ledger: MakeLedger, number: signal.Signals
) -> None:
    ledger = make_ledger()
    await say(ledger, 1)
    redis.send(number)
    if number == signal.SIGKILL:
        redis.kill()
    started = time.monotonic()
    with pytest.raises(LedgerUnavailable) as caught:
        await asyncio.gather(*(say(ledger, 1) for _ in range(30)))
    assert time.monotonic() - started < 5
    assert PASSWORD not in str(caught.value)
    if number == signal.SIGKILL:
        redis.start()
    else:
        redis.send(signal.SIGCONT)
    await asyncio.sleep(1.1)
    assert (await say(ledger, 1)).remaining <= 59


async def test_replicas_go_on_alone_while_redis_is_dead_and_together_when_it_is_back(
    redis: Redis, make_ledger: MakeLedger
) -> None:
    window_s = 60
    ledgers = [QuotaLedger({"user": 60}, window_s, redis_url=redis.url) for _ in range(2)]
    replicas = [SharedQuotas(ledger.report, {"user": 60}, window_s, logger=LOGGER) for ledger in ledgers]
    try:
        granted = 0
        for number in range(10):
            granted += (await outcome_of(replicas[number % 2].take("user", "ann"))).allowed
            await asyncio.sleep(0.02)
        assert granted == 10
        redis.kill()
        waits = []
        for number in range(200):
            started = time.monotonic()
            granted += (await outcome_of(replicas[number % 2].take("user", "ann"))).allowed
            waits.append(time.monotonic() - started)
        # The stated policy: at most the quota from each replica, and one wait each for the outage to be noticed.
        assert granted == 2 * 60
        print(f"slowest of {len(waits)} without Redis: {max(waits) * 1000:.0f} ms")
        assert all(replica.alone for replica in replicas)
        redis.start()
        for _ in range(100):
            if not any(replica.alone for replica in replicas):
                break
            await asyncio.sleep(0.1)
        assert not any(replica.alone for replica in replicas)
        # What was granted meanwhile has been reported, so a third replica hears that nothing is left.
        assert (await say(ledgers[0], 0, next(iter(replicas[0]._keys)))).remaining == 0
        assert not any([(await outcome_of(replica.take("user", "ann"))).allowed for replica in replicas])
    finally:
        for replica in replicas:
            await replica.close()
        for ledger in ledgers:
            await ledger.close()
