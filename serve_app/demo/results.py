"""Collects the outcomes of a run on the recording's time axis, and sums them up.

Figures compare prediction and measurement over exactly the samples that have both. An always-off predictor
is given beside each error, because for rare loads a small error alone is no evidence of skill.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from models.signal import W_PER_KW
from serve_app.demo.recording import FloatArray, Plan, Recording, appliance_key
from serve_app.demo.stream import Outcome

# From long programmes at the bottom of the stack to short peaks at the top; others follow by name.
_ORDER = ("fridge", "dishwasher", "washingmachine", "shower", "kettle", "microwave")


def in_order(appliance_ids: Iterable[str]) -> tuple[str, ...]:
    """The appliances in the order in which every table and picture shows them."""

    def place(appliance_id: str) -> tuple[int, str]:
        key = appliance_key(appliance_id)
        return (_ORDER.index(key) if key in _ORDER else len(_ORDER), appliance_id)

    return tuple(sorted(appliance_ids, key=place))


def label(appliance_id: str) -> str:
    """`washing_machine` as people write it."""
    return appliance_id.replace("_", " ").replace("-", " ").capitalize()


def _aware(instant: datetime) -> datetime:
    """The API always sends an offset; without one the only sensible reading is UTC."""
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


@dataclass(frozen=True)
class ApplianceSummary:
    """One appliance over the answered samples; None where the recording has no measurement of it."""

    appliance_id: str
    predicted_kwh: float
    measured_kwh: float | None
    mae_w: float | None
    always_off_mae_w: float | None


class Results:
    """Predictions by sample of `recording`; arrays have its length, powers are kW, unanswered samples NaN."""

    def __init__(self, recording: Recording, plan: Plan, appliances: Iterable[str]) -> None:
        self.recording = recording
        self.plan = plan
        self.appliances = in_order(appliances)
        self.predicted_kw: dict[str, FloatArray] = {name: self._unknown() for name in self.appliances}
        self.unattributed_kw = self._unknown()
        self.answered = np.zeros(len(recording), dtype=np.bool_)
        self.sent = 0
        self.acknowledged = 0
        self.failed = 0

    def add(self, outcome: Outcome) -> None:
        """Record what became of one window."""
        self.sent += 1
        if outcome.reply is None:
            self.failed += 1
            return
        self.acknowledged += 1
        reply = outcome.reply
        index = self.recording.index_of(_aware(reply.predicted_for)) if reply.predicted_for else outcome.window.target
        if not 0 <= index < len(self.recording):
            index = outcome.window.target
        self.answered[index] = True
        for appliance in reply.appliances:
            if appliance.appliance_id not in self.predicted_kw:  # a model that was rolled out after the run began
                self.appliances = in_order((*self.appliances, appliance.appliance_id))
                self.predicted_kw[appliance.appliance_id] = self._unknown()
            if appliance.predicted_kw is not None:
                self.predicted_kw[appliance.appliance_id][index] = appliance.predicted_kw
        self.unattributed_kw[index] = self._unattributed(outcome, index)

    def span(self) -> slice:
        """From the first planned sample to the plan's end, or to the last answer of a run that was cut short."""
        end = self.plan.first + self.plan.count
        answered = np.flatnonzero(self.answered)
        if self.sent < len(self.plan.windows) and answered.size:
            end = int(answered[-1]) + 1
        return slice(min(self.plan.first, *answered[:1], end), end)

    @property
    def skipped(self) -> int:
        """Samples passed over for missing mains, as far as the run got."""
        if self.sent == len(self.plan.windows):
            return self.plan.skipped
        return self.plan.windows[self.sent - 1].target - self.plan.first + 1 - self.sent if self.sent else 0

    def summaries(self) -> list[ApplianceSummary]:
        """One summary an appliance, in the fixed order."""
        return [self._summary(appliance_id) for appliance_id in self.appliances]

    def _summary(self, appliance_id: str) -> ApplianceSummary:
        predicted_w = self.predicted_kw[appliance_id] * W_PER_KW
        known = np.isfinite(predicted_w)
        predicted_kwh = self._kwh(predicted_w[known])
        measured_w = self.recording.measured_w(appliance_id)
        both = known & np.isfinite(measured_w) if measured_w is not None else np.zeros_like(known)
        if measured_w is None or not both.any():
            return ApplianceSummary(appliance_id, predicted_kwh, None, None, None)
        return ApplianceSummary(
            appliance_id,
            predicted_kwh,
            self._kwh(measured_w[both]),
            float(np.mean(np.abs(predicted_w[both] - measured_w[both]))),
            float(np.mean(np.abs(measured_w[both]))),
        )

    def energy_kwh(self, power_kw: FloatArray) -> float:
        """Energy in kWh of a power in kW over the answered samples."""
        return self._kwh(power_kw[self.answered & np.isfinite(power_kw)] * W_PER_KW)

    def _kwh(self, watts: FloatArray) -> float:
        return float(np.sum(watts)) * self.recording.sample_period_s / 3.6e6

    def _unattributed(self, outcome: Outcome, index: int) -> float:
        """The service's own figure, else what the appliances leave of the mains, in kW."""
        if outcome.reply is None:
            return float("nan")
        if outcome.reply.unattributed_kw is not None:
            return outcome.reply.unattributed_kw
        attributed = sum(appliance.predicted_kw or 0.0 for appliance in outcome.reply.appliances)
        return max(float(self.recording.aggregate_w[index]) / W_PER_KW - attributed, 0.0)

    def _unknown(self) -> FloatArray:
        return np.full(len(self.recording), np.nan)
