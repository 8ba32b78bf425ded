"""The metrics of the deployments, each with a closed set of labels; those of the ingress are in `serve_app.metrics`.

Ray adds `application`, `deployment` and `replica`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from deployments.contracts import (
    Inference,
    InferenceResult,
    NotPersisted,
    Persisted,
    PersistFailure,
    PersistResult,
    StoredReply,
)
from deployments.rollout_contracts import Role, RolloutOverview
from deployments.telemetry import Labels, Telemetry

BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64)
FORWARD_BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
COMMIT_BOUNDS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
COMMIT_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 256, 1024)
GUARDED = {
    "windows": "Windows it ran",
    "errors": "Windows it could not answer; the stable version did instead",
    "slow": "Windows that took longer than the guard allows",
    "implausible": "Windows with a power beyond the nameplate",
    "compared": "Windows that the stable version ran as well",
    "disagreements": "Compared windows on which one said on and the other off",
    "dropped": "Windows there was no time to compare",
}
"""What the guard judges a version by, see `VersionCounts`; all since the plan began."""


class ModelFigures:
    """Of one replica of an appliance. `in_replica()`: live windows that wait or run in it."""

    def __init__(self, telemetry: Telemetry, appliance_id: str, in_replica: Callable[[], int]) -> None:
        self._appliance_id = appliance_id
        self._windows = telemetry.counter("nilm_windows", "Windows run", "appliance", "role", "version", "outcome")
        self._batches = telemetry.histogram(
            "nilm_batch_windows", "Windows of a batch", BATCH_BOUNDS, "appliance", "role"
        )
        self._seconds = telemetry.histogram(
            "nilm_forward_seconds", "Time of a forward pass", FORWARD_BOUNDS_S, "appliance", "role"
        )
        telemetry.gauge(
            "nilm_replica_windows",
            "Windows that wait or run in the replica",
            lambda: {(appliance_id,): in_replica()},
            "appliance",
        )

    def ran(self, role: Role, version: str, results: list[InferenceResult]) -> None:
        """One batch."""
        answered = [one for one in results if isinstance(one, Inference)]
        names = self._appliance_id, str(role)
        for outcome, count in (("answered", len(answered)), ("refused", len(results) - len(answered))):
            if count:
                self._windows.add(*names, version, outcome, by=count)
        if answered:
            self._batches.observe(answered[0].batch_size, *names)
            self._seconds.observe(answered[0].forward_ms / 1000, *names)


class StoreFigures:
    """Of the writer; what `GroupCommit` tells. `queued()`: record sets that wait."""

    def __init__(self, telemetry: Telemetry, queued: Callable[[], int]) -> None:
        self._commits = telemetry.counter(
            "nilm_store_commits", "Commits that ended", "outcome", known=[("ok",), ("failed",)]
        )
        results = ("persisted", "replayed", *(failure.value for failure in PersistFailure))
        self._record_sets = telemetry.counter(
            "nilm_store_record_sets", "Record sets that were answered", "result", known=[(one,) for one in results]
        )
        self._seconds = telemetry.histogram("nilm_store_commit_seconds", "Time of a commit", COMMIT_BOUNDS_S)
        self._size = telemetry.histogram("nilm_store_commit_record_sets", "Record sets of a commit", COMMIT_BOUNDS)
        telemetry.gauge("nilm_store_queued", "Record sets that wait", lambda: {(): queued()})

    def committed(self, *, succeeded: bool, record_sets: int, seconds: float) -> None:
        """One commit ended."""
        self._commits.add("ok" if succeeded else "failed")
        self._seconds.observe(seconds)
        self._size.observe(record_sets)

    def answered(self, result: PersistResult) -> None:
        """One record set has its answer."""
        match result:
            case Persisted():
                label = "persisted"
            case StoredReply():
                label = "replayed"
            case NotPersisted():
                label = result.failure.value
        self._record_sets.add(label)


def watch_rollouts(telemetry: Telemetry, overview: Callable[[], RolloutOverview]) -> None:
    """What the coordinator knows, as gauges: the counts of versions begin anew with every plan."""

    def of_appliances(value: Callable[..., float]) -> Callable[[], Mapping[Labels, float]]:
        return lambda: {(one.appliance_id,): value(one) for one in overview().appliances}

    def of_versions(name: str) -> Callable[[], Mapping[Labels, float]]:
        return lambda: {
            (one.appliance_id, str(role)): float(getattr(counts, name))
            for one in overview().appliances
            for role, counts in one.counts
        }

    for name, text in GUARDED.items():
        telemetry.gauge(f"nilm_version_{name}", text, of_versions(name), "appliance", "role")
    telemetry.gauge(
        "nilm_canary_percent",
        "Of the buildings, in the plan",
        of_appliances(lambda one: one.active.plan.canary.percent if one.active and one.active.plan.canary else 0.0),
        "appliance",
    )
    telemetry.gauge(
        "nilm_canary_demoted",
        "1 while a canary may not answer",
        of_appliances(lambda one: float(one.active is not None and one.active.demoted is not None)),
        "appliance",
    )
    telemetry.gauge(
        "nilm_rollout_refused",
        "1 while the last plan of the appliance was refused",
        of_appliances(lambda one: float(one.refused is not None)),
        "appliance",
    )
    telemetry.gauge(
        "nilm_rollout_preparing",
        "1 while replicas prepare another plan",
        of_appliances(lambda one: float(one.preparing is not None)),
        "appliance",
    )
    telemetry.gauge(
        "nilm_rollout_config_refused",
        "1 while the configuration was not usable",
        lambda: {(): float(overview().refused_config is not None)},
    )
    telemetry.totals(
        "nilm_rollout_refusals", "Refused plans and configurations", lambda: {(): overview().refusals_total}
    )
    telemetry.totals("nilm_rollout_demotions", "Demoted canaries", lambda: {(): overview().demotions_total})
