"""Baseline (a): the service as one writes it without a framework for models, and without measuring it.

FastAPI and uvicorn with their defaults, a pydantic body, the token verified for each request, one forward pass and one
SQLite transaction a request, both on threads. The access log is off, in its favour.

    python -m tests.bench.serving.baselines.naive --port 8001
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import jwt
import numpy as np
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.concurrency import run_in_threadpool

from tests.bench.serving.baselines.bodies import InferBody, InferReply
from tests.bench.serving.baselines.environment import BaselineSettings
from tests.bench.serving.baselines.model import load_model, point, predict, usable
from tests.bench.serving.baselines.port import chosen_port
from tests.bench.serving.baselines.rows import PredictionRows
from tests.bench.serving.baselines.tokens import TokenCheck


def build() -> FastAPI:
    """The application, with its model loaded and its file open."""
    settings = BaselineSettings.from_environment()
    model, rows, tokens = (
        load_model(settings.model_version),
        PredictionRows(settings.database),
        TokenCheck(settings.secret),
    )
    app = FastAPI()
    # One thread: with two the same rate costs half as much CPU again, with FastAPI's forty it falls to a third,
    # because a forward pass is many small calls that each take the interpreter's lock.
    forwards = ThreadPoolExecutor(1, thread_name_prefix="forward")

    async def caller(authorization: Annotated[str | None, Header()] = None) -> str:
        try:
            return tokens.user_id(authorization)
        except jwt.InvalidTokenError as error:
            raise HTTPException(401, str(error)) from None

    @app.post("/infer")
    async def infer(body: InferBody, user_id: str = Depends(caller)) -> InferReply:
        window_kw = np.asarray(body.window, dtype=np.float32)
        if body.appliance_id != model.entry.appliance_id or not usable(window_kw, model):
            raise HTTPException(422, "no such appliance, or not a window of its model")
        loop = asyncio.get_running_loop()
        (said,) = await loop.run_in_executor(forwards, predict, model, window_kw[None, :])
        row = point(model, body.building_id, user_id, window_kw, said)
        await run_in_threadpool(rows.insert, [row])
        return InferReply(
            predicted_kw=said.predicted_kw,
            confidence=said.confidence,
            model_version=model.entry.model_version,
            persisted=True,
        )

    return app


if __name__ == "__main__":
    uvicorn.run(f"{__spec__.name}:build", factory=True, host="127.0.0.1", port=chosen_port(), access_log=False)
