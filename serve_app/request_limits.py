"""Pure ASGI middleware: bounds what a client may send, in bytes and in time, before anything looks at it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.middleware import RequestContext, context_of, problem_reply
from serve_app.problems import Problem, Problems

MAX_HEADERS_BYTES = 16 * 1024
"""Twice the largest token, and far under what the server in front buffers."""
_CLOSE = {"Connection": "close"}
"""The rest of the body is on its way; a kept connection would take it for the next request."""


class RequestLimitMiddleware:
    """Refuses headers over `MAX_HEADERS_BYTES`, bodies over `body_limit_bytes` and bodies that outlast the deadline.

    `larger`: the limits of paths that take more.
    Bytes are counted on the wire: a chunked body has no length to trust.
    """

    def __init__(self, app: ASGIApp, *, body_limit_bytes: int, larger: Mapping[str, int] | None = None) -> None:
        self._app = app
        self._body_limit_bytes = body_limit_bytes
        self._larger = dict(larger or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit_bytes = self._larger.get(scope["path"], self._body_limit_bytes)
        refusal = _refusal(scope, limit_bytes)
        if refusal is not None:
            await problem_reply(scope, refusal)(scope, receive, send)
            return
        body = _BoundedBody(receive, context_of(scope), limit_bytes)
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, body.receive, watched)
        except _Refused as refused:
            if started:
                raise
            await problem_reply(scope, refused.problem)(scope, receive, send)


class _BoundedBody:
    """Hands a body on and raises when it is too large or too slow."""

    def __init__(self, receive: Receive, context: RequestContext, limit_bytes: int) -> None:
        self._receive = receive
        self._context = context
        self._limit_bytes = limit_bytes
        self._received_bytes = 0
        self._complete = False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()  # waits for the client to hang up, as long as that takes
        try:
            async with asyncio.timeout(self._context.remaining_s()):
                message = await self._receive()
        except TimeoutError:
            detail = "The body was not complete within the time of a request."
            raise _Refused(Problem(Problems.BODY_TOO_SLOW, detail, headers=_CLOSE)) from None
        if message["type"] == "http.request":
            self._received_bytes += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._received_bytes > self._limit_bytes:
                raise _Refused(_too_large(self._limit_bytes))
        return message


def _refusal(scope: Scope, limit_bytes: int) -> Problem | None:
    """What the headers alone already show."""
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADERS_BYTES:
        detail = f"The headers are larger than {MAX_HEADERS_BYTES} bytes."
        return Problem(Problems.HEADERS_TOO_LARGE, detail, headers=_CLOSE)
    declared = Headers(scope=scope).get("content-length", "")
    # A number longer than any length: Python refuses to read the longest ones.
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > limit_bytes):
        return _too_large(limit_bytes)
    return None


def _too_large(limit_bytes: int) -> Problem:
    return Problem(Problems.BODY_TOO_LARGE, f"The body is larger than {limit_bytes} bytes.", headers=_CLOSE)


class _Refused(Exception):
    """Raised inside the body stream; never leaves the middleware."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem
