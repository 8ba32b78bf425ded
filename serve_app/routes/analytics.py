"""`GET /analytics/...`: what was measured and predicted, of buildings that the caller may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fastapi import APIRouter, Depends, Query, Response

from deployments.analytics import energy as energy_of
from deployments.analytics.spans import Resolution
from deployments.history_contracts import History, HistoryQuery
from models.appliances import APPLIANCES
from serve_app.analytics_schemas import (
    AppliancesDocument,
    BuildingsDocument,
    CyclesDocument,
    EnergyDocument,
    PredictionsDocument,
    ReadingsDocument,
)
from serve_app.past import Asker, asker, time_range, whole_buckets
from serve_app.problems import FieldError, Problem, Problems
from serve_app.schemas import IDENTIFIER_PATTERN, problem_responses

_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "`If-None-Match` names the answer"}}
router = APIRouter(
    prefix="/analytics",
    tags=["analytics"],
    responses=problem_responses(400, 401, 403, 422, 429, 431, 503) | _NOT_MODIFIED,
)

Who = Annotated[Asker, Depends(asker)]
BuildingId = Annotated[str, Query(pattern=IDENTIFIER_PATTERN)]
ApplianceId = Annotated[str | None, Query(pattern=IDENTIFIER_PATTERN, description="Only this one")]
Start = Annotated[str, Query(description="ISO 8601 with offset, or a time before now: `-7d` (s, m, h, d, w)")]
End = Annotated[str, Query(description="Like `start`; `now()` if left out")]
Step = Annotated[Resolution, Query(description="Length of a bucket; its start is the row's `time`")]


@dataclass(frozen=True, slots=True)
class Buckets:
    """Query parameters of what is told in buckets of time."""

    building_id: BuildingId
    start: Start
    end: End = "now()"
    resolution: Step = Resolution.QUARTER
    appliance_id: ApplianceId = None


@router.get("/readings", response_model=ReadingsDocument)
async def readings(
    who: Who,
    asked: Annotated[Buckets, Depends()],
    include_disaggregation: Annotated[bool, Query(description="With the power of each appliance")] = False,
) -> Response:
    """The building's mains, a row for each bucket; null where nothing was measured."""
    return await _in_buckets(who, History.DISAGGREGATION if include_disaggregation else History.READINGS, asked)


@router.get("/predictions", response_model=PredictionsDocument)
async def predictions(who: Who, asked: Annotated[Buckets, Depends()]) -> Response:
    """What the models said of the building's appliances, a row for each appliance and bucket."""
    return await _in_buckets(who, History.PREDICTIONS, asked)


async def _in_buckets(who: Asker, what: History, asked: Buckets) -> Response:
    span = whole_buckets(asked.start, asked.end, asked.resolution)
    appliances = await who.appliances(asked.building_id, asked.appliance_id)
    return await who.answer(
        HistoryQuery(what, (asked.building_id,), span.start_ns, span.stop_ns, asked.resolution.value, appliances)
    )


@router.get("/energy", response_model=EnergyDocument)
async def energy(
    who: Who,
    building_id: BuildingId,
    start: Start,
    end: End = "now()",
    timezone: Annotated[str, Query(max_length=64, description="Of the days: an IANA name")] = "UTC",
    price_per_kwh: Annotated[
        float | None, Query(ge=0, le=1000, allow_inf_nan=False, description="For the costs, in any currency")
    ] = None,
) -> Response:
    """Energy and cost by local day: mains, each appliance, what none explains, what is always on."""
    start_ns, stop_ns = time_range(start, end, energy_of.LONGEST_NS, "For energy")
    try:
        days = energy_of.local_days(start_ns, stop_ns, ZoneInfo(timezone))
    except (ZoneInfoNotFoundError, ValueError, OverflowError, OSError):
        detail = "is no time zone of the IANA database, such as Europe/London"
        raise Problem(Problems.VALIDATION, f"`timezone` {detail}.", [FieldError("timezone", detail)]) from None
    return await who.answer(
        HistoryQuery(
            History.ENERGY,
            (building_id,),
            # Whole days, so that the same question has the same tag all day long.
            days[0].start_ns,
            days[-1].stop_ns,
            appliance_ids=await who.appliances(building_id),
            timezone=timezone,
            price_per_kwh=price_per_kwh,
        )
    )


@router.get("/cycles", response_model=CyclesDocument)
async def cycles(
    who: Who,
    building_id: BuildingId,
    appliance_id: Annotated[str, Query(pattern=IDENTIFIER_PATTERN)],
    start: Start,
    end: End = "now()",
) -> Response:
    """When an appliance ran, with the energy and the peak of each run."""
    # Whole minutes, so that the same question has the same tag for a minute.
    span = whole_buckets(start, end, Resolution.MINUTE)
    if appliance_id not in APPLIANCES:
        detail = f"Known are: {', '.join(sorted(APPLIANCES))}."
        raise Problem(Problems.UNKNOWN_APPLIANCE, detail, [FieldError("appliance_id", "unknown appliance")])
    appliances = await who.appliances(building_id, appliance_id)
    return await who.answer(
        HistoryQuery(History.CYCLES, (building_id,), span.start_ns, span.stop_ns, appliance_ids=appliances)
    )


@router.get("/buildings", response_model=BuildingsDocument)
async def buildings(who: Who) -> Response:
    """Your buildings that something is stored of, and when each was last heard of."""
    granted = await who.buildings()
    if granted is None:
        return await who.answer(HistoryQuery(History.BUILDINGS, None))
    return await who.answer(HistoryQuery(History.BUILDINGS, tuple(granted), appliances_of=tuple(granted.values())))


@router.get("/appliances", response_model=AppliancesDocument)
async def appliances(who: Who, building_id: BuildingId) -> Response:
    """The appliances of a building that something was said of, and when last."""
    granted = await who.appliances(building_id)
    return await who.answer(HistoryQuery(History.APPLIANCES, (building_id,), appliance_ids=granted))
