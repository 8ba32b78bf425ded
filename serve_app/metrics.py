"""What `GET /metrics` says, in the Prometheus text format, with closed label sets.

HTTP figures are this ingress replica's own; the figures of models and store are asked from their deployments at
scrape time. Each ingress owns its registry: the default one is process-wide and would mix two applications.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from deployments.contracts import ApplianceStatus, StoreStatus
from deployments.rollout_contracts import RolloutOverview, versions_by_role

_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_METHODS = frozenset({"GET", "POST", "OPTIONS", "HEAD"})


class HttpMetrics:
    """Requests by route template and status class; the path itself is never a label."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "nilm_http_requests",
            "Requests answered",
            ["route", "method", "status_class"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "nilm_http_request_seconds",
            "Time to answer",
            ["route"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )

        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request. Unknown methods share one label, or clients could invent series."""
        known_method = method if method in _METHODS else "other"
        series = (route, known_method, status // 100)
        known = self._series.get(series)
        if known is None:
            requests = self._requests.labels(route, known_method, f"{status // 100}xx")
            known = self._series[series] = (requests, self._seconds.labels(route))
        known[0].inc()
        known[1].observe(seconds)


def render(
    http: HttpMetrics, appliances: Iterable[ApplianceStatus], rollouts: RolloutOverview, store: StoreStatus | None
) -> bytes:
    """The whole exposition: HTTP, models, rollouts, store."""
    registry = CollectorRegistry()
    _add_rollouts(registry, rollouts)
    ready = Gauge("nilm_appliance_ready", "1 when the appliance has a warm model", ["appliance"], registry=registry)
    windows = Counter("nilm_windows", "Windows run by the replica asked", ["appliance"], registry=registry)
    batches = Counter("nilm_batches", "Batches run by the replica asked", ["appliance"], registry=registry)
    largest = Gauge("nilm_batch_windows_max", "Largest batch so far", ["appliance"], registry=registry)
    for status in appliances:
        ready.labels(status.appliance_id).set(float(status.ready))
        windows.labels(status.appliance_id).inc(status.windows_total)
        batches.labels(status.appliance_id).inc(status.batches_total)
        largest.labels(status.appliance_id).set(status.largest_batch)
    reachable = Gauge("nilm_store_reachable", "1 when the store can take a write", registry=registry)
    reachable.set(float(store is not None and store.reachable))
    if store is not None:
        Gauge("nilm_store_queued", "Record sets waiting", registry=registry).set(store.queued)
        Counter("nilm_store_commits", "Commits", registry=registry).inc(store.commits_total)
        Counter("nilm_store_record_sets", "Record sets made durable", registry=registry).inc(store.records_total)
        Counter("nilm_store_failures", "Record sets not stored", registry=registry).inc(store.failures_total)
        Gauge("nilm_store_commit_record_sets_max", "Largest commit so far", registry=registry).set(store.largest_commit)
    return generate_latest(http.registry) + generate_latest(registry)


_OF_VERSION = {
    "windows": "Windows it ran since its plan began",
    "errors": "Windows it failed at; the stable version answered instead",
    "compared": "Windows that it and the stable version both ran",
    "disagreements": "Compared windows on which one said on and the other off",
    "dropped": "Windows there was no time to compare",
}


def _add_rollouts(registry: CollectorRegistry, rollouts: RolloutOverview) -> None:
    """Versions are those that the configuration names, three an appliance at most: a closed set."""
    of_version = {
        name: Counter(f"nilm_version_{name}", text, ["appliance", "role", "version"], registry=registry)
        for name, text in _OF_VERSION.items()
    }
    percent = Gauge("nilm_canary_percent", "Of the buildings, in the plan", ["appliance"], registry=registry)
    demoted = Gauge("nilm_canary_demoted", "1 while a canary may not answer", ["appliance"], registry=registry)
    refused = Gauge("nilm_rollout_refused", "1 while a plan was refused", ["appliance"], registry=registry)
    for one in rollouts.appliances:
        canary = one.active.plan.canary if one.active else None
        percent.labels(one.appliance_id).set(canary.percent if canary else 0.0)
        demoted.labels(one.appliance_id).set(float(one.active is not None and one.active.demoted is not None))
        refused.labels(one.appliance_id).set(float(one.refused is not None))
        versions = versions_by_role(one.active.plan) if one.active else {}
        for role, counts in one.counts:
            if role in versions:
                for name, counter in of_version.items():
                    counter.labels(one.appliance_id, role, versions[role]).inc(getattr(counts, name))
    config = Gauge("nilm_rollout_config_refused", "1 while the configuration was not usable", registry=registry)
    config.set(float(rollouts.refused_config is not None))
    Counter("nilm_rollout_refusals", "Plans and configurations refused", registry=registry).inc(rollouts.refusals_total)
    Counter("nilm_rollout_demotions", "Canaries demoted", registry=registry).inc(rollouts.demotions_total)
