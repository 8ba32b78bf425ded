"""Energy by local day and cycles, against numbers worked out by hand."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from deployments.analytics.cycles import cycle_rows
from deployments.analytics.dense import Dense, version_order
from deployments.analytics.energy import energy_rows, local_days, span_of
from deployments.analytics.spans import DAY_NS, HOUR_NS, MINUTE_NS, Resolution, Span
from models.appliances import appliance

LONDON = ZoneInfo("Europe/London")


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


def dense(kw: list[float] | np.ndarray, minutes: int = 15) -> Dense:
    values = np.array(kw, dtype=np.float64)
    return Dense(values, np.where(np.isnan(values), 0, minutes).astype(np.int64), np.zeros(len(values)))


@pytest.mark.parametrize(
    ("start", "stop", "dates", "hours"),
    [
        ("2026-01-31T00:00", "2026-01-31T00:01", ["2026-01-31"], [24]),
        ("2026-01-31T23:59", "2026-02-01T00:01", ["2026-01-31", "2026-02-01"], [24, 24]),
        ("2026-03-28T12:00", "2026-03-29T12:00", ["2026-03-28", "2026-03-29"], [24, 23]),
        ("2026-10-24T23:30", "2026-10-25T12:00", ["2026-10-25"], [25]),
    ],
)
def test_local_days_are_as_long_as_clocks_make_them(start: str, stop: str, dates: list[str], hours: list[int]) -> None:
    days = local_days(ns(start), ns(stop), LONDON)
    assert [day.date for day in days] == dates
    assert [(day.stop_ns - day.start_ns) / HOUR_NS for day in days] == hours


def test_every_quarter_of_a_year_is_in_one_day() -> None:
    for zone in ("UTC", "Europe/London", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns"):
        days = local_days(ns("2026-01-01T00:00"), ns("2026-12-31T00:00"), ZoneInfo(zone))
        assert all(one.stop_ns == following.start_ns for one, following in itertools.pairwise(days))
        assert all(day.start_ns % (15 * MINUTE_NS) == 0 for day in days)


def test_a_skipped_date_is_no_day_and_an_ambiguous_midnight_begins_the_first_time() -> None:
    apia = local_days(ns("2011-12-29T00:00"), ns("2011-12-31T12:00"), ZoneInfo("Pacific/Apia"))
    assert "2011-12-30" not in [day.date for day in apia]
    assert all(day.stop_ns > day.start_ns for day in apia)
    azores = local_days(ns("2025-10-26T01:30"), ns("2025-10-26T02:00"), ZoneInfo("Atlantic/Azores"))
    assert [(day.date, (day.stop_ns - day.start_ns) / HOUR_NS) for day in azores] == [("2025-10-26", 25)]


def test_an_appliance_predicted_now_and_then_takes_only_what_was_predicted() -> None:
    days = local_days(ns("2026-01-31T00:00"), ns("2026-01-31T01:00"), ZoneInfo("UTC"))
    mains, kettle = np.full(96, np.nan), np.full(96, np.nan)
    mains[0], kettle[0] = 0.4, 3.0
    [row] = energy_rows(days, span_of(days), dense(mains), {"kettle": dense(kettle, minutes=1)}, None)
    assert row["mains"]["energy_kwh"] == 0.1
    assert row["appliances"]["kettle"]["energy_kwh"] == 0.05
    assert row["unattributed"]["energy_kwh"] == 0.05


def test_energy_of_a_day_by_hand() -> None:
    days = local_days(ns("2026-01-31T00:00"), ns("2026-01-31T01:00"), ZoneInfo("UTC"))
    span = span_of(days)
    assert span.buckets == 96
    mains = np.full(96, 0.1)
    mains[40:44] = 2.1  # an hour of 2 kW more
    kettle = np.zeros(96)
    kettle[40:42] = 2.0  # half of it
    [row] = energy_rows(days, span, dense(mains), {"kettle": dense(kettle)}, 0.30)
    assert row["mains"] == {"energy_kwh": 4.4, "cost": 1.32, "coverage": 1.0}
    assert row["appliances"] == {"kettle": {"energy_kwh": 1.0, "cost": 0.3, "coverage": 1.0}}
    assert row["unattributed"] == {"energy_kwh": 3.4, "cost": 1.02}
    assert row["always_on"] == {"power_kw": 0.1, "energy_kwh": 2.4, "cost": 0.72}
    assert (row["date"], row["start"], row["end"]) == ("2026-01-31", "2026-01-31T00:00:00Z", "2026-02-01T00:00:00Z")


def test_what_was_not_measured_is_null_and_never_zero() -> None:
    days = local_days(ns("2026-01-30T00:00"), ns("2026-01-31T01:00"), ZoneInfo("UTC"))
    mains = np.full(192, np.nan)
    mains[96:108] = 1.0  # three hours of the second day
    kettle = np.full(192, np.nan)
    kettle[100:104] = 0.5
    first, second = energy_rows(days, span_of(days), dense(mains), {"kettle": dense(kettle)}, None)
    assert first["mains"] == {"energy_kwh": None, "cost": None, "coverage": 0.0}
    assert first["unattributed"] == {"energy_kwh": None, "cost": None}
    assert first["always_on"] == {"power_kw": None, "energy_kwh": None, "cost": None}
    assert first["appliances"]["kettle"] == {"energy_kwh": None, "cost": None, "coverage": 0.0}
    assert second["mains"] == {"energy_kwh": 3.0, "cost": None, "coverage": 0.125}
    assert second["appliances"]["kettle"] == {"energy_kwh": 0.5, "cost": None, "coverage": 0.0417}
    assert second["unattributed"]["energy_kwh"] == 2.5


def test_appliances_that_claim_more_than_the_mains_leave_nothing_and_no_debt() -> None:
    days = local_days(ns("2026-01-31T00:00"), ns("2026-01-31T01:00"), ZoneInfo("UTC"))
    mains, kettle = np.full(96, np.nan), np.full(96, np.nan)
    mains[:2], kettle[:2] = 1.0, [3.0, 0.0]
    [row] = energy_rows(days, span_of(days), dense(mains), {"kettle": dense(kettle)}, None)
    assert row["unattributed"]["energy_kwh"] == 0.25


def minutes(*kw: float) -> tuple[Span, Dense]:
    span = Span(ns("2026-01-31T00:00"), ns("2026-01-31T00:00") + len(kw) * MINUTE_NS, MINUTE_NS)
    return span, dense(list(kw), minutes=1)


def test_a_kettle_that_boils_twice() -> None:
    span, power = minutes(0, 0, 2.5, 2.7, 0, 0, 2.4, 0, 0)
    rows = cycle_rows(span, power, appliance("kettle"))
    assert rows == [
        {
            "start": "2026-01-31T00:02:00Z",
            "end": "2026-01-31T00:04:00Z",
            "duration_s": 120,
            "energy_kwh": round(5.2 / 60, 6),
            "peak_kw": 2.7,
            "provisional": False,
        },
        {
            "start": "2026-01-31T00:06:00Z",
            "end": "2026-01-31T00:07:00Z",
            "duration_s": 60,
            "energy_kwh": 0.04,
            "peak_kw": 2.4,
            "provisional": False,
        },
    ]


def test_a_programme_with_a_pause_is_one_cycle_and_a_flicker_is_none() -> None:
    wash = [0.0] * 5 + [2.0] * 20 + [0.0] * 25 + [0.5] * 20 + [0.0] * 40 + [0.5] * 3 + [0.0] * 60
    span, power = minutes(*wash)
    [row] = cycle_rows(span, power, appliance("dishwasher"))
    assert (row["start"], row["duration_s"]) == ("2026-01-31T00:05:00Z", 65 * 60)
    assert row["energy_kwh"] == round(50 / 60, 6)
    assert not row["provisional"]


@pytest.mark.parametrize(("tail", "provisional"), [(0, True), (10, True), (30, True), (31, False), (40, False)])
def test_a_cycle_is_provisional_until_its_pause_is_too_long_to_be_one(tail: int, provisional: bool) -> None:
    span, power = minutes(*[0.0] * 5, *[2.0] * 40, *[0.0] * tail, *[np.nan] * 50)
    [row] = cycle_rows(span, power, appliance("dishwasher"))
    assert row["provisional"] is provisional


def test_nothing_known_is_no_cycle() -> None:
    span, power = minutes(*[np.nan] * 60)
    assert cycle_rows(span, power, appliance("kettle")) == []


def test_coarser_buckets_weigh_every_minute_the_same() -> None:
    one = Dense(np.array([1.0, 4.0, np.nan, np.nan]), np.array([15, 5, 0, 0]), np.array([0.2, 0.6, np.nan, np.nan]))
    two = one.coarser(2)
    assert two.kw[0] == pytest.approx((15 * 1 + 5 * 4) / 20)
    assert two.minutes.tolist() == [20, 0]
    assert two.confidence is not None
    assert two.confidence[0] == pytest.approx((15 * 0.2 + 5 * 0.6) / 20)
    assert np.isnan(two.kw[1])
    assert one.coarser(1) is one


def test_versions_sort_as_people_mean_them() -> None:
    ordered = ["nightly", "1.0.0-rc1", "1.0.0", "1.2.0", "1.9.0", "1.10.0-rc1", "1.10.0-rc2", "1.10.0", "2.0"]
    shuffled = np.random.default_rng(1).permutation(ordered).tolist()
    assert sorted(shuffled, key=version_order) == ordered


def test_spans_and_resolutions_fit_each_other() -> None:
    for resolution in Resolution:
        assert resolution.step_ns % resolution.read_step_ns == 0
        assert (
            40_000 < resolution.longest_ns / resolution.step_ns < 46_000
            or resolution is Resolution.QUARTER
            or (resolution is Resolution.DAY)
        )
        span = Span.covering(-1, DAY_NS + 1, resolution.step_ns)
        assert (span.start_ns, span.stop_ns) == (-resolution.step_ns, DAY_NS + resolution.step_ns)
        assert len(span.starts_ns()) == span.buckets
