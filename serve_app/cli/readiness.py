"""From a started Ray to a service that answers: deploy, watch every deployment, then ask the service itself.

Two endings are told apart. A deployment that cannot start ends the start (StartFailed). A service that runs but is
not ready, because a model version is refused or the store is away, stays: its other appliances serve, and a repaired
file, a `serve deploy` or the store's return makes it ready.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from serve_app.cli.preflight import ServeConfig
from serve_app.cli.progress import StartProgress
from serve_app.cli.rollout_file import DEPLOYMENT
from serve_app.cli.serve_api import RUNNING, ApplicationState, ServeApi

POLL_S = 0.3
HEALTHY = "HEALTHY"
REFUSED = " refused: "
"""How `/ready` says that a replica will not serve a version, which no waiting changes."""


class StartFailed(Exception):
    """The service cannot start; the message says why in one sentence."""


@dataclass(frozen=True)
class Start:
    """One start under way. `cluster_failure` says why Ray is gone, `give_up` is a `time.monotonic()` instant."""

    api: ServeApi
    config: ServeConfig
    progress: StartProgress
    cluster_failure: Callable[[], str | None]
    give_up: float

    def bring_up(self) -> tuple[str, ...]:
        """Wait until every deployment is healthy and the service is ready. Returns why it is not ready, if so."""
        self.progress.step("Ray", "starting")
        while not self.api.is_up():
            self._pause("Ray's dashboard does not answer")
        self.progress.step("Ray", "running", done=True)
        self.progress.step("Serve", "deploying")
        self.api.deploy(self.config.document)
        self.progress.step("Serve", "running", done=True)
        self._await_deployments()
        return self._await_ready()

    def _await_deployments(self) -> None:
        while True:
            applications = self.api.applications() or ()
            for application in applications:
                for deployment in application.deployments:
                    status = f"{deployment.status.lower()} {deployment.reason}"
                    self.progress.step(deployment.name, status, done=deployment.status == HEALTHY)
                if application.failure is not None and not _is_up_without_rollout(application):
                    raise StartFailed(f"The {application.failure}")
            if applications and all(a.status == RUNNING or _is_up_without_rollout(a) for a in applications):
                return
            waiting = [
                f"{d.name} is {d.status.lower()} {d.reason}".strip()
                for application in applications
                for d in application.deployments
                if d.status != HEALTHY
            ]
            self._pause("; ".join(waiting) or "Serve builds the application")

    def _await_ready(self) -> tuple[str, ...]:
        while reasons := not_ready(self.config.local_url):
            self.progress.step("GET /ready", "; ".join(reasons))
            refused = {reason.partition(":")[0] for reason in reasons if REFUSED in reason}
            if refused and refused >= set(self.config.appliances):
                raise StartFailed(f"No appliance can be served: {'; '.join(reasons)}")
            if len(refused) == len(reasons) or time.monotonic() > self.give_up:
                return reasons
            self._pause("; ".join(reasons), final=False)
        self.progress.step("GET /ready", "200", done=True)
        return ()

    def _pause(self, waiting_for: str, *, final: bool = True) -> None:
        if (failure := self.cluster_failure()) is not None:
            raise StartFailed(failure)
        if final and time.monotonic() > self.give_up:
            raise StartFailed(f"Gave up waiting: {waiting_for}.")
        time.sleep(POLL_S)


def _is_up_without_rollout(application: ApplicationState) -> bool:
    """Some plan was refused, which fails that deployment alone: other appliances serve, and `/ready` says which not."""
    others = [one for one in application.deployments if one.name != DEPLOYMENT]
    return bool(others) and all(one.status == HEALTHY for one in others) and application.failure is not None


def not_ready(url: str) -> tuple[str, ...]:
    """Why the service does not call itself ready; empty when it does. Production gives no reasons, only a status."""
    try:
        reply = httpx.get(f"{url}/ready", timeout=5.0, trust_env=False)
    except httpx.TransportError as error:
        return (f"no answer ({type(error).__name__})",)
    if reply.status_code == httpx.codes.OK:
        return ()
    try:
        reasons = reply.json()["reasons"]
    except (ValueError, KeyError, TypeError):
        reasons = None
    if isinstance(reasons, list) and reasons:
        return tuple(str(reason) for reason in reasons)
    return (f"{reply.status_code} {' '.join(reply.text.split())[:200]}".strip(),)
