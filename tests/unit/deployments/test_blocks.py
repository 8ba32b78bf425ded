"""A block gives back the windows it was made of."""

from __future__ import annotations

import pickle

import numpy as np

from deployments.blocks import InferenceBlock
from deployments.contracts import InferenceRequest
from models.attribution import Attribution


def test_windows_of_any_length_come_back_as_they_were() -> None:
    windows = [np.arange(size, dtype=np.float32) for size in (3, 1, 20)]
    requests = [
        InferenceRequest(f"home-{n}", window, 100.0 + n, list(Attribution)[n % 2]) for n, window in enumerate(windows)
    ]
    block = pickle.loads(pickle.dumps(InferenceBlock.of(requests, "ingress-1", 7.5)))  # noqa: S301 - as a handle does
    assert (block.sender, block.waiting) == ("ingress-1", 7.5)
    assert block.windows_kw.dtype == np.float32
    for got, sent in zip(block.requests(), requests, strict=True):
        assert np.array_equal(got.window_kw, sent.window_kw)
        assert (got.building_id, got.deadline_s, got.attribution) == (
            sent.building_id,
            sent.deadline_s,
            sent.attribution,
        )
