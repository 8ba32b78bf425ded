"""Request and response types of the admin routes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SILENT = "Replicas that did not answer in time; ask again, their entries end by themselves within a minute"


class InvalidateRequest(BaseModel):
    """Whose grants to forget: exactly one of the two."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        json_schema_extra={"oneOf": [{"required": ["user_id"]}, {"required": ["all"]}]},
    )

    user_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    all: Literal[True] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> InvalidateRequest:
        if (self.user_id is None) == (self.all is None):
            raise ValueError('give either "user_id" or "all": true')
        return self


class ReplicaRemoved(BaseModel):
    """What one ingress replica forgot."""

    replica: str
    removed: int


class InvalidateResponse(BaseModel):
    """What was done, by replica."""

    removed: int
    replicas: list[ReplicaRemoved]
    silent_replicas: list[str] = Field(description=SILENT)


class ReplicaCache(BaseModel):
    """Figures of one replica's grants cache since it started."""

    replica: str
    entries: int
    hits: int
    misses: int
    fetches: int
    failures: int
    invalidated: int
    evictions: int


class CacheStatsResponse(BaseModel):
    """Figures by replica."""

    replicas: list[ReplicaCache]
    silent_replicas: list[str] = Field(description=SILENT)


class ReplicaModels(BaseModel):
    """What one replica of an appliance serves, by role, after it has read the registry again."""

    appliance_id: str
    replica: str
    node: str
    versions: dict[str, str]
    artifact_sha256: dict[str, str]
    registry_sha256: str = Field(description="Equal on two replicas that read the same registry")
    settled: bool = Field(description="It serves what was decided, and nothing is under way")
    refused: str | None = Field(description="What it was to load last and could not")


class IngressModels(BaseModel):
    """What one ingress replica knows of the registry."""

    replica: str
    registry_sha256: str | None
    error: str | None = Field(description="Why it could not read it; then it knows what it knew before")


class ReloadResponse(BaseModel):
    """Every replica."""

    replicas: list[ReplicaModels]
    ingresses: list[IngressModels]
    silent_replicas: list[str] = Field(description="Ingress replicas that did not answer in time; ask again")
