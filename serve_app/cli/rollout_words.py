"""What a rollout means, in words and rows: what would change, how the versions do, what happened. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime

from deployments.journal_contracts import JournalEntry, JournalKind
from deployments.rollout_contracts import ApplianceRollout, Role, RolloutOverview, VersionCounts
from deployments.rollout_plan import Canary, GuardBounds, PlanRefused, RolloutPlan, in_words, misfits, plain, read_plans
from models.registry import Registry, RegistryError

STATUS_COLUMNS = (
    "appliance", "version", "role", "share", "windows", "errors", "slow", "mean ms", "on", "mean W", "other state",
    "power to stable's", "state",
)  # fmt: skip
NOT_WRITTEN_YET = 2**63
"""Above any number: the configuration that runs, while the store has not taken it."""
HISTORY_COLUMNS = ("when (UTC)", "what", "appliance", "plan or version", "why")


def changes(
    running: Mapping[str, ApplianceRollout], wanted: Mapping[str, RolloutPlan], registry: Registry
) -> list[str]:
    """What applying would do, a sentence each; empty: nothing. `running` by appliance."""
    found = []
    for appliance, plan in wanted.items():
        now = running.get(appliance)
        before = now.active.plan if now and now.active else None
        if before is None:
            found.append(f"{appliance}: starts with {in_words(plan)}")
        elif before != plan:
            if now and now.active and now.active.demoted is not None and before.canary is not None:
                before = replace(before, canary=replace(before.canary, percent=0.0))
            sentences = [*_stable(before, plan), *_canary(before, plan), *_shadow(before, plan), *_guard(before, plan)]
            sentences += _shape(appliance, before, plan, registry)
            if now and now.active and now.active.demoted is not None and plan.canary is not None:
                sentences.append(f"the demotion of {now.active.demoted.model_version} ends")
            found += [f"{appliance}: {sentence}" for sentence in sentences]
    return found


def status_rows(overview: RolloutOverview) -> list[tuple[str, ...]]:
    """A row for every appliance and version; columns as in `STATUS_COLUMNS`."""
    return [row for one in overview.appliances for row in _appliance_rows(one)]


def troubles(overview: RolloutOverview) -> list[str]:
    """What an operator should know, a sentence each; empty: every appliance serves what was asked for."""
    found = [f"the configuration is refused: {overview.refused_config}"] if overview.refused_config else []
    for one in overview.appliances:
        if one.active is None or not one.replicas:
            found.append(f"{one.appliance_id}: serves nothing{'' if one.active is None else ', it has no replica'}")
        if one.refused is not None:
            refused = one.refused
            found.append(f"{one.appliance_id}: {refused.model_version} refused: {refused.reason}: {refused.detail}")
        if one.active is not None and one.active.demoted is not None:
            demoted = one.active.demoted
            found.append(f"{one.appliance_id}: canary {demoted.model_version} demoted: {demoted.reason}")
    return found


def history_rows(entries: Iterable[JournalEntry]) -> list[tuple[str, ...]]:
    """A row for everything that happened; columns as in `HISTORY_COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for entry in entries:
        when = datetime.fromtimestamp(entry.time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")
        document = json.loads(entry.document)
        plan = _plan_of(document)
        what = in_words(plan) if plan else str(document.get("model_version", document.get("user_config", "")))
        appliance, reason = str(document.get("appliance", "all")), str(document.get("reason", ""))
        rows.append((when, str(entry.kind), appliance, what, reason))
    return rows


def outcome(
    now: RolloutOverview, before: RolloutOverview, wanted: Mapping[str, RolloutPlan], late: bool
) -> list[str] | None:
    """What was refused of an offer, a sentence each; empty: every replica serves it; None: it is under way.

    `before`: from before the offer. A refusal that was there then is this offer's only when it is `late`.
    """
    news = late or now.refusals_total > before.refusals_total
    if now.refused_config is not None:
        return [now.refused_config] if news else None
    refused = []
    for one in now.appliances:
        plan = wanted.get(one.appliance_id)
        if one.preparing is not None or one.active is None:
            return None
        if one.refused is not None and plan in (one.refused_plan, None if one.refused_plan else one.active.plan):
            if not news:
                return None
            refused.append(f"{one.appliance_id}: {one.refused}")
        elif one.active.plan != plan or not one.replicas or any(r.number != one.active.number for r in one.replicas):
            return None
    return refused


@dataclass(frozen=True, slots=True)
class Applied:
    """A plan that an appliance got, and the number of the configuration that brought it."""

    offer: int
    plan: RolloutPlan


def plans_before(
    entries: Sequence[JournalEntry], running: Mapping[str, RolloutPlan], appliance: str | None
) -> dict[str, RolloutPlan]:
    """The plans from before the last change: of `appliance`, or of all that the last configuration changed.

    `entries` newest first, as the store gives them; what runs may not be among them yet. A canary that was demoted is
    left out of its plan. Empty when there is nothing older.
    """
    sequences: dict[str, list[Applied]] = {}
    demoted: set[tuple[str, str]] = set()
    for entry in reversed(entries):
        document = json.loads(entry.document)
        plan, name = _plan_of(document), document.get("appliance")
        if entry.kind is JournalKind.DEMOTED:
            demoted.add((str(name), str(document.get("model_version"))))
        if entry.kind is JournalKind.APPLIED and plan is not None and isinstance(name, str):
            sequences.setdefault(name, []).append(Applied(int(document.get("offer", 0)), plan))
    found: dict[str, Applied] = {}
    for name, now in running.items():
        known = sequences.get(name, [])
        offer = known[-1].offer if known and known[-1].plan == now else NOT_WRITTEN_YET
        for one in reversed(known):
            canary = one.plan.canary
            plan = replace(one.plan, canary=None) if canary and (name, canary.version) in demoted else one.plan
            if plan != now:
                found[name] = Applied(offer, plan)
                break
    if appliance is not None:
        return {appliance: found[appliance].plan} if appliance in found else {}
    last = max((one.offer for one in found.values()), default=0)
    return {name: one.plan for name, one in found.items() if one.offer == last}


def says(written: object, plan: RolloutPlan) -> bool:
    """Whether a part of the file means this plan."""
    try:
        return read_plans({"plan": written}, ["plan"])["plan"] == plan
    except PlanRefused:
        return False


def _plan_of(document: Mapping[str, object]) -> RolloutPlan | None:
    if "plan" not in document:
        return None
    try:
        return read_plans({"plan": document["plan"]}, ["plan"])["plan"]
    except PlanRefused:  # of another version of us
        return None


def _stable(before: RolloutPlan, after: RolloutPlan) -> list[str]:
    if before.stable == after.stable:
        return []
    canary = before.canary
    if canary and canary.version == after.stable:
        return [f"canary {after.stable} becomes stable: it answers for all buildings, so far {canary.percent:g} %"]
    return [f"stable {before.stable} -> {after.stable}"]


def _canary(before: RolloutPlan, after: RolloutPlan) -> list[str]:
    old, new = before.canary, after.canary
    if old == new:
        return []
    if new is None:
        if old is None or old.version == after.stable:
            return []
        whose = (
            f"its {old.percent:g} % of the buildings come to {after.stable}" if old.percent else "it answers for nobody"
        )
        return [f"canary {old.version} goes: {whose}"]
    if old is None or old.version != new.version:
        instead = f" in place of {old.version}" if old else ""
        return [f"canary {new.version}{instead} answers for {new.percent:g} % of the buildings"]
    return [_percent(old, new, after.stable)]


def _percent(old: Canary, new: Canary, stable: str) -> str:
    step = f"canary {new.version}: {old.percent:g} % -> {new.percent:g} % of the buildings"
    if new.percent > old.percent:
        return f"{step}; {new.percent - old.percent:g} % come to it, none leaves"
    return f"{step}; {old.percent - new.percent:g} % go back to {stable}"


def _shadow(before: RolloutPlan, after: RolloutPlan) -> list[str]:
    old, new = before.shadow, after.shadow
    if old == new:
        return []
    if new is None:
        return [f"shadow {old.version} goes"] if old else []
    return [f"shadow {new.version} sees {new.sample:.0%} of the windows"]


def _guard(before: RolloutPlan, after: RolloutPlan) -> list[str]:
    names = [one.name for one in fields(GuardBounds)]
    pairs = ((name, getattr(before.guard, name), getattr(after.guard, name)) for name in names)
    return [f"guard {name}: {old:g} -> {new:g}" for name, old, new in pairs if old != new]


def _shape(appliance: str, before: RolloutPlan, after: RolloutPlan, registry: Registry) -> list[str]:
    try:
        old, new = (registry.resolve(appliance, plan.stable) for plan in (before, after))
    except RegistryError:
        return []  # what ran before may have left the registry
    return [f"CLIENTS MUST CHANGE: {misfit}" for misfit in misfits(new, old)]


def _appliance_rows(one: ApplianceRollout) -> Iterable[tuple[str, ...]]:
    if one.active is None:
        yield (one.appliance_id, "-", *[""] * 10, "serves nothing")
        return
    plan, counts = one.active.plan, dict(one.counts)
    canary = plan.canary.percent if plan.canary and one.active.demoted is None else 0.0
    yield _row(one, Role.STABLE, plan.stable, f"{100 - canary:g} %", counts)
    if plan.canary is not None:
        yield _row(one, Role.CANARY, plan.canary.version, f"{plan.canary.percent:g} %", counts)
    if plan.shadow is not None:
        yield _row(one, Role.SHADOW, plan.shadow.version, f"{plan.shadow.sample:.0%} seen", counts)
    if one.preparing is not None:
        yield (one.appliance_id, ", ".join(one.preparing.plan.versions), *[""] * 10, "being prepared")


def _row(
    one: ApplianceRollout, role: Role, version: str, share: str, counts: Mapping[Role, VersionCounts]
) -> tuple[str, ...]:
    sums = counts.get(role, VersionCounts())
    ran = sums.windows - sums.errors
    replicas = [r for r in one.replicas if any(v.role is role and v.model_version == version for v in r.loaded)]
    state = f"on {len(replicas)} of {len(one.replicas)} replicas"
    if role is Role.CANARY and one.active and one.active.demoted:
        state = "DEMOTED"
    return (
        one.appliance_id,
        version,
        str(role),
        share,
        f"{sums.windows:,}",
        f"{sums.errors:,}",
        f"{sums.slow:,}",
        _ratio(1000 * sums.time_s, ran, ".1f"),
        _ratio(sums.on, ran, ".1%"),
        _ratio(sums.power_w, ran, ".1f"),
        _ratio(sums.disagreements, sums.compared, ".1%"),
        _ratio(sums.compared_power_w, sums.stable_power_w, ".2f"),
        state,
    )


def _ratio(value: float, of: float, form: str) -> str:
    return format(value / of, form) if of else ""


def yaml_plans(user_config: Mapping[str, object], plans: Mapping[str, RolloutPlan]) -> dict[str, object]:
    """The configuration with these plans in the place of what it says of their appliances."""
    return {**user_config, **{name: plain(plan) for name, plan in plans.items()}}
