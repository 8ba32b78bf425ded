"""The use cases: one window for one appliance, one window for all. Validate, infer, persist, only then reply.

Persist-and-reply runs in a task of its own, in an empty context: Serve cancels a request's whole call tree when the
client hangs up, and a prediction that was on its way to the store must still arrive there whole.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from deployments.contracts import Inference, Persisted, PredictionPoint, RecordSet, WindowKw
from models.attribution import Attribution
from models.signal import W_PER_KW
from serve_app.access.grants import GrantCache, Grants
from serve_app.access.principal import Principal
from serve_app.catalogue import Catalogue
from serve_app.disaggregation import WindowPlan, plan_windows, reconcile
from serve_app.inference import persist, run_window
from serve_app.middleware import RequestContext
from serve_app.problems import FieldError, Problem, Problems
from serve_app.schemas import (
    AppliancePower,
    DisaggregateRequest,
    DisaggregateResponse,
    InferRequest,
    InferResponse,
)

MODELS_SHARE = 0.7
"""What the models of one `/disaggregate` get of the time left: one that hangs must leave time to store the others."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Predictor:
    """Runs the use cases with the collaborators it was given."""

    appliances: Mapping[str, Any]
    persistence: Any
    catalogue: Catalogue
    grants: GrantCache
    # The loop itself keeps tasks only weakly: one whose client hung up would have no other owner.
    writes: set[asyncio.Task[Persisted]] = field(default_factory=set)

    async def infer(self, body: InferRequest, principal: Principal, context: RequestContext) -> InferResponse:
        """One appliance. Raises Problem; returns only when the prediction is durable."""
        grants = await self._building_grants(principal, body.building_id, context)
        handle = self.appliances.get(body.appliance_id)
        if handle is None:
            detail = f"Served are: {', '.join(self.appliances)}."
            raise Problem(Problems.UNKNOWN_APPLIANCE, detail, [FieldError("/appliance_id", "unknown appliance")])
        if not grants.appliances_of(body.building_id, (body.appliance_id,)):
            detail = "This building has no such appliance, or it is not yours to see."
            raise Problem(Problems.FORBIDDEN_APPLIANCE, detail, [FieldError("/appliance_id", "not granted")])
        window = np.asarray(body.window, dtype=np.float32)
        window_end = body.window_end()
        with context.timed("infer"):
            inference = await run_window(handle, window, body.attribution, context.deadline_s)
        context.stages_ms["queue"] = inference.queue_ms
        context.labels["appliance"] = body.appliance_id
        context.labels["model_version"] = inference.model_version
        instant = _sample_time(window_end, len(window), inference.output_sample_index, inference.sample_period_s)
        predicted_kw = inference.predicted_w / W_PER_KW
        point = _point(body.building_id, body.appliance_id, inference, predicted_kw, instant, principal, context)
        await self._store((point,), context)
        return InferResponse(
            predicted_kw=predicted_kw,
            confidence=inference.on_probability,
            interval_kw=_interval_kw(inference, predicted_kw),
            attribution=inference.attribution,
            model_version=inference.model_version,
            request_id=context.request_id,
            persisted=True,
            predicted_for=instant,
            output_sample_index=inference.output_sample_index,
            sample_period_s=inference.sample_period_s,
            model_id=inference.model_id,
            artifact_sha256=inference.artifact_sha256,
        )

    async def disaggregate(
        self, body: DisaggregateRequest, principal: Principal, context: RequestContext
    ) -> DisaggregateResponse:
        """The building's appliances at one instant, reconciled with the mains, stored as one record set.

        Raises Problem.
        """
        grants = await self._building_grants(principal, body.building_id, context)
        allowed = grants.appliances_of(body.building_id, self.catalogue.appliance_ids)
        if not allowed:
            raise Problem(Problems.FORBIDDEN_APPLIANCE, "No appliance of this building is served and yours to see.")
        window = np.asarray(body.window, dtype=np.float32)
        window_end = body.window_end()
        plan = plan_windows(self.catalogue.last_known(), body.attribution)
        if plan is None:
            raise Problem(Problems.MODEL_UNAVAILABLE, "No appliance model is ready.", retry_after_s=5)
        if len(window) != plan.input_window_size:
            detail = f"The window must hold exactly {plan.input_window_size} samples of {plan.sample_period_s:g} s."
            raise Problem(Problems.WINDOW_LENGTH, detail, [FieldError("/window", detail)])
        models_until_s = time.time() + context.remaining_s() * MODELS_SHARE
        with context.timed("infer"):
            answers = await self._fan_out(plan, allowed, window, body.attribution, models_until_s)
        if not answers:
            raise Problem(Problems.MODEL_UNAVAILABLE, "No appliance model answered.", retry_after_s=5)
        instant = _sample_time(window_end, len(window), plan.output_sample_index, plan.sample_period_s)
        aggregate_kw = float(window[plan.output_sample_index])
        shares = reconcile(aggregate_kw, {a: i.predicted_w / W_PER_KW for a, i in answers.items()})
        points = tuple(
            _point(body.building_id, appliance, answers[appliance], kw, instant, principal, context)
            for appliance, kw in shares.appliances_kw.items()
        )
        await self._store(points, context)
        return DisaggregateResponse(
            request_id=context.request_id,
            persisted=True,
            attribution=body.attribution,
            predicted_for=instant,
            aggregate_kw=aggregate_kw,
            unattributed_kw=shares.unattributed_kw,
            appliances=[
                AppliancePower(
                    appliance_id=appliance,
                    predicted_kw=kw,
                    confidence=answers[appliance].on_probability,
                    interval_kw=_interval_kw(answers[appliance], kw, aggregate_kw),
                    model_id=answers[appliance].model_id,
                    model_version=answers[appliance].model_version,
                )
                for appliance, kw in shares.appliances_kw.items()
            ],
            unavailable=[a for a in allowed if a not in answers],
        )

    async def _building_grants(self, principal: Principal, building_id: str, context: RequestContext) -> Grants:
        with context.timed("auth"):
            grants = await self.grants.grants(principal, context.remaining_s())
        if not grants.may_use(building_id):
            detail = "Your account does not grant this building."
            raise Problem(Problems.FORBIDDEN_BUILDING, detail, [FieldError("/building_id", "not granted")])
        return grants

    async def _fan_out(
        self,
        plan: WindowPlan,
        allowed: Sequence[str],
        window: WindowKw,
        attribution: Attribution,
        deadline_s: float,
    ) -> dict[str, Inference]:
        names = [name for name in plan.slices if name in allowed]
        calls = [run_window(self.appliances[a], window[plan.slices[a]], attribution, deadline_s) for a in names]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        answers: dict[str, Inference] = {}
        for appliance, outcome in zip(names, outcomes, strict=True):
            if isinstance(outcome, Inference):
                # A version of another shape may have come in since the plan was made: its answer would stand for
                # another instant, and counts as none.
                if plan.slices[appliance].start + outcome.output_sample_index == plan.output_sample_index:
                    answers[appliance] = outcome
            elif not isinstance(outcome, Problem):
                raise outcome
        return answers

    async def _store(self, points: tuple[PredictionPoint, ...], context: RequestContext) -> None:
        record_set = RecordSet(points=points, deadline_s=context.deadline_s)
        write: Coroutine[Any, Any, Persisted] = persist(self.persistence, record_set)
        task = asyncio.create_task(write, context=contextvars.Context())
        self.writes.add(task)
        task.add_done_callback(self.writes.discard)
        with context.timed("persist"):
            await asyncio.shield(task)


def _interval_kw(
    inference: Inference, predicted_kw: float, aggregate_kw: float = math.inf
) -> dict[str, tuple[float, float]]:
    """By coverage in percent: the model's bounds, at most `aggregate_kw`, and always around `predicted_kw`.

    A prediction that was scaled down to the mains may lie below the low bound. The bound then comes down to it; it is
    not scaled as well: models that claim more than there is may be wrong about any of the claims, and an interval
    that only grows holds the true power at least as often as the one that was fitted.
    """
    return {
        f"{100 * interval.coverage:.0f}": (
            min(interval.low_w / W_PER_KW, predicted_kw),
            max(min(interval.high_w / W_PER_KW, aggregate_kw), predicted_kw),
        )
        for interval in inference.intervals
    }


def _sample_time(window_end: datetime, window_size: int, index: int, sample_period_s: float) -> datetime:
    """The instant of one sample of a window whose last sample is at `window_end`."""
    return window_end - timedelta(seconds=(window_size - 1 - index) * sample_period_s)


def _point(
    building_id: str,
    appliance_id: str,
    inference: Inference,
    predicted_kw: float,
    instant: datetime,
    principal: Principal,
    context: RequestContext,
) -> PredictionPoint:
    return PredictionPoint(
        building_id=building_id,
        appliance_id=appliance_id,
        model_version=inference.model_version,
        attribution=inference.attribution.value,
        # Integer arithmetic: a float of seconds has no room for nanoseconds, and identity must be exact.
        time_ns=(instant - _EPOCH) // timedelta(microseconds=1) * 1000,
        predicted_kw=predicted_kw,
        confidence=inference.on_probability,
        aggregate_kw=inference.aggregate_kw,
        request_id=context.request_id,
        user_id=principal.user_id,
        artifact_sha256=inference.artifact_sha256,
        latency_ms=(time.perf_counter() - context.started_s) * 1000,
    )
