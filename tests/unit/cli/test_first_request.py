"""The request that `nilm run` prints: the right length, plausible mains, a boil at the predicted sample."""

from __future__ import annotations

import pytest

from serve_app.cli.first_request import BASE_LOAD_KW, FRIDGE_KW, KETTLE_KW, ModelShape, kettle_window_kw
from serve_app.schemas import InferRequest


@pytest.mark.parametrize(
    ("size", "output", "period_s", "boil"),
    [(512, 511, 60.0, 2), (512, 256, 60.0, 3), (599, 299, 6.0, 30), (128, 0, 60.0, 2), (1, 0, 900.0, 1)],
)
def test_the_kettle_boils_at_the_predicted_sample(size: int, output: int, period_s: float, boil: int) -> None:
    window = kettle_window_kw(ModelShape("kettle", size, output, period_s))
    assert len(window) == size
    assert window[output] >= BASE_LOAD_KW + KETTLE_KW
    assert sum(power > KETTLE_KW for power in window) == boil
    assert min(window) >= (BASE_LOAD_KW if size > 1 else KETTLE_KW)
    assert max(window) <= BASE_LOAD_KW + FRIDGE_KW + KETTLE_KW + 1e-9


def test_the_service_accepts_the_body() -> None:
    window = kettle_window_kw(ModelShape("kettle", 512, 511, 60.0))
    accepted = InferRequest.model_validate({"building_id": "demo-home", "appliance_id": "kettle", "window": window})
    assert len(accepted.window) == 512
