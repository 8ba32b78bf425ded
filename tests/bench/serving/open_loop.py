"""Open loop: requests leave at instants fixed beforehand, whether or not earlier ones are answered.

Every latency counts from the instant a request should have left, so a server that stalls is charged for all who would
have come meanwhile (no coordinated omission). wrk cannot do that, and no open-loop generator is packaged for Debian.
Own process, own GIL: one thread sleeps until the next instant and sends, the other reads replies.

    python -m tests.bench.serving.open_loop --url http://127.0.0.1:8001 --requests FILE --per-second 100 --seconds 5
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tests.bench.serving.connections import Connections
from tests.bench.serving.load import LoadFailed, LoadResult, percentile
from tests.bench.serving.request_set import http_requests

PATIENCE_S = 10.0
"""How long replies are waited for after the last request; later ones are failures."""
FEWEST_CONNECTIONS, MOST_CONNECTIONS = 16, 256
"""About one for each request of a second, so that each is used before a server closes it as idle (uvicorn: 5 s)."""
GRACE_S = 30.0
SWITCH_INTERVAL_S = 0.0002
"""How long the reading thread may keep the sending one from its instant; Python's default is 5 ms."""


def open_loop(url: str, requests_file: Path, per_second: float, seconds: float, seed: int) -> LoadResult:
    """Run the generator in a process of its own. Raises LoadFailed."""
    command = [sys.executable, "-m", __spec__.name, "--url", url, "--requests", str(requests_file)]
    command += ["--per-second", str(per_second), "--seconds", str(seconds), "--seed", str(seed)]
    limit_s = seconds + PATIENCE_S + GRACE_S
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=limit_s)
    except subprocess.CalledProcessError as error:
        raise LoadFailed(f"the open-loop generator failed: {error.stderr.strip()[-300:]}") from None
    except subprocess.TimeoutExpired:
        raise LoadFailed(f"the open-loop generator did not end within {limit_s:.0f} s") from None
    return LoadResult(**json.loads(done.stdout))


def schedule(per_second: float, seconds: float, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests leave: a Poisson process, as of many clients that know nothing of each
    other; the same for the same seed.
    """
    chance = random.Random(seed)  # noqa: S311 - arrivals, not a secret
    instant_s = chance.expovariate(per_second)
    while instant_s < seconds:
        yield instant_s
        instant_s += chance.expovariate(per_second)


def connections_for(per_second: float) -> int:
    """How many connections to hold."""
    return min(MOST_CONNECTIONS, max(FEWEST_CONNECTIONS, round(per_second)))


def main() -> None:
    """Print a LoadResult as JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--url", required=True)
    arguments.add_argument("--requests", type=Path, required=True)
    arguments.add_argument("--per-second", type=float, required=True)
    arguments.add_argument("--seconds", type=float, required=True)
    arguments.add_argument("--seed", type=int, default=1)
    chosen = arguments.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    instants_s = list(schedule(chosen.per_second, chosen.seconds, chosen.seed))
    result = generate(chosen.url, chosen.requests, instants_s, connections_for(chosen.per_second))
    print(json.dumps(dataclasses.asdict(result)))


def generate(url: str, requests_file: Path, instants_s: list[float], connections: int) -> LoadResult:
    """Send a request at each instant, and wait for the replies."""
    address = urlsplit(url)
    host, port = address.hostname or "", address.port or 80
    requests = http_requests(requests_file, f"{host}:{port}")
    with Connections(host, port, connections) as pool:
        before = os.times()
        start_s = time.monotonic() + 0.1
        lateness_ms = []
        for n, instant_s in enumerate(instants_s):
            due_s = start_s + instant_s
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            pool.send(requests[n % len(requests)], due_s)
            lateness_ms.append(1000 * (time.monotonic() - due_s))
        unanswered = pool.wait(PATIENCE_S)
        after = os.times()
    latencies_ms = [1000 * (reply.answered_s - reply.due_s) for reply in pool.replies]
    acknowledged = sum(200 <= reply.status < 300 for reply in pool.replies)
    # Who was never answered waited until the end at least; to leave them out would flatter.
    latencies_ms += [1000 * PATIENCE_S] * unanswered
    return LoadResult(
        acknowledged=acknowledged,
        failures=len(instants_s) - acknowledged,
        seconds=max([instants_s[-1], *(reply.answered_s - start_s for reply in pool.replies)]),
        p50_ms=percentile(latencies_ms, 0.5),
        p99_ms=percentile(latencies_ms, 0.99),
        max_ms=max(latencies_ms),
        generator_cpu_s=after.user + after.system - before.user - before.system,
        late_ms=percentile(lateness_ms, 0.99),
    )


if __name__ == "__main__":
    main()
