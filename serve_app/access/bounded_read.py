"""Reads what another server answers, without letting it decide how much memory that takes."""

from __future__ import annotations

import httpx


class UnreadableBody(Exception):
    """The body is not read to its end; the text says why, as the predicate of a sentence, and holds nothing of it."""


async def read_body(response: httpx.Response, limit_bytes: int) -> bytes:
    """The whole body of a streamed response. Raises UnreadableBody; ask with `Accept-Encoding: identity`."""
    # Not compressed, so that the size on the wire is the size in memory.
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise UnreadableBody("is compressed, which was not asked for")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit_bytes:
            raise UnreadableBody(f"is longer than {limit_bytes} bytes")
    return bytes(body)
