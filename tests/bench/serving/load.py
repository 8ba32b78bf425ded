"""What a load generator reports, whichever it was."""

from __future__ import annotations

from dataclasses import dataclass


class LoadFailed(Exception):
    """The generator itself failed, so there is nothing to report."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """`acknowledged`: replies of 2xx; `failures`: everything else that was asked. Latencies of all replies, ms."""

    acknowledged: int
    failures: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    generator_cpu_s: float
    late_ms: float = 0.0
    """Of an open loop: how long after its instant a request was sent, 99th percentile; it is in the latencies."""

    @property
    def per_second(self) -> float:
        """Acknowledged requests a second."""
        return self.acknowledged / self.seconds


def percentile(values: list[float], share: float) -> float:
    """By nearest rank; `values` need no order. NaN of none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    rank = -int(-share * len(ordered) // 1)  # rounded up
    return ordered[max(0, rank - 1)]
