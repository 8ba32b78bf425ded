"""Clients as they are: they send at a rate of their own, give up waiting, come back with the same key, or hang up."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.fault.balancer import Balancer
from tests.fault.ledger import RETRYABLE, Write

CLIENT_TIMEOUT_S = 12.0
"""A little more than the service's own deadline."""
CONNECT_TIMEOUT_S = 3.0
"""As that of something in front of a service."""
OWN_TYPES = frozenset({"application/json", "application/problem+json"})
PATIENCE_S = 60.0
"""How long a client that comes back does so."""


@dataclass
class Traffic:
    """Writes of one slice, at a steady rate; half of the clients leave the timestamp to the service."""

    url: str
    token: str
    window: list[float]
    name: str
    balancer: Balancer | None = None
    """Between them and the service; while it knows no entrance that is well, nobody sends anything new."""
    seed: int = 1
    writes: list[Write] = field(default_factory=list)
    _number: itertools.count[int] = field(default_factory=itertools.count)
    _windows: list[list[float]] = field(init=False)

    def __post_init__(self) -> None:
        self._windows = [[round(0.1 + n / 10, 3), *self.window[1:]] for n in range(7)]

    async def run(
        self,
        seconds: float,
        per_second: float,
        *,
        with_key: bool = True,
        hang_up: Callable[[], float | None] | None = None,
    ) -> None:
        """Send for `seconds`, then wait for everybody. `hang_up` gives the seconds after which a client leaves."""
        chance = random.Random(self.seed)  # noqa: S311
        headers = {"Authorization": f"Bearer {self.token}"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        patience = httpx.Timeout(CLIENT_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        async with httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=patience, limits=limits, trust_env=False
        ) as client:
            started = time.monotonic()
            tasks: list[asyncio.Task[None]] = []
            held_back = 0.0
            watching = asyncio.create_task(self.balancer.watch()) if self.balancer else None
            while (now := time.monotonic() - started) < seconds:
                if self.balancer is not None and not self.balancer.well():
                    held_back = now * per_second - len(tasks)
                # Open loop: a slow service does not slow its clients down.
                while len(tasks) < now * per_second - held_back:
                    write = self.new_write(with_key=with_key)
                    leaves_after_s = None if hang_up is None else hang_up()
                    tasks.append(asyncio.create_task(self._send(client, write, chance, leaves_after_s)))
                await asyncio.sleep(0.01)
            await asyncio.gather(*tasks)
            if watching is not None:
                watching.cancel()

    def new_write(self, *, with_key: bool = True) -> Write:
        """The next write, already in the ledger."""
        n = next(self._number)
        body: dict[str, Any] = {
            "building_id": f"{self.name}--{n:05d}",
            "appliance_id": "kettle",
            "window": self._windows[n % len(self._windows)],
        }
        if n % 2:
            body["timestamp"] = f"2026-01-31T{n // 3600 % 24:02d}:{n // 60 % 60:02d}:{n % 60:02d}Z"
        write = Write(body["building_id"], f"{self.name}/{n}" if with_key else None, body)
        self.writes.append(write)
        return write

    async def _send(
        self, client: httpx.AsyncClient, write: Write, chance: random.Random, leaves_after_s: float | None
    ) -> None:
        while True:
            wait_s = await self.attempt(client, write, leaves_after_s)
            if write.key is None or wait_s is None or time.monotonic() - write.started_s > PATIENCE_S:
                return
            leaves_after_s = None
            await asyncio.sleep(wait_s * chance.uniform(0.5, 1.0))

    async def attempt(self, client: httpx.AsyncClient, write: Write, leaves_after_s: float | None) -> float | None:
        """One request; the seconds to wait before the next, or None when there is nothing more to try."""
        headers = {} if write.key is None else {"Idempotency-Key": write.key}
        write.statuses.append(0)
        try:
            async with asyncio.timeout(leaves_after_s):
                entrance = self.url if self.balancer is None else self.balancer.next()
                reply = await client.post(f"{entrance}/infer", json=write.body, headers=headers)
        except (httpx.TransportError, TimeoutError):
            return 0.2
        finally:
            write.ended_s = time.monotonic()
        write.statuses[-1] = reply.status_code
        write.ours = reply.headers.get("content-type", "") in OWN_TYPES
        if reply.status_code == 200:
            write.acknowledged_s = time.monotonic()
            write.reply = reply.json()
            write.replayed = reply.headers.get("idempotency-replayed") == "true"
            return None
        again = reply.status_code in RETRYABLE or not write.ours
        return min(float(reply.headers.get("retry-after", 0.5)), 2.0) if again else None
