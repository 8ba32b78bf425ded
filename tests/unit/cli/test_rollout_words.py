"""What `nilm rollout` says and decides: changes in words, what became of an offer, which plans were there before."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from deployments.contracts import RefusedVersion
from deployments.journal_contracts import JournalEntry, JournalKind
from deployments.rollout_contracts import (
    ApplianceRollout,
    Demotion,
    Directive,
    LoadedVersion,
    ReplicaState,
    Role,
    RolloutOverview,
    VersionCounts,
)
from deployments.rollout_plan import Canary, GuardBounds, RolloutPlan, Shadow, plain
from models.registry import Registry
from serve_app.cli import rollout_words as words

ONE, TWO = RolloutPlan("2.1.0"), RolloutPlan("2.2.0")
CANARY = RolloutPlan("2.1.0", Canary("2.2.0", 10.0))
REFUSED = RefusedVersion("2.2.0", "sha256_mismatch", "it is another file")
DEMOTION = Demotion("2.2.0", "errors: 9 of 300 windows", 0.0)


def appliance(plan: RolloutPlan | None, name: str = "kettle", **changes: Any) -> ApplianceRollout:
    active = None if plan is None else Directive(7, 7, plan)
    loaded = () if plan is None else (LoadedVersion(Role.STABLE, plan.stable, "ab"),)
    replica = ReplicaState("r1", "node", 7, loaded, "cd", None)
    one = ApplianceRollout(name, active, None, None, None, (), (), (replica,))
    return replace(one, **changes)


def overview(*appliances: ApplianceRollout, **changes: Any) -> RolloutOverview:
    return replace(RolloutOverview(appliances, None, 0, 0), **changes)


def changes(before: ApplianceRollout, after: RolloutPlan) -> list[str]:
    return words.changes({"kettle": before}, {"kettle": after}, Registry.load())


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (ONE, ONE, []),
        (None, ONE, ["starts with stable 2.1.0"]),
        (ONE, TWO, ["stable 2.1.0 -> 2.2.0"]),
        (ONE, CANARY, ["canary 2.2.0 answers for 10 % of the buildings"]),
        (CANARY, TWO, ["canary 2.2.0 becomes stable: it answers for all buildings, so far 10 %"]),
        (CANARY, ONE, ["canary 2.2.0 goes: its 10 % of the buildings come to 2.1.0"]),
        (
            CANARY,
            replace(CANARY, canary=Canary("2.2.0", 50.0)),
            ["canary 2.2.0: 10 % -> 50 % of the buildings; 40 % come to it, none leaves"],
        ),
        (
            CANARY,
            replace(CANARY, canary=Canary("2.2.0", 5.0)),
            ["canary 2.2.0: 10 % -> 5 % of the buildings; 5 % go back to 2.1.0"],
        ),
        (
            CANARY,
            replace(CANARY, canary=Canary("2.0.0", 5.0)),
            ["canary 2.0.0 in place of 2.2.0 answers for 5 % of the"],
        ),
        (ONE, replace(ONE, shadow=Shadow("2.2.0", 0.2)), ["shadow 2.2.0 sees 20% of the windows"]),
        (replace(ONE, shadow=Shadow("2.2.0")), ONE, ["shadow 2.2.0 goes"]),
        (ONE, replace(ONE, guard=GuardBounds(min_windows=50)), ["guard min_windows: 200 -> 50"]),
    ],
)
def test_changes_in_words(before: RolloutPlan | None, after: RolloutPlan, said: list[str]) -> None:
    found = changes(appliance(before), after)
    assert len(found) == len(said)
    for sentence, start in zip(found, said, strict=True):
        assert sentence.startswith(f"kettle: {start}")


def test_a_demoted_canary_has_no_buildings_to_lose() -> None:
    demoted = appliance(CANARY, active=Directive(8, 7, CANARY, DEMOTION))
    assert changes(demoted, replace(CANARY, canary=Canary("2.2.0", 20.0))) == [
        "kettle: canary 2.2.0: 0 % -> 20 % of the buildings; 20 % come to it, none leaves",
        "kettle: the demotion of 2.2.0 ends",
    ]
    assert changes(demoted, ONE) == ["kettle: canary 2.2.0 goes: it answers for nobody"]


def test_clients_that_must_change_are_told() -> None:
    registry = Registry.load()
    entries = tuple(
        replace(one, input_window_size=1024, output_sample_index=512)
        if (one.appliance_id, one.model_version) == ("kettle", "2.2.0")
        else one
        for one in registry.entries
    )
    found = words.changes({"kettle": appliance(ONE)}, {"kettle": TWO}, replace(registry, entries=entries))
    assert [sentence for sentence in found if "CLIENTS MUST CHANGE" in sentence] == [
        "kettle: CLIENTS MUST CHANGE: 2.2.0 has windows of 1024 samples, the stable 2.1.0 windows of 512 samples",
        "kettle: CLIENTS MUST CHANGE: 2.2.0 has the final answer for sample 512, the stable 2.1.0 the final answer for "
        "sample 256",
    ]


BEFORE = overview(appliance(ONE))
WANTED = {"kettle": TWO}


@pytest.mark.parametrize(
    ("now", "became"),
    [
        (overview(appliance(ONE)), None),
        (overview(appliance(ONE, preparing=Directive(8, 8, TWO))), None),
        (overview(appliance(TWO, replicas=())), None),
        (overview(appliance(TWO, active=Directive(8, 8, TWO))), None),  # the replica is at 7
        (overview(appliance(TWO)), []),
        (overview(appliance(ONE, refused=REFUSED, refused_plan=TWO)), None),  # from before
        (overview(appliance(ONE, refused=REFUSED, refused_plan=TWO), refusals_total=1), ["kettle: 2.2.0: sha256_mism"]),
        (overview(appliance(ONE, refused=REFUSED, refused_plan=CANARY), refusals_total=1), None),
        (overview(appliance(TWO, refused=REFUSED, replicas=()), refusals_total=1), ["kettle: 2.2.0: sha256_mismatch"]),
        (overview(appliance(ONE), refused_config="kettle.stable: is missing"), None),
        (overview(appliance(ONE), refused_config="kettle.stable: is missing", refusals_total=1), ["kettle.stable: is"]),
    ],
)
def test_what_became_of_an_offer(now: RolloutOverview, became: list[str] | None) -> None:
    found = words.outcome(now, BEFORE, WANTED, late=False)
    if became is None or found is None:
        assert found == became
    else:
        assert [sentence[: len(start)] for sentence, start in zip(found, became, strict=True)] == became


def test_an_old_refusal_is_the_answer_when_nothing_newer_comes() -> None:
    now = overview(appliance(ONE, refused=REFUSED, refused_plan=TWO))
    assert words.outcome(now, now, WANTED, late=True) == ["kettle: 2.2.0: sha256_mismatch: it is another file"]


def test_a_refused_appliance_is_told_only_when_the_others_are_through() -> None:
    bad = appliance(ONE, "dishwasher", refused=REFUSED, refused_plan=TWO)
    wanted = {"kettle": TWO, "dishwasher": TWO}
    on_its_way = overview(appliance(ONE, preparing=Directive(8, 8, TWO)), bad, refusals_total=1)
    assert words.outcome(on_its_way, BEFORE, wanted, late=False) is None
    through = overview(appliance(TWO), bad, refusals_total=1)
    assert words.outcome(through, BEFORE, wanted, late=False) == [
        "dishwasher: 2.2.0: sha256_mismatch: it is another file"
    ]


class Journal:
    """Entries as the store gives them, newest first."""

    def __init__(self) -> None:
        self.entries: list[JournalEntry] = []

    def _add(self, kind: JournalKind, document: object) -> Journal:
        self.entries.insert(0, JournalEntry(len(self.entries), kind, json.dumps(document)))
        return self

    def applied(self, plan: RolloutPlan, offer: int, name: str = "kettle") -> Journal:
        return self._add(JournalKind.APPLIED, {"appliance": name, "plan": plain(plan), "offer": offer})

    def demoted(self, version: str, name: str = "kettle") -> Journal:
        return self._add(JournalKind.DEMOTED, {"appliance": name, "model_version": version, "reason": "errors"})

    def before(self, appliance: str | None = None, **running: RolloutPlan) -> dict[str, RolloutPlan]:
        return words.plans_before(self.entries, running, appliance)


def test_before_is_the_last_other_plan_and_restarts_count_for_nothing() -> None:
    journal = Journal().applied(ONE, 1).applied(TWO, 2).applied(TWO, 3)
    assert journal.before(kettle=TWO) == {"kettle": ONE}
    assert Journal().applied(ONE, 1).applied(ONE, 2).before(kettle=ONE) == {}
    assert Journal().before(kettle=ONE) == {}


def test_what_runs_and_is_not_written_yet_is_not_two_steps_back() -> None:
    assert Journal().applied(ONE, 1).applied(TWO, 2).before(kettle=CANARY) == {"kettle": TWO}


def test_without_a_name_all_that_the_last_configuration_changed() -> None:
    journal = Journal().applied(ONE, 1).applied(ONE, 1, "fridge").applied(ONE, 1, "oven")
    journal.applied(TWO, 2, "oven").applied(TWO, 3).applied(TWO, 3, "fridge")
    assert journal.before(kettle=TWO, fridge=TWO, oven=TWO) == {"kettle": ONE, "fridge": ONE}
    assert journal.before("oven", kettle=TWO, fridge=TWO, oven=TWO) == {"oven": ONE}
    assert journal.before("shower", kettle=TWO) == {}


def test_a_demoted_canary_does_not_come_back() -> None:
    journal = Journal().applied(TWO, 1).applied(CANARY, 2).demoted("2.2.0").applied(ONE, 3)
    assert journal.before(kettle=ONE) == {"kettle": TWO}
    assert Journal().applied(CANARY, 1).applied(TWO, 2).before(kettle=TWO) == {"kettle": CANARY}


def test_entries_of_another_version_of_us_are_passed_over() -> None:
    journal = Journal().applied(ONE, 1)
    journal._add(JournalKind.APPLIED, {"appliance": "kettle", "plan": {"stable": "2.0.0", "new": 1}, "offer": 2})
    assert journal.before(kettle=TWO) == {"kettle": ONE}


def test_what_a_file_says() -> None:
    assert words.says({"stable": "2.1.0", "canary": {"version": "2.2.0", "percent": 10}}, CANARY)
    for other in ({"stable": "2.1.0"}, {"stabel": "2.1.0"}, None, "2.1.0"):
        assert not words.says(other, CANARY)


def test_troubles_are_sentences() -> None:
    assert words.troubles(overview(appliance(ONE))) == []
    now = overview(
        appliance(None, "oven"),
        appliance(ONE, replicas=()),
        appliance(CANARY, "fridge", active=Directive(8, 7, CANARY, DEMOTION), refused=REFUSED),
        refused_config="x.y: is missing",
    )
    assert words.troubles(now) == [
        "the configuration is refused: x.y: is missing",
        "oven: serves nothing",
        "kettle: serves nothing, it has no replica",
        "fridge: 2.2.0 refused: sha256_mismatch: it is another file",
        "fridge: canary 2.2.0 demoted: errors: 9 of 300 windows",
    ]


def test_a_row_for_each_version() -> None:
    counts = (
        (Role.STABLE, VersionCounts(windows=1000, on=100, power_w=50_000.0, time_s=4.0)),
        (
            Role.CANARY,
            VersionCounts(windows=110, errors=10, slow=1, on=10, power_w=6_000.0, time_s=0.5, compared=100,
                          disagreements=2, compared_power_w=6_000.0, stable_power_w=5_000.0),
        ),
    )  # fmt: skip
    plan = replace(CANARY, shadow=Shadow("2.0.0", 0.5))
    one = appliance(plan, counts=counts, preparing=Directive(8, 8, TWO))
    rows = words.status_rows(overview(one, appliance(None, "oven")))
    assert all(len(row) == len(words.STATUS_COLUMNS) for row in rows)
    assert rows[0] == ("kettle", "2.1.0", "stable", "90 %", "1,000", "0", "0", "4.0", "10.0%", "50.0", "", "",
                       "on 1 of 1 replicas")  # fmt: skip
    assert rows[1] == ("kettle", "2.2.0", "canary", "10 %", "110", "10", "1", "5.0", "10.0%", "60.0", "2.0%", "1.20",
                       "on 0 of 1 replicas")  # fmt: skip
    assert [row[1:3] for row in rows[2:]] == [("2.0.0", "shadow"), ("2.2.0", ""), ("-", "")]
    demoted = words.status_rows(overview(appliance(CANARY, active=Directive(8, 7, CANARY, DEMOTION))))
    assert [row[3] for row in demoted] == ["100 %", "10 %"]
    assert demoted[1][-1] == "DEMOTED"


def test_history_says_what_happened_to_whom() -> None:
    journal = Journal().applied(CANARY, 1).demoted("2.2.0")
    journal._add(JournalKind.REFUSED, {"reason": "kettle: is missing", "user_config": "{}"})
    rows = words.history_rows(journal.entries)
    assert [row[1:] for row in rows] == [
        ("refused", "all", "{}", "kettle: is missing"),
        ("demoted", "kettle", "2.2.0", "errors"),
        ("applied", "kettle", "stable 2.1.0, canary 2.2.0 at 10 %", ""),
    ]
    assert rows[0][0] == "1970-01-01 00:00:00"
