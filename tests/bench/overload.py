"""Figures of an overload: what still gets done, how late, how soon the rest is refused, and when it is over.

    python -m tests.bench.overload --times 4 --seconds 20

Starts this service in its production mode, measures what it can do (closed loop, 64 clients), sends half of that, then
`--times` of it from far more connections than it lets in, then half again. Latencies count from the instant a request
was due. Asserts nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable

from tests.bench.serving.alone import alone
from tests.bench.serving.closed_loop import closed_loop
from tests.bench.serving.connections import Connections, Reply
from tests.bench.serving.load import percentile
from tests.bench.serving.open_loop import schedule
from tests.bench.serving.request_set import http_requests
from tests.bench.serving.systems import SYSTEMS

CAPACITY_CLIENTS = 64
CAPACITY_S = 10.0
CALM_S = 10.0
CONNECTIONS = 1024
PATIENCE_S = 15.0
OK, REFUSED = 200, 503
BIN_S = 0.5
"""Over is over when half a second's requests are answered like before."""
AS_BEFORE_SHARE = 0.95
"""Of them: one in a hundred was later than that bound's half before, too."""


def main() -> None:
    """Start, measure, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--times", type=float, default=4.0, help="of the capacity")
    arguments.add_argument("--seconds", type=float, default=20.0, help="of overload")
    chosen = arguments.parse_args()
    with alone(SYSTEMS["production"].start) as (running, requests_file):
        closed_loop(running.url, requests_file, CAPACITY_CLIENTS, CAPACITY_S / 2)  # warm
        capacity = closed_loop(running.url, requests_file, CAPACITY_CLIENTS, CAPACITY_S).per_second
        phases = (0.5 * capacity, CALM_S), (chosen.times * capacity, chosen.seconds), (0.5 * capacity, CALM_S)
        host, port = running.url.removeprefix("http://").split(":")
        replies, starts_s = send(http_requests(requests_file, f"{host}:{port}"), host, int(port), phases)
    report(capacity, chosen.times, replies, starts_s)


def send(
    requests: list[bytes], host: str, port: int, phases: Iterable[tuple[float, float]]
) -> tuple[list[Reply], list[float]]:
    """One after the other, of (requests a second, seconds). Gives the replies, and when each phase began and all ended.

    Instants by `time.monotonic()`.
    """
    starts_s: list[float] = []
    n = 0
    with Connections(host, port, CONNECTIONS) as pool:
        next_s = time.monotonic() + 0.1
        for seed, (per_second, seconds) in enumerate(phases):
            starts_s.append(next_s)
            for instant_s in schedule(per_second, seconds, seed):
                due_s = next_s + instant_s
                time.sleep(max(0.0, due_s - time.monotonic()))
                pool.send(requests[n % len(requests)], due_s)
                n += 1
            next_s += seconds
        unanswered = pool.wait(PATIENCE_S)
        replies = list(pool.replies)
    if unanswered:
        print(f"{unanswered} requests were never answered")
    return replies, [*starts_s, next_s]


def report(capacity: float, times: float, replies: list[Reply], starts_s: list[float]) -> None:
    """Prints the table."""
    print(f"capacity {capacity:.0f} requests a second ({CAPACITY_CLIENTS} clients)")
    times_ms = f"{'p50 ms':>8}{'p99 ms':>8}"
    print(f"{'':<18}{'sent':>8}{'done /s':>9}{times_ms}{'refused':>9}{times_ms}{'other':>7}")
    names = ("half of it", f"{times:g} times it", "half again")
    for name, start_s, end_s in zip(names, starts_s, starts_s[1:], strict=False):
        phase = [one for one in replies if start_s <= one.due_s < end_s]
        done, refused = latencies_ms(phase, OK), latencies_ms(phase, REFUSED)
        other = len(phase) - len(done) - len(refused)
        print(
            f"{name:<18}{len(phase):>8}{len(done) / (end_s - start_s):>9.0f}{percentile(done, 0.5):>8.0f}"
            f"{percentile(done, 0.99):>8.0f}{len(refused):>9}{percentile(refused, 0.5):>8.0f}"
            f"{percentile(refused, 0.99):>8.0f}{other:>7}"
        )
    calm = [one for one in replies if starts_s[0] <= one.due_s < starts_s[1]]
    print(f"as before {recovered_s(calm, replies, starts_s[2], starts_s[3]):.1f} s after the overload ended")


def latencies_ms(replies: Iterable[Reply], status: int) -> list[float]:
    """Of those with this status, from when they were due."""
    return [1000 * (one.answered_s - one.due_s) for one in replies if one.status == status]


def recovered_s(calm: list[Reply], replies: list[Reply], start_s: float, end_s: float) -> float:
    """Until in each half second most requests that are due are done in twice the 99th percentile of before."""
    bound_ms = 2 * percentile(latencies_ms(calm, OK), 0.99)
    at_s = end_s
    while at_s - BIN_S >= start_s:
        due = [one for one in replies if at_s - BIN_S <= one.due_s < at_s]
        in_time = sum(one.status == OK and 1000 * (one.answered_s - one.due_s) <= bound_ms for one in due)
        if in_time < AS_BEFORE_SHARE * len(due):
            break
        at_s -= BIN_S
    return max(0.0, at_s - start_s)


if __name__ == "__main__":
    main()
