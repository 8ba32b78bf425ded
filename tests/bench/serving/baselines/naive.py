"""Baseline (a): the service as a newcomer writes it without a framework for models.

FastAPI and uvicorn with their defaults, a pydantic body, the token verified for each request, one forward pass and one
SQLite transaction a request, all of it in FastAPI's thread pool. The access log is off, in its favour.

    python -m tests.bench.serving.baselines.naive --port 8001
"""

from __future__ import annotations

from typing import Annotated

import jwt
import numpy as np
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException

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

    def caller(authorization: Annotated[str | None, Header()] = None) -> str:
        try:
            return tokens.user_id(authorization)
        except jwt.InvalidTokenError as error:
            raise HTTPException(401, str(error)) from None

    @app.post("/infer")
    def infer(body: InferBody, user_id: str = Depends(caller)) -> InferReply:
        window_kw = np.asarray(body.window, dtype=np.float32)
        if body.appliance_id != model.entry.appliance_id or not usable(window_kw, model):
            raise HTTPException(422, "no such appliance, or not a window of its model")
        (said,) = predict(model, window_kw[None, :])
        rows.insert([point(model, body.building_id, user_id, window_kw, said)])
        return InferReply(
            predicted_kw=said.predicted_kw,
            confidence=said.confidence,
            model_version=model.entry.model_version,
            persisted=True,
        )

    return app


if __name__ == "__main__":
    uvicorn.run(f"{__spec__.name}:build", factory=True, host="127.0.0.1", port=chosen_port(), access_log=False)
