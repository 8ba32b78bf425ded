"""Who asks: clients of the kettle that come and go, and a few requests to everybody throughout."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

from models.registry import Registry
from tests.bench.autoscaling.observer import KETTLE, LOOK_EVERY_S, Observer, Part
from tests.bench.serving.connections import Connections, Reply
from tests.bench.serving.open_loop import schedule
from tests.bench.serving.request_set import http_requests, infer_requests
from tests.bench.serving.systems import access_token

CALM_S = 30.0
CALM_CONNECTIONS = 8
"""So few that each is used within a second or two: one that is idle for long may be closed under a request."""
LONGEST_LOAD_S = 150.0
KEPT_S = 20.0
GIVEN_BACK_S = 90.0
"""After `downscale_delay_s`, at most: until the mean of the last half a minute is down, and Serve has acted."""
HALF_PERIOD_S = 20.0
PERIOD_S = 2 * HALF_PERIOD_S
PATIENCE_S = 15.0
"""For the last replies. The service answers within 10 s, whatever it says."""
REFILL_S = 0.002
"""How long a client may rest between its reply and its next request."""
Address = tuple[str, int]


class Clients:
    """`count` of them, who ask the kettle again as soon as they are answered, whenever they are let.

    Not by wrk: it says neither which status a reply had nor when it came, and takes a quarter of a second to begin.
    """

    def __init__(self, address: Address, requests: Sequence[bytes], count: int) -> None:
        self.count = count
        self.replies: list[Reply] = []
        self._address = address
        self._requests = cycle(requests)

    def ask_until(self, over: Callable[[], bool]) -> tuple[float, float]:
        """From when to when they did. The replies to the last requests are waited for after that."""
        with Connections(*self._address, self.count) as pool:
            began_s = time.monotonic()
            sent = 0
            while not over():
                for _ in range(self.count - sent + len(pool.replies)):
                    pool.send(next(self._requests), time.monotonic())
                    sent += 1
                time.sleep(REFILL_S)
            ended_s = time.monotonic()
            say_unanswered(pool.wait(PATIENCE_S))
            self.replies += pool.replies
        return began_s, ended_s


def requests_of(appliance_id: str, file: Path, address: Address) -> list[bytes]:
    """`/infer` of windows as long as its active version takes."""
    samples = Registry.load().active(appliance_id).input_window_size
    infer_requests(access_token(), appliance_id, samples).write(file)
    host, port = address
    return http_requests(file, f"{host}:{port}")


def ask_calmly(
    address: Address, requests: Sequence[bytes], per_second: float, seed: int, over: threading.Event
) -> list[Reply]:
    """Open loop."""
    with Connections(*address, CALM_CONNECTIONS) as pool:
        began_s = time.monotonic()
        for request, instant_s in zip(cycle(requests), schedule(per_second, math.inf, seed), strict=False):
            due_s = began_s + instant_s
            if over.wait(max(0.0, due_s - time.monotonic())):
                break
            pool.send(request, due_s)
        say_unanswered(pool.wait(PATIENCE_S))
        return list(pool.replies)


def say_unanswered(requests: int) -> None:
    """They are in no row of the table: which ones they were is not known."""
    if requests:
        print(f"{requests} requests were never answered", flush=True)


def step(observer: Observer, clients: Clients, downscale_delay_s: float) -> Part:
    """Calm, the clients until one replica more has run for a while, calm until it is given back."""
    began_s = time.monotonic()
    time.sleep(CALM_S)
    before = observer.looks[-1].running[KETTLE]
    give_up_s = time.monotonic() + LONGEST_LOAD_S

    def enough() -> bool:
        now_s = time.monotonic()
        return now_s - observer.since_s(KETTLE, before + 1) >= KEPT_S or now_s >= give_up_s

    def given_back() -> bool:
        last = observer.looks[-1]
        return max(last.running[KETTLE], last.wanted[KETTLE]) <= before

    loaded = clients.ask_until(enough)
    print(f"step: {loaded[1] - loaded[0]:.0f} s of load, {observer.looks[-1].running[KETTLE]} replicas", flush=True)
    wait_until(given_back, downscale_delay_s + GIVEN_BACK_S)
    time.sleep(CALM_S)
    print(f"step: {observer.looks[-1].running[KETTLE]} replicas at its end", flush=True)
    return Part("step", f"Step: {clients.count} clients of the kettle", began_s, (loaded,), time.monotonic())


def sawtooth(clients: Clients, minutes: float) -> Part:
    """The clients come and go."""
    began_s = time.monotonic()
    loads = []
    for number in range(max(1, round(60 * minutes / PERIOD_S))):
        # By the clock and not by the last reply, so that no period is longer than the others.
        leave_s = began_s + number * PERIOD_S + HALF_PERIOD_S
        loads.append(clients.ask_until(past(leave_s)))
        time.sleep(max(0.0, leave_s + HALF_PERIOD_S - time.monotonic()))
    title = f"Sawtooth: the same clients for {HALF_PERIOD_S:.0f} s of each {PERIOD_S:.0f} s"
    return Part("sawtooth", title, began_s, tuple(loads), time.monotonic())


def past(instant_s: float) -> Callable[[], bool]:
    """Whether it is."""
    return lambda: time.monotonic() >= instant_s


def wait_until(done: Callable[[], bool], longest_s: float) -> None:
    """Or for `longest_s`."""
    give_up_s = time.monotonic() + longest_s
    while not done() and time.monotonic() < give_up_s:
        time.sleep(LOOK_EVERY_S / 4)
