"""Cutting windows: what is missing is skipped and counted, and nothing is guessed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from serve_app.demo.errors import SourceError
from serve_app.demo.recording import Recording, appliance_key, mask_missing, plan_windows

START = datetime(2026, 3, 1, 22, 0, tzinfo=UTC)


def _recording(aggregate_w: np.ndarray) -> Recording:
    return Recording("test", START, 60, np.asarray(aggregate_w, dtype=np.float64))


def _noisy(count: int) -> np.ndarray:
    return 100.0 + np.arange(count, dtype=np.float64) % 7


@pytest.mark.parametrize("name", ["WashingMachine", "washing_machine", "washing machine", "washing-machine"])
def test_one_key_for_every_spelling(name: str) -> None:
    assert appliance_key(name) == "washingmachine"


def test_the_data_sets_shower_is_the_models_electric_shower() -> None:
    assert appliance_key("Shower") == appliance_key("electric_shower")


def test_non_positive_mains_and_an_hour_without_change_are_missing() -> None:
    mains = _noisy(200)
    mains[5], mains[6] = 0.0, -3.0
    mains[100:160] = 250.0
    mains[170:229] = 251.0
    masked = mask_missing(mains, np.arange(200) * 60.0)
    missing = set(np.flatnonzero(np.isnan(masked)))
    assert missing == {5, 6, *range(100, 160)}


def test_a_flat_stretch_of_59_minutes_stays() -> None:
    mains = _noisy(200)
    mains[100:159] = 250.0
    assert not np.isnan(mask_missing(mains, np.arange(200) * 60.0)).any()


def test_a_window_ends_at_its_timestamp_and_is_about_its_output_sample() -> None:
    plan = plan_windows(_recording(_noisy(60)), 10, 7, START + timedelta(minutes=20), hours=0.1)
    first = plan.windows[0]
    assert (plan.first, plan.count, plan.skipped) == (20, 6, 0)
    assert first.target == 20
    assert first.last_sample_at == START + timedelta(minutes=22)
    np.testing.assert_allclose(first.window_kw, _noisy(60)[13:23] / 1000)


def test_windows_with_a_missing_sample_are_skipped_and_counted() -> None:
    mains = _noisy(60)
    mains[30] = np.nan
    plan = plan_windows(_recording(mains), 10, 7, START + timedelta(minutes=10), hours=0.5)
    assert plan.count == 30
    assert plan.skipped == 10
    assert all(np.isfinite(window.window_kw).all() for window in plan.windows)


def test_the_edges_of_a_recording_are_no_gap() -> None:
    plan = plan_windows(_recording(_noisy(60)), 10, 7, START, hours=0.5)
    assert (plan.first, plan.count, plan.skipped) == (7, 23, 0)
    plan = plan_windows(_recording(_noisy(60)), 10, 7, START + timedelta(minutes=50), hours=24)
    assert (plan.first, plan.count, plan.skipped) == (50, 8, 0)


def test_the_default_start_is_the_first_midnight_with_a_full_day() -> None:
    plan = plan_windows(_recording(_noisy(2 * 60 + 1440 + 5)), 10, 7, None, hours=24)
    assert plan.first == 120
    assert plan.skipped == 0


def test_without_such_a_midnight_it_is_the_first_window() -> None:
    assert plan_windows(_recording(_noisy(60)), 10, 7, None, hours=24).first == 7


@pytest.mark.parametrize(
    ("mains", "start", "sentence"),
    [
        (_noisy(9), None, "too short: it has 9 samples of 60 s and one window takes 10"),
        (_noisy(60), START + timedelta(days=1), "no full window in the stretch asked for"),
        (_noisy(60), START - timedelta(days=2), "no full window in the stretch asked for"),
        (np.full(60, np.nan), None, "no window of 10 samples without missing mains"),
    ],
)
def test_refusals_name_the_reason(mains: np.ndarray, start: datetime | None, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        plan_windows(_recording(mains), 10, 7, start, hours=1)
