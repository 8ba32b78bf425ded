"""The use case of many windows in one request: each is answered or refused by itself, all answers are one commit."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

import numpy as np

from deployments.contracts import Inference, InferenceRequest, PredictionPoint
from models.signal import W_PER_KW
from serve_app.access.grants import Grants
from serve_app.access.principal import Principal
from serve_app.bodies import MAX_REPORTED_ERRORS
from serve_app.calls import Call, answer_once, store_predictions
from serve_app.idempotency import Reply
from serve_app.middleware import RequestContext
from serve_app.predict import Predictor
from serve_app.predictions import infer_response, prediction_point, sample_time
from serve_app.problems import FieldError, Problem, Problems
from serve_app.schemas import (
    BatchResult,
    InferBatchRequest,
    InferBatchResponse,
    InferRequest,
    ItemProblem,
)

Outcome = Inference | Problem


async def infer_batch(
    predictor: Predictor,
    body: InferBatchRequest,
    principal: Principal,
    context: RequestContext,
    key: str | None = None,
) -> Reply:
    """An `InferBatchResponse`. Raises Problem, also when not one window was answered."""
    with context.timed("auth"):
        grants = await predictor.grants.grants(principal, context.remaining_s())

    async def run(call: Call) -> Reply:
        with context.timed("infer"):
            outcomes = await _run(predictor, body.items, grants, call)
        return await _store(predictor, body.items, outcomes, call)

    return await answer_once(predictor.store, body, "/infer/batch", principal, context, key, run)


async def _run(predictor: Predictor, items: Sequence[InferRequest], grants: Grants, call: Call) -> list[Outcome]:
    """What became of each item, in their order."""
    outcomes: dict[int, Outcome] = {}
    runnable: defaultdict[str, list[int]] = defaultdict(list)
    stands_for: dict[tuple[object, ...], int] = {}
    for n, item in enumerate(items):
        try:
            grants.check_building(item.building_id, "/building_id")
            predictor.model(item.appliance_id)
            grants.check_appliance(item.building_id, item.appliance_id, "/appliance_id")
            _check_alone(item, n, stands_for, call.received)
        except Problem as problem:
            outcomes[n] = problem
        else:
            runnable[item.appliance_id].append(n)

    async def run(appliance_id: str, indices: list[int]) -> None:
        requests = [
            InferenceRequest(
                items[n].building_id,
                np.asarray(items[n].window, dtype=np.float32),
                call.context.deadline_s,
                items[n].attribution,
                # One window stands for all: a trace with hundreds of the same spans shows nothing.
                call.context.trace_for_others if n == indices[0] else None,
            )
            for n in indices
        ]
        answers = await predictor.model(appliance_id).run_windows(requests)
        outcomes.update(zip(indices, answers, strict=True))

    await asyncio.gather(*(run(*one) for one in runnable.items()))
    return [outcomes[n] for n in range(len(items))]


def _check_alone(item: InferRequest, n: int, stands_for: dict[tuple[object, ...], int], received: datetime) -> None:
    """Of two items for the same instant the later would take the earlier one's place in the store."""
    instant = (item.building_id, item.appliance_id, item.attribution, item.window_end(received))
    earlier = stands_for.setdefault(instant, n)
    if earlier != n:
        detail = f"It is for the same building, appliance and time as item {earlier}."
        raise Problem(Problems.VALIDATION, detail, [FieldError("/timestamp", f"as that of item {earlier}")])


async def _store(predictor: Predictor, items: Sequence[InferRequest], outcomes: Sequence[Outcome], call: Call) -> Reply:
    results: list[BatchResult] = []
    points: list[PredictionPoint] = []
    for item, outcome in zip(items, outcomes, strict=True):
        if isinstance(outcome, Problem):
            results.append(_refused(outcome))
            continue
        instant = sample_time(item, call.received, outcome.output_sample_index, outcome.sample_period_s)
        points.append(prediction_point(item, item.appliance_id, outcome, outcome.predicted_w / W_PER_KW, instant, call))
        prediction = infer_response(outcome, instant, call.context.request_id)
        results.append(BatchResult(status=200, prediction=prediction))
    call.context.labels["answered"] = str(len(points))
    if not points:
        raise _none_answered([outcome for outcome in outcomes if isinstance(outcome, Problem)])
    response = InferBatchResponse(
        request_id=call.context.request_id,
        persisted=True,
        answered=len(points),
        refused=len(items) - len(points),
        results=results,
    )
    return await store_predictions(predictor.store, tuple(points), response, call)


def _refused(problem: Problem) -> BatchResult:
    kind = problem.kind.value
    return BatchResult(
        status=kind.status,
        problem=ItemProblem(
            code=kind.code,
            title=kind.title,
            detail=problem.detail,
            retryable=kind.retryable,
            errors=[{"pointer": error.pointer, "detail": error.detail} for error in problem.errors],
        ),
    )


def _none_answered(problems: Sequence[Problem]) -> Problem:
    """Of the first one's kind; of one that may pass by itself if there is any, as the call is then worth repeating."""
    told = next((one for one in problems if one.kind.value.retryable), problems[0])
    errors = [FieldError(f"/items/{n}", str(one)) for n, one in enumerate(problems[:MAX_REPORTED_ERRORS])]
    detail = f"None of {len(problems)} windows was answered. {told.detail}"
    return Problem(told.kind, detail, errors, retry_after_s=told.retry_after_s)
