"""What an operator meets, one after the other: what clients saw of it, and whether the ledger is clean.

    python -m tests.fault.drill --nodes 3 --seconds 20

In production mode, with two ingresses and two replicas of the model. On one node the store is the embedded one. On
three (a head without replicas and two that serve, each in a network of its own on this machine) it is the InfluxDB of
the tests, and clients come through something that asks every node's `/-/healthz`. During each fault two kinds of
clients send at a steady rate: those that come back with their Idempotency-Key, and those that try once. Prints a table.
Asserts nothing; `tests/fault/test_cluster.py` does, of the faults that differ most.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fault.balancer import Balancer
from tests.fault.ledger import Verdict, Write, check, longest_outage_s
from tests.fault.operations import FAULTS, Fault
from tests.fault.system import System, one_node, three_nodes
from tests.fault.traffic import Traffic

BEFORE_S = 3.0
"""Of calm at the start of each slice."""


@dataclass(frozen=True)
class Slice:
    """One fault, and what both kinds of clients met."""

    fault: Fault
    once: list[Write]
    coming_back: list[Write]
    verdicts: tuple[Verdict, Verdict]
    remark: str

    @property
    def failed_once(self) -> Counter[int]:
        """What those who try once got instead of 200, by status; 0 is no answer."""
        return Counter(write.statuses[-1] for write in self.once if write.acknowledged_s is None)

    @property
    def never_answered(self) -> int:
        """Of those that come back, how many were refused for good or gave up after a minute."""
        return sum(write.acknowledged_s is None for write in self.coming_back)

    @property
    def outage_s(self) -> float:
        """The longest time in which nobody was answered while somebody waited."""
        return longest_outage_s([*self.once, *self.coming_back])

    def row(self) -> str:
        """One line of the table."""
        failed = ", ".join(f"{n} x {status or 'none'}" for status, n in sorted(self.failed_once.items())) or "0"
        lost, unexpected, duplicated = (
            sum(len(getattr(one, name)) for one in self.verdicts) for name in ("lost", "unexpected", "duplicated")
        )
        repeats = sum(len(write.statuses) - 1 for write in self.coming_back)
        cells = (
            f"{self.fault.number} {self.fault.title}",
            len(self.once),
            failed,
            len(self.coming_back),
            repeats,
            self.never_answered,
            f"{self.outage_s:.1f}",
            f"{lost} / {unexpected} / {duplicated}",
            self.remark,
        )
        return "| " + " | ".join(map(str, cells)) + " |"


HEAD = (
    "| fault | tried once | of these failed | coming back | repeats | never answered | longest outage, s "
    "| lost / unexpected / twice | |\n|---|---|---|---|---|---|---|---|---|"
)


@dataclass
class Drill:
    """Runs faults on one system, each as a slice of the ledger."""

    system: System
    per_second: float = 40.0
    seconds: float = 20.0
    slices: list[Slice] = field(default_factory=list)

    async def run(self, fault: Fault) -> Slice:
        """Load, the fault in the middle of it, and then calm again."""
        name = f"{fault.number}-{len(self.slices)}"
        window = self.system.window
        url, token = self.system.service.url, self.system.service.token()
        once, coming_back = (
            Traffic(url, token, window, f"{name}-{kind}", self._balancer(fault)) for kind in ("once", "back")
        )
        rate = self.per_second / 2
        act = asyncio.create_task(_later(lambda: fault.act(self.system)))
        seconds = max(self.seconds, fault.at_least_s)
        await asyncio.gather(
            once.run(seconds, rate, with_key=False),
            coming_back.run(seconds, rate),
        )
        remark = await act
        await asyncio.to_thread(self.system.settle)
        stored = await asyncio.to_thread(self.system.stored)
        verdicts = check(once.name, once.writes, stored), check(coming_back.name, coming_back.writes, stored)
        done = Slice(fault, once.writes, coming_back.writes, verdicts, remark)
        self.slices.append(done)
        return done

    def _balancer(self, fault: Fault) -> Balancer | None:
        url = self.system.service.url
        return Balancer(lambda: [url], "/ready") if fault.balanced else self.system.balancer()


async def _later(act: Callable[[], Awaitable[str]]) -> str:
    await asyncio.sleep(BEFORE_S)
    return await act()


def main() -> None:
    """Start, break, print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--nodes", type=int, choices=(1, 3), default=1)
    arguments.add_argument("--seconds", type=float, default=20.0, help="of load around each fault, at least")
    arguments.add_argument("--per-second", type=float, default=40.0, help="requests, half of each kind of client")
    arguments.add_argument("--faults", default="", help="comma-separated numbers; default: all")
    chosen = arguments.parse_args()
    numbers = [one for one in chosen.faults.split(",") if one]
    faults = [one for one in FAULTS if chosen.nodes in one.nodes and (not numbers or one.number in numbers)]
    with (
        tempfile.TemporaryDirectory() as folder,
        one_node(Path(folder)) if chosen.nodes == 1 else three_nodes(Path(folder), apart=True) as system,
    ):
        drill = Drill(system, chosen.per_second, chosen.seconds)
        print(HEAD, flush=True)
        for fault in faults:
            began_s = time.monotonic()
            print(asyncio.run(drill.run(fault)).row(), flush=True)
            print(f"({time.monotonic() - began_s:.0f} s)", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
