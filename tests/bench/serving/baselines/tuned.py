"""Baseline (b): the monolith of an engineer who knows what costs: the honest yardstick.

No framework on the way but Starlette; the body by msgspec straight to float32; a token verified once; micro-batches
and group commits by the very classes that the service uses; uvloop, httptools and a worker for each of two cores. Both
workers write to one file.

    python -m tests.bench.serving.baselines.tuned --port 8001
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated

import jwt
import msgspec
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.batching import Batcher
from deployments.contracts import Persisted, PersistResult, RecordSet
from deployments.group_commit import GroupCommit
from models.loader import FloatArray
from tests.bench.serving.baselines.environment import BaselineSettings
from tests.bench.serving.baselines.model import Prediction, load_model, point, predict, usable
from tests.bench.serving.baselines.port import chosen_port
from tests.bench.serving.baselines.rows import PredictionRows
from tests.bench.serving.baselines.tokens import RememberedTokens

WORKERS = 2
MAX_BATCH_WINDOWS = 64
"""As the service's."""
DEADLINE_S = 10.0


class InferBody(msgspec.Struct):
    """One mains window, kW, oldest sample first."""

    building_id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    appliance_id: str
    window: list[float]


class InferReply(msgspec.Struct):
    """A prediction that is already durable."""

    predicted_kw: float
    confidence: float
    model_version: str
    persisted: bool


class Unobserved:
    """Nobody is told about commits."""

    def committed(self, *, succeeded: bool, record_sets: int, seconds: float) -> None:
        """One commit ended."""

    def answered(self, result: PersistResult) -> None:
        """One record set has its answer."""


class Monolith:
    """What one worker holds, made when its loop runs."""

    def __init__(self, settings: BaselineSettings) -> None:
        self._model = load_model(settings.model_version)
        self._rows = PredictionRows(settings.database)
        self._commits = GroupCommit(self._rows, Unobserved())
        self._tokens = RememberedTokens(settings.secret)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._windows: Batcher[FloatArray, Prediction] = Batcher(self._forward, MAX_BATCH_WINDOWS)
        self._decoder = msgspec.json.Decoder(InferBody)
        self._encoder = msgspec.json.Encoder()

    async def _forward(self, windows_kw: list[FloatArray]) -> list[Prediction]:
        block = np.stack(windows_kw)
        return await asyncio.get_running_loop().run_in_executor(self._thread, predict, self._model, block)

    async def infer(self, request: Request) -> Response:
        """The route."""
        try:
            user_id = self._tokens.user_id(request.headers.get("authorization"))
        except jwt.InvalidTokenError as error:
            return Response(str(error), 401)
        try:
            body = self._decoder.decode(await request.body())
        except msgspec.MsgspecError as error:
            return Response(str(error), 422)
        window_kw = np.array(body.window, dtype=np.float32)
        if body.appliance_id != self._model.entry.appliance_id or not usable(window_kw, self._model):
            return Response("no such appliance, or not a window of its model", 422)
        said = await self._windows.put(window_kw)
        row = point(self._model, body.building_id, user_id, window_kw, said)
        result = await self._commits.persist(RecordSet((row,), time.time() + DEADLINE_S))
        if not isinstance(result, Persisted):
            return Response("not stored", 503)
        reply = InferReply(said.predicted_kw, said.confidence, self._model.entry.model_version, True)
        return Response(self._encoder.encode(reply), media_type="application/json")

    async def close(self) -> None:
        """Finish what was taken."""
        await self._commits.close()
        self._rows.close()


def build() -> Starlette:
    """The application of one worker."""
    monolith = Monolith(BaselineSettings.from_environment())

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await monolith.close()

    return Starlette(routes=[Route("/infer", monolith.infer, methods=["POST"])], lifespan=lifespan)


if __name__ == "__main__":
    uvicorn.run(
        f"{__spec__.name}:build",
        factory=True,
        host="127.0.0.1",
        port=chosen_port(),
        access_log=False,
        workers=WORKERS,
        loop="uvloop",
        http="httptools",
    )
