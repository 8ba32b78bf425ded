"""A rollout control with a clock that stands still, and replicas that do what they are told when they are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from deployments import rollout_control
from deployments.contracts import RefusedVersion
from deployments.journal_contracts import JournalKind
from deployments.rollout_contracts import (
    ApplianceRollout,
    Directive,
    Offer,
    OfferOutcome,
    Orders,
    Refusal,
    ReplicaReport,
    Role,
    VersionCounts,
)
from deployments.rollout_control import RolloutControl
from deployments.rollout_plan import Canary, GuardBounds, RolloutPlan, Shadow

APPLIANCES = ("kettle", "microwave")
ONE, TWO, THREE = RolloutPlan("1.0.0"), RolloutPlan("2.0.0"), RolloutPlan("3.0.0")
CANARY = RolloutPlan("1.0.0", canary=Canary("2.0.0", 10.0))
SHADOW = RolloutPlan("1.0.0", shadow=Shadow("2.0.0"))
QUICK = RolloutPlan("1.0.0", canary=Canary("2.0.0", 10.0), guard=GuardBounds(min_windows=10, over_windows=20))
"""Judged after ten windows."""
BAD = RefusedVersion("2.0.0", "sha256_mismatch", "another hash")


@dataclass
class Clock:
    """A wall clock that only a test moves."""

    at_s: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.at_s

    def forward(self, seconds: float) -> None:
        self.at_s += seconds


@dataclass
class Bench:
    """A coordinator's control, and everything it told the journal. `remembers`: it knows that nothing was before."""

    clock: Clock = field(default_factory=Clock)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    remembers: bool = True

    def __post_init__(self) -> None:
        self.control = self._start()

    def _start(self) -> RolloutControl:
        control = RolloutControl(APPLIANCES, self._note, self.clock)
        if self.remembers:
            control.remember(())
        return control

    def _note(self, kind: JournalKind, document: Mapping[str, object]) -> None:
        self.events.append((str(kind), dict(document)))

    def restart(self) -> None:
        """The coordinator's process is another; its memory is gone."""
        self.control = self._start()

    def kinds(self, appliance: str = "kettle") -> list[str]:
        return [kind for kind, document in self.events if document.get("appliance") == appliance]

    async def offer(self, plan: RolloutPlan, *, fresh: bool = True, wait_s: float = 0.0) -> OfferOutcome:
        """Of the kettle; the microwave stays at 1.0.0."""
        return await self.control.offer(Offer((("kettle", plan), ("microwave", ONE)), fresh), wait_s)

    def rollout(self, appliance: str = "kettle") -> ApplianceRollout:
        return next(one for one in self.control.overview().appliances if one.appliance_id == appliance)

    def active(self) -> Directive:
        active = self.rollout().active
        assert active is not None
        return active

    def preparing(self) -> Directive:
        preparing = self.rollout().preparing
        assert preparing is not None
        return preparing

    def counts(self, role: Role) -> VersionCounts:
        return dict(self.rollout().counts).get(role, VersionCounts())

    async def serving(self, plan: RolloutPlan, *names: str) -> list[Replica]:
        """Replicas that serve this plan already."""
        replicas = [Replica(self, name) for name in names or ("a",)]
        for replica in replicas:
            await replica.tell()
        await self.offer(plan)
        for replica in replicas:
            await replica.switch()
        assert self.rollout().preparing is None
        return replicas

    async def ticks(self, count: int, replicas: list[Replica], step_s: float = 0.5) -> None:
        """Time passes, and the replicas say that they are there."""
        for _ in range(count):
            self.clock.forward(step_s)
            for replica in replicas:
                await replica.tell()
            await self.control.tick()


@dataclass
class Replica:
    """What one says of itself. It obeys by hand."""

    bench: Bench
    name: str
    appliance: str = "kettle"
    active: Directive | None = None
    working_on: int | None = None
    prepared: int | None = None
    refusal: Refusal | None = None
    counts: dict[Role, VersionCounts] = field(default_factory=dict)

    def report(self) -> ReplicaReport:
        return ReplicaReport(
            replica=self.name,
            node="node",
            appliance_id=self.appliance,
            active=self.active,
            loaded=(),
            working_on=self.working_on,
            prepared=self.prepared,
            refusal=self.refusal,
            registry_sha256="0" * 64,
            counts=tuple(self.counts.items()),
        )

    async def tell(self) -> None:
        await self.bench.control.report(self.report())

    async def follow_soon(self) -> Orders:
        """What it would hear when it waited no longer."""
        with mock.patch.multiple(rollout_control, LISTEN_S=0.0, WATCHED_LISTEN_S=0.0):
            return await self.follow()

    async def follow(self) -> Orders:
        return await self.bench.control.follow(self.report())

    async def prepare(self) -> None:
        """It has loaded what is being prepared."""
        self.prepared = self.bench.preparing().number
        await self.tell()

    async def refuse(self, refused: RefusedVersion = BAD) -> None:
        """It cannot load what is being prepared, or else what it should serve."""
        rollout = self.bench.rollout(self.appliance)
        directive = rollout.preparing or rollout.active
        assert directive is not None
        self.refusal = Refusal(directive.number, refused)
        await self.tell()

    async def switch(self) -> None:
        """It serves what is active, counting from zero where the plan is new."""
        directive = self.bench.rollout(self.appliance).active
        assert directive is not None
        if self.active is None or self.active.plan_number != directive.plan_number:
            self.counts = {}
        self.active, self.prepared, self.working_on = directive, None, None
        await self.tell()

    async def saw(self, role: Role, **counts: float) -> None:
        """It ran windows."""
        self.counts[role] = self.counts.get(role, VersionCounts()) + VersionCounts(**counts)  # type: ignore[arg-type]
        await self.tell()


async def move(bench: Bench, replicas: list[Replica], plan: RolloutPlan) -> None:
    """All of them, to another plan."""
    await bench.offer(plan)
    for replica in replicas:
        await replica.prepare()
    for replica in replicas:
        await replica.switch()


async def misbehave(bench: Bench, replicas: list[Replica], looks: int = 4) -> None:
    """The canary fails at every window, and the guard looks on."""
    for _ in range(looks):
        await replicas[0].saw(Role.STABLE, windows=20)
        await replicas[0].saw(Role.CANARY, windows=20, errors=20)
        await bench.control.tick()
