"""Figures of an outage of the store under load: memory while it lasts, and how soon the service is back.

    python -m tests.bench.outage --seconds 300

Starts the real service with two ingress replicas on the InfluxDB test server, keeps a steady load of clients that come
back with their key, kills the store's process, starts it again after `--seconds`, and then a few times for 5 s. Prints
the memory of each replica that the load reaches, and the seconds from the store's restart to the first
acknowledgement; the ledger of everything that was sent ends it. Asserts nothing but the ledger.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from tests.fault.bench import Bench, start_bench
from tests.fault.traffic import Traffic

DEPLOYMENTS = ("ingress", "persistence", "kettle")
BEFORE_S = 30.0
"""Of load with a whole store, so that the memory it starts from is that of a service at work."""
SHORT_S = 5.0
SHORT_OUTAGES = 5
SAMPLES = 10
LONGEST_RETURN_S = 120.0


def main() -> None:
    """Start, load, break, mend, print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=300.0, help="length of the long outage")
    arguments.add_argument("--per-second", type=float, default=5.0, help="new writes a second")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for bench in start_bench(Path(folder), "influxdb"):
            asyncio.run(measure(bench, chosen.seconds, chosen.per_second))


async def measure(bench: Bench, outage_s: float, per_second: float) -> None:
    """The long outage, then the short ones, each under a load of its own that outlasts it."""
    traffic = bench.traffic("long-outage")
    load = asyncio.create_task(traffic.run(BEFORE_S + 1.3 * outage_s + 20.0, per_second))
    pids = {f"{name} {n}": pid for name in DEPLOYMENTS for n, pid in enumerate(bench.pids(name))}
    print(f"{'resident MB':<28}" + "".join(f"{name:>15}" for name in pids))
    for _ in range(3):
        await asyncio.sleep(BEFORE_S / 3)
        show("at work", pids)
    before = {name: resident_mb(pid) for name, pid in pids.items()}
    back_s = await outage(bench, traffic, outage_s, pids)
    await load
    show("after it", pids)
    print("growth: " + ", ".join(f"{name} {resident_mb(pid) - before[name]:+.0f} MB" for name, pid in pids.items()))
    print(f"first success {back_s:.2f} s after the restart of the store, which was away for {outage_s:.0f} s")
    bench.judge("long-outage", traffic.writes)
    short_s = []
    for n in range(SHORT_OUTAGES):
        traffic = bench.traffic(f"short-outage-{n}")
        load = asyncio.create_task(traffic.run(3 * SHORT_S, per_second))
        await asyncio.sleep(SHORT_S / 2)
        short_s.append(await outage(bench, traffic, SHORT_S, {}))
        await load
        bench.judge(f"short-outage-{n}", traffic.writes)
    listed = ", ".join(f"{seconds:.2f}" for seconds in sorted(short_s))
    print(f"first success after {SHORT_S:.0f} s away: median {statistics.median(short_s):.2f} s of {listed}")


async def outage(bench: Bench, traffic: Traffic, seconds: float, pids: dict[str, int]) -> float:
    """Kill the store, start it after `seconds`; returns the seconds from there to the first acknowledgement."""
    assert bench.influx is not None
    await asyncio.to_thread(bench.influx.kill)
    started = time.monotonic()
    for n in range(SAMPLES):
        await asyncio.sleep(max(0.0, started + seconds * (n + 1) / SAMPLES - time.monotonic()))
        if pids:
            show(f"store away for {time.monotonic() - started:.0f} s", pids)
    await asyncio.to_thread(bench.influx.start)
    mended = time.monotonic()
    while time.monotonic() < mended + LONGEST_RETURN_S:
        later = [write.acknowledged_s for write in traffic.writes if (write.acknowledged_s or 0.0) > mended]
        if later:
            return min(moment for moment in later if moment is not None) - mended
        await asyncio.sleep(0.02)
    raise SystemExit(f"nothing was acknowledged within {LONGEST_RETURN_S:.0f} s of the store's restart")


def show(when: str, pids: dict[str, int]) -> None:
    """One line of the table."""
    print(f"{when:<28}" + "".join(f"{resident_mb(pid):>15.1f}" for pid in pids.values()), flush=True)


def resident_mb(pid: int) -> float:
    """VmRSS of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
