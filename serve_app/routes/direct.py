"""Routes on the way of every prediction, called without FastAPI's resolution of their dependencies.

FastAPI resolves a tree of dependencies for each request, plain functions among them in a thread: a third of a
millisecond here. These routes always have the same three; FastAPI still knows them, for the OpenAPI document.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from serve_app.access.scopes import Requires
from serve_app.services import context_from, services_of

PARAMETERS = ["request", "principal", "services", "context"]


class DirectRoute(APIRoute):
    """Of an endpoint `(request, principal, services, context)` that declares `Requires` and gives a Response."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Raises ValueError when the endpoint has another form, so that nothing it declares can be passed over."""
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = self.endpoint
        scopes = [one.call for one in self.dependant.dependencies if isinstance(one.call, Requires)]
        if list(inspect.signature(endpoint).parameters) != PARAMETERS or len(scopes) != 1:
            raise ValueError(f"{self.path} is no direct route")
        requires = scopes[0]

        async def handle(request: Request) -> Response:
            principal = await requires(request, None)
            return await endpoint(request, principal, services_of(request), context_from(request))

        return handle
