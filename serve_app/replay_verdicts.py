"""What a replay shows of a request: is each stored prediction what its version says of the stored readings? Pure.

`/disaggregate` scales the predictions of one instant down to the mains when they claim more; `/infer` does not, and
the store does not tell which of them wrote a point. So both ways to come from a model's answer to a stored value are
tried, for all points of the request's instant together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from deployments.contracts import PredictionPoint
from deployments.replay import NotReplayed, Replayed
from models.loader import GOLDEN_TOLERANCE_PROBABILITY, GOLDEN_TOLERANCE_W
from models.signal import W_PER_KW
from serve_app.disaggregation import reconcile

TOLERANCE_KW = GOLDEN_TOLERANCE_W / W_PER_KW
TOLERANCE_CONFIDENCE = GOLDEN_TOLERANCE_PROBABILITY
"""What a version's golden outputs may differ by before it serves: another CPU sums in another order, nothing else."""


class Verdict(StrEnum):
    """Of one point."""

    AGREES = "agrees"
    SCALED = "agrees, scaled to the mains"
    OTHER_WINDOW = "another window"
    DIFFERS = "differs"
    NOT_REPLAYED = "not replayed"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A stored point beside what its version says now. `detail`: what to know of it, empty when there is nothing."""

    point: PredictionPoint
    again: Replayed | None
    expected_kw: float | None
    """What would be stored now: the version's answer, scaled where that explains the stored value."""
    verdict: Verdict
    detail: str = ""


def compare(replays: Sequence[tuple[PredictionPoint, Replayed | NotReplayed]]) -> list[Comparison]:
    """Of one request's points, in their order."""
    # One `/disaggregate` has one building, instant and attribution.
    instants: dict[tuple[str, int, str], dict[int, tuple[PredictionPoint, Replayed | NotReplayed]]] = {}
    for index, (point, again) in enumerate(replays):
        instants.setdefault((point.building_id, point.time_ns, point.attribution), {})[index] = (point, again)
    found = {index: one for group in instants.values() for index, one in _compare_instant(group).items()}
    return [found[index] for index in range(len(replays))]


def exit_code(comparisons: Sequence[Comparison]) -> int:
    """0: all agree. 1: something differs. 2: nothing is known to differ, and something could not be replayed."""
    verdicts = {comparison.verdict for comparison in comparisons}
    if verdicts & {Verdict.DIFFERS, Verdict.OTHER_WINDOW}:
        return 1
    return 2 if Verdict.NOT_REPLAYED in verdicts or not comparisons else 0


def _compare_instant(group: Mapping[int, tuple[PredictionPoint, Replayed | NotReplayed]]) -> dict[int, Comparison]:
    answers = {index: again for index, (_, again) in group.items() if isinstance(again, Replayed)}
    whole = len(answers) == len(group)
    scaled_kw: dict[int, float] = {}
    if whole:
        mains_kw = next(iter(answers.values())).aggregate_kw
        shares = reconcile(mains_kw, {str(index): again.predicted_kw for index, again in answers.items()})
        scaled_kw = {int(name): kw for name, kw in shares.appliances_kw.items()}
    stored_sum_kw = sum(point.predicted_kw for point, _ in group.values())
    comparisons: dict[int, Comparison] = {}
    for index, (point, again) in group.items():
        if isinstance(again, NotReplayed):
            comparisons[index] = Comparison(point, None, None, Verdict.NOT_REPLAYED, again.reason)
            continue
        of_all_the_mains = not whole and abs(stored_sum_kw - point.aggregate_kw) <= TOLERANCE_KW
        comparisons[index] = _compare_point(point, again, scaled_kw.get(index), of_all_the_mains=of_all_the_mains)
    return comparisons


def _compare_point(
    point: PredictionPoint, again: Replayed, scaled_kw: float | None, *, of_all_the_mains: bool
) -> Comparison:
    """`of_all_the_mains`: not all of its request was replayed, and what is stored of that adds up to the mains."""
    same_confidence = abs(point.confidence - again.confidence) <= TOLERANCE_CONFIDENCE
    if abs(point.aggregate_kw - again.aggregate_kw) > TOLERANCE_KW:
        detail = (
            f"its mains were {point.aggregate_kw:.4f} kW when it was made, and the stored readings say "
            f"{again.aggregate_kw:.4f} kW: the window that was sent was another one"
        )
        return Comparison(point, again, again.predicted_kw, Verdict.OTHER_WINDOW, detail)
    if same_confidence and abs(point.predicted_kw - again.predicted_kw) <= TOLERANCE_KW:
        return Comparison(point, again, again.predicted_kw, Verdict.AGREES)
    if same_confidence and scaled_kw is not None and abs(point.predicted_kw - scaled_kw) <= TOLERANCE_KW:
        detail = f"the version says {again.predicted_kw:.4f} kW, and all appliances together more than the mains"
        return Comparison(point, again, scaled_kw, Verdict.SCALED, detail)
    if same_confidence and of_all_the_mains and point.predicted_kw <= again.predicted_kw:
        detail = (
            f"the version says {again.predicted_kw:.4f} kW, and what is stored of the request adds up to the mains; by "
            "how much it was scaled down is not known, because not all of it could be replayed"
        )
        return Comparison(point, again, None, Verdict.SCALED, detail)
    detail = (
        "its mains are those of the stored readings at its instant; elsewhere in the window that was sent they were "
        "others, or the version was run otherwise"
    )
    return Comparison(point, again, again.predicted_kw, Verdict.DIFFERS, detail)
