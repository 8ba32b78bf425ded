"""The model card: all of its figures come from the entry, and what is weak is said."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.attribution import Attribution
from models.card import DISCLOSURE, SECTIONS, card, look_ahead_min
from models.figures import obstacles
from models.registry import Preprocessing, RegistryEntry, TrainingSource
from models.weaknesses import weaknesses
from tests.unit.models.run_folders import INDICES, TRAINING, a_test, metrics, report


def entry(change: Callable[[dict[str, Any]], Any] | None = None, **fields: Any) -> RegistryEntry:
    figures = metrics()
    if change is not None:
        change(figures)
    values: dict[str, Any] = {
        "model_id": "washing-machine-tpunet",
        "model_version": "2.0.0",
        "appliance_id": "washing_machine",
        "architecture": "TemporalPoolingUNet",
        "architecture_params": {},
        "artifact_path": "artifacts/washing-machine-tpunet/2.0.0/model.safetensors",
        "artifact_sha256": "a" * 64,
        "input_window_size": 64,
        "preprocessing": Preprocessing("standard", 522.0, 814.0, 6000.0),
        "is_active": True,
        "sample_period_s": 60.0,
        "input_unit": "W",
        "output_unit": "W",
        "output_sample_index": INDICES[Attribution.FINAL],
        "provisional_sample_index": INDICES[Attribution.PROVISIONAL],
        "max_power_w": 2500.0,
        "training_data": TRAINING,
        "metrics": figures,
    }
    return RegistryEntry(**{**values, **fields})


def rows(text: str, first_cell: str) -> list[list[str]]:
    """Cells of the table rows that begin so."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith(f"| {first_cell} |")
    ]


def test_every_section_is_there_once_and_in_order() -> None:
    assert re.findall(r"^## (.*)$", card(entry()), re.MULTILINE) == list(SECTIONS)


def test_the_same_entry_gives_the_same_card_whichever_version_is_active() -> None:
    assert card(entry()) == card(entry(is_active=False))


def test_it_says_what_the_model_takes_and_learnt_from() -> None:
    text = card(entry())
    assert text.startswith("# washing-machine-tpunet 2.0.0\n\nEstimates the power of one washing machine ")
    assert "1,234 parameters" in text
    assert "64 samples of 60 s means" in text
    assert "clipped to [0, 6000] W" in text
    assert "clamped to [0, 2500]" in text
    assert "6 steps of 8 windows, seed 5" in text
    assert "- REFIT House 2, 2013-09-17 to 2014-10-01" in text
    assert "REFIT House 2, 2014-10-03 to 2014-12-01" in text
    assert DISCLOSURE in text
    assert "mains at another period than 60 s, and mains above 6000 W" in text
    assert "None" not in text
    assert "{" not in text


def test_mains_that_are_not_clipped_and_power_without_a_limit_are_not_given_one() -> None:
    text = card(entry(preprocessing=Preprocessing("standard", 522.0, 814.0, None), max_power_w=None))
    assert "clipped" not in text
    assert "power in W, not negative" in text
    assert "None" not in text


def test_both_answers_stand_for_a_sample_and_come_late_by_what_lies_after_it() -> None:
    text = card(entry())
    assert rows(text, "final")[0][:5] == ["final", "32", "31", "0.25", "0.05"]
    assert rows(text, "provisional")[0][:3] == ["provisional", "53", "10"]
    assert look_ahead_min(entry(sample_period_s=30.0), Attribution.PROVISIONAL) == 5.0
    assert "both answers are the same" not in text
    assert "both answers are the same" in card(entry(provisional_sample_index=INDICES[Attribution.FINAL]))


def test_every_test_has_both_answers_beside_always_off() -> None:
    text = card(entry())
    unseen = text[text.index("### On a home it never saw: UK-DALE House 2, 2015-02-01 to 2015-05-01") :]
    assert rows(unseen, "MAE (W)")[0] == ["MAE (W)", "5.86", "7.12", "25"]
    assert rows(unseen, "F1 of the state")[0] == ["F1 of the state", "0.938", "0.901", "0"]
    assert rows(unseen, "TECA")[0] == ["TECA", "0.8", "0.8", "0.5"]
    assert rows(unseen, "MAE while on (W)")[0] == ["MAE while on (W)", "424", "424", "-"]
    assert rows(unseen, "Energy per day error (Wh)")[0] == ["Energy per day error (Wh)", "126", "126", "580"]
    assert rows(unseen, "ECE after calibration (15 bins)")[0][1:3] == ["0.0010", "0.0010"]
    assert "### On a later part of a home it learnt from: REFIT House 2" in text
    assert len(rows(text, "SAE")) == 2
    assert "true power >= 2000 W" in text
    assert "probability >= 0.25 (final), 0.25 (provisional)" in text


def test_an_undefined_figure_is_a_dash() -> None:
    text = card(entry(lambda m: m["tests"][0]["final"].update(sae=None, mae_on_w=None)))
    assert rows(text, "SAE")[0] == ["SAE", "-", "0.1", "1"]


def test_intervals_are_measured_on_the_unseen_home_with_the_pictures_beside() -> None:
    def change(figures: dict[str, Any]) -> None:
        figures["tests"].reverse()
        figures["tests"][1]["final"]["coverage"] = {"80": 0.7777, "90": 0.8888}
        figures["tests"][1]["provisional"]["coverage_on"] = {"80": None, "90": 0.5}

    text = card(entry(change))
    intervals = text[text.index("## Prediction intervals") : text.index("## Weaknesses")]
    assert "Measured on UK-DALE House 2" in intervals
    assert rows(intervals, "final") == [["final", "80 %", "77.8%", "78.0%"], ["final", "90 %", "88.9%", "88.0%"]]
    assert rows(intervals, "provisional")[0] == ["provisional", "80 %", "81.0%", "-"]
    assert "(reliability.png)" in intervals
    assert "(example-day.png)" in intervals


def test_a_version_that_may_be_active_is_not_warned_of() -> None:
    assert "Not fit to be the active version" not in card(entry())


def test_one_home_only_is_said_plainly() -> None:
    def change(figures: dict[str, Any]) -> None:
        figures["tests"] = [a_test("held_out_month", "IDEAL Home 65", report(0.97, 5.0, 60.0), report(0.9, 9.0, 60.0))]
        figures["validation_data"][0]["home"] = "IDEAL Home 65"

    source = TrainingSource("IDEAL Home 65", "2014-01-01", "2014-09-01", "IDEAL, CC BY 4.0")
    text = card(entry(change, training_data=(source,)))
    assert (
        "**Not fit to be the active version.** It has no test on a home it never saw: all that is known of it comes "
        "from IDEAL Home 65." in text
    )
    assert "There is no test on a home it never saw: how it does in another home is not known." in text
    assert "### On months kept aside, of the home it learnt from: IDEAL Home 65" in text
    assert "Measured on IDEAL Home 65" in text
    assert "On a home it never saw:" not in text


def test_only_seen_homes_leave_the_intervals_unmeasured() -> None:
    text = card(entry(lambda m: m["tests"].pop(0)))
    assert "Their coverage was not measured outside the training homes." in text


def test_not_beating_always_off_is_said_first() -> None:
    text = card(entry(lambda m: m["tests"][0]["final"].update(mae_w=26.0)))
    warning = "On UK-DALE House 2, which it never saw, its final answer does not beat always-off: MAE 26 W, and 25 W"
    assert f"**Not fit to be the active version.** {warning}" in text


WEAK: list[tuple[str, dict[str, Any], str]] = [
    ("final", {"mae_w": 26.0}, "its final answer does not beat always-off (MAE 26 W, predicting zero 25 W"),
    ("provisional", {"f1": 0.0}, "its provisional answer does not beat always-off"),
    ("final", {"f1": 0.59}, "its final answer is often wrong about on and off (F1 0.59)"),
    ("provisional", {"cycle_f1": 0.49}, "misses, splits or invents many cycles (F1 of cycles 0.49)"),
    ("final", {"sae": 0.31}, "is off by 31% in total energy"),
    ("final", {"ece_after": 0.03}, "ECE rose"),
    ("final", {"coverage_on": {"80": 0.62, "90": 0.9}}, "holds 62% of the minutes on in its 80 % interval"),
    ("provisional", {"coverage": {"80": 0.8, "90": 0.79}}, "holds 79% of the minutes in its 90 % interval"),
    ("provisional", {"f1": 0.8}, "the provisional answer is much worse than the final one (F1 -0.14)"),
]


@pytest.mark.parametrize(("answer", "figures", "sentence"), WEAK)
def test_a_weak_figure_is_a_weakness(answer: str, figures: dict[str, Any], sentence: str) -> None:
    weak = entry(lambda m: m["tests"][0][answer].update(figures))
    assert any(sentence in found for found in weaknesses(weak))
    assert not any(sentence in found for found in weaknesses(entry()))
    assert sentence in card(weak)


def test_good_figures_leave_the_general_weaknesses_only() -> None:
    assert [sentence.split(":")[0] for sentence in weaknesses(entry())] == [
        "One training home is few",
        "Mains in apparent power (VA) look different from mains in active power (W), motors most.",
    ]


def test_doing_better_in_known_homes_is_a_weakness() -> None:
    found = weaknesses(entry(lambda m: m["tests"][0]["final"].update(f1=0.7)))
    assert any(
        "In homes it learnt from it does better (F1 from 0.95) than in one it never saw (0.70)" in f for f in found
    )


def test_every_recording_is_attributed_once() -> None:
    text = card(entry(training_data=(*TRAINING, dataclasses.replace(TRAINING[0], home="REFIT House 20"))))
    attribution = text[text.index("## Attribution") :]
    assert [line for line in attribution.splitlines() if line.startswith("- ")] == [
        "- REFIT, Murray, CC BY 4.0; by way of a collection",
        "- UK-DALE, Kelly, CC BY 4.0",
    ]


@pytest.mark.parametrize(("seeds", "said"), [([1, 2, 3], "the median of seeds 1, 2, 3"), ([7], "8 windows, seed 7")])
def test_an_ensemble_names_the_seeds_of_its_members(seeds: list[int], said: str) -> None:
    assert f"{said};" in card(entry(lambda m: m["recipe"].update(seeds=seeds)))


def test_a_recording_of_ones_own_is_not_given_a_licence() -> None:
    general = "these recordings (CC BY 4.0: https://creativecommons.org/licenses/by/4.0/):"
    assert general in card(entry())
    own = dataclasses.replace(TRAINING[0], home="Flat 2", attribution="Recorded by the tenant, not for publication")
    text = card(entry(training_data=(*TRAINING, own)))
    assert "CC BY 4.0: https" not in text
    assert "these recordings (each under the terms named with it):" in text
    assert "- Recorded by the tenant, not for publication" in text


@given(
    f1=st.floats(0.0, 1.0),
    mae_w=st.floats(0.0, 100.0),
    always_off_mae_w=st.floats(0.0, 100.0),
    said=st.booleans(),
)
def test_only_the_figures_decide_whether_always_off_is_beaten(
    f1: float, mae_w: float, always_off_mae_w: float, said: bool
) -> None:
    figures = {"f1": f1, "mae_w": mae_w, "always_off_mae_w": always_off_mae_w, "beats_always_off": said}
    found = entry(lambda m: m["tests"][0]["final"].update(figures))
    beaten = f1 > 0.0 and mae_w < always_off_mae_w
    assert (obstacles(found) == []) == beaten
    # What keeps a version from being active is also a weakness on its card.
    assert any("final answer does not beat always-off" in sentence for sentence in weaknesses(found)) != beaten
