"""The promise under faults: nothing acknowledged is lost, nothing is stored twice, and clients that come back succeed.

Set NILM_LEDGER_SECONDS (and NILM_LEDGER_PER_SECOND) for a longer run with every fault on every store.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.fault.bench import FULL, PER_SECOND, SECONDS, Bench, start_bench
from tests.fault.raylets import join

both = pytest.mark.parametrize("bench", ["sqlite", "influxdb"], indirect=True)
in_full_both = pytest.mark.parametrize("bench", ["sqlite", "influxdb"] if FULL else ["sqlite"], indirect=True)
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


async def while_loaded(load: asyncio.Task[None], every_s: float, act: object) -> int:
    """Call `act` in a thread every so often until the load ends; returns how often it did something."""
    done = 0
    while not load.done():
        await asyncio.wait({load}, timeout=every_s)
        if not load.done() and await asyncio.to_thread(act) is not None:  # type: ignore[arg-type]
            done += 1
    await load
    return done


@in_full_both
async def test_without_a_fault(bench: Bench) -> None:
    traffic = bench.traffic("no-fault")
    await traffic.run(SECONDS, PER_SECOND, with_key=False)
    verdict = bench.judge("no-fault", traffic.writes)
    assert verdict.acknowledged == verdict.writes == verdict.attempts


@both
async def test_persistence_killed_every_two_seconds(bench: Bench) -> None:
    traffic = bench.traffic("1-persistence-killed")
    load = asyncio.create_task(traffic.run(SECONDS, PER_SECOND))
    kills = await while_loaded(load, 2.0, lambda: bench.signal_one("persistence", signal.SIGKILL))
    verdict = bench.judge("1-persistence-killed", traffic.writes)
    assert kills > 0
    assert verdict.gave_up == 0


@in_full_both
async def test_one_of_two_ingresses_killed(bench: Bench) -> None:
    traffic = bench.traffic("3-ingress-killed")
    load = asyncio.create_task(traffic.run(SECONDS, PER_SECOND))
    await asyncio.sleep(SECONDS / 3)
    assert await asyncio.to_thread(bench.signal_one, "ingress", signal.SIGKILL) is not None
    await load
    verdict = bench.judge("3-ingress-killed", traffic.writes)
    assert verdict.gave_up == 0


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another program's hand on the file."""
    with sqlite3.connect(database, isolation_level=None, timeout=5) as intruder:
        intruder.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            intruder.execute("ROLLBACK")
    intruder.close()


@both
async def test_a_sick_store(bench: Bench) -> None:
    traffic = bench.traffic("8-sick-store")
    sicknesses = 7 if bench.influx else 2
    load = asyncio.create_task(traffic.run(max(SECONDS, sicknesses * 1.5), PER_SECOND))
    if bench.influx is None:
        for _ in range(sicknesses):
            with locked(bench.service.database):
                await asyncio.sleep(2.0)
            await asyncio.sleep(1.0)
    else:
        for fault in (
            {"kind": "status", "status": 503, "retry_after_s": 1},
            {"kind": "status", "status": 500},
            {"latency_s": 5.0},
            {"kind": "reset_before"},
            {"kind": "reset_after"},
            {"kind": "partial"},
        ):
            await asyncio.to_thread(lambda settings=fault: bench.influx.fault(**settings))  # type: ignore[union-attr]
            await asyncio.sleep(1.5)
            await asyncio.to_thread(bench.influx.fault)
        bench.influx.kill()
        await asyncio.sleep(1.0)
        bench.influx.start()
    mended_s = time.monotonic()
    await load
    verdict = bench.judge("8-sick-store", traffic.writes)
    later = [write.acknowledged_s for write in traffic.writes if (write.acknowledged_s or 0) > mended_s]
    if later:
        print(f"first success {min(later) - mended_s:.2f} s after the store was mended")  # type: ignore[type-var]
    assert verdict.gave_up == 0


@in_full_both
async def test_clients_that_hang_up_in_the_middle_of_a_batch(bench: Bench) -> None:
    leavers, neighbours = bench.traffic("9-leavers"), bench.traffic("9-neighbours")
    chance = random.Random(9)  # noqa: S311
    await asyncio.gather(
        leavers.run(SECONDS, PER_SECOND / 2, with_key=False, hang_up=lambda: chance.uniform(0.001, 0.08)),
        neighbours.run(SECONDS, PER_SECOND / 2, with_key=False),
    )
    await asyncio.sleep(1.0)
    verdict = bench.judge("9-neighbours", neighbours.writes)
    assert verdict.acknowledged == verdict.writes == verdict.attempts
    bench.judge("9-leavers", leavers.writes)
    # Some leave before the answer, some after it; of both kinds there must be some, or nothing was tested.
    left = [write for write in leavers.writes if write.acknowledged_s is None]
    assert 0 < len(left) < len(leavers.writes)
    print(f"{len(left)} of {len(leavers.writes)} left, and {len(bench.stored())} predictions are stored in all")


@both
async def test_clients_that_hang_up_and_come_back_with_their_key(bench: Bench) -> None:
    traffic = bench.traffic("9-leave-and-return")
    chance = random.Random(10)  # noqa: S311
    await traffic.run(SECONDS, PER_SECOND / 2, hang_up=lambda: chance.uniform(0.001, 0.08))
    verdict = bench.judge("9-leave-and-return", traffic.writes)
    assert verdict.gave_up == 0
    assert verdict.attempts > verdict.writes


@both
async def test_fifty_at_once_with_one_key(bench: Bench) -> None:
    traffic = bench.traffic("11-one-key")
    headers = {"Authorization": f"Bearer {bench.service.token()}"}
    async with httpx.AsyncClient(base_url=bench.service.url, headers=headers, timeout=30, trust_env=False) as client:
        for _ in range(4):
            write = traffic.new_write()
            assert write.key is not None
            sent = {"Idempotency-Key": write.key}
            replies = await asyncio.gather(*(client.post("/infer", json=write.body, headers=sent) for _ in range(50)))
            write.statuses += [reply.status_code for reply in replies]
            assert set(write.statuses) == {200}
            assert len({reply.content for reply in replies}) == 1
            assert sum("idempotency-replayed" not in reply.headers for reply in replies) == 1
            write.acknowledged_s, write.reply = time.monotonic(), replies[0].json()
    bench.judge("11-one-key", traffic.writes)


@in_full_both
@pytest.mark.parametrize("deployment", ["persistence", "ingress"] if FULL else ["persistence"])
async def test_a_replica_that_stands_still_for_ten_seconds(bench: Bench, deployment: str) -> None:
    name = f"16-{deployment}-stopped"
    traffic = bench.traffic(name)
    load = asyncio.create_task(traffic.run(max(SECONDS, 12.0), PER_SECOND))
    await asyncio.sleep(1.0)
    stopped = await asyncio.to_thread(bench.signal_one, deployment, signal.SIGSTOP)
    assert stopped is not None
    await asyncio.sleep(10.0)
    try:
        os.kill(stopped, signal.SIGCONT)
    except ProcessLookupError:
        print(f"{deployment} was replaced before it could go on")
    await load
    verdict = bench.judge(name, traffic.writes)
    assert verdict.gave_up == 0


@pytest.mark.parametrize("store", ["sqlite", "influxdb"] if FULL else ["sqlite"])
async def test_calls_between_processes_fail_at_random(tmp_path: Path, store: str) -> None:
    """Ray's own chaos in the ingress replicas: a quarter of their calls, or of the answers, get lost."""
    lost = {"num_failures": 1000, "req_failure_prob": 10, "resp_failure_prob": 10, "in_flight_failure_prob": 5}
    chaos = {"RAY_testing_rpc_failure": json.dumps({"CoreWorkerService.grpc_client.PushTask": lost})}
    for bench in start_bench(tmp_path, store, chaos):
        traffic = bench.traffic("17-rpc-chaos")
        await traffic.run(SECONDS, PER_SECOND)
        verdict = bench.judge("17-rpc-chaos", traffic.writes)
        assert verdict.gave_up == 0
        assert verdict.attempts > verdict.writes, "no call was lost"


@pytest.mark.parametrize("bench", ["sqlite"], indirect=True)
async def test_the_embedded_store_is_refused_on_a_second_node(bench: Bench, tmp_path: Path) -> None:
    """A writer that was started again there would begin an empty file."""
    node = await asyncio.to_thread(join, bench.service, tmp_path, "second")
    try:
        assert await asyncio.to_thread(bench.signal_one, "persistence", signal.SIGKILL) is not None
        said = await asyncio.to_thread(_reason, bench, "persistence", "set INFLUX_URL")
        assert "this cluster has 2" in said
    finally:
        await asyncio.to_thread(node.kill)
    await asyncio.to_thread(_reason, bench, "persistence", "")
    traffic = bench.traffic("one-node-again")
    await traffic.run(1.0, PER_SECOND)
    assert bench.judge("one-node-again", traffic.writes).gave_up == 0


def _reason(bench: Bench, deployment: str, part: str) -> str:
    """What Serve says of a deployment, once it says that; for "" once it is well."""
    end = time.monotonic() + 120
    while True:
        state = bench.service.deployments()[deployment]
        if part in state["message"] if part else state["status"] == "HEALTHY":
            return str(state["message"])
        assert time.monotonic() < end, state
        time.sleep(0.5)
