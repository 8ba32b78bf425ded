"""Counts what each version of an appliance does, in the terms the guard judges by. Owns the sums of one replica.

Everything counted names the plan under which it began: a batch that hung on the last canary is no fault of this one.
"""

from __future__ import annotations

from typing import NamedTuple

from deployments.rollout_contracts import Role, VersionCounts
from models.appliances import APPLIANCES

ON_PROBABILITY = 0.5
"""Calibrated: more likely on than off."""
NAMEPLATE_TOLERANCE_W = 1.0
"""Outputs are clamped to the nameplate in float32."""


class Said(NamedTuple):
    """A version's answer for one window."""

    power_w: float
    on_probability: float


class Tally:
    """Since the plan began; `begin` starts anew with another one."""

    def __init__(self, appliance_id: str) -> None:
        known = APPLIANCES.get(appliance_id)
        self._nameplate_w = float("inf") if known is None else known.max_power_w + NAMEPLATE_TOLERANCE_W
        self._counts: dict[Role, VersionCounts] = {}
        self._slow_s = float("inf")
        self._plan: int | None = None

    def begin(self, plan: int, slow_ms: float) -> None:
        """Everything from zero, if this is a new plan; a window that takes longer than `slow_ms` is slow."""
        if plan != self._plan:
            self._counts = {}
        self._plan = plan
        self._slow_s = slow_ms / 1000

    @property
    def counts(self) -> tuple[tuple[Role, VersionCounts], ...]:
        """By role."""
        return tuple(self._counts.items())

    def ran(self, plan: int, role: Role, said: Said, time_s: float) -> None:
        """One window that the version ran, `time_s` after it had arrived."""
        self._add(
            plan,
            role,
            VersionCounts(
                windows=1,
                slow=int(time_s > self._slow_s),
                implausible=int(not 0.0 <= said.power_w <= self._nameplate_w),
                on=int(said.on_probability >= ON_PROBABILITY),
                power_w=said.power_w,
                time_s=time_s,
            ),
        )

    def failed(self, plan: int, role: Role, windows: int) -> None:
        """Windows that the version could not answer."""
        self._add(plan, role, VersionCounts(windows=windows, errors=windows))

    def dropped(self, plan: int, role: Role, windows: int) -> None:
        """Windows that there was no time to compare."""
        self._add(plan, role, VersionCounts(dropped=windows))

    def compared(self, plan: int, role: Role, said: Said, stable: Said) -> None:
        """One window that both the version and the stable one have run."""
        on, stable_on = said.on_probability >= ON_PROBABILITY, stable.on_probability >= ON_PROBABILITY
        self._add(
            plan,
            role,
            VersionCounts(
                compared=1,
                disagreements=int(on != stable_on),
                compared_on=int(on or stable_on),
                compared_power_w=said.power_w,
                stable_power_w=stable.power_w,
            ),
        )

    def _add(self, plan: int, role: Role, added: VersionCounts) -> None:
        if plan == self._plan:
            self._counts[role] = self._counts.get(role, VersionCounts()) + added
