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


@dataclass(frozen=True)
class RequestSet:
    """Requests of one kind. `windows_each`: how many windows one of them carries, for the share of the engine's limit.

    A row of another kind of request (several windows in one, a binary body) is a RequestSet of its own.
    """

    path: str
    token: str
    content_type: str
    bodies: tuple[bytes, ...]
    windows_each: int = 1

    def write(self, file: Path) -> None:
        """Path, token and content type, a line each; then each body, its length in bytes on a line before it."""
        head = "".join(f"{line}\n" for line in (self.path, self.token, self.content_type)).encode()
        file.write_bytes(head + b"".join(b"%d\n%s" % (len(body), body) for body in self.bodies))


def http_requests(file: Path, host: str) -> list[bytes]:
    """The HTTP/1.1 messages that a file of `RequestSet.write` stands for."""
    with file.open("rb") as source:
        path, token, content_type = (source.readline().rstrip(b"\n") for _ in range(3))
        head = b"POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\n" % (
            path,
            host.encode(),
            token,
            content_type,
        )
        requests = []
        while line := source.readline():
            body = source.read(int(line))
            requests.append(head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    return requests


def infer_requests(token: str, appliance_id: str, window_samples: int, buildings: int = BUILDINGS) -> RequestSet:
    """`POST /infer`: a window of a made-up household's mains for each building, in kW."""
    recording = synthetic_household(
        7, datetime(2026, 1, 5, tzinfo=UTC), history_samples=0, samples=HOUSEHOLD_DAYS * SAMPLES_PER_DAY
    )
    mains_kw = np.round(recording.aggregate_w / 1000, 4).tolist()
    starts = np.random.default_rng(7).integers(0, len(mains_kw) - window_samples, buildings)
    bodies = tuple(
        json.dumps(
            {
                "building_id": f"building-{n}",
                "appliance_id": appliance_id,
                "window": mains_kw[start : start + window_samples],
            },
            separators=(",", ":"),
        ).encode()
        for n, start in enumerate(starts.tolist())
    )
    return RequestSet("/infer", token, "application/json", bodies)
