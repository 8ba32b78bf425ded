"""One run of a use case that predicts: for whom, under which claim, and its end, a reply that is durable.

With an Idempotency-Key, whatever was asked before is answered as before: see `idempotency`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import BaseModel

from deployments.contracts import Claim, Completion, PredictionPoint, RecordSet
from serve_app.access.principal import Principal
from serve_app.idempotency import Reply, keyed_request, run_once, store_reply
from serve_app.instants import from_ns
from serve_app.middleware import RequestContext
from serve_app.schemas import InferBatchRequest, WindowRequest
from serve_app.store_client import StoreClient


@dataclass(frozen=True, slots=True)
class Call:
    """`received`: the instant of the request, that of the first with its key; windows without a time end there."""

    principal: Principal
    context: RequestContext
    claim: Claim | None
    received: datetime


async def answer_once(
    store: StoreClient,
    body: WindowRequest | InferBatchRequest,
    route: str,
    principal: Principal,
    context: RequestContext,
    key: str | None,
    run: Callable[[Call], Awaitable[Reply]],
) -> Reply:
    """The reply of `run`, or that of an earlier request with this key. Raises Problem."""
    received = datetime.now(UTC)
    keyed = keyed_request(
        key, principal.user_id, route, body, None if body.names_every_instant() else received, context
    )

    async def call(claim: Claim | None) -> Reply:
        # A second attempt under a key stands for the instant of the first.
        first_ns = None if claim is None else claim.received_ns
        return await run(Call(principal, context, claim, received if first_ns is None else from_ns(first_ns)))

    reply = await run_once(store, keyed, call)
    context.replayed = reply.replayed
    return reply


async def store_predictions(
    store: StoreClient, points: tuple[PredictionPoint, ...], response: BaseModel, call: Call
) -> Reply:
    """The reply, once the points that it acknowledges are durable, all or none. Raises Problem."""
    reply = Reply(response.model_dump_json().encode())
    completion = None if call.claim is None else Completion(call.claim, reply.body)
    with call.context.timed("persist"):
        trace = call.context.trace_for_others
        earlier = await store_reply(store, RecordSet(points, call.context.deadline_s, completion, trace=trace))
    return earlier or reply
