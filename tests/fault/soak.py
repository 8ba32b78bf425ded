"""A long time under load while something is killed every now and then: the ledger, the errors, the memory.

    python -m tests.fault.soak --minutes 20 --share 0.6

On three nodes (a head without replicas and two that serve) with the InfluxDB of the tests, in production mode. First it
measures what the system and these clients do together in a closed loop, then sends `--share` of that, nine in ten by
clients that come back with their key and one in ten by clients that try once. Every 20 seconds it kills one of: a
replica of the model, an ingress, the writer, Serve's controller, a whole node. Prints the ledger, the errors of both
kinds of clients, and the memory of all processes by minute. Asserts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import numpy as np

from serve_app.cli.processes import OwnedProcesses
from tests.bench.serving.processes import memory_of_mb
from tests.fault.ledger import HEAD, check, longest_outage_s
from tests.fault.operations import kill_controller, kill_ingress, kill_replica, kill_writer, lose_a_node
from tests.fault.system import System, three_nodes
from tests.fault.traffic import Traffic

CLIENTS = 64
WARM_S, CAPACITY_S = 10.0, 15.0
KILL_EVERY_S = 20.0
LOOK_EVERY_S = 15.0
ONCE_SHARE = 0.1
SETTLED_MIN = 3.0
SHOWN_MB = 0.05
KILLS: dict[str, Callable[[System], Awaitable[str]]] = {
    "a replica of the model": kill_replica,
    "an ingress": kill_ingress,
    "the writer": kill_writer,
    "the controller": kill_controller,
    "a node": lose_a_node,
}


def main() -> None:
    """Start, load, break, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--minutes", type=float, default=20.0)
    arguments.add_argument("--share", type=float, default=0.6, help="of the capacity")
    arguments.add_argument("--seed", type=int, default=1, help="of what is killed")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder, three_nodes(Path(folder), apart=True) as system:
        asyncio.run(soak(system, chosen.minutes, chosen.share, random.Random(chosen.seed)))  # noqa: S311


async def soak(system: System, minutes: float, share: float, chance: random.Random) -> None:
    """Load and kills for so long, then the report."""
    await closed_loop(system, WARM_S)
    capacity = await closed_loop(system, CAPACITY_S)
    rate = share * capacity
    print(f"{capacity:.0f} requests/s in a closed loop with {CLIENTS} clients; {rate:.0f}/s from now on", flush=True)
    url, token = system.service.url, system.service.token()
    once = Traffic(url, token, system.window, "soak-once", system.balancer())
    back = Traffic(url, token, system.window, "soak-back", system.balancer())
    load = asyncio.gather(
        once.run(60 * minutes, ONCE_SHARE * rate, with_key=False), back.run(60 * minutes, (1 - ONCE_SHARE) * rate)
    )
    looks: list[tuple[float, dict[str, float]]] = []
    looking = asyncio.create_task(_look(system, looks))
    kills: Counter[str] = Counter()
    try:
        await _kill(system, load, chance, kills)
        await load
        looking.cancel()
        await asyncio.to_thread(system.settle)
    finally:
        report(system, once, back, kills, looks)


async def closed_loop(system: System, seconds: float) -> float:
    """Requests per second of clients that send one after the other."""
    traffic = Traffic(system.service.url, system.service.token(), system.window, "capacity", system.balancer())
    end_s = time.monotonic() + seconds
    headers = {"Authorization": f"Bearer {traffic.token}"}
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(
        base_url=traffic.url, headers=headers, timeout=15, limits=limits, trust_env=False
    ) as client:

        async def one_client() -> None:
            while time.monotonic() < end_s:
                await traffic.attempt(client, traffic.new_write(), None)

        watching = asyncio.create_task(traffic.balancer.watch()) if traffic.balancer else None
        await asyncio.gather(*(one_client() for _ in range(CLIENTS)))
        if watching is not None:
            watching.cancel()
    return sum(write.acknowledged_s is not None for write in traffic.writes) / seconds


async def _kill(system: System, load: asyncio.Future[object], chance: random.Random, kills: Counter[str]) -> None:
    """Until the load ends; a kill of what is not there right now counts as none."""
    began_s = time.monotonic()
    while True:
        await asyncio.wait({load}, timeout=KILL_EVERY_S)
        if load.done():
            return
        kind = chance.choice(list(KILLS))
        try:
            await KILLS[kind](system)
        except (LookupError, ProcessLookupError, ValueError, httpx.HTTPError) as absent:
            print(f"{(time.monotonic() - began_s) / 60:5.1f} min: {kind} was not there ({type(absent).__name__})")
        else:
            kills[kind] += 1


async def _look(system: System, looks: list[tuple[float, dict[str, float]]]) -> None:
    began_s = time.monotonic()
    while True:
        pids = await asyncio.to_thread(OwnedProcesses(system.service.data_dir).find)
        looks.append(((time.monotonic() - began_s) / 60, await asyncio.to_thread(memory_of_mb, pids)))
        await asyncio.sleep(LOOK_EVERY_S)


def report(
    system: System, once: Traffic, back: Traffic, kills: Counter[str], looks: list[tuple[float, dict[str, float]]]
) -> None:
    """Prints everything."""
    print("killed: " + ", ".join(f"{count} x {kind}" for kind, count in kills.most_common()))
    stored = system.stored()
    print(HEAD)
    for traffic in (once, back):
        print(check(traffic.name, traffic.writes, stored).row())
    failed = Counter(write.statuses[-1] for write in once.writes if write.acknowledged_s is None)
    told = ", ".join(f"{count} x {status or 'none'}" for status, count in sorted(failed.items()))
    print(f"of {len(once.writes)} that were tried once, failed: {told or 'none'}")
    print(f"longest time in which nobody was answered: {longest_outage_s([*once.writes, *back.writes]):.1f} s")
    shown_min = 0
    for at_min, by_name in looks:
        if at_min >= shown_min:
            print(f"{at_min:5.1f} min: {sum(by_name.values()):.0f} MB")
            shown_min = int(at_min) + 1
    settled = [(at_min, by_name) for at_min, by_name in looks if at_min >= SETTLED_MIN]
    if len(settled) > 1:
        minutes = [at_min for at_min, _ in settled]
        print(f"{'process':<24}{'MB at the end':>14}{'MB a minute':>13}")
        names = sorted(settled[-1][1], key=settled[-1][1].__getitem__, reverse=True)
        totals = [sum(by_name.values()) for _, by_name in settled]
        print(f"{'all':<24}{totals[-1]:>14.0f}{np.polyfit(minutes, totals, 1)[0]:>+13.2f}")
        for name in names:
            slope = np.polyfit(minutes, [by_name.get(name, 0.0) for _, by_name in settled], 1)[0]
            if abs(slope) >= SHOWN_MB:
                print(f"{name:<24}{settled[-1][1][name]:>14.0f}{slope:>+13.2f}")


if __name__ == "__main__":
    main()
