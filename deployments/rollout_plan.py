"""What serve_config.yaml wants of each appliance: its stable version, a canary, a shadow, the guard's bounds. Pure.

    kettle:
      stable: "2.2.0"
      canary: {version: "2.3.0", percent: 10}
      shadow: {version: "2.4.0", sample: 0.2}
      guard: {max_error_share: 0.005}

A configuration is checked as a whole, against the registry, before anything changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Annotated, Any

import pydantic
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from models.registry import Registry, RegistryEntry, RegistryError

EXACT = ConfigDict(extra="forbid", allow_inf_nan=False)
Version = Annotated[str, Field(strict=True, min_length=1, max_length=64)]
"""Strict: a version that YAML reads as the number 2.2 is refused and not served as "2.2"."""
Number = Annotated[float, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1, le=10_000_000)]
Share = Annotated[Number, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True, config=EXACT)
class Canary:
    """A version that answers for some of the buildings, always the same ones, in place of the stable one."""

    version: Version
    percent: Annotated[Number, Field(ge=0.0, le=100.0)]
    """Of the buildings. A larger percentage only adds buildings."""


@dataclass(frozen=True, config=EXACT)
class Shadow:
    """A version that runs beside the stable one and answers nobody."""

    version: Version
    sample: Annotated[Number, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the windows that it sees, chosen at random."""


@dataclass(frozen=True, config=EXACT)
class GuardBounds:
    """When a canary is demoted. Shares are of its windows, or of those that the stable version has run as well.

    A share counts as above its bound when it is so with a confidence of 99 %, so that few windows decide nothing.
    """

    min_windows: Count = 200
    """Before that many, nothing is judged."""
    over_windows: Annotated[Count, Field(validate_default=True)] = 5000
    """Only about the latest that many are looked at: a canary that turns bad after a good week is found as fast."""
    max_error_share: Share = 0.002
    """It raised, gave a value that is not finite, or took longer than it may. The stable version answered instead."""
    slow_ms: Annotated[Number, Field(gt=0.0)] = 500.0
    """A window that takes longer, from its arrival at the replica, is slow."""
    max_slow_share: Share = 0.05
    """More than the stable version's share of slow windows by that much."""
    max_implausible_share: Share = 0.002
    """Negative power, or more than the appliance's nameplate."""
    max_disagreement_share: Share = 0.2
    """One says on, the other off, for the same window."""
    max_power_ratio: Annotated[Number, Field(gt=1.0)] = 1.5
    """Energy over the same windows: at most that many times the stable version's, and at least one part of it."""

    @pydantic.field_validator("over_windows")
    @classmethod
    def _enough_to_judge(cls, over_windows: int, info: pydantic.ValidationInfo) -> int:
        if over_windows < info.data.get("min_windows", 0):
            raise PydanticCustomError("too_few", "is less than min_windows, so nothing would ever be judged")
        return over_windows


@dataclass(frozen=True, config=EXACT)
class RolloutPlan:
    """One appliance's entry in the configuration."""

    stable: Version
    canary: Canary | None = None
    shadow: Shadow | None = None
    guard: GuardBounds = Field(default_factory=GuardBounds)

    @property
    def versions(self) -> tuple[str, ...]:
        """Every version it names, once, the stable one first."""
        others = [one.version for one in (self.canary, self.shadow) if one is not None]
        return tuple(dict.fromkeys([self.stable, *others]))


@dataclass(frozen=True, config=EXACT)
class PlanFault:
    """What is wrong, and at which key: ("kettle", "canary", "percent")."""

    keys: tuple[str, ...]
    detail: str

    def __str__(self) -> str:
        return f"{'.'.join(self.keys) or 'user_config'}: {self.detail}"


class PlanRefused(Exception):
    """The configuration is not usable; nothing changes. Picklable: `faults` is `args`."""

    def __init__(self, faults: tuple[PlanFault, ...]) -> None:
        super().__init__(faults)
        self.faults = faults

    def __str__(self) -> str:
        return "; ".join(str(fault) for fault in self.faults)


_PLAN = pydantic.TypeAdapter(RolloutPlan)
_PLANS = pydantic.TypeAdapter(dict[str, RolloutPlan])


def read_plans(user_config: object, appliances: Collection[str]) -> dict[str, RolloutPlan]:
    """The plans of exactly these appliances from `user_config`. Raises `PlanRefused` with every fault of its form."""
    try:
        plans = _PLANS.validate_python(user_config)
    except pydantic.ValidationError as error:
        raise PlanRefused(tuple(_fault(one["loc"], one["type"], one["msg"]) for one in error.errors())) from None
    faults = [PlanFault((name,), "is not an appliance of this application") for name in plans if name not in appliances]
    faults += [PlanFault((name,), "is missing: every appliance needs a stable version")
               for name in appliances if name not in plans]  # fmt: skip
    if faults:
        raise PlanRefused(tuple(faults))
    return plans


def check_against(registry: Registry, plans: Mapping[str, RolloutPlan]) -> None:
    """Raises `PlanRefused` when a version is not registered for its appliance or does not fit its stable one."""
    faults: list[PlanFault] = []
    for appliance, plan in plans.items():
        stable = _resolved(registry, appliance, plan.stable, (appliance, "stable"), faults)
        for role, other in (("canary", plan.canary), ("shadow", plan.shadow)):
            if other is None:
                continue
            keys = (appliance, role, "version")
            if other.version == plan.stable:
                faults.append(PlanFault(keys, f"{other.version} is the stable version already"))
                continue
            entry = _resolved(registry, appliance, other.version, keys, faults)
            if entry is not None and stable is not None:
                faults += [PlanFault(keys, detail) for detail in misfits(entry, stable)]
    if faults:
        raise PlanRefused(tuple(faults))


def plain(plan: RolloutPlan) -> dict[str, Any]:
    """As it would stand in the configuration, without what is absent or as it is anyway."""
    document: dict[str, Any] = _PLAN.dump_python(plan, mode="json", exclude_defaults=True)
    return document


def in_words(plan: RolloutPlan) -> str:
    """A plan in one line."""
    parts = [f"stable {plan.stable}"]
    if plan.canary:
        parts.append(f"canary {plan.canary.version} at {plan.canary.percent:g} %")
    if plan.shadow:
        parts.append(f"shadow {plan.shadow.version} on {plan.shadow.sample:.0%} of the windows")
    if plan.guard != GuardBounds():
        parts.append("bounds of its own")
    return ", ".join(parts)


def is_canary(appliance_id: str, building_id: str, percent: float) -> bool:
    """Whether this building belongs to the `percent` of buildings that a canary of this appliance answers for.

    The place of a building on [0, 1) is fixed: a keyed BLAKE2b of its id, the appliance being the key, so that not
    the same buildings try the canaries of all appliances.
    """
    digest = hashlib.blake2b(building_id.encode(), digest_size=8, key=appliance_id.encode()[:64]).digest()
    return int.from_bytes(digest) / 2**64 < percent / 100


def _resolved(
    registry: Registry, appliance: str, version: str, keys: tuple[str, ...], faults: list[PlanFault]
) -> RegistryEntry | None:
    try:
        return registry.resolve(appliance, version)
    except RegistryError as error:
        faults.append(PlanFault(keys, str(error)))
        return None


def misfits(entry: RegistryEntry, stable: RegistryEntry) -> list[str]:
    """Why a client of the stable version cannot be answered by this one: both must take the same windows."""
    pairs = {
        "windows of {} samples": (entry.input_window_size, stable.input_window_size),
        "samples of {:g} s": (entry.sample_period_s, stable.sample_period_s),
        "the final answer for sample {}": (entry.output_sample_index, stable.output_sample_index),
        "the provisional answer for sample {}": (entry.provisional_sample_index, stable.provisional_sample_index),
    }
    return [
        f"{entry.model_version} has {what.format(its)}, the stable {stable.model_version} {what.format(that)}"
        for what, (its, that) in pairs.items()
        if its != that
    ]


def _fault(loc: tuple[int | str, ...], kind: str, message: str) -> PlanFault:
    keys = tuple(str(part) for part in loc)
    if keys[-1:] == ("[key]",):
        return PlanFault(keys[:-1], "is not a text")
    if kind == "string_type":
        return PlanFault(keys, 'is not a text: write the version in quotes, "2.2.0"')
    if kind == "unexpected_keyword_argument":
        return PlanFault(keys, "is not a key that we know")
    if kind == "dataclass_type":
        return PlanFault(keys, "is not a mapping")
    if kind in ("missing", "missing_argument"):
        return PlanFault(keys, "is missing")
    return PlanFault(keys, message[:1].lower() + message[1:])
