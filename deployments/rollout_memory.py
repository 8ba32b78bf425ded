"""What the journal of rollouts says of canaries that were demoted before every process of the service was a new one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deployments.journal_contracts import JournalEntry, JournalKind
from deployments.rollout_contracts import Demotion

NS_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class DemotedPlan:
    """A plan, as `rollout_plan.plain` writes it, whose canary was demoted and which nothing has replaced since."""

    plan: dict[str, Any]
    demotion: Demotion


def demoted_plans(entries: Sequence[JournalEntry]) -> dict[str, DemotedPlan]:
    """By appliance. `entries` newest first, as the store gives them.

    A plan that is applied again, because everything was started anew, keeps its demotion; another plan ends it.
    """
    plans: dict[str, dict[str, Any]] = {}
    found: dict[str, DemotedPlan] = {}
    for entry in reversed(entries):
        document: dict[str, Any] = json.loads(entry.document)
        name = document.get("appliance")
        if name is None:  # a configuration that was refused as a whole
            continue
        if entry.kind is JournalKind.APPLIED and plans.get(name) != document["plan"]:
            plans[name] = document["plan"]
            found.pop(name, None)
        elif entry.kind is JournalKind.DEMOTED and _canary_of(plans.get(name)) == document["model_version"]:
            demotion = Demotion(document["model_version"], document["reason"], entry.time_ns / NS_PER_S)
            found[name] = DemotedPlan(plans[name], demotion)
    return found


def _canary_of(plan: dict[str, Any] | None) -> str | None:
    """Another one's demotion says nothing of this plan: two clusters may share a store."""
    version: str | None = ((plan or {}).get("canary") or {}).get("version")
    return version
