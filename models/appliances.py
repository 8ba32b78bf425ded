"""The appliances we have ground truth for, and the constants that define "on". Owned here and nowhere else.

Refuses appliances without ground truth: a model that nobody can measure must not be shipped.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.signal import MAINS_CLIP_W

PROGRAMME_S = 600.0


@dataclass(frozen=True, slots=True)
class Appliance:
    """What one appliance is. Powers in W, durations in s (papers store samples of 6, 10 or 60 s).

    Source: the threshold tables of Kelly & Knottenbelt 2015 (doi:10.1145/2821650.2821672) and of Zhang et al.
    2018 (seq2point). Electric shower: from the rated power of instantaneous showers in the UK.
    """

    appliance_id: str
    column: str
    """Name of the sub-meter column in the recordings."""
    max_power_w: float
    on_threshold_w: float
    min_on_s: float
    min_off_s: float
    typical_power_w: float
    """Scale of the power regression: about the power of the dominant phase, so that losses are near one."""
    mains_clip_w: float = MAINS_CLIP_W
    """Mains above are clipped before a network sees them. An electric shower alone is above what others clip at."""

    @property
    def has_programme(self) -> bool:
        """True for machines that run through phases for at least `PROGRAMME_S`; a kettle only boils."""
        return self.min_on_s >= PROGRAMME_S


APPLIANCES: dict[str, Appliance] = {
    appliance.appliance_id: appliance
    for appliance in (
        Appliance("kettle", "Kettle", 3100.0, 2000.0, 12.0, 0.0, 1000.0),
        Appliance("microwave", "Microwave", 3000.0, 200.0, 12.0, 30.0, 500.0),
        Appliance("dishwasher", "Dishwasher", 2500.0, 10.0, 1800.0, 1800.0, 700.0),
        Appliance("washing_machine", "WashingMachine", 2500.0, 20.0, 1800.0, 160.0, 400.0),
        Appliance("electric_shower", "Shower", 11000.0, 2000.0, 30.0, 30.0, 4000.0, mains_clip_w=14000.0),
    )
}


class UnknownAppliance(LookupError):
    """The appliance has no entry in the table above."""


def appliance(appliance_id: str) -> Appliance:
    """The appliance called `appliance_id`. Raises `UnknownAppliance`, naming those that exist."""
    try:
        return APPLIANCES[appliance_id]
    except KeyError:
        raise UnknownAppliance(
            f"there is no appliance {appliance_id!r}; known are {', '.join(sorted(APPLIANCES))}"
        ) from None
