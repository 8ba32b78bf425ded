"""Request and reply of the baselines that check them with pydantic."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from tests.bench.serving.baselines.model import MAX_MAINS_KW


class InferBody(BaseModel):
    """One mains window, kW, oldest sample first."""

    building_id: Annotated[str, Field(min_length=1, max_length=64)]
    appliance_id: str
    window: list[Annotated[float, Field(ge=0.0, le=MAX_MAINS_KW, allow_inf_nan=False)]]


class InferReply(BaseModel):
    """A prediction that is already durable."""

    predicted_kw: float
    confidence: float
    model_version: str
    persisted: bool
