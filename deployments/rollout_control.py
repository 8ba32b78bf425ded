"""RolloutControl: brings every replica of an appliance from one plan to the next, or leaves them all where they are.

A new plan is prepared beside the serving one by every replica; when all are ready they switch at one instant, and
when one cannot, none does. Watches canaries and demotes them. Its memory is lost with its process: replicas say what
they serve, the gate repeats the configuration, and the journal says which canary was demoted, until it knows again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from deployments.contracts import RefusedVersion
from deployments.journal_contracts import JournalEntry, JournalKind
from deployments.rollout_contracts import (
    Demotion,
    Directive,
    Offer,
    OfferOutcome,
    Orders,
    ReplicaReport,
    Role,
    RolloutOverview,
    VersionCounts,
)
from deployments.rollout_memory import DemotedPlan, demoted_plans
from deployments.rollout_plan import RolloutPlan, in_words, plain
from deployments.rollout_state import ApplianceState, KnownReplica, overview_of, settled

WATCHED_LISTEN_S = 1.0
LISTEN_S = 4.0
"""How long a replica waits for orders before it reports again: less while there is something to watch."""
GONE_AFTER_S = LISTEN_S + 4.0
"""A replica that has not reported for this long is no longer waited for."""
LEAD_S = 0.3
"""From the decision to the common switch: every replica has heard of it by then."""
LOAD_TIMEOUT = "load_timeout"
PREPARE_TIMEOUT_S = 60.0
"""A load that takes longer hangs."""
LEARNING_S = 15.0
"""After a start of this process: until then replicas know things that it has forgotten."""
TICK_S = 0.5
STEP_S = 2.0
"""More between two looks is a process that was stopped, or a clock that was set: nobody else's silence."""
logger = logging.getLogger("ray.serve")

Journal = Callable[[JournalKind, Mapping[str, object]], None]
"""Takes what happened; never waits."""


class RolloutControl:
    """One per application. `now` is the wall clock: the instants of switches are told to other processes."""

    def __init__(self, appliances: tuple[str, ...], journal: Journal, now: Callable[[], float] = time.time) -> None:
        self._appliances = {name: ApplianceState() for name in appliances}
        self._journal = journal
        self._now = now
        self._last_now = now()
        self._uptime_s = 0.0
        # Grows also over a restart of this process, so that a higher number is always the later word.
        self._last_number = time.time_ns()
        self._demoted_before: dict[str, DemotedPlan] | None = None
        """Of processes before this one; None until the journal was read."""
        self._changed: set[str] = set()
        """Appliances that went from one plan to another since, which ends what was demoted before."""
        self._refused_config: str | None = None
        self._demotions = 0
        self._refusals = 0
        self._news = asyncio.Condition()

    async def run(self) -> None:
        """What happens by itself: replicas that went away, loads that hang, canaries that misbehave."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.tick()
            except Exception:
                # A fault in one look must not end all later ones.
                logger.exception("a look at the rollouts failed")

    async def tick(self) -> None:
        """One look."""
        for name, one in self._appliances.items():
            one.forget_gone(self._uptime() - GONE_AFTER_S)
            if one.preparing is not None and self._uptime() > one.prepare_until:
                late = [r for r, known in one.replicas.items() if known.report.prepared != one.preparing.number]
                detail = f"not ready after {PREPARE_TIMEOUT_S:g} s on {', '.join(late)}"
                await self._refuse(name, RefusedVersion(one.preparing.plan.versions[-1], LOAD_TIMEOUT, detail))
            await self._switch_when_ready(name)
            await self._guard(name)

    def remember(self, entries: Sequence[JournalEntry]) -> None:
        """What the journal holds of the time before this process, newest first. The next look acts on it."""
        self._demoted_before = demoted_plans(entries)
        for name, one in self._appliances.items():
            if one.active is not None and one.active.demoted is None and name not in self._changed:
                demoted = self._was_demoted(name, one.active.plan)
                if demoted is not None:
                    self._demote(one, one.active, demoted)
                    _say_demoted_before(name, demoted)

    async def offer(self, offer: Offer, wait_s: float) -> OfferOutcome:
        """Starts what the offer changes; says after `wait_s` at most how far it is."""
        self._refused_config = None
        number = self._next_number()
        for name, plan in offer.plans:
            if name in self._appliances:
                await self._want(name, plan, offer.fresh, number)
        await self._wait(lambda: not self._outcome(offer).pending, wait_s)
        return self._outcome(offer)

    async def refuse_config(self, reason: str, document: str) -> None:
        """The gate found a configuration not usable; nothing changes."""
        if reason != self._refused_config:
            self._refused_config = reason
            self._refusals += 1
            logger.error("the rollout configuration is refused: %s", reason)
            self._journal(JournalKind.REFUSED, {"reason": reason, "user_config": document})
            await self._tell()

    async def report(self, report: ReplicaReport) -> None:
        """What a replica says when it has news."""
        one = self._appliances[report.appliance_id]
        known = one.replicas.setdefault(report.replica, KnownReplica(report, self._uptime()))
        known.report, known.heard_at = report, self._uptime()
        self._learn(one, report)
        one.count(report)
        await self._hear_refusal(one, report)
        await self._switch_when_ready(report.appliance_id)
        await self._tell()

    async def follow(self, report: ReplicaReport) -> Orders:
        """A replica reports and waits for orders: as soon as there are new ones, or after a while the same again."""
        await self.report(report)
        one = self._appliances[report.appliance_id]
        await self._wait(lambda: self._has_orders(one, report.replica), WATCHED_LISTEN_S if one.watched else LISTEN_S)
        peers = sum(known.report.active is not None for name, known in one.replicas.items() if name != report.replica)
        nothing = (self._refused_config or "") if one.active is None else ""
        return Orders(one.active, one.preparing, peers, nothing)

    async def reload(self, wait_s: float) -> RolloutOverview:
        """Every replica reads the registry again and loads what is wanted and changed, or was refused before."""
        for name, one in self._appliances.items():
            plan = one.refused_plan or (one.active.plan if one.active else None)
            if one.preparing is not None:
                plan = one.preparing.plan
            if plan is not None:
                await self._prepare(name, plan)
        await self._wait(lambda: all(settled(one) for one in self._appliances.values()), wait_s)
        return self.overview()

    def overview(self) -> RolloutOverview:
        """All that is known now."""
        return RolloutOverview(
            appliances=tuple(overview_of(name, one) for name, one in self._appliances.items()),
            refused_config=self._refused_config,
            demotions_total=self._demotions,
            refusals_total=self._refusals,
        )

    # What the replicas say ---------------------------------------------------------------------------------------

    def _learn(self, one: ApplianceState, report: ReplicaReport) -> None:
        """After a restart of this process: what a replica serves is what was decided before."""
        theirs = report.active
        if theirs is None:
            return
        if one.active is None or theirs.number > one.active.number:
            self._last_number = max(self._last_number, theirs.number)
            one.activate(theirs)
            ahead = one.preparing
            if ahead is not None and ahead.plan == theirs.plan and ahead.plan_number != theirs.plan_number:
                one.preparing = None  # the gate's word came first, and is what serves already
            self._keep_later(one)
        elif (
            theirs.demoted is not None
            and one.active.demoted is None
            and theirs.plan == one.active.plan
            and self._uptime() < LEARNING_S
        ):
            # The gate's word came first, and the gate does not know of the demotion.
            self._demote(one, one.active, theirs.demoted)

    async def _hear_refusal(self, one: ApplianceState, report: ReplicaReport) -> None:
        if one.active is not None and one.refused_plan is None and one.serves(one.active.plan):
            one.refused = None
        if report.refusal is None:
            return
        if one.preparing is not None and report.refusal.number == one.preparing.number:
            await self._refuse(report.appliance_id, report.refusal.refused)
        elif (
            one.active is not None
            and report.refusal.number == one.active.number
            and not one.serves(one.active.plan)
            and one.preparing is None
            and one.refused is None
        ):
            # The first plan of all: there is nothing older that could go on.
            one.refused = report.refusal.refused
            self._note_refusal(report.appliance_id, one.active.plan, one.refused)

    # From plan to plan -------------------------------------------------------------------------------------------

    async def _want(self, name: str, plan: RolloutPlan, fresh: bool, offer_number: int) -> None:
        one = self._appliances[name]
        if one.preparing is not None and one.preparing.plan == plan:
            return
        hung = one.refused is not None and one.refused.reason == LOAD_TIMEOUT
        if one.preparing is None and plan == one.refused_plan and (hung or not fresh):
            # A gate that starts again offers as fresh, and each load that hangs keeps a thread for good.
            return
        if one.active is not None and one.active.plan == plan and one.preparing is None:
            one.refused_plan = None  # back to what serves
            if one.refused is None or one.serves(plan):
                one.refused = None
                return
            if not fresh:
                return
        one.offer_number = offer_number
        await self._prepare(name, plan)

    async def _prepare(self, name: str, plan: RolloutPlan) -> None:
        one = self._appliances[name]
        one.refused = one.refused_plan = None
        number = self._next_number()
        if one.active is not None and one.active.plan == plan:
            one.preparing = replace(one.active, number=number)
        else:
            one.preparing = Directive(number, number, plan)
        one.prepare_until = self._uptime() + PREPARE_TIMEOUT_S
        await self._switch_when_ready(name)
        await self._tell()

    async def _switch_when_ready(self, name: str) -> None:
        one = self._appliances[name]
        wanted = one.preparing
        if wanted is None:
            return
        one.forget_gone(self._uptime() - GONE_AFTER_S)
        if one.active is None:
            # The first plan of all has nothing to be prepared beside; its canary may have been demoted long ago.
            if wanted.plan.canary is not None and self._demoted_before is None and self._uptime() < LEARNING_S:
                return
            changed, switched = True, replace(wanted, demoted=self._was_demoted(name, wanted.plan))
        else:
            if any(known.report.prepared != wanted.number for known in one.replicas.values()):
                return
            changed = one.active.plan != wanted.plan
            if changed:
                self._changed.add(name)
            switched = replace(wanted, activate_at_s=self._now() + LEAD_S)
        one.preparing = None
        one.activate(switched)
        if changed:
            logger.info("%s goes to %s", name, in_words(wanted.plan))
            self._journal(
                JournalKind.APPLIED, {"appliance": name, "plan": plain(wanted.plan), "offer": one.offer_number}
            )
        if changed and switched.demoted is not None:
            _say_demoted_before(name, switched.demoted)
        await self._tell()

    async def _refuse(self, name: str, refused: RefusedVersion) -> None:
        one = self._appliances[name]
        if one.preparing is None:
            return
        plan, one.preparing = one.preparing.plan, None
        one.refused, one.refused_plan = refused, plan
        self._note_refusal(name, plan, refused)
        await self._tell()

    def _note_refusal(self, name: str, plan: RolloutPlan, refused: RefusedVersion) -> None:
        self._refusals += 1
        logger.error("%s refuses %s: %s (%s)", name, refused.model_version, refused.reason, refused.detail)
        self._journal(JournalKind.REFUSED, {"appliance": name, "plan": plain(plan), "reason": str(refused)})

    async def _guard(self, name: str) -> None:
        one = self._appliances[name]
        active = one.active
        if active is None or active.plan.canary is None or active.demoted is not None or one.guard is None:
            return
        canary, stable = (one.recent[role].total if role in one.recent else VersionCounts() for role in _JUDGED)
        ever = one.counts.get(Role.CANARY, VersionCounts()).windows
        reason = one.guard.look(canary, stable, ever)
        if reason is None:
            return
        version = active.plan.canary.version
        demoted = Demotion(version, reason, self._now())
        self._demote(one, active, demoted)
        self._demotions += 1
        logger.error("%s demotes canary %s after %d windows: %s", name, version, ever, reason)
        document = {"appliance": name, "model_version": version, "windows": ever, "reason": reason}
        self._journal(JournalKind.DEMOTED, document)
        await self._tell()

    def _was_demoted(self, name: str, plan: RolloutPlan) -> Demotion | None:
        known = (self._demoted_before or {}).get(name)
        return known.demotion if known is not None and known.plan == plain(plan) else None

    def _demote(self, one: ApplianceState, active: Directive, demoted: Demotion) -> None:
        one.activate(replace(active, number=self._next_number(), demoted=demoted, activate_at_s=0.0))
        self._keep_later(one)

    def _keep_later(self, one: ApplianceState) -> None:
        """What is prepared stays the later word than what serves, which has a new number; it may be the same plan."""
        if one.preparing is not None and one.active is not None:
            same = one.preparing.plan_number == one.active.plan_number
            demoted = one.active.demoted if same else one.preparing.demoted
            one.preparing = replace(one.preparing, number=self._next_number(), demoted=demoted)

    # Small things ------------------------------------------------------------------------------------------------

    def _has_orders(self, one: ApplianceState, replica: str) -> bool:
        """Whether something is wanted of this replica that it has not said to have done, refused or begun."""
        known = one.replicas.get(replica)
        if known is None:
            return True  # taken for dead; it may have much to hear
        report = known.report  # the latest: it may have said more since it called
        refused = report.refusal.number if report.refusal else None
        if one.active is None:
            return self._refused_config is not None and report.active is None
        if report.active is None or report.active.number != one.active.number:
            if report.working_on == one.active.number:
                return False  # first this, then what is prepared
            if refused != one.active.number:
                return True
        done = {report.working_on, refused, report.prepared}
        return one.preparing is not None and one.preparing.number not in done

    def _outcome(self, offer: Offer) -> OfferOutcome:
        pending, refused = [], []
        for name, plan in offer.plans:
            one = self._appliances.get(name)
            if one is None:
                continue
            if one.refused is not None and (one.refused_plan == plan or not one.serves(plan)):
                refused.append((name, one.refused))
            elif one.preparing is not None or not one.serves(plan):
                pending.append(name)
        return OfferOutcome(tuple(pending), tuple(refused))

    def _uptime(self) -> float:
        """Seconds of this process, without those that it was stopped."""
        now = self._now()
        self._uptime_s += min(max(0.0, now - self._last_now), STEP_S)
        self._last_now = now
        return self._uptime_s

    def _next_number(self) -> int:
        self._last_number = max(self._last_number + 1, time.time_ns())
        return self._last_number

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _wait(self, until: Callable[[], bool], wait_s: float) -> None:
        """Returns when it is so, or after `wait_s`."""
        try:
            async with asyncio.timeout(wait_s), self._news:
                await self._news.wait_for(until)
        except TimeoutError:
            pass  # whoever waited looks how far it is


def _say_demoted_before(name: str, demoted: Demotion) -> None:
    logger.warning("%s: canary %s was demoted before and stays so: %s", name, demoted.model_version, demoted.reason)


_JUDGED = (Role.CANARY, Role.STABLE)
