"""The running application as `nilm rollout` sees it: the coordinator's overview, the journal, Serve's deploy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from deployments.history_contracts import HistoryFailed
from deployments.journal_contracts import JournalEntry
from deployments.rollout_contracts import RolloutOverview
from deployments.rollout_gate import ATTEMPT_KEY
from serve_app.cli.cluster_connection import ANSWER_S, joined
from serve_app.cli.rollout_file import DEPLOYMENT
from serve_app.cli.serve_api import ServeApi, ServeApiError
from serve_app.cli.train import fail

TOKEN_VARIABLE, TOKEN_PATH_VARIABLE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


@dataclass(frozen=True)
class RolloutCluster:
    """Connected. Every method ends the command with one sentence when the cluster does not answer."""

    application: str
    api: ServeApi

    @classmethod
    @contextmanager
    def connect(cls, address: str, application: str) -> Iterator[RolloutCluster]:
        """Joins the cluster at `address` for the time of the block."""
        with joined(address) as dashboard_url:
            api = ServeApi(dashboard_url, _token())
            try:
                yield cls(application, api)
            finally:
                api.close()

    def overview(self) -> RolloutOverview:
        """What every appliance serves."""
        overview: RolloutOverview = self._ask("coordinator", "status")
        return overview

    def journal(self, limit: int) -> list[JournalEntry]:
        """What happened, newest first."""
        entries = self._ask("history", "journal", limit)
        if isinstance(entries, HistoryFailed):
            fail(f"the store cannot be read now: {entries.detail}")
        return list(entries)

    def deploy(self, config: Path) -> None:
        """What `serve deploy` does, except that one that failed before is tried again."""
        document = yaml.safe_load(config.read_text(encoding="utf-8"))
        for application in document["applications"]:
            for deployment in application.get("deployments", []):
                if deployment["name"] == DEPLOYMENT:
                    deployment["user_config"][ATTEMPT_KEY] = datetime.now(UTC).isoformat()
        # Where the service listens is decided at its start, and may be another port than the file's.
        document.pop("http_options", None)
        try:
            self.api.deploy(document)
        except ServeApiError as error:
            fail(str(error))

    def _ask(self, deployment: str, method: str, *arguments: object) -> Any:
        from ray import serve  # noqa: PLC0415 - it takes seconds to import
        from ray.exceptions import RayError  # noqa: PLC0415
        from ray.serve.exceptions import RayServeException  # noqa: PLC0415

        try:
            handle = serve.get_deployment_handle(deployment, self.application)
            return getattr(handle, method).remote(*arguments).result(timeout_s=ANSWER_S)
        except (TimeoutError, RayError, RayServeException) as error:
            fail(f"{deployment} of application {self.application} does not answer ({type(error).__name__})")


def _token() -> str:
    """The cluster's, as Ray itself finds it."""
    path = os.environ.get(TOKEN_PATH_VARIABLE)
    if path:
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except OSError as error:
            fail(f"{TOKEN_PATH_VARIABLE}: {error.strerror}")
    return os.environ.get(TOKEN_VARIABLE, "")
