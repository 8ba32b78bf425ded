"""What crosses the handles of the History deployment: questions about the past, and what it answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from models.attribution import Attribution


class History(StrEnum):
    """What can be asked of the past."""

    READINGS = "readings"
    DISAGGREGATION = "disaggregation"
    """Readings with their appliances."""
    PREDICTIONS = "predictions"
    ENERGY = "energy"
    CYCLES = "cycles"
    BUILDINGS = "buildings"
    APPLIANCES = "appliances"


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """What was: from `start_ns` up to `stop_ns`, which are on buckets of `resolution` where that counts.

    `building_ids`: one, or for `BUILDINGS` those that the caller may see, None being all. `resolution`: a value of
    `Resolution`. `appliance_ids`: which ones the caller may see and asks for, None being all; for `CYCLES` one.
    For `BUILDINGS`, `appliances_of` has for each of `building_ids` the appliances that count, None being all.
    `timezone`: of the days of `ENERGY`, a name of the IANA database. `known_tags`: of the documents the caller has.
    """

    what: History
    building_ids: tuple[str, ...] | None
    start_ns: int = 0
    stop_ns: int = 0
    resolution: str = "15m"
    appliance_ids: tuple[str, ...] | None = None
    appliances_of: tuple[tuple[str, ...] | None, ...] = ()
    timezone: str = "UTC"
    price_per_kwh: float | None = None
    known_tags: frozenset[str] = frozenset()
    deadline_s: float = math.inf


@dataclass(frozen=True, slots=True)
class HistoryAnswer:
    """A JSON document, gzipped, and its tag; `gzipped` is None when the caller has it.

    Compressed already here: a year of quarters is megabytes, more than one message between replicas should carry.
    """

    tag: str
    gzipped: bytes | None


@dataclass(frozen=True, slots=True)
class HistoryFailed:
    """The store could not be read; retryable."""

    detail: str
    retry_after_s: int


@dataclass(frozen=True, slots=True)
class MinutesQuery:
    """What a backfill of [start, stop) needs: the mains around it, and which of its minutes have a prediction.

    All times on whole minutes.
    """

    building_id: str
    appliance_id: str
    model_version: str
    attribution: Attribution
    start_ns: int
    stop_ns: int
    mains_start_ns: int
    mains_stop_ns: int


@dataclass(frozen=True, slots=True)
class RequestQuery:
    """What was stored for one request, of instants from `start_ns` up to `stop_ns`."""

    request_id: str
    start_ns: int
    stop_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class StoredMinutes:
    """Minutes by their start, int64: those with a mean of the mains, kW, float64; those with a prediction."""

    mains_ns: npt.NDArray[np.int64]
    mains_kw: npt.NDArray[np.float64]
    predicted_ns: npt.NDArray[np.int64]
