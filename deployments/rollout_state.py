"""What the coordinator knows of one appliance: its plans, its replicas, and what its versions did. Decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from deployments.contracts import RefusedVersion
from deployments.rollout_contracts import (
    ApplianceRollout,
    Directive,
    ReplicaReport,
    ReplicaState,
    Role,
    VersionCounts,
)
from deployments.rollout_guard import Guard, RecentCounts
from deployments.rollout_plan import RolloutPlan


@dataclass
class KnownReplica:
    """Its last report, and when that came."""

    report: ReplicaReport
    heard_at: float


@dataclass
class ApplianceState:
    """`offer_number`: of the configuration that brought its plan; all appliances it changed have the same.

    `refused_plan`: the last that was refused, so that repeating it is no new attempt. `told`: what every replica said
    it had counted, those that are gone included, because one that was only silent goes on from there.
    """

    offer_number: int = 0
    active: Directive | None = None
    preparing: Directive | None = None
    prepare_until: float = 0.0
    refused: RefusedVersion | None = None
    refused_plan: RolloutPlan | None = None
    replicas: dict[str, KnownReplica] = field(default_factory=dict)
    counts: dict[Role, VersionCounts] = field(default_factory=dict)
    recent: dict[Role, RecentCounts] = field(default_factory=dict)
    told: dict[str, dict[Role, VersionCounts]] = field(default_factory=dict)
    guard: Guard | None = None

    @property
    def watched(self) -> bool:
        """Whether reports should come often."""
        plan = self.active.plan if self.active else None
        return self.preparing is not None or bool(plan and (plan.canary or plan.shadow))

    def serves(self, plan: RolloutPlan) -> bool:
        """Whether any replica does."""
        return any(one.report.active and one.report.active.plan == plan for one in self.replicas.values())

    def forget_gone(self, oldest: float) -> None:
        """Replicas that were last heard of before then."""
        self.replicas = {name: known for name, known in self.replicas.items() if known.heard_at >= oldest}

    def activate(self, directive: Directive) -> None:
        """What serves from now on. With a new plan everything is counted from zero."""
        new_plan = self.active is None or self.active.plan_number != directive.plan_number
        self.active = directive
        if new_plan:
            self.counts, self.recent, self.told = {}, {}, {}
            self.guard = Guard(directive.plan.guard)

    def count(self, report: ReplicaReport) -> None:
        """Adds what a replica saw since its last report."""
        if self.active is None or report.active is None or report.active.plan_number != self.active.plan_number:
            return
        for role, counts in report.counts:
            told = self.told.setdefault(report.replica, {})
            increment = counts - told.get(role, VersionCounts())
            told[role] = counts
            self.counts[role] = self.counts.get(role, VersionCounts()) + increment
            self.recent.setdefault(role, RecentCounts(self.active.plan.guard.over_windows)).add(increment)


def settled(one: ApplianceState) -> bool:
    """Every replica does what was decided, or has said that it cannot."""
    if one.preparing is not None:
        return False
    if one.active is None:
        return True
    return (
        all(
            one.active.number
            in (
                known.report.active.number if known.report.active else None,
                known.report.refusal.number if known.report.refusal else None,
            )
            for known in one.replicas.values()
        )
        or one.refused is not None
    )


def overview_of(name: str, one: ApplianceState) -> ApplianceRollout:
    """For whoever asks."""
    replicas = (
        ReplicaState(
            replica=known.report.replica,
            node=known.report.node,
            number=known.report.active.number if known.report.active else None,
            loaded=known.report.loaded,
            registry_sha256=known.report.registry_sha256,
            refused=known.report.refusal.refused if known.report.refusal else None,
        )
        for known in one.replicas.values()
    )
    return ApplianceRollout(
        appliance_id=name,
        active=one.active,
        preparing=one.preparing,
        refused=one.refused,
        refused_plan=one.refused_plan,
        counts=tuple(one.counts.items()),
        recent=tuple((role, counts.total) for role, counts in one.recent.items()),
        replicas=tuple(replicas),
    )
