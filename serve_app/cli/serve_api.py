"""Serve's REST API on the dashboard of one cluster: deploy, ask for status, shut down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import httpx

APPLICATIONS_PATH = "/api/serve/applications/"
ANSWER_TIMEOUT_S = 10.0
DEPLOY_TIMEOUT_S = 120.0
"""The first deploy starts Serve's controller and proxy: 4 s on two busy cores."""
FAILED = "DEPLOY_FAILED"
RUNNING = "RUNNING"
REASON_CHARACTERS = 400


class ServeApiError(Exception):
    """The dashboard refused or could not do what was asked."""


@dataclass(frozen=True)
class DeploymentState:
    """One deployment as Serve reports it; `reason` is one line, empty when all is well."""

    name: str
    status: str
    reason: str


@dataclass(frozen=True)
class ApplicationState:
    """One application and its deployments."""

    name: str
    status: str
    reason: str
    deployments: tuple[DeploymentState, ...]

    @property
    def failure(self) -> str | None:
        """One sentence when it cannot become healthy without a change, else None."""
        if self.status != FAILED:
            return None
        for deployment in self.deployments:
            if deployment.status == FAILED:
                return f"deployment {deployment.name} cannot start: {deployment.reason}"
        return f"application {self.name} cannot start: {self.reason}"


class ServeApi:
    """Calls bound to one dashboard and its access token. Ignores proxy variables: the dashboard is local."""

    def __init__(self, dashboard_url: str, token: str, transport: httpx.BaseTransport | None = None) -> None:
        self._client = httpx.Client(
            base_url=dashboard_url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=ANSWER_TIMEOUT_S,
            trust_env=False,
            transport=transport,
        )

    def is_up(self) -> bool:
        """True once the dashboard answers; Serve itself need not run yet."""
        try:
            return self._client.get(APPLICATIONS_PATH).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def deploy(self, document: Mapping[str, object]) -> None:
        """Make the running applications those of the document. Returns before they are healthy."""
        try:
            reply = self._client.put(APPLICATIONS_PATH, json=document, timeout=DEPLOY_TIMEOUT_S)
        except TypeError as error:  # a date, for example, which YAML knows and JSON does not
            raise ServeApiError(f"the configuration holds a value that is not JSON: {error}") from error
        except httpx.TransportError as error:
            raise ServeApiError(f"Ray's dashboard stopped answering: {error}") from error
        if reply.is_error:
            raise ServeApiError(f"Serve refused the configuration: {one_line(reply.text)}")

    def applications(self) -> tuple[ApplicationState, ...] | None:
        """Every application, or None while the controller does not answer (it may be restarting)."""
        try:
            reply = self._client.get(APPLICATIONS_PATH)
        except httpx.TransportError:
            return None
        if reply.is_error:
            return None
        return tuple(_application(details) for details in reply.json()["applications"].values())

    def shutdown(self, timeout_s: float) -> bool:
        """Drain and stop every application. False when it was not done within `timeout_s`."""
        try:
            return self._client.delete(APPLICATIONS_PATH, timeout=timeout_s).is_success
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _application(details: Mapping[str, object]) -> ApplicationState:
    deployments = details.get("deployments")
    assert isinstance(deployments, dict)  # noqa: S101 - Serve's own response schema
    return ApplicationState(
        name=str(details["name"]),
        status=str(details["status"]),
        reason=one_line(str(details["message"])),
        deployments=tuple(
            DeploymentState(name=name, status=str(entry["status"]), reason=one_line(str(entry["message"])))
            for name, entry in deployments.items()
        ),
    )


def one_line(message: str) -> str:
    """What a person needs of Serve's message: the exception at the end of a traceback, or else the first line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if not lines:
        return ""
    # "A replica failed to start with exception. Error:" and then a traceback, whose last line says which.
    says_more_below = lines[0].endswith(":") or "Traceback (most recent call last)" in message
    return lines[-1 if says_more_below else 0][:REASON_CHARACTERS]
