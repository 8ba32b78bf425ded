"""What one replica counts, on its way into Ray's metrics, which bring it to the agent of its node.

Everything travels as a gauge of Ray's, set once a second to what was counted so far, under the name that Prometheus
gives it: `<name>_total`, `<name>_bucket` with `le`, `<name>_sum`. Ray's own counters stay in the agent for ever, when
their replica is long gone, and cannot say 0; of its histograms the agent replays every observation by itself, at the
middle of its bucket, so that sums are wrong and a busy ingress keeps the agent busy too. A gauge that nobody sets any
more is gone after two reports, and one that is told late is no less right.

Ray's agents are told every ten seconds (`RAY_metrics_report_interval_ms`): a replica that is killed takes what it
counted since then with it. `serve_app.exposition` puts together what all agents were told.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from ray.serve import metrics

FLUSH_S = 1.0
TOTAL_SUFFIX, BUCKET_SUFFIX, SUM_SUFFIX = "_total", "_bucket", "_sum"
BUCKET_LABEL = "le"
"""As in Prometheus: the upper bound of a bucket, included."""

Labels = tuple[str, ...]
logger = logging.getLogger("ray.serve")


class Counter:
    """Only grows. Made by `Telemetry.counter`."""

    def __init__(self) -> None:
        self.values: dict[Labels, float] = {}

    def add(self, *labels: str, by: float = 1.0) -> None:
        """`labels`: a value for each name, in their order."""
        self.values[labels] = self.values.get(labels, 0.0) + by


class Histogram:
    """How many observations there were up to each bound, and their sum. Made by `Telemetry.histogram`."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._les = (*(str(float(bound)) for bound in bounds), "+Inf")
        self._counts: dict[Labels, list[int]] = {}
        self.sums: dict[Labels, float] = {}

    def observe(self, value: float, *labels: str) -> None:
        """`labels`: a value for each name, in their order."""
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * len(self._les)
            self.sums[labels] = 0.0
        counts[bisect.bisect_left(self._bounds, value)] += 1
        self.sums[labels] += value

    def buckets(self) -> dict[Labels, float]:
        """Cumulative, as Prometheus has them; the bound is the last label."""
        return dict(self._cumulative())

    def _cumulative(self) -> Iterator[tuple[Labels, float]]:
        for labels, counts in self._counts.items():
            for le, up_to in zip(self._les, itertools.accumulate(counts), strict=True):
                yield (*labels, le), up_to


class GaugeSink(Protocol):
    """As `ray.serve.metrics.Gauge`."""

    def set(self, value: float, tags: dict[str, str]) -> None: ...


class Telemetry:
    """Everything that one replica counts; `run` belongs into its background.

    `sink(name, description, tag_keys)` makes a gauge.
    """

    def __init__(self, sink: Any = metrics.Gauge) -> None:
        self._sink = sink
        self._gauges: list[tuple[GaugeSink, Labels, Callable[[], Mapping[Labels, float]]]] = []

    def counter(self, name: str, text: str, *label_names: str, known: Iterable[Labels] = ()) -> Counter:
        """`name` without `_total`; `known`: labels that are told from the start, as 0."""
        counter = Counter()
        counter.values |= dict.fromkeys(known, 0.0)
        self.totals(name, text, lambda: counter.values, *label_names)
        return counter

    def totals(self, name: str, text: str, read: Callable[[], Mapping[Labels, float]], *label_names: str) -> None:
        """A counter that is kept elsewhere; `read`: its values by their labels, without labels by `()`."""
        self.gauge(name + TOTAL_SUFFIX, text, read, *label_names)

    def histogram(self, name: str, text: str, bounds: Sequence[float], *label_names: str) -> Histogram:
        """`bounds`: upper bounds of the buckets, growing; one without a bound follows them."""
        histogram = Histogram(bounds)
        self.gauge(name + BUCKET_SUFFIX, text, histogram.buckets, *label_names, BUCKET_LABEL)
        self.gauge(name + SUM_SUFFIX, text, lambda: histogram.sums, *label_names)
        return histogram

    def gauge(self, name: str, text: str, read: Callable[[], Mapping[Labels, float]], *label_names: str) -> None:
        """`read`: values by their labels, without labels by `()`. What it gives no more is gone after two reports."""
        self._gauges.append((self._sink(name, text, label_names), label_names, read))

    def flush(self) -> None:
        """Pass on everything. Never raises: no figure is worth a replica."""
        for gauge, label_names, read in self._gauges:
            try:
                for labels, value in read().items():
                    gauge.set(float(value), tags=dict(zip(label_names, labels, strict=True)))
            except Exception:
                logger.exception("a figure was not passed on")

    async def run(self) -> None:
        """Pass on everything each second, until cancelled, and once more then."""
        try:
            while True:
                self.flush()
                await asyncio.sleep(FLUSH_S)
        finally:
            self.flush()
