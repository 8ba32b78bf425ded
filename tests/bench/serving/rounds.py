"""Rounds over the systems. In each, every system is started alone, warmed up, loaded in slices, and stopped again.

The next round begins with another system, so that none is always the first or always follows the same one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.serving.baselines.rows import stored_predictions
from tests.bench.serving.closed_loop import closed_loop
from tests.bench.serving.engine import engine_passes
from tests.bench.serving.load import LoadFailed, LoadResult
from tests.bench.serving.open_loop import open_loop
from tests.bench.serving.processes import cpu_of, machine_busy_s, memory_mb, spent_s
from tests.bench.serving.request_set import RequestSet
from tests.bench.serving.running import Running, SystemFailed, baseline_environment
from tests.bench.serving.samples import EnginePass, Footprint, Measured, Sample
from tests.bench.serving.systems import System

WARM_UP_CONNECTIONS = 32
OPEN_SHARES = (0.5, 0.8)
"""Of a system's own capacity: the most it acknowledged in a second of this round's closed loops."""

Say = Callable[[str], None]
"""Told what begins; once a step."""


@dataclass(frozen=True)
class Variant:
    """Requests of another kind than all systems take, for those that do; a closed loop of `connections`."""

    name: str
    requests: RequestSet
    connections: int
    systems: frozenset[str]

    @property
    def load(self) -> str:
        """Its label."""
        return f"{self.name}, {closed_label(self.connections)}"


@dataclass(frozen=True)
class Plan:
    """What to measure: `seconds` a slice, `concurrency` of the closed loops."""

    systems: Sequence[System]
    rounds: int
    seconds: float
    concurrency: Sequence[int]
    model_version: str
    requests: RequestSet
    variants: Sequence[Variant]
    folder: Path

    @property
    def steps(self) -> int:
        """How often `say` is called."""
        slices = 2 + len(self.concurrency) + len(OPEN_SHARES)
        more = sum(system.key in variant.systems for system in self.systems for variant in self.variants)
        return self.rounds * (1 + len(self.systems) * slices + more)


def closed_label(connections: int) -> str:
    """Of a closed loop, in tables and JSON."""
    return f"c={connections}"


def open_label(share: float) -> str:
    """Of an open loop."""
    return f"open, {share:.0%} of capacity"


def run_rounds(plan: Plan, measured: Measured, say: Say) -> None:
    """Fill `measured`. A system that fails is named there and does not keep the others from being measured."""
    requests_file = plan.folder / "requests"
    plan.requests.write(requests_file)
    for number in range(plan.rounds):
        say(f"round {number + 1}: raw engine")
        environment = baseline_environment(Path(os.devnull), plan.model_version)
        passes = engine_passes(plan.model_version, plan.seconds / 2, environment)
        measured.engine += [EnginePass(number, batch, rate) for batch, rate in passes.items()]
        first = number % len(plan.systems)
        for system in (*plan.systems[first:], *plan.systems[:first]):
            folder = plan.folder / f"round-{number}-{system.key}"
            folder.mkdir()
            one = _Round(plan, measured, system, number, requests_file, say)
            try:
                one.run(folder)
            except (SystemFailed, LoadFailed) as failure:
                measured.failed.append(f"{system.title}, round {number + 1}: {failure}")
            shutil.rmtree(folder, ignore_errors=True)


@dataclass
class _Round:
    """One system in one round."""

    plan: Plan
    measured: Measured
    system: System
    number: int
    requests_file: Path
    say: Say

    def run(self, folder: Path) -> None:
        seconds = self.plan.seconds
        self._say("start")
        started_s = time.monotonic()
        with self.system.start(folder, self.plan.model_version) as running:
            start_s = time.monotonic() - started_s
            self._say("warm up")
            for connections in (1, WARM_UP_CONNECTIONS):
                closed_loop(running.url, self.requests_file, connections, seconds / 2)
            at_rest_cores = _cpu_at_rest(running, seconds / 2)
            capacity = 0.0
            for connections in self.plan.concurrency:
                generate = partial(closed_loop, running.url, self.requests_file, connections, seconds)
                sample = self._slice(running, closed_label(connections), generate)
                capacity = max(capacity, sample.result.per_second)
            for variant in self.plan.variants:
                if self.system.key in variant.systems:
                    self._variant(running, variant, folder / "variant")
            memory = memory_mb(running.root_pid)
            for share in OPEN_SHARES:
                rate = max(share * capacity, 1.0)
                generate = partial(open_loop, running.url, self.requests_file, rate, seconds, self.number)
                self._slice(running, open_label(share), generate)
            self.measured.footprints.append(Footprint(self.system.key, self.number, memory, at_rest_cores, start_s))

    def _variant(self, running: Running, variant: Variant, requests_file: Path) -> None:
        variant.requests.write(requests_file)
        generate = partial(closed_loop, running.url, requests_file, variant.connections, self.plan.seconds)
        self._slice(running, variant.load, generate, variant.requests.windows_each)

    def _say(self, what: str) -> None:
        self.say(f"round {self.number + 1}: {self.system.title}, {what}")

    def _slice(self, running: Running, load: str, generate: Callable[[], LoadResult], windows_each: int = 1) -> Sample:
        self._say(load)
        stored_before = stored_predictions(running.database)
        cpu_before, busy_before_s, started_s = cpu_of(running.root_pid), machine_busy_s(), time.monotonic()
        result = generate()
        cpu_after, busy_s, took_s = (
            cpu_of(running.root_pid),
            machine_busy_s() - busy_before_s,
            time.monotonic() - started_s,
        )
        cpu_s = spent_s(cpu_before, cpu_after)
        elsewhere_s = busy_s - sum(cpu_s.values()) - result.generator_cpu_s
        stored = stored_predictions(running.database) - stored_before
        sample = Sample(
            system=self.system.key,
            round=self.number,
            load=load,
            result=result,
            cpu_s=cpu_s,
            elsewhere=max(0.0, elsewhere_s) / took_s / len(os.sched_getaffinity(0)),
            lost=max(0, result.acknowledged * windows_each - stored),
            windows_each=windows_each,
        )
        self.measured.samples.append(sample)
        return sample


def _cpu_at_rest(running: Running, seconds: float) -> float:
    """Cores that the system keeps busy while nobody asks."""
    before, started_s = cpu_of(running.root_pid), time.monotonic()
    time.sleep(seconds)
    return sum(spent_s(before, cpu_of(running.root_pid)).values()) / (time.monotonic() - started_s)
