"""What a model card warns of: read off the figures, so that no version can leave its weaknesses out."""

from __future__ import annotations

from typing import Any

from models.attribution import Attribution
from models.figures import HELD_OUT_MONTH, SEEN_HOME, UNSEEN_HOME, beats_always_off, tests_of
from models.registry import RegistryEntry

WEAK_F1 = 0.6
WEAK_CYCLE_F1 = 0.5
WEAK_SAE = 0.3
MUCH_WORSE_F1 = 0.1
"""A difference between two homes, or two answers, that a user would notice."""
WEAK_COVERAGE_LOSS = 0.1
"""An interval that holds this much less than it says is not worth its name."""

NOT_FOR = (
    "billing, tenant settlement or any charge: it estimates, it does not meter",
    "safety or medical monitoring (an appliance left on, a person's well-being)",
    "inferring the presence or habits of people without their consent",
    "homes unlike those it learnt from: other countries, three-phase supplies, solar export at the same meter",
)


def weaknesses(entry: RegistryEntry) -> list[str]:
    """One sentence each. `entry.metrics` must be complete (`figures.metrics_errors`)."""
    homes = len({source.home for source in entry.training_data})
    many = "One training home is" if homes == 1 else f"{homes} training homes are"
    return [
        *(sentence for test in tests_of(entry, UNSEEN_HOME, HELD_OUT_MONTH) for sentence in _of_test(test)),
        *_unseen_against_seen(entry),
        f"{many} few: figures on another home can be better or worse than on the one tested here.",
        "Mains in apparent power (VA) look different from mains in active power (W), motors most.",
    ]


def _of_test(test: dict[str, Any]) -> list[str]:
    home, found = test["home"], []
    for attribution in Attribution:
        report = test[str(attribution)]
        who = f"On {home} its {attribution} answer"
        if not beats_always_off(report):
            found.append(
                f"{who} does not beat always-off (MAE {report['mae_w']:.3g} W, predicting zero "
                f"{report['always_off_mae_w']:.3g} W, F1 {report['f1']:.2f}): do not rely on its power there."
            )
        if report["f1"] < WEAK_F1:
            found.append(f"{who} is often wrong about on and off (F1 {report['f1']:.2f}).")
        if report["cycle_f1"] < WEAK_CYCLE_F1:
            found.append(f"{who} misses, splits or invents many cycles (F1 of cycles {report['cycle_f1']:.2f}).")
        if report["sae"] is not None and report["sae"] > WEAK_SAE:
            found.append(f"{who} is off by {report['sae']:.0%} in total energy.")
        if report["ece_after"] > report["ece_before"]:
            found.append(f"{who} is not better calibrated than before calibration: ECE rose.")
        found += [f"{who} {sentence}" for sentence in _narrow_intervals(report)]
    final, provisional = (test[str(attribution)]["f1"] for attribution in Attribution)
    if final - provisional > MUCH_WORSE_F1:
        found.append(
            f"On {home} the provisional answer is much worse than the final one (F1 -{final - provisional:.2f})."
        )
    return found


def _narrow_intervals(report: dict[str, Any]) -> list[str]:
    found = []
    for key, when in (("coverage", "of the minutes"), ("coverage_on", "of the minutes on")):
        for level, share in report[key].items():
            if share is not None and share < float(level) / 100.0 - WEAK_COVERAGE_LOSS:
                found.append(f"holds {share:.0%} {when} in its {level} % interval.")
    return found


def _unseen_against_seen(entry: RegistryEntry) -> list[str]:
    final = str(Attribution.FINAL)
    seen = [test[final]["f1"] for test in tests_of(entry, SEEN_HOME)]
    unseen = [test[final]["f1"] for test in tests_of(entry, UNSEEN_HOME)]
    if seen and unseen and min(seen) - min(unseen) > MUCH_WORSE_F1:
        return [
            f"In homes it learnt from it does better (F1 from {min(seen):.2f}) than in one it never saw "
            f"({min(unseen):.2f})."
        ]
    return []
