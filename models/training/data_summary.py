"""What a recording holds of each appliance: whether there is anything to learn, and the error to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.appliances import appliance
from models.training.labels import on_state, runs
from models.training.recordings import SAMPLE_PERIOD_S, Home


@dataclass(frozen=True, slots=True)
class ApplianceSummary:
    """One appliance over the measured minutes of a home."""

    appliance_id: str
    always_off_mae_w: float
    """The error of predicting zero, which is the mean power, W: power is never negative here."""
    maximum_w: float
    cycles: int
    """On-periods that were measured at least in part, by the constants of `models.appliances`."""
    share_on: float
    """Of the measured minutes, 0 to 1."""


def summarise(home: Home) -> list[ApplianceSummary]:
    """Every appliance of a home with at least one measured minute, in the home's order."""
    summaries = []
    for name, power_w in home.appliances_w.items():
        state = on_state(power_w, appliance(name), SAMPLE_PERIOD_S)
        measured_w = power_w[home.valid]
        summaries.append(
            ApplianceSummary(
                appliance_id=name,
                always_off_mae_w=float(np.mean(measured_w, dtype=np.float64)),
                maximum_w=float(measured_w.max()),
                cycles=sum(bool(home.valid[start:end].any()) for start, end in runs(state)),
                share_on=float(state[home.valid].mean()),
            )
        )
    return summaries
