"""Pure parts of `/disaggregate`: which samples each model sees, and how predictions meet the mains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deployments.contracts import ApplianceStatus
from models.attribution import Attribution


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """One window for all models, such that every output stands for the same instant.

    `slices[appliance]` selects that model's samples; `output_sample_index` is the common sample.
    """

    input_window_size: int
    output_sample_index: int
    sample_period_s: float
    slices: Mapping[str, slice]


def plan_windows(statuses: Iterable[ApplianceStatus], attribution: Attribution) -> WindowPlan | None:
    """The shortest window that gives every ready model's answer of that attribution; None when no model is ready.

    A model needs the samples before its output and the rest after it; the common window takes the
    largest of both. Models of another sample period than the majority cannot share a window and are left out.
    """
    shapes: dict[str, tuple[int, int, float]] = {}
    for status in statuses:
        size, indices, period_s = status.input_window_size, status.sample_indices, status.sample_period_s
        if size is not None and indices is not None and period_s is not None:
            index = indices[attribution]
            shapes[status.appliance_id] = (index, size - 1 - index, period_s)
    if not shapes:
        return None
    periods = [period_s for _, _, period_s in shapes.values()]
    common_period_s = max(sorted(set(periods)), key=periods.count)
    shapes = {a: shape for a, shape in shapes.items() if shape[2] == common_period_s}
    before = max(shape[0] for shape in shapes.values())
    after = max(shape[1] for shape in shapes.values())
    return WindowPlan(
        input_window_size=before + 1 + after,
        output_sample_index=before,
        sample_period_s=common_period_s,
        slices={a: slice(before - past, before + 1 + ahead) for a, (past, ahead, _) in shapes.items()},
    )


@dataclass(frozen=True, slots=True)
class Shares:
    """Power of one instant, kW: the appliances and the rest add up to the mains."""

    appliances_kw: dict[str, float]
    unattributed_kw: float


def reconcile(aggregate_kw: float, predicted_kw: Mapping[str, float]) -> Shares:
    """Make independent predictions agree with the mains: none negative, their sum at most `aggregate_kw`.

    When they claim more than there is, all are scaled by one factor, which keeps their proportions.
    """
    positive = {appliance: max(0.0, kw) for appliance, kw in predicted_kw.items()}
    claimed = sum(positive.values())
    if claimed > aggregate_kw:
        available_kw = max(0.0, aggregate_kw)
        scale = available_kw / claimed
        # A product may round up to a hair above the mains.
        positive = {appliance: min(kw * scale, available_kw) for appliance, kw in positive.items()}
    return Shares(positive, max(0.0, aggregate_kw - sum(positive.values())))
