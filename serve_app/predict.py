"""The use cases: one window for one appliance, one window for all. Validate, infer, persist, only then reply.

With an Idempotency-Key, whatever was asked before is answered as before: see `idempotency`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from deployments.contracts import Claim, Completion, Inference, PredictionPoint, RecordSet, WindowKw
from models.signal import W_PER_KW
from serve_app.access.grants import GrantCache, Grants
from serve_app.access.principal import Principal
from serve_app.catalogue import Catalogue
from serve_app.disaggregation import WindowPlan, plan_windows, reconcile
from serve_app.idempotency import Reply, keyed_request, run_once, store_reply
from serve_app.inference import ModelClient
from serve_app.instants import from_ns, to_ns
from serve_app.middleware import RequestContext
from serve_app.problems import FieldError, Problem, Problems
from serve_app.schemas import (
    AppliancePower,
    DisaggregateRequest,
    DisaggregateResponse,
    InferRequest,
    InferResponse,
)
from serve_app.store_client import StoreClient

MODELS_SHARE = 0.7
"""What the models of one `/disaggregate` get of the time left: one that hangs must leave time to store the others."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One run of a use case: for whom, under which claim, and the time of its window's last sample."""

    principal: Principal
    context: RequestContext
    claim: Claim | None
    window_end: datetime


@dataclass(frozen=True)
class Predictor:
    """Runs the use cases with the collaborators it was given."""

    appliances: Mapping[str, ModelClient]
    store: StoreClient
    catalogue: Catalogue
    grants: GrantCache

    async def infer(
        self, body: InferRequest, principal: Principal, context: RequestContext, key: str | None = None
    ) -> Reply:
        """One appliance, an `InferResponse`. Raises Problem; returns only when the prediction is durable."""
        grants = await self._building_grants(principal, body.building_id, context)
        model = self.appliances.get(body.appliance_id)
        if model is None:
            detail = f"Served are: {', '.join(self.appliances)}."
            raise Problem(Problems.UNKNOWN_APPLIANCE, detail, [FieldError("/appliance_id", "unknown appliance")])
        grants.check_appliance(body.building_id, body.appliance_id, "/appliance_id")

        async def run(call: _Call) -> Reply:
            return await self._infer(body, model, call)

        return await self._once(body, "/infer", principal, context, key, run)

    async def _infer(self, body: InferRequest, model: ModelClient, call: _Call) -> Reply:
        context = call.context
        window = np.asarray(body.window, dtype=np.float32)
        with context.timed("infer"):
            inference = await model.run_window(body.building_id, window, body.attribution, context.deadline_s)
        context.stages_ms["queue"] = inference.queue_ms
        context.labels["appliance"] = body.appliance_id
        context.labels["model_version"] = inference.model_version
        instant = _sample_time(call.window_end, len(window), inference.output_sample_index, inference.sample_period_s)
        predicted_kw = inference.predicted_w / W_PER_KW
        point = _point(body.building_id, body.appliance_id, inference, predicted_kw, instant, call)
        response = InferResponse(
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
        return await self._store((point,), response, call)

    async def disaggregate(
        self, body: DisaggregateRequest, principal: Principal, context: RequestContext, key: str | None = None
    ) -> Reply:
        """The building's appliances at one instant, reconciled with the mains, stored as one record set.

        A `DisaggregateResponse`. Raises Problem.
        """
        grants = await self._building_grants(principal, body.building_id, context)
        allowed = grants.appliances_of(body.building_id, self.catalogue.appliance_ids)
        if not allowed:
            raise Problem(Problems.FORBIDDEN_APPLIANCE, "No appliance of this building is served and yours to see.")

        async def run(call: _Call) -> Reply:
            return await self._disaggregate(body, allowed, call)

        return await self._once(body, "/disaggregate", principal, context, key, run)

    async def _disaggregate(self, body: DisaggregateRequest, allowed: Sequence[str], call: _Call) -> Reply:
        context = call.context
        window = np.asarray(body.window, dtype=np.float32)
        plan = plan_windows(self.catalogue.last_known(), body.attribution)
        if plan is None:
            raise Problem(Problems.MODEL_UNAVAILABLE, "No appliance model is ready.", retry_after_s=5)
        if len(window) != plan.input_window_size:
            detail = f"The window must hold exactly {plan.input_window_size} samples of {plan.sample_period_s:g} s."
            raise Problem(Problems.WINDOW_LENGTH, detail, [FieldError("/window", detail)])
        models_until_s = time.time() + context.remaining_s() * MODELS_SHARE
        with context.timed("infer"):
            answers = await self._fan_out(plan, allowed, body, window, models_until_s)
        if not answers:
            raise Problem(Problems.MODEL_UNAVAILABLE, "No appliance model answered.", retry_after_s=5)
        instant = _sample_time(call.window_end, len(window), plan.output_sample_index, plan.sample_period_s)
        aggregate_kw = float(window[plan.output_sample_index])
        shares = reconcile(aggregate_kw, {a: i.predicted_w / W_PER_KW for a, i in answers.items()})
        points = tuple(
            _point(body.building_id, appliance, answers[appliance], kw, instant, call)
            for appliance, kw in shares.appliances_kw.items()
        )
        response = DisaggregateResponse(
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
                    artifact_sha256=answers[appliance].artifact_sha256,
                )
                for appliance, kw in shares.appliances_kw.items()
            ],
            unavailable=[a for a in allowed if a not in answers],
        )
        return await self._store(points, response, call)

    async def _once(
        self,
        body: InferRequest | DisaggregateRequest,
        route: str,
        principal: Principal,
        context: RequestContext,
        key: str | None,
        run: Callable[[_Call], Awaitable[Reply]],
    ) -> Reply:
        received = body.window_end()
        names_no_instant = body.timestamp is None
        keyed = keyed_request(key, principal.user_id, route, body, received if names_no_instant else None, context)

        async def call(claim: Claim | None) -> Reply:
            # A second attempt under a key stands for the instant of the first.
            first_ns = None if claim is None else claim.received_ns
            window_end = received if first_ns is None else from_ns(first_ns)
            return await run(_Call(principal, context, claim, window_end))

        return await run_once(self.store, keyed, call)

    async def _building_grants(self, principal: Principal, building_id: str, context: RequestContext) -> Grants:
        with context.timed("auth"):
            grants = await self.grants.grants(principal, context.remaining_s())
        grants.check_building(building_id, "/building_id")
        return grants

    async def _fan_out(
        self,
        plan: WindowPlan,
        allowed: Sequence[str],
        body: DisaggregateRequest,
        window: WindowKw,
        deadline_s: float,
    ) -> dict[str, Inference]:
        names = [name for name in plan.slices if name in allowed]
        calls = [
            self.appliances[a].run_window(body.building_id, window[plan.slices[a]], body.attribution, deadline_s)
            for a in names
        ]
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

    async def _store(
        self,
        points: tuple[PredictionPoint, ...],
        response: InferResponse | DisaggregateResponse,
        call: _Call,
    ) -> Reply:
        """The reply, once what it acknowledges is durable."""
        reply = Reply(response.model_dump_json().encode())
        completion = None if call.claim is None else Completion(call.claim, reply.body)
        with call.context.timed("persist"):
            earlier = await store_reply(self.store, RecordSet(points, call.context.deadline_s, completion))
        return earlier or reply


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
    call: _Call,
) -> PredictionPoint:
    return PredictionPoint(
        building_id=building_id,
        appliance_id=appliance_id,
        model_version=inference.model_version,
        attribution=inference.attribution.value,
        time_ns=to_ns(instant),
        predicted_kw=predicted_kw,
        confidence=inference.on_probability,
        aggregate_kw=inference.aggregate_kw,
        request_id=call.context.request_id,
        user_id=call.principal.user_id,
        artifact_sha256=inference.artifact_sha256,
        latency_ms=(time.perf_counter() - call.context.started_s) * 1000,
    )
