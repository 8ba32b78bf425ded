"""What the load generators send: prepared requests of different windows and buildings, in a file both can read.

Enough buildings that none gets more rows in a quarter of an hour than one that reports every few seconds: the service
sums a building's quarter at each commit, and a handful of buildings would make that sum absurdly long.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from serve_app.demo.household import synthetic_household

BUILDINGS = 4096
HOUSEHOLD_DAYS = 30
SAMPLES_PER_DAY = 1440
WINDOWS_PER_BATCH = 256
"""As many as `/infer/batch` takes."""
JSON, FLOAT32 = "application/json", "application/octet-stream"


@dataclass(frozen=True)
class RequestSet:
    """Requests of one kind: (path with query, body) each. `windows_each`: how many windows one of them carries."""

    token: str
    content_type: str
    requests: tuple[tuple[str, bytes], ...]
    windows_each: int = 1

    def write(self, file: Path) -> None:
        """Token and content type, a line each; then for each request a line of its path and body's length, the body."""
        head = f"{self.token}\n{self.content_type}\n".encode()
        file.write_bytes(
            head + b"".join(b"%s %d\n%s" % (path.encode(), len(body), body) for path, body in self.requests)
        )


def http_requests(file: Path, host: str) -> list[bytes]:
    """The HTTP/1.1 messages that a file of `RequestSet.write` stands for."""
    with file.open("rb") as source:
        token, content_type = (source.readline().rstrip(b"\n") for _ in range(2))
        headers = b"Host: %s\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\n" % (host.encode(), token, content_type)
        messages = []
        while line := source.readline():
            path, length = line.split()
            body = source.read(int(length))
            messages.append(b"POST %s HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s" % (path, headers, len(body), body))
    return messages


def infer_requests(token: str, appliance_id: str, window_samples: int, buildings: int = BUILDINGS) -> RequestSet:
    """`POST /infer`, a window of JSON each."""
    items = _items(appliance_id, window_samples, buildings)
    return RequestSet(token, JSON, tuple(("/infer", _json(item)) for item in items))


def float32_requests(token: str, appliance_id: str, window_samples: int, buildings: int = BUILDINGS) -> RequestSet:
    """`POST /infer`, the window as little-endian float32, the rest in the query."""
    requests = (
        (
            f"/infer?building_id={item['building_id']}&appliance_id={appliance_id}",
            np.array(item["window"], dtype="<f4").tobytes(),
        )
        for item in _items(appliance_id, window_samples, buildings)
    )
    return RequestSet(token, FLOAT32, tuple(requests))


def batch_requests(token: str, appliance_id: str, window_samples: int, buildings: int = BUILDINGS) -> RequestSet:
    """`POST /infer/batch`, as many windows as it takes."""
    items = _items(appliance_id, window_samples, buildings)
    requests = tuple(
        ("/infer/batch", _json({"items": items[first : first + WINDOWS_PER_BATCH]}))
        for first in range(0, buildings, WINDOWS_PER_BATCH)
    )
    return RequestSet(token, JSON, requests, WINDOWS_PER_BATCH)


def _items(appliance_id: str, window_samples: int, buildings: int) -> list[dict[str, object]]:
    """For each building a window of a made-up household's mains, in kW."""
    recording = synthetic_household(
        7, datetime(2026, 1, 5, tzinfo=UTC), history_samples=0, samples=HOUSEHOLD_DAYS * SAMPLES_PER_DAY
    )
    mains_kw = np.round(recording.aggregate_w / 1000, 4).tolist()
    starts = np.random.default_rng(7).integers(0, len(mains_kw) - window_samples, buildings).tolist()
    return [
        {
            "building_id": f"building-{n}",
            "appliance_id": appliance_id,
            "window": mains_kw[start : start + window_samples],
        }
        for n, start in enumerate(starts)
    ]


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
