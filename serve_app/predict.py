"""The use cases: one window for one appliance, one window for all. Validate, infer, persist, only then reply.

Many windows at once: see `batch`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deployments.contracts import Inference, WindowKw
from models.signal import W_PER_KW
from serve_app.access.grants import GrantCache, Grants
from serve_app.access.principal import Principal
from serve_app.calls import Call, answer_once, store_predictions
from serve_app.catalogue import Catalogue
from serve_app.disaggregation import WindowPlan, plan_windows, reconcile
from serve_app.idempotency import Reply
from serve_app.inference import ModelClient
from serve_app.middleware import RequestContext
from serve_app.predictions import infer_response, interval_kw, prediction_point, sample_time
from serve_app.problems import FieldError, Problem, Problems
from serve_app.schemas import (
    AppliancePower,
    DisaggregateRequest,
    DisaggregateResponse,
    InferRequest,
)
from serve_app.store_client import StoreClient

MODELS_SHARE = 0.7
"""What the models of one `/disaggregate` get of the time left: one that hangs must leave time to store the others."""


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
        model = self.model(body.appliance_id)
        grants.check_appliance(body.building_id, body.appliance_id, "/appliance_id")

        async def run(call: Call) -> Reply:
            return await self._infer(body, model, call)

        return await answer_once(self.store, body, "/infer", principal, context, key, run)

    def model(self, appliance_id: str) -> ModelClient:
        """That appliance's. Raises Problem."""
        model = self.appliances.get(appliance_id)
        if model is None:
            detail = f"Served are: {', '.join(self.appliances)}."
            raise Problem(Problems.UNKNOWN_APPLIANCE, detail, [FieldError("/appliance_id", "unknown appliance")])
        return model

    async def _infer(self, body: InferRequest, model: ModelClient, call: Call) -> Reply:
        context = call.context
        window = np.asarray(body.window, dtype=np.float32)
        with context.timed("infer"):
            inference = await model.run_window(
                body.building_id, window, body.attribution, context.deadline_s, context.trace_for_others
            )
        context.stages_ms["queue"] = inference.queue_ms
        context.labels["appliance"] = body.appliance_id
        context.labels["model_version"] = inference.model_version
        instant = sample_time(body, call.received, inference.output_sample_index, inference.sample_period_s)
        point = prediction_point(body, body.appliance_id, inference, inference.predicted_w / W_PER_KW, instant, call)
        response = infer_response(inference, instant, context.request_id)
        return await store_predictions(self.store, (point,), response, call)

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

        async def run(call: Call) -> Reply:
            return await self._disaggregate(body, allowed, call)

        return await answer_once(self.store, body, "/disaggregate", principal, context, key, run)

    async def _disaggregate(self, body: DisaggregateRequest, allowed: Sequence[str], call: Call) -> Reply:
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
            answers = await self._fan_out(plan, allowed, body, window, models_until_s, context.trace_for_others)
        if not answers:
            raise Problem(Problems.MODEL_UNAVAILABLE, "No appliance model answered.", retry_after_s=5)
        instant = sample_time(body, call.received, plan.output_sample_index, plan.sample_period_s)
        aggregate_kw = float(window[plan.output_sample_index])
        shares = reconcile(aggregate_kw, {a: i.predicted_w / W_PER_KW for a, i in answers.items()})
        points = tuple(
            prediction_point(body, appliance, answers[appliance], kw, instant, call)
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
                    interval_kw=interval_kw(answers[appliance], kw, aggregate_kw),
                    model_id=answers[appliance].model_id,
                    model_version=answers[appliance].model_version,
                    artifact_sha256=answers[appliance].artifact_sha256,
                )
                for appliance, kw in shares.appliances_kw.items()
            ],
            unavailable=[a for a in allowed if a not in answers],
        )
        return await store_predictions(self.store, points, response, call)

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
        trace: str | None,
    ) -> dict[str, Inference]:
        names = [name for name in plan.slices if name in allowed]
        calls = [
            self.appliances[a].run_window(body.building_id, window[plan.slices[a]], body.attribution, deadline_s, trace)
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
