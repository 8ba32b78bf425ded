"""Figures of the embedded store: how fast readings go in, and how long the frontend's poll of a year takes.

    python -m tests.bench.history --million 10

Fills a file with building-years of minutes (readings and four appliances each), through the store's own write path,
then starts the real service on it and polls `/analytics/readings?include_disaggregation=true` over a year of quarters:
cold (the first poll of a building since the start), warm (again, whole) and with the tag it has (304). Prints a table;
asserts nothing.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
from rich.progress import track

from deployments.contracts import PredictionPoint, Readings, RecordSet
from deployments.stores.sqlite import SqliteStore
from serve_app.settings import DATABASE_NAME
from tests.integration.service import running_service, service_config

APPLIANCES = ("dishwasher", "kettle", "microwave", "washing_machine")
MINUTES_PER_YEAR = 365 * 1440
POINTS_PER_BUILDING = MINUTES_PER_YEAR * (1 + len(APPLIANCES))
READINGS_PER_CALL = 5000
RECORD_SETS_PER_COMMIT = 64
MINUTE_NS = 60 * 10**9
POLLS = 40


def main() -> None:
    """Fill, serve, poll, print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--million", type=float, default=10.0, help="points in the file")
    arguments.add_argument("--folder", type=Path, help="where; a temporary folder if left out")
    chosen = arguments.parse_args()
    buildings = max(1, math.ceil(chosen.million * 1e6 / POINTS_PER_BUILDING))
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        bench(Path(folder), buildings)


def bench(folder: Path, buildings: int) -> None:
    """All figures for so many building-years."""
    data = folder / "data"
    data.mkdir()
    end_ns = int(time.time()) // 900 * 900 * 10**9
    store = SqliteStore(data / DATABASE_NAME)
    spent = {"readings": 0.0, "predictions": 0.0}
    for n in range(buildings):
        for what, record_sets, total in (
            ("readings", readings(f"home-{n}", end_ns), math.ceil(MINUTES_PER_YEAR / READINGS_PER_CALL)),
            ("predictions", predictions(f"home-{n}", end_ns), MINUTES_PER_YEAR),
        ):
            batch: list[RecordSet] = []
            size = 1 if what == "readings" else RECORD_SETS_PER_COMMIT
            for record_set in track(record_sets, f"{what} of building {n + 1} of {buildings}", total=total):
                batch.append(record_set)
                if len(batch) == size:
                    spent[what] += write(store, batch)
                    batch = []
            if batch:
                spent[what] += write(store, batch)
    store.close()
    points = buildings * POINTS_PER_BUILDING
    size_mb = (data / DATABASE_NAME).stat().st_size / 1e6
    print(f"{points:,} points of {buildings} building-years, {size_mb:,.0f} MB")
    count = buildings * MINUTES_PER_YEAR
    print(f"readings in, {READINGS_PER_CALL} a commit: {count / spent['readings']:,.0f} points/s")
    print(
        f"predictions in, {RECORD_SETS_PER_COMMIT} record sets of {len(APPLIANCES)} a commit: "
        f"{count * len(APPLIANCES) / spent['predictions']:,.0f} points/s"
    )
    poll(folder, buildings)


def write(store: SqliteStore, record_sets: list[RecordSet]) -> float:
    """Seconds of one commit."""
    started = time.perf_counter()
    if any(outcome is not None for outcome in store.write(record_sets)):
        raise SystemExit("the store refused a record set")
    return time.perf_counter() - started


def readings(building_id: str, end_ns: int) -> Iterator[RecordSet]:
    """A year of minutes."""
    chance = np.random.default_rng(1)
    times = end_ns - np.arange(MINUTES_PER_YEAR, 0, -1, dtype=np.int64) * MINUTE_NS
    for first in range(0, MINUTES_PER_YEAR, READINGS_PER_CALL):
        part = times[first : first + READINGS_PER_CALL]
        arrays = Readings((building_id,), np.zeros(len(part), np.int32), part, chance.uniform(0.1, 3, len(part)))
        yield RecordSet((), time.time() + 60, readings=arrays)


def predictions(building_id: str, end_ns: int) -> Iterator[RecordSet]:
    """A record set of four appliances for each minute, as `/disaggregate` stores it."""
    chance = np.random.default_rng(2)
    for minute in range(MINUTES_PER_YEAR, 0, -1):
        kw = chance.uniform(0, 2, len(APPLIANCES)).tolist()
        points = tuple(
            PredictionPoint(
                building_id, name, "2.1.0", "final", end_ns - minute * MINUTE_NS, one, 0.5, 2.0, "r" * 32, "u" * 36,
                "a" * 64, 20.0,
            )
            for name, one in zip(APPLIANCES, kw, strict=True)
        )  # fmt: skip
        yield RecordSet(points, time.time() + 60)


def poll(folder: Path, buildings: int) -> None:
    """Polls over HTTP, one at a time."""
    config = service_config(folder / "serve_config.yaml", appliances=["kettle"])
    with running_service(folder, config) as service, service.client() as client:
        asked = {"start": "-365d", "resolution": "15m", "include_disaggregation": "true"}
        cold, warm, known = [], [], []
        size = plain = 0
        for n in range(buildings):
            seconds, reply = timed(client, {**asked, "building_id": f"home-{n}"})
            cold.append(seconds)
            size, plain = int(reply.headers["content-length"]), len(reply.content)
            for _ in range(POLLS // buildings):
                seconds, reply = timed(client, {**asked, "building_id": f"home-{n}"})
                warm.append(seconds)
                headers = {"If-None-Match": reply.headers["etag"]}
                seconds, again = timed(client, {**asked, "building_id": f"home-{n}"}, headers)
                if again.status_code == 304:
                    known.append(seconds)
        rows = len(reply.json()["rows"])
        print(f"a year of quarters: {rows:,} rows, {plain / 1e6:.1f} MB of JSON, {size / 1e6:.2f} MB on the wire")
        for name, values in (("cold", cold), ("warm", warm), ("304", known)):
            print(f"{name:>5}: p50 {1000 * statistics.median(values):7.1f} ms, p95 {1000 * p95(values):7.1f} ms")


def timed(
    client: httpx.Client, parameters: dict[str, str], headers: dict[str, str] | None = None
) -> tuple[float, httpx.Response]:
    """One poll, its body read and decompressed."""
    started = time.perf_counter()
    reply = client.get("/analytics/readings", params=parameters, headers=headers)
    if reply.status_code not in (200, 304):
        raise SystemExit(f"{reply.status_code}: {reply.text[:300]}")
    return time.perf_counter() - started, reply


def p95(values: list[float]) -> float:
    """The 95th percentile, nearest rank."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


if __name__ == "__main__":
    main()
