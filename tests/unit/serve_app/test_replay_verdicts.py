"""Stored values beside replayed ones: what agrees, what was scaled to the mains, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deployments.contracts import PredictionPoint
from deployments.replay import NotReplayed, Replayed
from serve_app.disaggregation import reconcile
from serve_app.replay_verdicts import TOLERANCE_KW, Comparison, Verdict, compare, exit_code

MakePoint = Callable[..., PredictionPoint]
MAINS_KW = 2.0
GONE = NotReplayed("the file is gone")


@pytest.fixture
def stored(make_point: MakePoint) -> MakePoint:
    """Of one instant and request."""

    def point(kw: float, appliance: str = "kettle", **changes: object) -> PredictionPoint:
        values = {"time_ns": 7, "predicted_kw": kw, "confidence": 0.9, "aggregate_kw": MAINS_KW}
        return make_point(**{**values, "appliance_id": appliance, **changes})

    return point


def says(kw: float, confidence: float = 0.9, mains_kw: float = MAINS_KW) -> Replayed:
    return Replayed(kw, confidence, mains_kw)


def verdicts(comparisons: list[Comparison]) -> list[Verdict]:
    return [one.verdict for one in comparisons]


@pytest.mark.parametrize("off_kw", [0.0, 0.9 * TOLERANCE_KW, -0.9 * TOLERANCE_KW])
def test_another_cpu_may_differ_by_the_golden_tolerance(stored: MakePoint, off_kw: float) -> None:
    [one] = compare([(stored(1.0 + off_kw), says(1.0))])
    assert (one.verdict, one.expected_kw, one.detail) == (Verdict.AGREES, 1.0, "")
    assert exit_code([one]) == 0


@pytest.mark.parametrize(
    "again", [says(1.0 + 1.1 * TOLERANCE_KW), says(1.0 - 1.1 * TOLERANCE_KW), says(1.0, 0.902), says(1.0, 0.898)]
)
def test_more_than_that_differs(stored: MakePoint, again: Replayed) -> None:
    [one] = compare([(stored(1.0), again)])
    assert one.verdict is Verdict.DIFFERS
    assert "elsewhere in the window" in one.detail
    assert exit_code([one]) == 1


@pytest.mark.parametrize("again", [says(1.0, mains_kw=0.3), says(0.0, mains_kw=0.3)])
def test_other_mains_are_another_window_whatever_was_predicted(stored: MakePoint, again: Replayed) -> None:
    [one] = compare([(stored(1.0), again)])
    assert one.verdict is Verdict.OTHER_WINDOW
    assert "mains were 2.0000 kW" in one.detail
    assert "readings say 0.3000 kW" in one.detail
    assert exit_code([one]) == 1


CLAIMS = {"kettle": 2.5, "microwave": 1.2, "dishwasher": 0.0}


def test_what_was_scaled_to_the_mains_agrees(stored: MakePoint) -> None:
    shares = reconcile(MAINS_KW, CLAIMS).appliances_kw
    found = compare([(stored(shares[name], name), says(kw)) for name, kw in CLAIMS.items()])
    assert verdicts(found) == [Verdict.SCALED, Verdict.SCALED, Verdict.AGREES]
    assert [one.expected_kw for one in found] == pytest.approx(list(shares.values()))
    assert "says 2.5000 kW" in found[0].detail
    assert exit_code(found) == 0


def test_one_appliance_alone_may_be_scaled_too(stored: MakePoint) -> None:
    [one] = compare([(stored(MAINS_KW), says(2.5))])
    assert one.verdict is Verdict.SCALED


def test_what_was_not_scaled_agrees_as_it_is(stored: MakePoint) -> None:
    """Several `/infer` under one id."""
    assert verdicts(compare([(stored(kw, name), says(kw)) for name, kw in CLAIMS.items()])) == [Verdict.AGREES] * 3


def test_smaller_than_scaled_differs(stored: MakePoint) -> None:
    shares = reconcile(MAINS_KW, CLAIMS).appliances_kw | {"kettle": 0.5}
    found = compare([(stored(shares[name], name), says(kw)) for name, kw in CLAIMS.items()])
    assert verdicts(found) == [Verdict.DIFFERS, Verdict.SCALED, Verdict.AGREES]
    assert exit_code(found) == 1


def test_another_share_than_the_scaled_one_differs_though_the_sum_is_the_mains(stored: MakePoint) -> None:
    shares_kw = {"kettle": 0.9, "microwave": 1.1, "dishwasher": 0.0}
    found = compare([(stored(shares_kw[name], name), says(kw)) for name, kw in CLAIMS.items()])
    assert verdicts(found) == [Verdict.DIFFERS, Verdict.DIFFERS, Verdict.AGREES]


def test_points_of_another_instant_building_or_attribution_are_not_scaled_together(stored: MakePoint) -> None:
    others = ({"time_ns": 8}, {"building_id": "cabin"}, {"attribution": "provisional"})
    for change in others:
        pair = [(stored(1.5), says(1.5)), (stored(1.2, "microwave", **change), says(1.2))]
        assert verdicts(compare(pair)) == [Verdict.AGREES] * 2
        # Together they would claim 3 kW of the 2 kW there are; alone, the first has what it asks for.
        pair[0] = (stored(1.0), says(1.5))
        pair[1] = (stored(1.0, "microwave", **change), says(1.5))
        assert verdicts(compare(pair)) == [Verdict.DIFFERS] * 2


def test_a_part_of_what_was_scaled_is_explained_by_its_sum(stored: MakePoint) -> None:
    shares = reconcile(MAINS_KW, CLAIMS).appliances_kw
    answers = {"kettle": says(2.5), "microwave": GONE, "dishwasher": says(0.0)}
    found = compare([(stored(shares[name], name), answers[name]) for name in CLAIMS])
    assert verdicts(found) == [Verdict.SCALED, Verdict.NOT_REPLAYED, Verdict.AGREES]
    assert "adds up to the mains" in found[0].detail
    assert found[0].expected_kw is None
    assert found[1].detail == GONE.reason
    assert exit_code(found) == 2


@pytest.mark.parametrize(("kettle_kw", "microwave_kw"), [(1.0, 0.5), (2.6, -0.6), (2.0, 0.5)])
def test_a_part_whose_sum_is_not_the_mains_or_that_grew_differs(
    stored: MakePoint, kettle_kw: float, microwave_kw: float
) -> None:
    found = compare([(stored(kettle_kw), says(2.5)), (stored(microwave_kw, "microwave"), GONE)])
    assert verdicts(found) == [Verdict.DIFFERS, Verdict.NOT_REPLAYED]
    assert exit_code(found) == 1


def test_the_order_is_that_of_the_points(stored: MakePoint) -> None:
    points = [stored(1.0, time_ns=time_ns) for time_ns in (3, 1, 3, 2, 1)]
    assert [one.point for one in compare([(point, says(1.0)) for point in points])] == points


def test_nothing_replayed_is_no_success(stored: MakePoint) -> None:
    found = compare([(stored(1.0, name), GONE) for name in CLAIMS])
    assert verdicts(found) == [Verdict.NOT_REPLAYED] * 3
    assert exit_code(found) == 2
    assert exit_code([]) == 2
