"""The History deployment as an ingress sees it."""

from __future__ import annotations

from typing import Any

from deployments.history_contracts import HistoryAnswer, HistoryFailed, HistoryQuery
from serve_app.problems import Problem, Problems
from serve_app.store_client import call


class HistoryClient:
    """Asks what was."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def ask(self, query: HistoryQuery) -> HistoryAnswer:
        """The answer, by the query's deadline. Raises Problem; a store that is away is never an empty answer."""
        result: HistoryAnswer | HistoryFailed = await call(
            lambda: self._handle.ask.remote(query), query.deadline_s, Problems.STORE_UNREADABLE
        )
        if isinstance(result, HistoryFailed):
            detail = "What is stored cannot be read now."
            raise Problem(Problems.STORE_UNREADABLE, detail, retry_after_s=result.retry_after_s)
        return result
