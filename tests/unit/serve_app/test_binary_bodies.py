"""`POST /infer` with the samples as float32: the answers and the refusals of the same window in JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.unit.serve_app.failures import problem

BINARY = {"content-type": "application/octet-stream"}
NAMED = {"building_id": "home", "appliance_id": "kettle"}
WINDOW = np.array([0.25, 0.5, 1.5, 2.0, 0.125], dtype="<f4")


async def send(service: Any, samples: bytes = WINDOW.tobytes(), headers: Any = BINARY, **named: object) -> Any:
    params = {name: value for name, value in (NAMED | named).items() if value is not ...}
    return await service.client.post("/infer", params=params, content=samples, headers=headers)


async def test_it_is_answered_and_stored_as_the_same_window_in_json(service: Any, kit: Any) -> None:
    named = {"timestamp": "2026-01-31T18:00:00+01:00", "attribution": "provisional"}
    binary = await send(service, **named)
    text = await service.infer(kit.infer_body(window=WINDOW.tolist(), **named))
    assert binary.status_code == text.status_code == 200
    assert binary.json() | {"request_id": ""} == text.json() | {"request_id": ""}
    assert service.appliances["kettle"].windows == [WINDOW.tolist()] * 2
    first, second = (one.points[0] for one in service.store.stored)
    assert (first.time_ns, first.predicted_kw, first.building_id) == (
        second.time_ns,
        second.predicted_kw,
        second.building_id,
    )


async def test_it_goes_with_an_idempotency_key(service: Any) -> None:
    headers = BINARY | {"Idempotency-Key": "k-1"}
    first, second = await send(service, headers=headers), await send(service, headers=headers)
    assert first.content == second.content
    assert second.headers["idempotency-replayed"] == "true"
    problem(await send(service, WINDOW[::-1].tobytes(), headers=headers), 422, "idempotency_key_reused")
    assert len(service.store.stored) == 1


@pytest.mark.parametrize(
    ("window", "status", "code", "pointer"),
    [
        (WINDOW.tobytes()[:-1], 400, "bad_request", None),
        (b"", 422, "validation", "/window"),
        (WINDOW[:4].tobytes(), 422, "window_length", "/window"),
        (np.array([0, np.nan, 0, 0, 0], "<f4").tobytes(), 422, "validation", "/window/1"),
        (np.array([0, 0, np.inf, 0, 0], "<f4").tobytes(), 422, "validation", "/window/2"),
        (np.array([0, 0, 0, -1, 0], "<f4").tobytes(), 422, "validation", "/window/3"),
        (np.array([0, 0, 0, 0, 2300], "<f4").tobytes(), 422, "validation", "/window/4"),
        (np.zeros(20_001, "<f4").tobytes(), 422, "validation", "/window"),
    ],
    ids=["cut", "empty", "short", "NaN", "Inf", "negative", "watts", "far too long"],
)
async def test_each_faulty_window_has_its_own_4xx(
    service: Any, window: bytes, status: int, code: str, pointer: str | None
) -> None:
    problem(await send(service, window), status, code, pointer)
    assert service.store.stored == []


@pytest.mark.parametrize(
    ("named", "status", "code", "pointer"),
    [
        ({"building_id": ...}, 422, "validation", "/building_id"),
        ({"building_id": "home\n"}, 422, "validation", "/building_id"),
        ({"building_id": ["home", "other"]}, 422, "validation", "building_id"),
        ({"building_id": "other"}, 403, "forbidden_building", "/building_id"),
        ({"appliance_id": "sauna"}, 404, "unknown_appliance", "/appliance_id"),
        ({"attribution": "centred"}, 422, "validation", "/attribution"),
        ({"timestamp": "1769882400"}, 422, "validation", "/timestamp"),
        ({"window": "1"}, 422, "validation", "window"),
        ({"windows": "1"}, 422, "validation", "/windows"),
    ],
)
async def test_each_faulty_parameter_is_named(
    service: Any, named: dict[str, Any], status: int, code: str, pointer: str
) -> None:
    problem(await send(service, **named), status, code, pointer)
    assert service.store.stored == []


async def test_a_body_that_is_not_said_to_be_binary_is_not_read_as_such(service: Any) -> None:
    problem(await send(service, headers={"content-type": "application/json"}), 400, "malformed_json")
    problem(await send(service, headers={"content-type": "text/plain"}), 415, "unsupported_media_type")
