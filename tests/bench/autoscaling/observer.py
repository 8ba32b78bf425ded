"""What is seen of a service while it scales: replicas by Serve's REST API, windows by `GET /metrics`."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import httpx

from tests.integration.service import FIGURES_LATE_S, Service

KETTLE, INGRESS = "kettle", "ingress"
APPLIANCES = (KETTLE, "microwave")
WATCHED = (*APPLIANCES, INGRESS)
RUNNING = "RUNNING"
"""Of a replica that takes requests: not one that starts, nor one that still answers its last."""
LOOK_EVERY_S = 1.0
WINDOWS_EVERY_S = 3.0
"""So often Ray's agent is told, see FRESH_FIGURES; what it says may be FIGURES_LATE_S old."""


@dataclass(frozen=True, slots=True)
class Look:
    """Replicas that run and that Serve wants, by deployment, at an instant of `time.monotonic()`."""

    at_s: float
    running: Mapping[str, int]
    wanted: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Held:
    """Windows that wait at the ingress or are in a replica, by appliance, at an instant of `time.monotonic()`."""

    at_s: float
    windows: Mapping[str, float]


Seen = TypeVar("Seen", Look, Held)


@dataclass(frozen=True)
class Part:
    """A stretch of the run, and from when to when the clients were there; all by `time.monotonic()`."""

    name: str
    title: str
    began_s: float
    loads: tuple[tuple[float, float], ...]
    ended_s: float

    def of(self, seen: Sequence[Seen]) -> list[Seen]:
        """What was seen in it."""
        return [one for one in seen if self.began_s <= one.at_s < self.ended_s]

    def loaded(self, at_s: float) -> bool:
        """Whether the clients were there, and had been for as long as a figure may be late."""
        return any(began_s + FIGURES_LATE_S <= at_s < ended_s for began_s, ended_s in self.loads)

    def minutes(self, at_s: float) -> float:
        """Since its beginning."""
        return (at_s - self.began_s) / 60


class Observer:
    """Looks at the service from two threads of its own, so that a slow answer of `/metrics` holds up nothing."""

    def __init__(self, service: Service) -> None:
        self.looks: list[Look] = []
        self.held: list[Held] = []
        self.missed: Counter[str] = Counter()
        self._service = service
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._every, args=(LOOK_EVERY_S, self._look, "replicas"), daemon=True),
            threading.Thread(target=self._every, args=(WINDOWS_EVERY_S, self._look_at_windows, "windows"), daemon=True),
        ]

    def __enter__(self) -> Self:
        self._look()  # whoever asks for the last look finds one
        for one in self._threads:
            one.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for one in self._threads:
            one.join()

    def since_s(self, name: str, replicas: int) -> float:
        """Since when at least so many have been seen to run without a break; infinity when there are fewer now."""
        since_s = math.inf
        for look in reversed(self.looks):
            if look.running[name] < replicas:
                break
            since_s = look.at_s
        return since_s

    def _every(self, seconds: float, look: Callable[[], None], what: str) -> None:
        next_s = time.monotonic()
        while not self._over.wait(max(0.0, next_s - time.monotonic())):
            next_s = max(next_s + seconds, time.monotonic())
            try:
                look()
            except (httpx.HTTPError, AssertionError, KeyError, ValueError):
                self.missed[what] += 1  # too busy to answer, or not all is told yet: the next one will see

    def _look(self) -> None:
        deployments = self._service.deployments()
        running = {name: sum(one["state"] == RUNNING for one in deployments[name]["replicas"]) for name in WATCHED}
        wanted = {name: int(deployments[name]["target_num_replicas"]) for name in WATCHED}
        self.looks.append(Look(time.monotonic(), running, wanted))

    def _look_at_windows(self) -> None:
        told = self._service.figures()
        windows = {
            name: told.value("nilm_replica_windows", appliance=name)
            + told.value("nilm_windows_waiting", appliance=name)
            for name in APPLIANCES
        }
        self.held.append(Held(time.monotonic(), windows))
