"""The model card, written from the registry entry alone: nothing in it is typed by hand per model.

Whoever has the entry can write the card again, so a card that was edited, or figures that were, are found out
(`models.release.verify`).
"""

from __future__ import annotations

from typing import Any

from models.attribution import Attribution
from models.figures import HELD_OUT_MONTH, SEEN_HOME, UNSEEN_HOME, headline_test, obstacles, tests_of
from models.registry import RegistryEntry
from models.weaknesses import NOT_FOR, weaknesses

RELIABILITY_NAME = "reliability.png"
EXAMPLE_DAY_NAME = "example-day.png"
SECTIONS = (
    "Two answers",
    "Learnt from",
    "Chosen on",
    "Tests",
    "Prediction intervals",
    "Weaknesses",
    "Not for",
    "Attribution",
)
"""Headings that every card has."""

DISCLOSURE = (
    "The recipe was developed on the training homes and IDEAL Home 65, but not blindly: earlier models and attempts "
    "were tested on UK-DALE House 2 too, how well its sub-meters agree with its mains was looked at, and so were the "
    "programmes of its dishwasher before those of the training homes were warped in time. No weight, threshold, "
    "calibration or interval was fitted to it; take the figures there as favourable, a dishwasher's most."
)
TITLES = {
    UNSEEN_HOME: "On a home it never saw",
    SEEN_HOME: "On a later part of a home it learnt from",
    HELD_OUT_MONTH: "On months kept aside, of the home it learnt from",
}
SCORE_ROWS = (
    ("mae_w", "MAE (W)", "always_off_mae_w"),
    ("mae_on_w", "MAE while on (W)", None),
    ("f1", "F1 of the state", None),
    ("cycle_f1", "F1 of cycles (IoU >= 0.5)", None),
    ("sae", "SAE", None),
    ("nde", "NDE (no root)", None),
    ("mr", "MR", None),
    ("teca", "TECA", None),
    ("energy_per_day_error_wh", "Energy per day error (Wh)", "always_off_energy_per_day_error_wh"),
)
ALWAYS_OFF = {"f1": 0.0, "cycle_f1": 0.0, "sae": 1.0, "nde": 1.0, "mr": 0.0, "teca": 0.5}
"""Predicting zero, for the metrics whose value then does not depend on the home."""
CC_BY = "CC BY 4.0: https://creativecommons.org/licenses/by/4.0/"
MEANING = {
    Attribution.FINAL: "as much mains after the instant as before it: the best the model can say",
    Attribution.PROVISIONAL: "for a live view, before the rest of a programme has been seen",
}


def card(entry: RegistryEntry) -> str:
    """The card as Markdown. `entry.metrics` must be complete (`figures.metrics_errors`)."""
    return "\n".join(
        [
            *_head(entry),
            *_answers(entry),
            *_sources(entry),
            *_chosen(entry),
            *_tests(entry),
            *_intervals(entry),
            *_section("Weaknesses", [f"- {sentence}" for sentence in weaknesses(entry)]),
            *_section("Not for", [f"- {purpose}" for purpose in NOT_FOR] + [_input_limits(entry)]),
            *_attribution(entry),
            "",
        ]
    )


def _head(entry: RegistryEntry) -> list[str]:
    metrics, preprocessing = entry.metrics, entry.preprocessing
    clipping = "" if preprocessing.clip_w is None else f"clipped to [0, {preprocessing.clip_w:g}] W, then "
    limit = "not negative" if entry.max_power_w is None else f"clamped to [0, {entry.max_power_w:g}]"
    name = entry.appliance_id.replace("_", " ")
    lines = [
        f"# {entry.model_id} {entry.model_version}",
        "",
        f"Estimates the power of one {name} from the mains power of a home, and the probability that it is on.",
        "",
    ]
    reasons = obstacles(entry)
    if reasons:
        lines += [f"**Not fit to be the active version.** {' '.join(reasons)}", ""]
    return [
        *lines,
        f"- Architecture: {entry.architecture}, {metrics['parameters']:,} parameters",
        f"- Weights: `{entry.artifact_path}`, sha256 `{entry.artifact_sha256}`",
        f"- Input: {entry.input_window_size} samples of {entry.sample_period_s:g} s means of mains power, kW, oldest "
        f"first; {clipping}z-score (mean {preprocessing.mean:g}, std {preprocessing.std:g} {entry.input_unit})",
        f"- Output: power in W, {limit}, a calibrated probability of being on, and prediction intervals",
        f"- Recipe: {metrics['recipe']['steps']} steps of {metrics['recipe']['batch_size']} windows, "
        f"{_seeds(metrics['recipe'])}; weights averaged over the last steps",
    ]


def _seeds(recipe: dict[str, Any]) -> str:
    seeds = recipe.get("seeds", [recipe["seed"]])
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"the median of seeds {', '.join(map(str, seeds))}"


def look_ahead_min(entry: RegistryEntry, attribution: Attribution) -> float:
    """Minutes of mains after the instant that the answer stands for; it cannot come sooner than that."""
    after = entry.input_window_size - 1 - entry.sample_indices[attribution]
    return after * entry.sample_period_s / 60.0


def _answers(entry: RegistryEntry) -> list[str]:
    rows = []
    for attribution, index in entry.sample_indices.items():
        answer = entry.metrics["answers"][str(attribution)]
        rows.append(
            f"| {attribution} | {index} | {look_ahead_min(entry, attribution):g} "
            f"| {answer['on_probability_threshold']:g} | {answer['power_gate_probability']:g} "
            f"| {MEANING[attribution]} |"
        )
    lines = [
        "Both come from one forward pass. Each stands for one sample of the window (0 = oldest) and comes the minutes "
        "late that lie after it.",
        "",
        "| answer | sample | minutes late | on from probability | power zero below probability | what it is |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    if len(set(entry.sample_indices.values())) == 1:
        lines += ["", "This architecture answers for one sample of the window only, so both answers are the same."]
    return _section("Two answers", lines)


def _sources(entry: RegistryEntry) -> list[str]:
    return _section("Learnt from", [f"- {one.home}, {one.from_} to {one.to}" for one in entry.training_data])


def _chosen(entry: RegistryEntry) -> list[str]:
    parts = "; ".join(f"{part['home']}, {part['from']} to {part['to']}" for part in entry.metrics["validation_data"])
    lines = [
        f"Thresholds, calibration and intervals were chosen on a later part of the same homes: {parts}.",
        "",
        "| answer | F1 there | MAE (W) | always off MAE (W) | ECE before calibration | ECE after |",
        "|---|---|---|---|---|---|",
    ]
    for attribution in Attribution:
        there = entry.metrics["answers"][str(attribution)]["validation"]
        lines.append(
            f"| {attribution} | {there['f1']:.3f} | {_figure(there['mae_w'])} | {_figure(there['always_off_mae_w'])} "
            f"| {there['ece_before']:.4f} | {there['ece_after']:.4f} |"
        )
    return _section("Chosen on", lines)


def _tests(entry: RegistryEntry) -> list[str]:
    answers = entry.metrics["answers"]
    thresholds = ", ".join(f"{answers[name]['on_probability_threshold']:g} ({name})" for name in map(str, Attribution))
    lines = [
        f"On means: true power >= {entry.metrics['on_threshold_w']:g} W after merging and dropping; predicted "
        f"probability >= {thresholds}. MAE, SAE and so on are of the power, every measured minute counted. Always off "
        "is what predicting zero reaches.",
        "",
        DISCLOSURE,
    ]
    if not tests_of(entry, UNSEEN_HOME):
        lines += ["", "There is no test on a home it never saw: how it does in another home is not known."]
    for kind, title in TITLES.items():
        for test in tests_of(entry, kind):
            lines += ["", f"### {title}: {test['home']}, {test['from']} to {test['to']}", "", *_test(test)]
    return _section("Tests", lines)


def _test(test: dict[str, Any]) -> list[str]:
    final, provisional = (test[str(attribution)] for attribution in Attribution)
    lines = [
        f"{final['samples']:,} measured minutes.",
        "",
        f"| metric | {Attribution.FINAL} | {Attribution.PROVISIONAL} | always off |",
        "|---|---|---|---|",
    ]
    for key, label, reference in SCORE_ROWS:
        off = final[reference] if reference else ALWAYS_OFF.get(key)
        lines.append(f"| {label} | {_figure(final[key])} | {_figure(provisional[key])} | {_figure(off)} |")
    for name in ("before", "after"):
        errors = " | ".join(f"{one[f'ece_{name}']:.4f}" for one in (final, provisional))
        lines.append(f"| ECE {name} calibration (15 bins) | {errors} | - |")
    return lines


def _intervals(entry: RegistryEntry) -> list[str]:
    test = headline_test(entry)
    if test is None:
        return _section("Prediction intervals", ["Their coverage was not measured outside the training homes."])
    lines = [
        f"Measured on {test['home']}, {test['from']} to {test['to']}: the share of true powers inside the interval. An "
        "appliance that is off is easily covered, so the minutes on are counted apart.",
        "",
        "| answer | interval | all minutes | minutes on |",
        "|---|---|---|---|",
    ]
    for attribution in Attribution:
        report = test[str(attribution)]
        for level, share in report["coverage"].items():
            lines.append(
                f"| {attribution} | {level} % | {_percent(share)} | {_percent(report['coverage_on'].get(level))} |"
            )
    lines += [
        "",
        f"![Share of minutes on against the probability it said]({RELIABILITY_NAME})",
        "",
        "On the diagonal, 70 % means 7 times out of 10.",
        "",
        f"![The day with the median energy among the days in use]({EXAMPLE_DAY_NAME})",
    ]
    return _section("Prediction intervals", lines)


def _input_limits(entry: RegistryEntry) -> str:
    limit = entry.preprocessing.clip_w
    above = "" if limit is None else f", and mains above {limit:g} W (clipped before the network sees them)"
    return f"- mains at another period than {entry.sample_period_s:g} s{above}"


def _attribution(entry: RegistryEntry) -> list[str]:
    sources = dict.fromkeys(source.attribution for source in entry.training_data)
    # A test names its recording alone, a training source also how the recording came here.
    tested = (test["attribution"] for test in entry.metrics["tests"])
    for text in tested:
        if not any(known.startswith(text) for known in sources):
            sources[text] = None
    # Somebody's own recordings need not be under that licence, and the card must not give it to them.
    terms = CC_BY if all("CC BY 4.0" in source for source in sources) else "each under the terms named with it"
    lines = [f"Trained and tested on these recordings ({terms}):", ""]
    return _section("Attribution", lines + [f"- {source}" for source in sources])


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", f"## {title}", "", *lines]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
