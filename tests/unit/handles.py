"""Handles of deployments without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Method:
    """`method.remote(...)` of a handle."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def remote(self, *arguments: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(self._function(*arguments))
