"""From a model's answer to what is stored and replied: units, the instant it stands for, intervals."""

from __future__ import annotations

import math
import time
from datetime import datetime, timedelta

from deployments.contracts import Inference, PredictionPoint
from models.signal import W_PER_KW
from serve_app.calls import Call
from serve_app.instants import to_ns
from serve_app.schemas import InferResponse, WindowRequest


def infer_response(inference: Inference, instant: datetime, request_id: str) -> InferResponse:
    """What is answered once the prediction is stored."""
    predicted_kw = inference.predicted_w / W_PER_KW
    return InferResponse(
        predicted_kw=predicted_kw,
        confidence=inference.on_probability,
        interval_kw=interval_kw(inference, predicted_kw),
        attribution=inference.attribution,
        model_version=inference.model_version,
        request_id=request_id,
        persisted=True,
        predicted_for=instant,
        output_sample_index=inference.output_sample_index,
        sample_period_s=inference.sample_period_s,
        model_id=inference.model_id,
        artifact_sha256=inference.artifact_sha256,
    )


def prediction_point(
    body: WindowRequest, appliance_id: str, inference: Inference, predicted_kw: float, instant: datetime, call: Call
) -> PredictionPoint:
    """What is stored. `predicted_kw` may be less than the model said: see `disaggregation.reconcile`."""
    return PredictionPoint(
        building_id=body.building_id,
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


def sample_time(body: WindowRequest, received: datetime, index: int, sample_period_s: float) -> datetime:
    """The instant of one sample of the body's window."""
    return body.window_end(received) - timedelta(seconds=(len(body.window) - 1 - index) * sample_period_s)


def interval_kw(
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
