"""Handles of deployments without Ray, and answers that come now or later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Method:
    """`method.remote(...)` of a handle."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def remote(self, *arguments: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(self._function(*arguments))


async def outcome_of(answer: T | asyncio.Future[T]) -> T:
    return await answer if isinstance(answer, asyncio.Future) else answer
