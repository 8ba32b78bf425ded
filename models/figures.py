"""What a version's figures must be before it may serve by default, and the few questions that all readers ask of them.

Owns the meaning of `RegistryEntry.metrics` (metrics.schema.json). Believes only the figures themselves, never a
verdict that was stored beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jsonschema

from models.attribution import Attribution
from models.registry import RegistryEntry

METRICS_SCHEMA_PATH = Path(__file__).with_name("metrics.schema.json")

UNSEEN_HOME = "unseen_home"
SEEN_HOME = "seen_home"
HELD_OUT_MONTH = "held_out_month"


def metrics_errors(entry: RegistryEntry) -> list[str]:
    """One sentence for each field that is missing or is not what it should be; empty: a card can be written."""
    schema = json.loads(METRICS_SCHEMA_PATH.read_text(encoding="utf-8"))
    errors = jsonschema.Draft202012Validator(schema).iter_errors(entry.metrics)
    found = [f"metrics/{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]
    if found:
        return sorted(found)
    return [
        f"metrics/answers/{attribution}: the figures are of sample {measured}, the entry serves sample {served}"
        for attribution, served in entry.sample_indices.items()
        if (measured := entry.metrics["answers"][str(attribution)]["sample_index"]) != served
    ]


def has_both_answers(entry: RegistryEntry) -> bool:
    """False for entries of registries written before both answers were measured: they have no such figures."""
    return not metrics_errors(entry)


def beats_always_off(report: Mapping[str, Any]) -> bool:
    """Less absolute error than predicting zero, and something found: always-off itself has F1 0."""
    return bool(report["mae_w"] < report["always_off_mae_w"] and report["f1"] > 0.0)


def tests_of(entry: RegistryEntry, *kinds: str) -> list[dict[str, Any]]:
    """The entry's tests of these kinds, in their order."""
    return [test for test in entry.metrics.get("tests", []) if test.get("kind") in kinds]


def headline_test(entry: RegistryEntry) -> dict[str, Any] | None:
    """The test that says most of other homes: of an unseen home, else of a month kept aside. None: no such test."""
    if not has_both_answers(entry):
        # Checked first: registries of before may hold anything under `tests`.
        return None
    tests = [*tests_of(entry, UNSEEN_HOME), *tests_of(entry, HELD_OUT_MONTH)]
    return tests[0] if tests else None


def obstacles(entry: RegistryEntry) -> list[str]:
    """Why the figures do not allow this version to be active, one sentence each. Needs complete metrics."""
    unseen = tests_of(entry, UNSEEN_HOME)
    if not unseen:
        homes = ", ".join(dict.fromkeys(source.home for source in entry.training_data)) or "its training homes"
        found = [f"It has no test on a home it never saw: all that is known of it comes from {homes}."]
    else:
        found = [sentence for test in unseen for sentence in _too_weak(test)]
    return found + _leaks(entry)


def _too_weak(test: dict[str, Any]) -> list[str]:
    final, found = test[str(Attribution.FINAL)], []
    if not final["mae_w"] < final["always_off_mae_w"]:
        found.append(
            f"On {test['home']}, which it never saw, its final answer does not beat always-off: MAE "
            f"{final['mae_w']:.3g} W, and {final['always_off_mae_w']:.3g} W for predicting zero."
        )
    if not final["f1"] > 0.0:
        found.append(f"On {test['home']}, which it never saw, its final answer finds nothing: F1 0.")
    return found


def _leaks(entry: RegistryEntry) -> list[str]:
    """A home that taught or chose is not unseen, and a part that did is no test."""
    learnt = [(source.home, source.from_, source.to) for source in entry.training_data]
    chosen = [(part["home"], part["from"], part["to"]) for part in entry.metrics["validation_data"]]
    known = {_plain(home) for home, _, _ in learnt + chosen}
    found = [
        f"{test['home']} is called unseen, but the model learnt from it or was chosen on it."
        for test in tests_of(entry, UNSEEN_HOME)
        if _plain(test["home"]) in known
    ]
    for test in entry.metrics["tests"]:
        if test["kind"] != UNSEEN_HOME and any(
            _plain(home) == _plain(test["home"]) and first <= test["to"] and test["from"] <= last
            for home, first, last in learnt + chosen
        ):
            found.append(f"The test on {test['home']} from {test['from']} overlaps what the model learnt from.")
    return found


def _plain(home: str) -> str:
    return " ".join(home.split()).casefold()


def champions(entries: Iterable[RegistryEntry]) -> list[RegistryEntry]:
    """One version of each appliance: the active one, or the last registered where none is active."""
    chosen: dict[str, RegistryEntry] = {}
    for entry in entries:
        known = chosen.get(entry.appliance_id)
        if known is None or entry.is_active or not known.is_active:
            chosen[entry.appliance_id] = entry
    return list(chosen.values())
