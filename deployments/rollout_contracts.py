"""What crosses the handles between the coordinator, the rollout's gate, and the replicas of an appliance.

The coordinator decides, replicas carry out: they keep one call open there, say in it what they serve and what they
saw, and hear in its answer what to prepare and what to serve.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter

from deployments.contracts import RefusedVersion
from deployments.rollout_plan import RolloutPlan


class Role(StrEnum):
    """What a version does for an appliance."""

    STABLE = "stable"
    CANARY = "canary"
    SHADOW = "shadow"


def versions_by_role(plan: RolloutPlan) -> dict[Role, str]:
    """Every version that a plan names."""
    others = {Role.CANARY: plan.canary, Role.SHADOW: plan.shadow}
    return {Role.STABLE: plan.stable, **{role: other.version for role, other in others.items() if other is not None}}


@dataclass(frozen=True, slots=True)
class VersionCounts:
    """What one version did, as sums; powers in W over windows, `time_s` from arrival at the replica to the answer.

    The last five are about windows that the stable version has run as well.
    """

    windows: int = 0
    errors: int = 0
    slow: int = 0
    implausible: int = 0
    on: int = 0
    power_w: float = 0.0
    time_s: float = 0.0
    dropped: int = 0
    """Windows that were not compared, because there was no time for it."""
    compared: int = 0
    disagreements: int = 0
    compared_on: int = 0
    """Either version says on."""
    compared_power_w: float = 0.0
    stable_power_w: float = 0.0

    def __add__(self, other: VersionCounts) -> VersionCounts:
        return self._with(other, 1)

    def __sub__(self, other: VersionCounts) -> VersionCounts:
        return self._with(other, -1)

    def _with(self, other: VersionCounts, sign: int) -> VersionCounts:
        # Not `astuple`, which copies deeply: this runs for every window.
        return VersionCounts(*(mine + sign * its for mine, its in zip(_sums(self), _sums(other), strict=True)))


_sums = attrgetter(*(one.name for one in dataclasses.fields(VersionCounts)))


@dataclass(frozen=True, slots=True)
class Demotion:
    """A canary that may not answer any more, until the configuration changes."""

    model_version: str
    reason: str
    """The bounds it broke, with the numbers."""
    at_s: float
    """`time.time()`."""


@dataclass(frozen=True, slots=True)
class Directive:
    """What the replicas of one appliance are to serve.

    `number` grows with every change, `plan_number` only with those of the plan: what is counted, is counted from
    there. All replicas switch at `activate_at_s`, so that no building meets both versions in turns.
    """

    number: int
    plan_number: int
    plan: RolloutPlan
    demoted: Demotion | None = None
    activate_at_s: float = 0.0

    @property
    def versions(self) -> dict[Role, str]:
        """What replicas hold: a canary that was demoted is not among them."""
        versions = versions_by_role(self.plan)
        if self.demoted is not None:
            versions.pop(Role.CANARY, None)
        return versions


@dataclass(frozen=True, slots=True)
class Refusal:
    """Directive `number` was not carried out: this version failed a step, and what served before goes on."""

    number: int
    refused: RefusedVersion


@dataclass(frozen=True, slots=True)
class LoadedVersion:
    """A version in a replica's memory, verified and warm."""

    role: Role
    model_version: str
    artifact_sha256: str


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What a replica says each time it asks for orders. `counts` are sums since its `active.plan_number` began.

    `active`: what it serves, so that a coordinator that has forgotten everything learns it again. `working_on`,
    `prepared`: numbers of the directive it loads versions for, and of one it could switch to at once.
    """

    replica: str
    node: str
    appliance_id: str
    active: Directive | None
    loaded: tuple[LoadedVersion, ...]
    working_on: int | None
    prepared: int | None
    refusal: Refusal | None
    registry_sha256: str
    counts: tuple[tuple[Role, VersionCounts], ...]


@dataclass(frozen=True, slots=True)
class Orders:
    """What a replica is to serve, and to get ready for. `peers`: other replicas that serve something.

    `nothing`: why there is nothing to serve, when that is decided; empty while it is not known yet.
    """

    active: Directive | None
    prepare: Directive | None
    peers: int
    nothing: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """A configuration whose form and versions were found good: (appliance, plan) for every appliance.

    `fresh`: somebody deployed it, so what was refused before is tried again; else it is only repeated.
    """

    plans: tuple[tuple[str, RolloutPlan], ...]
    fresh: bool


@dataclass(frozen=True, slots=True)
class OfferOutcome:
    """How far an offer is. Neither pending nor refused: every appliance serves it."""

    pending: tuple[str, ...]
    refused: tuple[tuple[str, RefusedVersion], ...]


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One replica as the coordinator knows it."""

    replica: str
    node: str
    number: int | None
    """Of the directive it serves."""
    loaded: tuple[LoadedVersion, ...]
    registry_sha256: str
    refused: RefusedVersion | None


@dataclass(frozen=True, slots=True)
class ApplianceRollout:
    """One appliance: what serves, what is on its way, what was refused, and what its versions did.

    `counts` are of all replicas, since the plan began; `recent` of the latest windows, which the guard looks at.
    """

    appliance_id: str
    active: Directive | None
    preparing: Directive | None
    refused: RefusedVersion | None
    refused_plan: RolloutPlan | None
    counts: tuple[tuple[Role, VersionCounts], ...]
    recent: tuple[tuple[Role, VersionCounts], ...]
    replicas: tuple[ReplicaState, ...]


@dataclass(frozen=True, slots=True)
class RolloutOverview:
    """Everything the coordinator knows of rollouts. `refused_config`: why the last configuration was not taken."""

    appliances: tuple[ApplianceRollout, ...]
    refused_config: str | None
    demotions_total: int
    refusals_total: int
