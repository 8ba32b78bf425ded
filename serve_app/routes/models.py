"""`GET /models` and `GET /models/{model_id}`: what is registered, what serves, and why something does not."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from deployments.rollout_contracts import Directive, Role
from models.attribution import Attribution
from models.registry import RegistryEntry, TrainingSource
from serve_app.access.principal import Principal
from serve_app.access.scopes import Requires, Scope
from serve_app.catalogue import Catalogue
from serve_app.disaggregation import plan_windows
from serve_app.problems import Problem, Problems
from serve_app.schemas import (
    CanaryState,
    DisaggregateShape,
    ModelDetail,
    ModelsResponse,
    ModelSummary,
    ServingAppliance,
    problem_responses,
)
from serve_app.services import Services, services_of

PROBLEM_RESPONSES = problem_responses(401, 404, 429, 431, 503)
router = APIRouter(tags=["models"], responses=PROBLEM_RESPONSES)


@router.get("/models")
async def list_models(
    _: Annotated[Principal, Depends(Requires(Scope.USER))], services: Annotated[Services, Depends(services_of)]
) -> ModelsResponse:
    """Every registered version, serving ones first, and the window that `/disaggregate` takes."""
    catalogue = services.catalogue
    summaries = [ModelSummary(**_summary(entry, catalogue)) for entry in services.known_models.entries]
    return ModelsResponse(
        models=sorted(summaries, key=lambda m: (not m.serving, m.appliance_id, m.model_version)),
        appliances=[_serving(appliance_id, catalogue) for appliance_id in catalogue.appliance_ids],
        disaggregate=_shape(catalogue, Attribution.FINAL),
        disaggregate_provisional=_shape(catalogue, Attribution.PROVISIONAL),
    )


@router.get("/models/{model_id}")
async def get_model(
    model_id: str,
    _: Annotated[Principal, Depends(Requires(Scope.USER))],
    services: Annotated[Services, Depends(services_of)],
) -> list[ModelDetail]:
    """All versions of one model with their metrics and the homes they learnt from."""
    found = [entry for entry in services.known_models.entries if entry.model_id == model_id]
    if not found:
        raise Problem(Problems.UNKNOWN_MODEL, "No model of this id is registered.")
    return [
        ModelDetail(
            **_summary(entry, services.catalogue),
            artifact_sha256=entry.artifact_sha256,
            max_power_w=entry.max_power_w,
            on_threshold_w=entry.on_threshold_w,
            metrics=dict(entry.metrics),
            training_data=[_source(source) for source in entry.training_data],
        )
        for entry in found
    ]


def _shape(catalogue: Catalogue, attribution: Attribution) -> DisaggregateShape | None:
    plan = plan_windows(catalogue.last_known(), attribution)
    if plan is None:
        return None
    return DisaggregateShape(
        input_window_size=plan.input_window_size,
        sample_period_s=plan.sample_period_s,
        output_sample_index=plan.output_sample_index,
    )


def _summary(entry: RegistryEntry, catalogue: Catalogue) -> dict[str, Any]:
    status = catalogue.appliance(entry.appliance_id)
    return {
        "model_id": entry.model_id,
        "model_version": entry.model_version,
        "appliance_id": entry.appliance_id,
        "architecture": entry.architecture,
        "input_window_size": entry.input_window_size,
        "sample_period_s": entry.sample_period_s,
        "output_sample_index": entry.output_sample_index,
        "provisional_sample_index": entry.provisional_sample_index,
        "serving": status is not None and status.model_version == entry.model_version,
        "role": _role(entry, catalogue),
        "is_active": entry.is_active,
    }


def _role(entry: RegistryEntry, catalogue: Catalogue) -> Role | None:
    rollout = catalogue.rollout(entry.appliance_id)
    if rollout is None or rollout.active is None:
        return None
    roles = (role for role, version in rollout.active.versions.items() if version == entry.model_version)
    return next(roles, None)


def _serving(appliance_id: str, catalogue: Catalogue) -> ServingAppliance:
    status = catalogue.appliance(appliance_id)
    rollout = catalogue.rollout(appliance_id)
    active, preparing = (rollout.active, rollout.preparing) if rollout else (None, None)
    directive = preparing or active
    wanted = (rollout.refused_plan if rollout else None) or (directive.plan if directive else None)
    refused = rollout.refused if rollout else None
    return ServingAppliance(
        appliance_id=appliance_id,
        ready=status is not None and status.ready,
        wanted_version=wanted.stable if wanted else "",
        serving_version=status.model_version if status else None,
        canary=_canary(active) if active else None,
        shadow_version=active.plan.shadow.version if active and active.plan.shadow else None,
        preparing=list(preparing.plan.versions) if preparing else [],
        # Without its detail, which may name hosts and folders: operators have it in `nilm rollout status` and the log.
        refused=f"{refused.model_version}: {refused.reason}" if refused else None,
    )


def _canary(active: Directive) -> CanaryState | None:
    canary, demoted = active.plan.canary, active.demoted
    if canary is None:
        return None
    return CanaryState(
        model_version=canary.version, percent=canary.percent, demoted=demoted.reason if demoted else None
    )


def _source(source: TrainingSource) -> dict[str, object]:
    return {"home": source.home, "from": source.from_, "to": source.to, "attribution": source.attribution}
