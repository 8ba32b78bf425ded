"""What one run of the benchmark measured: plain values, ready for JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.serving.load import LoadResult


@dataclass(frozen=True, slots=True)
class Sample:
    """One slice: one system under one load in one round.

    `load`: its label. `cpu_s`: CPU seconds of the system by process name. `elsewhere`: share of the machine's cores
    that neither the system nor the generator used. `lost`: windows acknowledged and not stored; never anything but 0.
    """

    system: str
    round: int
    load: str
    result: LoadResult
    cpu_s: dict[str, float]
    elsewhere: float
    lost: int
    windows_each: int = 1

    @property
    def cpu_ms_each(self) -> float:
        """CPU time of all processes of the system, per window of an acknowledged request."""
        return 1000 * sum(self.cpu_s.values()) / max(1, self.result.acknowledged * self.windows_each)

    @property
    def windows_per_second(self) -> float:
        """Windows answered."""
        return self.result.per_second * self.windows_each


@dataclass(frozen=True, slots=True)
class Footprint:
    """One system in one round. `at_rest_cores`: cores it keeps busy while nobody asks; `start_s`: until it answered."""

    system: str
    round: int
    memory_mb: float
    at_rest_cores: float
    start_s: float


@dataclass(frozen=True, slots=True)
class EnginePass:
    """Raw forward passes of the model, one thread, no server: windows a second at one batch size, in one round."""

    round: int
    batch: int
    windows_per_second: float


@dataclass
class Measured:
    """Everything."""

    machine: dict[str, str]
    options: dict[str, str]
    samples: list[Sample] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    engine: list[EnginePass] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Systems that could not be measured in some round, and why."""

    def write_json(self, path: Path) -> None:
        """All rounds, nothing summed up."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")
