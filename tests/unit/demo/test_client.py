"""The client against a real local server: the contract, the waits, and what it refuses to go on with."""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import numpy as np
import pytest

from serve_app.demo.client import ServiceClient, _retry_after_s
from serve_app.demo.errors import Refused, ServiceError, UnexpectedReply, Unreachable, WindowFailed
from serve_app.demo.recording import WindowRequest

END = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def _window(size: int = 10) -> WindowRequest:
    return WindowRequest(target=7, last_sample_at=END, window_kw=np.linspace(0.1, 1.0, size))


async def test_the_contract_comes_from_models_and_lists_what_serves(service: Any) -> None:
    async with ServiceClient(service.url + "/", service.token) as client:
        contract = await client.contract()
    # Of the final answers: the index of the provisional ones beside it is 9.
    assert (contract.window_size, contract.sample_period_s, contract.output_index) == (10, 60, 7)
    assert contract.appliances == ("microwave", "kettle")


async def test_the_body_is_kilowatts_with_the_instant_of_the_last_sample(service: Any) -> None:
    """And names no attribution: the service then gives final answers, for which the windows were cut."""
    async with ServiceClient(service.url, service.token) as client:
        reply = await client.disaggregate("home-1", _window())
    assert service.bodies == [
        {"building_id": "home-1", "window": pytest.approx(np.linspace(0.1, 1, 10)), "timestamp": END.isoformat()}
    ]
    assert reply.predicted_for == END - timedelta(minutes=2)
    assert [appliance.appliance_id for appliance in reply.appliances] == ["kettle", "microwave"]


@pytest.mark.parametrize("status", [429, 503])
async def test_it_waits_for_retry_after_and_goes_on(service: Any, status: int) -> None:
    waits: list[tuple[float, str]] = []
    service.fault = lambda n: (status, {"Retry-After": "1"}, {"detail": "Later, please."}) if n == 1 else None
    began = time.monotonic()
    async with ServiceClient(service.url, service.token, lambda *wait: waits.append(wait)) as client:
        reply = await client.disaggregate("home", _window())
    assert reply.persisted
    assert time.monotonic() - began >= 1.0
    assert waits == [(1.0, f"{status}, Later, please")]


async def test_a_retryable_server_error_is_tried_again_and_a_plain_one_is_not(service: Any) -> None:
    service.fault = lambda n: (504, {"Retry-After": "0"}, {"retryable": True, "title": "Too slow"}) if n == 1 else None
    async with ServiceClient(service.url, service.token) as client:
        assert (await client.disaggregate("home", _window())).persisted
        service.fault = lambda _n: (500, {}, {"title": "Internal error"})
        with pytest.raises(WindowFailed, match="500, Internal error"):
            await client.disaggregate("home", _window())
    assert len(service.bodies) == 3


async def test_patience_ends(service: Any) -> None:
    service.fault = lambda _n: (503, {"Retry-After": "0"}, {"title": "Busy"})
    async with ServiceClient(service.url, service.token) as client:
        with pytest.raises(WindowFailed, match="no answer after 8 attempts"):
            await client.disaggregate("home", _window())


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (401, {"detail": "The token has expired."}, r"does not accept the token \(The token has expired\)"),
        (403, {"detail": "Not your building."}, "choose a building it covers"),
        (404, {"title": "Not found"}, "has no /disaggregate"),
        (
            422,
            {"detail": "Invalid.", "errors": [{"pointer": "/window", "detail": "needs 512 samples"}]},
            r"refuses the window \(Invalid. /window needs 512 samples\)",
        ),
        (413, "too big", r"with 413"),
    ],
)
async def test_refusals_end_the_run_in_one_sentence(service: Any, status: int, body: object, sentence: str) -> None:
    service.fault = lambda _n: (status, {}, body)
    async with ServiceClient(service.url, service.token) as client:
        with pytest.raises(Refused, match=sentence):
            await client.disaggregate("home", _window())


async def test_an_answer_that_was_not_stored_is_no_acknowledgement(service: Any) -> None:
    service.extra = {"persisted": False}
    async with ServiceClient(service.url, service.token) as client:
        with pytest.raises(WindowFailed, match="without storing"):
            await client.disaggregate("home", _window())


async def test_an_unknown_reply_says_what_is_missing(service: Any) -> None:
    service.fault = lambda _n: (200, {}, {"persisted": True})
    async with ServiceClient(service.url, service.token) as client:
        with pytest.raises(UnexpectedReply, match="appliances: Field required"):
            await client.disaggregate("home", _window())


async def test_a_service_without_ready_models_is_said_to_be_so(service: Any) -> None:
    service.models = lambda: (200, {}, {"models": [], "appliances": [], "disaggregate": None})
    async with ServiceClient(service.url, service.token) as client:
        with pytest.raises(Unreachable, match="no model ready"):
            await client.contract()


async def test_nobody_listening() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        async with ServiceClient(f"http://127.0.0.1:{taken.getsockname()[1]}", "t") as client:
            with pytest.raises(Unreachable, match="No service answers at"):
                await client.contract()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:port"])
def test_a_bad_url(url: str) -> None:
    with pytest.raises(ServiceError, match="is not"):
        ServiceClient(url, "t")


def test_retry_after_in_both_forms() -> None:
    def seconds(value: str) -> float:
        return _retry_after_s(httpx.Response(503, headers={"Retry-After": value}))

    assert seconds("7") == 7.0
    assert seconds("0") == 0.1
    assert seconds("999999") == 120.0
    assert seconds("soon") == 1.0
    assert seconds("1.5") == 1.0
    assert 25 < seconds(format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)) <= 30
