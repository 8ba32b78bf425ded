"""Stores to test: an SQLite file, and InfluxDB 2 as the test server in a process of its own."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from deployments.contracts import PredictionPoint, RecordSet
from deployments.journal_contracts import JournalEntry, JournalKind
from deployments.stores import PredictionStore, StoreConfig, open_store
from deployments.stores.sqlite import read_rows
from tests.servers.influx_process import InfluxServer
from tests.servers.packages import PartsMissing, do_without
from tests.servers.tsm import TsmServer

HERE = Path(__file__).parent
TOKEN, ORG, BUCKET = "test-token", "test-org", "predictions"
COLUMNS = tuple(PredictionPoint.__dataclass_fields__)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All on one worker: they share servers, and two would install the same packages at once."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.xdist_group("contract"))


@pytest.fixture(autouse=True)
def influx_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where whoever opens the store looks for it."""
    monkeypatch.setenv("INFLUX_TOKEN", TOKEN)


@pytest.fixture
def make_set(make_point: Callable[..., PredictionPoint]) -> Callable[..., RecordSet]:
    """A record set of the points given, or of one point with changes."""

    def make(*points: PredictionPoint, wait_s: float = 5.0, **changes: Any) -> RecordSet:
        return RecordSet(points or (make_point(**changes),), time.time() + wait_s)

    return make


@pytest.fixture(scope="session")
def influx_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InfluxServer]:
    """The one server process, started again by the tests that kill it."""
    server = InfluxServer(tmp_path_factory.mktemp("influx") / "influx.log")
    yield server
    server.kill()


@pytest.fixture
def influx_server(influx_process: InfluxServer) -> InfluxServer:
    """A test server that is empty and whole."""
    if influx_process.process is None:
        influx_process.start()
    assert influx_process.request("POST", "/__reset")[0] == 204
    return influx_process


def entry_of(row: dict[str, Any]) -> JournalEntry:
    """From a row of either InfluxDB."""
    return JournalEntry(row["time_ns"], JournalKind(row["tags"]["kind"]), row["fields"]["document"])


class Backend(Protocol):
    """A store's outside: how a test opens, breaks and reads it."""

    def config(self) -> StoreConfig: ...
    def points(self) -> list[PredictionPoint]: ...
    def readings(self) -> list[tuple[str, int, float]]: ...
    def journal(self) -> list[JournalEntry]: ...
    def break_it(self) -> None: ...
    def mend(self) -> None: ...
    def crash(self) -> None: ...


@dataclass
class SqliteBackend:
    """Breaks by a foreign lock."""

    path: Path
    _intruder: sqlite3.Connection | None = None

    def config(self) -> StoreConfig:
        return StoreConfig.for_sqlite(self.path)

    def points(self) -> list[PredictionPoint]:
        return [PredictionPoint(*row) for row in read_rows(self.path, f"SELECT {', '.join(COLUMNS)} FROM prediction")]  # noqa: S608

    def readings(self) -> list[tuple[str, int, float]]:
        return [(str(b), int(t), float(kw)) for b, t, kw in read_rows(self.path, "SELECT * FROM sensor_reading")]

    def journal(self) -> list[JournalEntry]:
        rows = read_rows(self.path, "SELECT time_ns, kind, document FROM rollout")
        return [JournalEntry(time_ns, JournalKind(kind), document) for time_ns, kind, document in rows]

    def break_it(self) -> None:
        self._intruder = sqlite3.connect(self.path, isolation_level=None)
        self._intruder.execute("BEGIN IMMEDIATE")

    def mend(self) -> None:
        if self._intruder is not None:
            self._intruder.close()
            self._intruder = None

    def crash(self) -> None:
        """The store lives in the writer's process, which the test kills itself."""


@dataclass
class InfluxBackend:
    """Breaks by 503."""

    server: InfluxServer

    def config(self) -> StoreConfig:
        return StoreConfig.for_influx(url=self.server.url, org=ORG, bucket_pred=BUCKET, bucket_raw="raw", timeout_s=2.0)

    def points(self) -> list[PredictionPoint]:
        return self.server.points()

    def readings(self) -> list[tuple[str, int, float]]:
        rows = [row for row in self.server.rows() if row["measurement"] == "sensor_reading"]
        return [(row["tags"]["building_id"], row["time_ns"], row["fields"]["aggregate_kw"]) for row in rows]

    def journal(self) -> list[JournalEntry]:
        rows = [row for row in self.server.rows() if row["measurement"] == "rollout"]
        assert all(row["bucket"] == BUCKET for row in rows)
        return [entry_of(row) for row in rows]

    def break_it(self) -> None:
        self.server.fault(kind="status", status=503)

    def mend(self) -> None:
        self.server.fault()

    def crash(self) -> None:
        self.server.kill()
        self.server.start()


@dataclass
class TsmBackend:
    """The real storage engine; breaks by its end, and keeps what its folder holds."""

    server: TsmServer
    _down: bool = False

    def config(self) -> StoreConfig:
        return StoreConfig.for_influx(url=self.server.url, org=ORG, bucket_pred=BUCKET, bucket_raw="raw", timeout_s=5.0)

    def points(self) -> list[PredictionPoint]:
        rows = self.server.rows(BUCKET, "prediction")
        # JSON has one kind of number: a whole float comes back as an integer.
        numbers = ("predicted_kw", "confidence", "aggregate_kw", "latency_ms")
        return [
            PredictionPoint(
                **row["tags"],
                **{name: float(value) if name in numbers else value for name, value in row["fields"].items()},
                time_ns=row["time_ns"],
            )
            for row in rows
        ]

    def readings(self) -> list[tuple[str, int, float]]:
        rows = self.server.rows("raw", "sensor_reading")
        return [(row["tags"]["building_id"], row["time_ns"], float(row["fields"]["aggregate_kw"])) for row in rows]

    def journal(self) -> list[JournalEntry]:
        return [entry_of(row) for row in self.server.rows(BUCKET, "rollout")]

    def break_it(self) -> None:
        self.server.kill()
        self._down = True

    def mend(self) -> None:
        if self._down:
            self.server.start()
            self._down = False

    def crash(self) -> None:
        self.server.kill()
        self.server.start()


@pytest.fixture(scope="session")
def tsm_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TsmServer]:
    """The one engine of a test run."""
    try:
        server = TsmServer(tmp_path_factory.mktemp("tsm"))
    except PartsMissing as missing:
        do_without(missing)
    yield server
    server.stop()


@pytest.fixture
def tsm_backend(tsm_process: TsmServer) -> Iterator[TsmBackend]:
    """The engine, empty and whole."""
    tsm_process.clear()
    backend = TsmBackend(tsm_process)
    yield backend
    backend.mend()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`backend` is each store in turn; a module that only writes names the real engine too, which has no Flux."""
    if "backend" in metafunc.fixturenames:
        stores = getattr(metafunc.module, "STORES", ("sqlite", "influxdb"))
        metafunc.parametrize("backend", stores, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    """The store that the test's parameter names."""
    found: Backend = request.getfixturevalue(
        {"sqlite": "sqlite_backend", "influxdb": "influx_backend", "tsm": "tsm_backend"}[request.param]
    )
    return found


@pytest.fixture
def sqlite_backend(tmp_path: Path) -> Iterator[SqliteBackend]:
    """For what only SQLite promises."""
    backend = SqliteBackend(tmp_path / "predictions.db")
    yield backend
    backend.mend()


@pytest.fixture
def influx_backend(influx_server: InfluxServer) -> Iterator[InfluxBackend]:
    """For what only InfluxDB needs."""
    backend = InfluxBackend(influx_server)
    yield backend
    backend.mend()


@pytest.fixture
def store(backend: Backend) -> Iterator[PredictionStore]:
    """The store of `backend`, open."""
    store = open_store(backend.config())
    yield store
    store.close()
