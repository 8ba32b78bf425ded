"""The first request a developer can paste: a kettle that boils, in exactly the window the serving model takes."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import httpx

from serve_app.access.development import write_private_file

DEMO_BUILDING = "demo-home"
DEMO_APPLIANCE = "kettle"
REQUEST_FILE_NAME = "first-request.json"
TOKEN_FILE_NAME = "dev-token"  # noqa: S105 - a file name

BASE_LOAD_KW = 0.18
FRIDGE_KW = 0.09
FRIDGE_PERIOD_S = 2400.0
"""A fridge that runs half of every 40 minutes, so that the mains are not flat."""
KETTLE_KW = 2.8
BOIL_S = 180.0
"""1.5 litres from 15 to 100 degrees C take 191 s at 2.8 kW without losses; people fill less."""


@dataclass(frozen=True)
class ModelShape:
    """What a window for one model has to look like; an entry of `GET /models`."""

    appliance_id: str
    input_window_size: int
    output_sample_index: int
    sample_period_s: float


def kettle_window_kw(shape: ModelShape) -> list[float]:
    """Mains power in kW, oldest first, with a boil in the middle of which the predicted sample lies."""
    boil_samples = max(1, round(BOIL_S / shape.sample_period_s))
    first = shape.output_sample_index - boil_samples // 2
    window = []
    for index in range(shape.input_window_size):
        fridge_on = (index * shape.sample_period_s) % FRIDGE_PERIOD_S < FRIDGE_PERIOD_S / 2
        power_kw = BASE_LOAD_KW + (FRIDGE_KW if fridge_on else 0.0)
        if first <= index < first + boil_samples:
            power_kw += KETTLE_KW
        window.append(round(power_kw, 3))
    return window


def serving_shape(url: str, token: str, appliance_id: str = DEMO_APPLIANCE) -> ModelShape | None:
    """The window of the version that serves the appliance now; None when none does."""
    reply = httpx.get(f"{url}/models", headers={"Authorization": f"Bearer {token}"}, timeout=10.0, trust_env=False)
    reply.raise_for_status()
    for entry in reply.json()["models"]:
        if entry["appliance_id"] == appliance_id and entry.get("serving", True):
            return ModelShape(
                appliance_id=appliance_id,
                input_window_size=int(entry["input_window_size"]),
                output_sample_index=int(entry["output_sample_index"]),
                sample_period_s=float(entry["sample_period_s"]),
            )
    return None


def write_first_request(data_dir: Path, url: str, token: str) -> str | None:
    """Write the body and the token into the data directory; return the shell line that sends them.

    None when no kettle model serves. The files keep the line short enough to paste, and the token out of it.
    """
    shape = serving_shape(url, token)
    if shape is None:
        return None
    body = {"building_id": DEMO_BUILDING, "appliance_id": shape.appliance_id, "window": kettle_window_kw(shape)}
    request_path = data_dir / REQUEST_FILE_NAME
    request_path.write_text(json.dumps(body) + "\n", encoding="ascii")
    token_path = data_dir / TOKEN_FILE_NAME
    write_private_file(token_path, token)
    return (
        f"curl -sS {url}/infer -H 'Content-Type: application/json' "
        f'-H "Authorization: Bearer $(cat {shlex.quote(str(token_path))})" '
        f"-d @{shlex.quote(str(request_path))}"
    )
