"""The running application as `nilm rollout` sees it: the coordinator's overview, the journal, Serve's deploy."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from deployments.history_contracts import HistoryFailed
from deployments.journal_contracts import JournalEntry
from deployments.rollout_contracts import RolloutOverview
from deployments.rollout_gate import ATTEMPT_KEY
from serve_app.cli.cluster_connection import NoAnswer, answer_of, joined
from serve_app.cli.rollout_file import DEPLOYMENT
from serve_app.cli.serve_api import ServeApi, ServeApiError
from serve_app.cli.train import fail

TOKEN_VARIABLE, TOKEN_PATH_VARIABLE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


@dataclass(frozen=True)
class RolloutCluster:
    """Connected. Methods end the command with one sentence when the cluster does not answer."""

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
        overview = self._ask("coordinator", "status")
        if overview is None:
            fail(f"the coordinator of application {self.application} does not answer")
        return cast(RolloutOverview, overview)

    def overview_if_there(self) -> RolloutOverview | None:
        """The same, or None: while one waits or watches, the coordinator may be restarting."""
        return cast(RolloutOverview | None, self._ask("coordinator", "status"))

    def journal(self, limit: int) -> list[JournalEntry]:
        """What happened, newest first."""
        entries = self._ask("history", "journal", limit)
        if entries is None or isinstance(entries, HistoryFailed):
            fail(f"the store cannot be read now: {entries.detail if entries else 'history does not answer'}")
        return list(entries)

    def deploy(self, document: Mapping[str, object]) -> None:
        """What `serve deploy` does with a checked configuration, except that one that failed before is tried again."""
        sent = copy.deepcopy(dict(document))
        applications: Any = sent["applications"]
        for application in applications:
            for deployment in application.get("deployments") or []:
                if deployment["name"] == DEPLOYMENT:
                    deployment["user_config"][ATTEMPT_KEY] = datetime.now(UTC).isoformat()
        # Where the service listens is decided at its start, and may be another port than the file's.
        sent.pop("http_options", None)
        try:
            self.api.deploy(sent)
        except ServeApiError as error:
            fail(str(error))

    def _ask(self, deployment: str, method: str, *arguments: object) -> Any:
        """None when it does not answer."""
        from ray import serve  # noqa: PLC0415 - it takes seconds to import
        from ray.serve.exceptions import RayServeException  # noqa: PLC0415

        try:
            return answer_of(getattr(serve.get_deployment_handle(deployment, self.application), method), *arguments)
        except (NoAnswer, RayServeException):
            return None


def _token() -> str:
    """The cluster's, where Ray itself looks for it; empty for a cluster without."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    path = Path(os.environ.get(TOKEN_PATH_VARIABLE) or Path.home() / ".ray" / "auth_token")
    if not token and (path.is_file() or TOKEN_PATH_VARIABLE in os.environ):
        try:
            token = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            fail(f"the cluster's token cannot be read from {path}")
    token = token.strip()
    if not re.fullmatch(r"[!-~]*", token):
        fail("the cluster's token holds characters that no token has")
    return token
