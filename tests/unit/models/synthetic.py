"""A small invented home: a base load, kettles of three minutes and washing machines of an hour."""

from __future__ import annotations

import numpy as np
import pandas as pd

from models.training.recordings import KNOWN_RECORDINGS, Home


def synthetic_home(seed: int, samples: int = 6000) -> Home:
    """`samples` minutes, all measured."""
    rng = np.random.default_rng(seed)
    kettle, washing = np.zeros(samples, dtype=np.float32), np.zeros(samples, dtype=np.float32)
    for start in rng.integers(0, samples - 70, max(samples // 100, 1)):
        kettle[start : start + 3] = 2700.0
    for start in rng.integers(0, samples - 70, max(samples // 1000, 1)):
        washing[start : start + 60] = 300.0
    base = (100.0 + rng.normal(0, 10, samples)).astype(np.float32)
    return Home(
        recording=KNOWN_RECORDINGS["refit-2"],
        start=pd.Timestamp("2014-01-01"),
        aggregate_w=base + kettle + washing,
        valid=np.ones(samples, dtype=np.bool_),
        appliances_w={"kettle": kettle, "washing_machine": washing},
    )
