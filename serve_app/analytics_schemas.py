"""Response types of the analytics routes, for their OpenAPI description; the documents are made in `History`."""

from __future__ import annotations

from datetime import date, datetime

from pydantic import BaseModel, Field


class ReadingRow(BaseModel):
    """One bucket of a building's mains."""

    time: datetime = Field(description="Start of the bucket, UTC")
    value: float | None = Field(description="Mean power in kW; null where nothing was measured")
    coverage: float = Field(description="Share of the bucket's minutes that were measured, 0 to 1")
    appliances: dict[str, float | None] = Field(
        default={}, description="With include_disaggregation: mean power in kW by appliance; null where none was said"
    )
    confidence: dict[str, float | None] = Field(
        default={}, description="With include_disaggregation: mean probability that the appliance was on"
    )


class ReadingsDocument(BaseModel):
    """A building's mains over time, a row for each bucket of the range."""

    building_id: str
    resolution: str
    rows: list[ReadingRow]


class PredictionRow(BaseModel):
    """One bucket of one appliance."""

    time: datetime = Field(description="Start of the bucket, UTC")
    appliance_id: str
    predicted_kw: float | None = Field(description="Mean power; null where nothing was predicted")
    confidence: float | None = Field(description="Mean probability that the appliance was on")
    coverage: float = Field(description="Share of the bucket's minutes with a prediction, 0 to 1")


class PredictionsDocument(BaseModel):
    """What was predicted over time, a row for each appliance and bucket of the range."""

    building_id: str
    resolution: str
    rows: list[PredictionRow]


class Energy(BaseModel):
    """Energy of what was measured, null when nothing was."""

    energy_kwh: float | None
    cost: float | None = Field(description="At `price_per_kwh`; null without one")


class CoveredEnergy(Energy):
    """Energy of what was measured, and how much of the day that was."""

    coverage: float = Field(description="Share of the day's minutes that were measured, 0 to 1")


class AlwaysOn(Energy):
    """The base load: the twentieth part of the day's quarters of an hour with the least power is below it."""

    power_kw: float | None


class EnergyDay(BaseModel):
    """One local day."""

    date: date
    start: datetime
    end: datetime
    mains: CoveredEnergy
    appliances: dict[str, CoveredEnergy]
    unattributed: Energy = Field(description="Mains less appliances")
    always_on: AlwaysOn


class EnergyDocument(BaseModel):
    """Energy by day."""

    building_id: str
    timezone: str
    days: list[EnergyDay]


class Cycle(BaseModel):
    """One run of an appliance; pauses that belong to its programme are part of it."""

    start: datetime
    end: datetime
    duration_s: int
    energy_kwh: float
    peak_kw: float
    provisional: bool = Field(description="It had not ended when the last prediction was made, and may still grow")


class CyclesDocument(BaseModel):
    """The runs of one appliance in a range, those that reach into it whole."""

    building_id: str
    appliance_id: str
    cycles: list[Cycle]


class BuildingHeardOf(BaseModel):
    """When a building was last heard of."""

    building_id: str
    last_reading: datetime | None
    last_prediction: datetime | None


class BuildingsDocument(BaseModel):
    """Buildings that something is stored of; at most 1000."""

    buildings: list[BuildingHeardOf]


class ApplianceHeardOf(BaseModel):
    """When something was last said of an appliance."""

    appliance_id: str
    last_prediction: datetime


class AppliancesDocument(BaseModel):
    """Appliances of a building."""

    building_id: str
    appliances: list[ApplianceHeardOf]
