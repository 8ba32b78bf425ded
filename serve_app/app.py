"""Composition root: `build(args)` turns the `args` of serve_config.yaml into the Serve application. Read this first.

client -> Ingress -> one ApplianceModel deployment per appliance, named by it
                  -> Persistence (writes), History (reads)
                  -> Coordinator (afterwards: quotas; operators' questions to every ingress)
Coordinator -> Persistence, History (the journal of rollouts)
rollout (its user_config) -> Coordinator <- every ApplianceModel replica, which asks what to serve
Every deployment's limits stand in serve_config.yaml; here is only who talks to whom.
"""

# No `from __future__ import annotations` here: Serve reads the builder's annotation at run time to make AppArgs.
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application, Deployment

from deployments.appliance import ApplianceModel
from deployments.coordinator import Coordinator
from deployments.history import HistoryReplica
from deployments.persistence import Persistence
from deployments.rollout_gate import RolloutGate
from serve_app.ingress import Ingress
from serve_app.settings import load_settings

ApplianceName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
RESERVED_NAMES = frozenset({"ingress", "persistence", "history", "coordinator", "rollout"})


class AppArgs(BaseModel):
    """`args` of the application in serve_config.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    appliances: list[ApplianceName] = Field(min_length=1, description="One deployment each, named by it")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")


def build(args: AppArgs) -> Application:
    """The Serve application. Raises SettingsError when the environment is unusable, ValueError on bad args."""
    names = args.appliances
    if len(set(names)) != len(names):
        raise ValueError("args.appliances names an appliance twice")
    if RESERVED_NAMES & set(names):
        raise ValueError(f"args.appliances may not use {', '.join(sorted(RESERVED_NAMES))}")
    settings = load_settings()
    persistence = Persistence.options(name="persistence").bind(settings.store_config())
    history_deployment: Deployment = serve.deployment(name="history")(HistoryReplica)
    history = history_deployment.bind(settings.store_config())
    coordinator_deployment: Deployment = serve.deployment(name="coordinator")(Coordinator)
    coordinator = coordinator_deployment.bind(settings.requests_per_minute, tuple(names), persistence, history)
    model: Deployment = serve.deployment()(ApplianceModel)
    appliances = {name: model.options(name=name).bind(name, coordinator, device=args.device) for name in names}
    gate: Deployment = serve.deployment(name="rollout")(RolloutGate)
    ingress: Deployment = serve.deployment(name="ingress")(Ingress)
    application: Application = ingress.bind(
        appliances,
        persistence,
        history,
        coordinator,
        gate.bind(coordinator, tuple(names)),
    )
    return application
