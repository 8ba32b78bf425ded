"""One system by itself, and requests for it: for the programs that compare nothing with another system."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.registry import Registry
from tests.bench.serving.request_set import infer_requests
from tests.bench.serving.running import Running
from tests.bench.serving.systems import APPLIANCE, Start, access_token


@contextmanager
def alone(start: Start) -> Iterator[tuple[Running, Path]]:
    """The system with the active version of the model, and a file of `/infer` requests; both are gone afterwards."""
    entry = Registry.load().active(APPLIANCE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        requests_file = folder / "requests"
        infer_requests(access_token(), APPLIANCE, entry.input_window_size).write(requests_file)
        (folder / "system").mkdir()
        with start(folder / "system", entry.model_version) as running:
            yield running, requests_file
