"""Training and serving see the same numbers: one window through `/infer` and through `nilm evaluate`'s own code."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from models.appliances import appliance
from models.attribution import Attribution
from models.loader import load_verified
from models.registry import Registry
from models.training.evaluate import raw_outputs, served
from models.training.recordings import KNOWN_RECORDINGS, Home
from tests.integration.service import Service

pytestmark = pytest.mark.integration
MINUTES = 640


def lively_mains_w() -> np.ndarray:
    """A base load, a fridge, heating pulses and a motor: something for every model to say."""
    rng = np.random.default_rng(11)
    minute = np.arange(MINUTES)
    mains_w = 150.0 + rng.normal(0.0, 8.0, MINUTES) + 90.0 * (minute % 55 < 18)
    for start, length, power_w in (
        (319, 3, 2800.0),
        (564, 3, 2800.0),
        (260, 20, 2050.0),
        (290, 45, 180.0),
        (340, 12, 2050.0),
    ):
        mains_w[start : start + length] += power_w
    for start in range(450, MINUTES, 23):
        mains_w[start : start + 3] += 1250.0
    return mains_w.astype(np.float32)


@pytest.mark.parametrize("appliance_id", ["kettle", "dishwasher", "washing_machine", "microwave"])
def test_infer_says_what_evaluate_scores(service: Service, appliance_id: str) -> None:
    registry = Registry.load()
    entry = registry.active(appliance_id)
    model = load_verified(entry, registry.root)
    target, mains_w = appliance(appliance_id), lively_mains_w()
    home = Home(
        recording=KNOWN_RECORDINGS["uk-dale-2"],
        start=pd.Timestamp("2024-01-01"),
        aggregate_w=mains_w,
        valid=np.ones(MINUTES, dtype=np.bool_),
        appliances_w={appliance_id: np.zeros(MINUTES, dtype=np.float32)},
    )
    outputs = raw_outputs(model.network, home, target, entry.input_window_size, entry.sample_indices, block=1)
    largest_kw, said_something = 0.0, False
    with service.client("parity") as client:
        for attribution, index in entry.sample_indices.items():
            scored = served(outputs[attribution], model.network.readout(attribution), target)
            for first in range(0, MINUTES - entry.input_window_size + 1, 8):
                window = (mains_w[first : first + entry.input_window_size].astype(np.float64) / 1000).tolist()
                body = {"building_id": "parity", "appliance_id": appliance_id, "window": window}
                answer = client.post("/infer", json=body | {"attribution": attribution.value}).json()
                assert answer["output_sample_index"] == index
                difference_kw = abs(answer["predicted_kw"] - float(scored.power_w[first + index]) / 1000)
                largest_kw = max(largest_kw, difference_kw)
                assert answer["confidence"] == pytest.approx(float(scored.on_probability[first + index]), abs=1e-4)
                said_something |= answer["predicted_kw"] > 0 or answer["confidence"] > 1e-3
    print(f"{appliance_id}: largest difference {largest_kw:.2e} kW")
    assert largest_kw < 1e-5
    assert said_something
    assert set(entry.sample_indices) == set(Attribution)
