"""Request and response types of the HTTP API. Units are in the field names; unknown fields are refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, PlainValidator, WithJsonSchema, field_validator

from deployments.rollout_contracts import Role
from models.attribution import Attribution
from serve_app.instants import parse_instant

MAX_WINDOW_SAMPLES = 20_000
"""Above any model's window; the exact length is checked by the model that runs it."""
MAX_BATCH_ITEMS = 256
MAX_MAINS_KW = 100.0
"""A three-phase domestic supply ends below 70 kW: a larger value is almost always watts sent as kW."""
IDENTIFIER_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
Identifier = Annotated[str, Field(pattern=IDENTIFIER_PATTERN, examples=["demo-home"])]
MainsKw = Annotated[float, Field(ge=0.0, le=MAX_MAINS_KW, allow_inf_nan=False)]
Window = Annotated[
    list[MainsKw],
    FailFast(),  # one fault is enough to mend a window; listing 20,000 would block the event loop for 80 ms
    Field(min_length=1, max_length=MAX_WINDOW_SAMPLES, description="Mains power in kW, oldest sample first"),
]


class WindowRequest(BaseModel):
    """One mains window of a building."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    building_id: Identifier
    window: Window
    attribution: Attribution = Field(
        default=Attribution.FINAL,
        description="`final`: the middle of the window, hours late; `provisional`: minutes before its end, less sure",
    )
    timestamp: str | None = Field(
        default=None,
        description="Time of the window's last sample, ISO 8601 with offset; the time of the request if left out",
        examples=["2026-01-31T18:00:00+01:00"],
    )

    @field_validator("timestamp")
    @classmethod
    def _valid_instant(cls, value: str | None) -> str | None:
        if value is not None:
            parse_instant(value)
        return value

    def window_end(self, received: datetime) -> datetime:
        """Time of the last sample, UTC; `received` where the body names none."""
        return received if self.timestamp is None else parse_instant(self.timestamp)

    def names_every_instant(self) -> bool:
        """Whether it stands for the same instant whenever it is sent."""
        return self.timestamp is not None


class InferRequest(WindowRequest):
    """One mains window for one appliance."""

    appliance_id: Annotated[Identifier, Field(examples=["kettle"])]


class InferBatchRequest(BaseModel):
    """Windows for any appliances of any buildings."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    items: list[InferRequest] = Field(min_length=1, max_length=MAX_BATCH_ITEMS)

    def names_every_instant(self) -> bool:
        """Whether all of them do."""
        return all(item.names_every_instant() for item in self.items)


class DisaggregateRequest(WindowRequest):
    """One mains window for every appliance at once."""


def _instant(value: object) -> datetime:
    if not isinstance(value, str):
        raise ValueError("must be a string")  # noqa: TRY004 - pydantic reports only this one
    return parse_instant(value)


class Reading(BaseModel):
    """Mains power of one building at one instant."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    building_id: Identifier
    ts: Annotated[
        datetime,
        PlainValidator(_instant),
        WithJsonSchema({"type": "string", "format": "date-time", "description": "ISO 8601 with offset"}),
        Field(examples=["2026-01-31T18:00:00+01:00"]),
    ]
    aggregate_kw: MainsKw


class ReadingsRequest(BaseModel):
    """Mains readings of any buildings, in any order."""

    readings: list[Reading] = Field(min_length=1, max_length=5000)


class ReadingFaultDocument(BaseModel):
    """Why one reading was not stored."""

    index: int = Field(description="Position in the call, from 0; in line protocol of the lines that are no comments")
    field: str = Field(description="The faulty field; empty for the whole reading")
    detail: str


class ReadingsResponse(BaseModel):
    """What is stored now, and what is not."""

    request_id: str
    persisted: bool = Field(description="Always true: a call of which nothing could be stored is an error")
    accepted: int
    refused: int
    errors: list[ReadingFaultDocument]


IntervalKw = Annotated[
    dict[str, tuple[float, float]],
    Field(
        description="Low and high bound of the power in kW, by the share of true powers (percent) they should hold",
        examples=[{"80": [2.6, 3.0], "90": [2.2, 3.1]}],
    ),
]


class InferResponse(BaseModel):
    """A prediction that is already durable."""

    predicted_kw: float
    confidence: float = Field(description="The model's calibrated probability that the appliance is on, 0 to 1")
    interval_kw: IntervalKw
    attribution: Attribution
    model_version: str
    request_id: str
    persisted: bool = Field(description="Always true: a reply that could not be stored is an error")
    predicted_for: datetime = Field(description="The instant the prediction stands for, UTC")
    output_sample_index: int = Field(description="Index in `window` of the sample the prediction stands for")
    sample_period_s: float
    model_id: str
    artifact_sha256: str


class ItemProblem(BaseModel):
    """Why one item was not answered; see `ProblemDocument`."""

    code: str
    title: str
    detail: str
    retryable: bool
    errors: list[dict[str, str]] = Field(description="Pointers into the item")


class BatchResult(BaseModel):
    """What became of one item: its prediction or its problem, never both."""

    status: int = Field(description="As of a request of its own: 200, or that of the problem")
    prediction: InferResponse | None = None
    problem: ItemProblem | None = None


class InferBatchResponse(BaseModel):
    """Results in the order of the items; the predictions among them are durable, all in one commit."""

    request_id: str
    persisted: bool = Field(description="Always true: a call of which nothing could be stored is an error")
    answered: int
    refused: int
    results: list[BatchResult]


class AppliancePower(BaseModel):
    """One appliance's share of the mains."""

    appliance_id: str
    predicted_kw: float
    confidence: float
    interval_kw: IntervalKw
    model_id: str
    model_version: str
    artifact_sha256: str


class DisaggregateResponse(BaseModel):
    """Mains split into appliances; `unattributed_kw` and the appliances add up to `aggregate_kw`."""

    request_id: str
    persisted: bool
    attribution: Attribution
    predicted_for: datetime
    aggregate_kw: float
    unattributed_kw: float
    appliances: list[AppliancePower]
    unavailable: list[str] = Field(description="Appliances whose model could not answer; their power is unknown")


class ModelSummary(BaseModel):
    """A registered model version and whether it serves now."""

    model_id: str
    model_version: str
    appliance_id: str
    architecture: str
    input_window_size: int
    sample_period_s: float
    output_sample_index: int
    provisional_sample_index: int
    serving: bool = Field(description="It is its appliance's stable version")
    role: Role | None = Field(description="What it does in the running rollout, if anything")
    is_active: bool


class ModelDetail(ModelSummary):
    """Everything the registry says of a model version."""

    artifact_sha256: str
    max_power_w: float | None
    on_threshold_w: float | None
    metrics: dict[str, object]
    training_data: list[dict[str, object]]


class CanaryState(BaseModel):
    """A version that answers for some buildings."""

    model_version: str
    percent: float = Field(description="Of the buildings, always the same ones")
    demoted: str | None = Field(description="Why it answers nobody any more, until the configuration changes")


class ServingAppliance(BaseModel):
    """What an appliance was asked to serve, and what it serves. Rollout fields are empty while it is not known."""

    appliance_id: str
    ready: bool
    wanted_version: str = Field(description="The stable version that the configuration names")
    serving_version: str | None = Field(description="The stable version that answers")
    canary: CanaryState | None
    shadow_version: str | None = Field(description="Runs beside it and answers nobody")
    preparing: list[str] = Field(description="Versions that are being loaded beside the serving ones")
    refused: str | None = Field(description="Why what was wanted is not served")


class DisaggregateShape(BaseModel):
    """The window `/disaggregate` takes, and the sample of it that the answer stands for."""

    input_window_size: int
    sample_period_s: float
    output_sample_index: int


class ModelsResponse(BaseModel):
    """Registered models, what serves, and the window that `/disaggregate` takes."""

    models: list[ModelSummary]
    appliances: list[ServingAppliance]
    disaggregate: DisaggregateShape | None = Field(description="For `final` answers")
    disaggregate_provisional: DisaggregateShape | None = Field(description="For `provisional` answers")


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route's OpenAPI description says of the statuses it refuses with."""
    return {status: {"model": ProblemDocument} for status in statuses}


class ProblemDocument(BaseModel):
    """RFC 9457 problem document; see `serve_app/problems.py` for the codes."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    retryable: bool
    errors: list[dict[str, str]]
