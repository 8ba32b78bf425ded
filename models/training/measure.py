"""Measures registered versions again: the tests of their cards, or a home of one's own. From the weights alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.appliances import Appliance, appliance
from models.attribution import Attribution
from models.figures import UNSEEN_HOME, champions
from models.loader import LoadedModel, load_verified
from models.registry import PACKAGED_REGISTRY, Registry, RegistryEntry
from models.training.evaluate import HomeReport
from models.training.loop import preferred_device
from models.training.protocol import SEEN_TEST_FROM, split
from models.training.recordings import Home, RecordingError, known_homes, load_home
from models.training.run import EXPECTED, Progress, RunError, outputs_on, report_both, report_json, silent

SAME = 0.002
"""Relative; sums in another order on another machine move a few samples across a threshold."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One version on one home. `in_card` is what the registry says of the same test, None for a home without."""

    entry: RegistryEntry
    kind: str
    home: str
    reports: dict[Attribution, HomeReport]
    in_card: dict[str, Any] | None

    @property
    def equals_card(self) -> bool | None:
        """Whether every score of both answers is what the card says; None without a card's test."""
        if self.in_card is None:
            return None
        return all(
            _same(report_json(one)[name], self.in_card[str(attribution)].get(name))
            for attribution, one in self.reports.items()
            for name in one.scores.as_dict()
        )


def measure(
    data: Path,
    appliance_id: str | None = None,
    home_name: str | None = None,
    registry_path: Path | None = None,
    threads: int = 1,
    progress: Progress = silent,
) -> list[Measurement]:
    """Runs the champion of one appliance, or of all, on the tests of its card, or on the whole of one named home.

    `registry_path` may be a run folder's registry.json. Raises `RunError`.
    """
    try:
        torch.set_num_threads(threads)
        registry = Registry.load(registry_path or PACKAGED_REGISTRY)
        entries = champions(registry.entries)
        if appliance_id is not None:
            appliance(appliance_id)
            entries = [entry for entry in entries if entry.appliance_id == appliance_id]
            if not entries:
                raise RunError(f"no version of {appliance_id} is registered")
        recordings = known_homes(data)
        homes = {name: load_home(data, recording) for name, recording in recordings.items()}
        if home_name is not None and home_name not in homes:
            raise RunError(f"there is no home {home_name!r} in {data}; there are {', '.join(homes)}")
        measurements: list[Measurement] = []
        for entry in entries:
            model = load_verified(entry, registry.root, preferred_device())
            if home_name is not None:
                if entry.appliance_id in homes[home_name].appliances_w:
                    measurements.append(_on_named(model, homes[home_name], progress))
            else:
                measurements += [measure_again(model, test, homes, progress) for test in entry.metrics.get("tests", [])]
    except EXPECTED as error:
        raise RunError(str(error)) from error
    if not measurements:
        raise RunError(f"{home_name or 'no card'} has nothing to measure {appliance_id or 'any appliance'} on")
    return measurements


def measure_again(model: LoadedModel, test: dict[str, Any], homes: dict[str, Home], progress: Progress) -> Measurement:
    """One test of the model's card. Raises `RecordingError` when its home is not among `homes`."""
    for name, home in homes.items():
        if home.recording.home == test["home"]:
            part = home if test["kind"] == UNSEEN_HOME else split(home, SEEN_TEST_FROM.get(name)).seen_test
            return Measurement(model.entry, test["kind"], test["home"], _reports(model, part, progress), test)
    raise RecordingError(f"the recording of {test['home']}, which {model.entry.model_id} was tested on, is not there")


def _on_named(model: LoadedModel, home: Home, progress: Progress) -> Measurement:
    taught = home.recording.home in {source.home for source in model.entry.training_data}
    kind = "whole home, partly learnt from" if taught else UNSEEN_HOME
    return Measurement(model.entry, kind, home.recording.home, _reports(model, home, progress), None)


def _reports(model: LoadedModel, home: Home, progress: Progress) -> dict[Attribution, HomeReport]:
    entry = model.entry
    target: Appliance = appliance(entry.appliance_id)
    outputs = outputs_on(model.network, home, target, entry.input_window_size, entry.sample_indices, progress)
    return report_both(model.network, outputs, state_thresholds(entry), target)


def state_thresholds(entry: RegistryEntry) -> dict[Attribution, float]:
    """Probability from which the appliance counts as on, for each answer; 0.5 where the registry says nothing."""
    answers = entry.metrics.get("answers", {})
    return {
        attribution: float(answers.get(str(attribution), {}).get("on_probability_threshold", 0.5))
        for attribution in Attribution
    }


def _same(measured: float | None, said: float | None) -> bool:
    if measured is None or said is None:
        return measured is said
    return abs(measured - said) <= SAME * max(abs(said), 0.05)
