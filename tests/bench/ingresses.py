"""What a request costs with more than one ingress replica, in production mode.

    python -m tests.bench.ingresses --replicas 1,2,4 --rounds 3 --seconds 8

In each round every number of replicas is started alone, warmed up and loaded by `--clients` (closed loop, wrk); the
table has medians over the rounds and, as a ratio to the first number in the same round, median and range. Asserts
nothing.
"""

from __future__ import annotations

import argparse

from serve_app.cli.cluster import PRODUCTION_MODE
from tests.bench.serving.alone import alone
from tests.bench.serving.closed_loop import closed_loop
from tests.bench.serving.processes import cpu_of, spent_s
from tests.bench.serving.spread import Spread, ratio
from tests.bench.serving.systems import this_system

WARM_S = 4.0


def main() -> None:
    """Start, measure, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--replicas", default="1,2,4", help="of the ingress, with commas")
    arguments.add_argument("--clients", type=int, default=64)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    chosen = arguments.parse_args()
    counts = [int(one) for one in chosen.replicas.split(",")]
    rates: dict[int, dict[int, float]] = {count: {} for count in counts}
    cpus_ms: dict[int, dict[int, float]] = {count: {} for count in counts}
    for number in range(chosen.rounds):
        first = number % len(counts)
        for count in (*counts[first:], *counts[:first]):
            rate, cpu_ms = measure(count, chosen.clients, chosen.seconds)
            rates[count][number], cpus_ms[count][number] = rate, cpu_ms
            print(f"round {number + 1}, {count} ingresses: {rate:.0f} requests/s, {cpu_ms:.2f} ms of CPU", flush=True)
    print(f"\n{'ingresses':>9}  {'requests/s':<22}{'CPU ms/request':<22}CPU, ratio")
    for count in counts:
        rate_spread, cpu_spread = Spread.of(rates[count].values()), Spread.of(cpus_ms[count].values())
        compared = ratio(cpus_ms[count], cpus_ms[counts[0]])
        print(f"{count:>9}  {rate_spread!s:<22}{cpu_spread!s:<22}{compared}")


def measure(ingresses: int, clients: int, seconds: float) -> tuple[float, float]:
    """Requests a second, and milliseconds of CPU of all processes for each."""
    with alone(this_system(PRODUCTION_MODE, ingresses)) as (running, requests_file):
        closed_loop(running.url, requests_file, clients, WARM_S)
        before = cpu_of(running.root_pid)
        result = closed_loop(running.url, requests_file, clients, seconds)
        cpu_s = sum(spent_s(before, cpu_of(running.root_pid)).values())
    return result.per_second, 1000 * cpu_s / result.acknowledged


if __name__ == "__main__":
    main()
