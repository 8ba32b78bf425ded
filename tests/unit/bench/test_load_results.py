"""What the load generators say, read; and when the open loop sends."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import numpy as np
import pytest

from serve_app.schemas import InferBatchRequest, InferRequest
from tests.bench.serving.closed_loop import MISSING, find_wrk, parse_wrk
from tests.bench.serving.connections import complete_reply
from tests.bench.serving.load import LoadFailed, percentile
from tests.bench.serving.open_loop import FEWEST_CONNECTIONS, MOST_CONNECTIONS, connections_for, schedule
from tests.bench.serving.request_set import (
    FLOAT32,
    RequestSet,
    batch_requests,
    float32_requests,
    http_requests,
    infer_requests,
)

WRK = """Running 2s test @ http://127.0.0.1:8001
  1 threads and 8 connections
  2000 requests in 2.00s, 1.10MB read
  Non-2xx or 3xx responses: 50
Requests/sec:   1000.00
WRK {"replies": 2000, "duration_us": 2000000, "p50_us": 7500.0, "p99_us": 21000.0, "max_us": 30000.0, \
"status": 50, "connect": 1, "read": 2, "write": 3, "timeout": 4}
"""


def test_wrks_figures_count_only_good_replies_as_acknowledged() -> None:
    result = parse_wrk(WRK, generator_cpu_s=0.5)
    assert (result.acknowledged, result.failures) == (1950, 60)
    assert result.per_second == 975
    assert (result.p50_ms, result.p99_ms, result.max_ms) == (7.5, 21, 30)
    assert result.generator_cpu_s == 0.5


def test_wrk_without_its_line_of_figures_is_a_failure() -> None:
    with pytest.raises(LoadFailed, match="unable to connect"):
        parse_wrk("unable to connect to 127.0.0.1:1 Connection refused")


def test_a_missing_wrk_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoadFailed) as missing:
        find_wrk()
    assert str(missing.value) == MISSING
    assert "apt-get install wrk" in MISSING


def test_a_schedule_is_fixed_by_its_seed_and_keeps_its_rate() -> None:
    instants = list(schedule(200.0, 50.0, seed=3))
    assert instants == list(schedule(200.0, 50.0, seed=3)) != list(schedule(200.0, 50.0, seed=4))
    assert all(earlier < later for earlier, later in itertools.pairwise(instants))
    assert instants[0] > 0
    assert instants[-1] < 50
    assert len(instants) == pytest.approx(10_000, rel=0.05)


def test_arrivals_are_those_of_independent_clients() -> None:
    """Gaps of a Poisson process are exponential: their deviation is their mean."""
    gaps = [later - earlier for earlier, later in itertools.pairwise(schedule(200.0, 50.0, seed=3))]
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)


@pytest.mark.parametrize(("rate", "count"), [(2, FEWEST_CONNECTIONS), (100, 100), (4000, MOST_CONNECTIONS)])
def test_every_connection_is_used_about_once_a_second(rate: float, count: int) -> None:
    assert connections_for(rate) == count


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50.0), (0.99, 99.0), (0.999, 100.0), (1.0, 100.0), (0.001, 1.0)])
def test_percentiles_are_values_that_occurred(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 503 Service Unavailable\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
EMPTY_CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"


@pytest.mark.parametrize(("reply", "status"), [(OK, 200), (CHUNKED, 503), (EMPTY_CHUNKED, 200)])
def test_a_reply_has_its_status_once_it_is_whole_and_not_a_byte_before(reply: bytes, status: int) -> None:
    assert [complete_reply(reply[:end]) for end in range(len(reply))] == [None] * len(reply)
    assert complete_reply(reply) == status


def test_prepared_requests_survive_their_file(tmp_path: Path) -> None:
    file = tmp_path / "requests"
    prepared = (("/infer?a=1", b"\n\r\n"), ("/infer", b""), ("/infer", b"12\n"))
    RequestSet("a.b.c", FLOAT32, prepared).write(file)
    first, second, third = http_requests(file, "127.0.0.1:80")
    assert first.startswith(b"POST /infer?a=1 HTTP/1.1\r\nHost: 127.0.0.1:80\r\nAuthorization: Bearer a.b.c\r\n")
    assert first.endswith(b"Content-Length: 3\r\n\r\n\n\r\n")
    assert second.endswith(b"Content-Length: 0\r\n\r\n")
    assert third.endswith(b"\r\n\r\n12\n")


def test_windows_and_buildings_differ_and_the_service_would_take_them() -> None:
    windows = [
        InferRequest.model_validate_json(body) for _, body in infer_requests("t", "kettle", 512, buildings=50).requests
    ]
    assert {len(one.window) for one in windows} == {512}
    assert len({one.building_id for one in windows}) == len({tuple(one.window) for one in windows}) == 50
    binary = float32_requests("t", "kettle", 512, buildings=50).requests
    assert binary[1][0] == "/infer?building_id=building-1&appliance_id=kettle"
    assert np.frombuffer(binary[1][1], dtype="<f4").tolist() == np.array(windows[1].window, dtype=np.float32).tolist()
    batches = batch_requests("t", "kettle", 512, buildings=512)
    sizes = [len(InferBatchRequest.model_validate_json(body).items) for _, body in batches.requests]
    assert sizes == [batches.windows_each] * 2 == [256, 256]
