"""Baseline (d): Ray Serve with its defaults, three deployments, as its tutorials show it.

One option is not the default: `max_ongoing_requests`, five a replica. A full replica makes Serve's router wait up to
half a second before it looks again, so that 64 clients get 6 answers a second; with this option it is 115.
Kept apart from the service, so that what is optimised there does not move what it is compared with.
"""

# No `from __future__ import annotations` here: FastAPI reads the annotations of a class that Serve has pickled.
from typing import Annotated, Any

import jwt
import numpy as np
from fastapi import Depends, FastAPI, Header, HTTPException
from ray import serve

from deployments.contracts import PredictionPoint
from models.loader import FloatArray
from tests.bench.serving.baselines.bodies import InferBody, InferReply
from tests.bench.serving.baselines.environment import BaselineSettings
from tests.bench.serving.baselines.model import load_model, point, predict, usable
from tests.bench.serving.baselines.rows import PredictionRows
from tests.bench.serving.baselines.tokens import TokenCheck

MAX_ONGOING_REQUESTS = 256
"""Above every concurrency that is measured."""

app = FastAPI()


def bearer(authorization: Annotated[str | None, Header()] = None) -> str:
    """Whose token it is."""
    try:
        return TokenCheck(BaselineSettings.from_environment().secret).user_id(authorization)
    except jwt.InvalidTokenError as error:
        raise HTTPException(401, str(error)) from None


@serve.deployment(max_ongoing_requests=MAX_ONGOING_REQUESTS)
class Model:
    """Batches windows as `@serve.batch` does."""

    def __init__(self) -> None:
        self._model = load_model(BaselineSettings.from_environment().model_version)

    @serve.batch
    async def _batched(self, windows: list[FloatArray]) -> list[Any]:
        return list(predict(self._model, np.stack(windows)))

    async def infer(self, building_id: str, user_id: str, window_kw: FloatArray) -> PredictionPoint | None:
        """The row to store; None for a window that the model does not take."""
        if not usable(window_kw, self._model):
            return None
        return point(self._model, building_id, user_id, window_kw, await self._batched(window_kw))


@serve.deployment(max_ongoing_requests=MAX_ONGOING_REQUESTS)
class Persistence:
    """One transaction a call."""

    def __init__(self) -> None:
        self._rows = PredictionRows(BaselineSettings.from_environment().database)

    def write(self, row: PredictionPoint) -> None:
        """Returns when it is durable."""
        self._rows.insert([row])


@serve.deployment(max_ongoing_requests=MAX_ONGOING_REQUESTS)
@serve.ingress(app)
class Ingress:
    """The HTTP route."""

    def __init__(self, model: Any, persistence: Any) -> None:
        self._model = model
        self._persistence = persistence

    @app.get("/ready")
    async def ready(self) -> bool:
        """Serve sends nothing here before every deployment runs."""
        return True

    @app.post("/infer")
    async def infer(self, body: InferBody, user_id: Annotated[str, Depends(bearer)]) -> InferReply:
        """Model, then store, then the answer."""
        window_kw = np.asarray(body.window, dtype=np.float32)
        row = await self._model.infer.remote(body.building_id, user_id, window_kw)
        if row is None or body.appliance_id != row.appliance_id:
            raise HTTPException(422, "no such appliance, or not a window of its model")
        await self._persistence.write.remote(row)
        return InferReply(
            predicted_kw=row.predicted_kw, confidence=row.confidence, model_version=row.model_version, persisted=True
        )


application = Ingress.bind(Model.bind(), Persistence.bind())  # type: ignore[attr-defined]
