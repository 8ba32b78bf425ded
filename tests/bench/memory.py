"""Memory of the service under steady load, in production mode.

    python -m tests.bench.memory --minutes 10 --share 0.8

Measures the capacity (closed loop, 64 clients), then sends `--share` of it in an open loop and notes the proportional
set size of every process each quarter of a minute. Prints totals by minute, and how much each process grew a minute
from the third on (least squares): before that buffers and caches fill. Asserts nothing.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from tests.bench.serving.alone import alone
from tests.bench.serving.closed_loop import closed_loop
from tests.bench.serving.open_loop import open_loop
from tests.bench.serving.processes import memory_by_process_mb
from tests.bench.serving.systems import SYSTEMS

CLIENTS = 64
CAPACITY_S = 10.0
STEP_S = 15.0
SETTLED_MIN = 2.0
SHOWN_MB = 0.05


def main() -> None:
    """Start, load, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--share", type=float, default=0.8, help="of the capacity")
    chosen = arguments.parse_args()
    with alone(SYSTEMS["production"].start) as (running, requests_file):
        closed_loop(running.url, requests_file, CLIENTS, CAPACITY_S / 2)  # warm
        rate = chosen.share * closed_loop(running.url, requests_file, CLIENTS, CAPACITY_S).per_second
        print(f"{rate:.0f} requests/s, {chosen.share:.0%} of the capacity", flush=True)
        minutes, looks, answered, failures = [], [], 0, 0
        began_s = time.monotonic()
        while (at_min := (time.monotonic() - began_s) / 60) < chosen.minutes:
            result = open_loop(running.url, requests_file, rate, STEP_S, seed=len(looks))
            answered, failures = answered + result.acknowledged, failures + result.failures
            minutes.append((time.monotonic() - began_s) / 60)
            looks.append(memory_by_process_mb(running.root_pid))
            if int(minutes[-1]) > int(at_min):
                print(f"{minutes[-1]:5.1f} min: {sum(looks[-1].values()):.0f} MB", flush=True)
    print(f"{answered} acknowledged, {failures} failed")
    report(minutes, looks)


def report(minutes: list[float], looks: list[dict[str, float]]) -> None:
    """Prints growth by process."""
    settled = [n for n, at_min in enumerate(minutes) if at_min >= SETTLED_MIN]
    at_min = [minutes[n] for n in settled]

    def growth(values: list[float]) -> float:
        return float(np.polyfit(at_min, values, 1)[0]) if len(values) > 1 else float("nan")

    print(f"{'process':<24}{'MB at the end':>14}{'MB a minute':>13}")
    print(f"{'all':<24}{sum(looks[-1].values()):>14.0f}{growth([sum(looks[n].values()) for n in settled]):>+13.2f}")
    for name in sorted(looks[-1], key=looks[-1].__getitem__, reverse=True):
        slope = growth([looks[n].get(name, 0.0) for n in settled])
        if abs(slope) >= SHOWN_MB:
            print(f"{name:<24}{looks[-1][name]:>14.0f}{slope:>+13.2f}")


if __name__ == "__main__":
    main()
