"""Baseline (c): LitServe, as its manual shows it: batching on, one worker process for the model beside the server.

The worker writes a batch's predictions in one transaction before it answers, so that LitServe acknowledges nothing
that is not durable.

    python -m tests.bench.serving.baselines.with_litserve --port 8001
"""

# No `from __future__ import annotations` here: LitServe reads the annotation of `decode_request` at run time.
from typing import Annotated, Any, cast

import jwt
import litserve  # type: ignore[import-untyped]
import numpy as np
from fastapi import Header, HTTPException, Request

from models.loader import FloatArray
from tests.bench.serving.baselines.environment import BaselineSettings
from tests.bench.serving.baselines.model import load_model, point, predict, usable
from tests.bench.serving.baselines.port import chosen_port
from tests.bench.serving.baselines.rows import PredictionRows
from tests.bench.serving.baselines.tokens import TokenCheck

MAX_BATCH_WINDOWS = 64
BATCH_TIMEOUT_S = 0.005
"""How long a batch waits for company; LitServe always waits that long while it has room. Of 2, 5 and 20 ms the best
from 8 clients on; 2 ms is better for one client, 20 ms by 5 % for 128."""

Decoded = tuple[str, FloatArray]
"""Building, window in kW."""


class KettleApi(litserve.LitAPI):  # type: ignore[misc]
    """Server and worker have a copy each; `setup` runs in the worker only."""

    def __init__(self, settings: BaselineSettings) -> None:
        super().__init__(max_batch_size=MAX_BATCH_WINDOWS, batch_timeout=BATCH_TIMEOUT_S, api_path="/infer")
        self._settings = settings
        self._tokens = TokenCheck(settings.secret)

    def setup(self, device: str) -> None:
        """Load the model and open the file."""
        self._model = load_model(self._settings.model_version)
        self._rows = PredictionRows(self._settings.database)

    def authorize(self, authorization: Annotated[str | None, Header()] = None) -> None:
        """LitServe calls this in the server for each request."""
        try:
            self._tokens.user_id(authorization)
        except jwt.InvalidTokenError as error:
            raise HTTPException(401, str(error)) from None

    def decode_request(self, request: Request) -> Decoded:
        """In the worker, where LitServe hands over the parsed JSON instead of the request."""
        body = cast(dict[str, Any], request)
        window_kw = np.asarray(body["window"], dtype=np.float32)
        if body["appliance_id"] != self._model.entry.appliance_id or not usable(window_kw, self._model):
            raise HTTPException(422, "no such appliance, or not a window of its model")
        return str(body["building_id"]), window_kw

    def batch(self, inputs: list[Decoded]) -> list[Decoded]:
        """As they are: the rows need more than the windows."""
        return inputs

    def predict(self, x: list[Decoded]) -> list[dict[str, object]]:
        """One forward pass, one transaction, then the replies."""
        said = predict(self._model, np.stack([window_kw for _, window_kw in x]))
        self._rows.insert(
            [
                # LitServe hands the worker the body only: who calls stays in the server.
                point(self._model, building_id, "", window_kw, one)
                for (building_id, window_kw), one in zip(x, said, strict=True)
            ]
        )
        version = self._model.entry.model_version
        return [
            {
                "predicted_kw": one.predicted_kw,
                "confidence": one.confidence,
                "model_version": version,
                "persisted": True,
            }
            for one in said
        ]

    def unbatch(self, output: list[dict[str, object]]) -> list[dict[str, object]]:
        """One reply a request already."""
        return output


if __name__ == "__main__":
    server = litserve.LitServer(KettleApi(BaselineSettings.from_environment()), accelerator="cpu", fast_queue=True)
    server.run(host="127.0.0.1", port=chosen_port(), log_level="warning", generate_client_file=False)
