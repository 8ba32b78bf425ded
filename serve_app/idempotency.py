"""The Idempotency-Key header (IETF draft 06): a request that is sent again is not run again.

Scope (user, key); the same key with another body is an error; only a reply that is durable together with what it
acknowledges is ever replayed, and a failure frees the key.
https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel
from starlette.datastructures import Headers

from deployments.contracts import Claim, Completion, KeyedRequest, RecordSet, StoredReply
from serve_app.instants import to_ns
from serve_app.middleware import RequestContext
from serve_app.problems import FieldError, Problem, Problems
from serve_app.store_client import KEY_HEADER, StoreClient, other_request

REPLAYED_HEADER = "Idempotency-Replayed"
_VISIBLE = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply's JSON. `replayed`: it was first given to an earlier request with the same key."""

    body: bytes
    replayed: bool = False


def idempotency_key(headers: Headers) -> str | None:
    """The key a request carries, quoted (a structured-field string) or bare. Raises Problem when it is not one."""
    values = headers.getlist(KEY_HEADER)
    if not values:
        return None
    text = values[0].strip()
    bare = text[1:-1] if len(text) >= 2 and text[0] == text[-1] == '"' else text
    if len(values) > 1 or not _VISIBLE.fullmatch(bare):
        detail = "Idempotency-Key must be given once, as 1 to 255 visible ASCII characters."
        raise Problem(Problems.VALIDATION, detail, [FieldError(KEY_HEADER, "1 to 255 visible ASCII characters")])
    return bare


def keyed_request(
    key: str | None, user_id: str, route: str, body: BaseModel, received: datetime | None, context: RequestContext
) -> KeyedRequest | None:
    """The request under its key, or None without one. `received`: None when the body names its own instant."""
    if key is None:
        return None
    # The lengths keep ("ab", "c") and ("a", "bc") apart.
    scope = f"{len(user_id)}:{user_id}{key}".encode()
    canonical = f"POST {route}\n{body.model_dump_json()}".encode()
    return KeyedRequest(
        key=hashlib.sha256(scope).hexdigest(),
        fingerprint=hashlib.sha256(canonical).hexdigest(),
        received_ns=None if received is None else to_ns(received),
        deadline_s=context.deadline_s,
    )


async def run_once(
    store: StoreClient, request: KeyedRequest | None, run: Callable[[Claim | None], Awaitable[Reply]]
) -> Reply:
    """The reply of `run`, or of its first run under this key. Raises Problem, and what `run` raises."""
    if request is None:
        return await run(None)
    claim = await store.claim(request)
    if isinstance(claim, StoredReply):
        return Reply(claim.body, replayed=True)
    try:
        return await run(claim)
    except BaseException:
        # Also when the client hung up. A write that is under way is not touched by this.
        store.release(claim)
        raise


async def store_reply(store: StoreClient, record_set: RecordSet) -> Reply | None:
    """Make a record set durable; gives the reply that was stored instead, if an earlier request with its key had one.

    Raises Problem.
    """
    result = await store.persist(record_set)
    if not isinstance(result, StoredReply):
        return None
    completion: Completion | None = record_set.completion
    if completion is not None and result.fingerprint != completion.claim.fingerprint:
        raise other_request()
    # Our own: the call that stored it was lost with its answer, and made again.
    ours = completion is not None and result.body == completion.body
    return Reply(result.body, replayed=not ours)
