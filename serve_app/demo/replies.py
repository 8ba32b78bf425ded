"""What the demo reads from the service's replies: only the fields it uses, so later versions may add others."""

from __future__ import annotations

from datetime import datetime
from typing import TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from serve_app.demo.errors import UnexpectedReply

Reply = TypeVar("Reply", bound=BaseModel)


class _Loose(BaseModel):
    """Takes what it knows from a reply and ignores what later versions add."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class ModelEntry(_Loose):
    """One registered model version in `GET /models`; only the serving ones answer."""

    appliance_id: str
    serving: bool = True
    input_window_size: int | None = None
    output_sample_index: int | None = None
    sample_period_s: int | None = None


class WindowEntry(_Loose):
    """The window that `/disaggregate` takes; without an index, a prediction is about its last sample."""

    input_window_size: int
    sample_period_s: int
    output_sample_index: int | None = None


class ModelsReply(_Loose):
    """The reply to `GET /models`."""

    models: list[ModelEntry]
    disaggregate: WindowEntry | None = None


class AppliancePower(_Loose):
    """One appliance's share of the mains in kW; `confidence` is the probability that it is on, 0 to 1."""

    appliance_id: str
    predicted_kw: float | None
    confidence: float | None = None
    model_version: str | None = None


class Disaggregation(_Loose):
    """The reply to `POST /disaggregate`: what the mains at `predicted_for` were made of, in kW."""

    persisted: bool
    appliances: list[AppliancePower]
    predicted_for: datetime | None = None
    unattributed_kw: float | None = None


def parse_reply(response: httpx.Response, model: type[Reply]) -> Reply:
    """The typed reply.

    Raises:
        UnexpectedReply: it lacks what this client needs; the message names the field.
    """
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise UnexpectedReply(
            f"The reply of {response.url.path} is not understood: {where}: {first['msg']}."
        ) from error
