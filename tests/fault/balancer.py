"""What stands in front of a service: it asks every entrance how it is, and sends requests to those that are well."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import httpx

PERIOD_S, TIMEOUT_S = 0.5, 2.0
FAILURES = 2
"""In a row, until an entrance gets nothing new; as Kubernetes' probes count in our file."""


class Balancer:
    """`entrances()`: addresses that there are now; `path`: what each is asked."""

    def __init__(self, entrances: Callable[[], Sequence[str]], path: str) -> None:
        self._entrances = entrances
        self._path = path
        self._failed: dict[str, int] = {}
        self._turn = 0

    def well(self) -> list[str]:
        """Those that get requests."""
        return [one for one in self._entrances() if self._failed.get(one, FAILURES) < FAILURES]

    def next(self) -> str:
        """Round robin; with none that is well, over all there are."""
        candidates = self.well() or list(self._entrances())
        self._turn += 1
        return candidates[self._turn % len(candidates)]

    async def watch(self) -> None:
        """Until cancelled. By connections of its own: those of the clients may all be waiting for an answer."""
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
            while True:
                entrances = list(self._entrances())
                answers = await asyncio.gather(*(self._ask(client, one) for one in entrances))
                self._failed = {
                    one: 0 if well else self._failed.get(one, 0) + 1
                    for one, well in zip(entrances, answers, strict=True)
                }
                await asyncio.sleep(PERIOD_S)

    async def _ask(self, client: httpx.AsyncClient, entrance: str) -> bool:
        try:
            return (await client.get(entrance + self._path)).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False
