"""Bodies that `POST /infer` refuses before any model runs: faults, types, encodings, sizes, no token."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.unit.serve_app.failures import problem

JSON_TYPE = {"content-type": "application/json"}

BODY_FAULTS: list[tuple[str, dict[str, object] | str, int, str, str | None]] = [
    ("too short", {"window": [0.1]}, 422, "window_length", "/window"),
    ("too long", {"window": [0.1] * 6}, 422, "window_length", "/window"),
    ("far too long", {"window": [0.1] * 30_000}, 422, "validation", "/window"),
    ("empty", {"window": []}, 422, "validation", "/window"),
    ("NaN", "[0.1, NaN, 0.3, 0.4, 0.5]", 422, "validation", "/window/1"),
    ("Inf", "[0.1, 0.2, Infinity, 0.4, 0.5]", 422, "validation", "/window/2"),
    ("overflow", "[0.1, 0.2, 1e999, 0.4, 0.5]", 422, "validation", "/window/2"),
    ("text", {"window": ["a", 0.2, 0.3, 0.4, 0.5]}, 422, "validation", "/window/0"),
    ("number as text", {"window": [0.1, 0.2, "0.3", 0.4, 0.5]}, 422, "validation", "/window/2"),
    ("null", {"window": [0.1, 0.2, None, 0.4, 0.5]}, 422, "validation", "/window/2"),
    ("bool", {"window": [True, 0.2, 0.3, 0.4, 0.5]}, 422, "validation", "/window/0"),
    ("nested", {"window": [[0.1, 0.2], 0.3]}, 422, "validation", "/window/0"),
    ("negative", {"window": [0.1, -0.2, 0.3, 0.4, 0.5]}, 422, "validation", "/window/1"),
    ("watts", {"window": [0.1, 2300, 0.3, 0.4, 0.5]}, 422, "validation", "/window/1"),
    ("no building", {"building_id": ...}, 422, "validation", "/building_id"),
    ("newline", {"building_id": "home\n"}, 422, "validation", "/building_id"),
    ("foreign building", {"building_id": "other"}, 403, "forbidden_building", "/building_id"),
    ("unknown appliance", {"appliance_id": "sauna"}, 404, "unknown_appliance", "/appliance_id"),
    ("appliance path", {"appliance_id": "../kettle"}, 422, "validation", "/appliance_id"),
    ("unknown field", {"windows": []}, 422, "validation", "/windows"),
    ("pointer escapes", {"a/b~c": 1}, 422, "validation", "/a~1b~0c"),
    ("invalid date", {"timestamp": "2026-02-30T00:00:00Z"}, 422, "validation", "/timestamp"),
    ("no offset", {"timestamp": "2026-01-31T18:00:00"}, 422, "validation", "/timestamp"),
    ("epoch", {"timestamp": 1769882400}, 422, "validation", "/timestamp"),
    ("unknown attribution", {"attribution": "centred"}, 422, "validation", "/attribution"),
    ("attribution in capitals", {"attribution": "FINAL"}, 422, "validation", "/attribution"),
    ("no attribution", {"attribution": None}, 422, "validation", "/attribution"),
    ("both attributions", {"attribution": ["final", "provisional"]}, 422, "validation", "/attribution"),
    ("future", {"timestamp": "2226-01-31T18:00:00Z"}, 422, "validation", "/timestamp"),
]


@pytest.mark.parametrize("name", [case[0] for case in BODY_FAULTS])
async def test_each_faulty_body_has_its_own_4xx_and_the_next_request_works(service: Any, kit: Any, name: str) -> None:
    _, change, status, code, pointer = next(case for case in BODY_FAULTS if case[0] == name)
    if isinstance(change, str):
        content = json.dumps(kit.infer_body(window="W")).replace('"W"', change)
    else:
        content = json.dumps(kit.infer_body(**change))
    response = await service.client.post("/infer", content=content, headers=JSON_TYPE)
    body = problem(response, status, code, pointer)
    assert body["retryable"] is False
    assert service.store.stored == []
    assert (await service.infer()).status_code == 200


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{'a': 1}", b'{"a": 1,}', b"\xff\xfe", b"[" * 100_000, b'{"window":' + b"[" * 200_000, b"nul"],
    ids=["empty", "open", "quotes", "comma", "utf-16", "deep", "deep window", "junk"],
)
async def test_what_is_not_json_is_400(service: Any, content: bytes) -> None:
    problem(await service.client.post("/infer", content=content, headers=JSON_TYPE), 400, "malformed_json")
    assert (await service.infer()).status_code == 200


@pytest.mark.parametrize("content", [b"[]", b"7", b"null", b'"text"'])
async def test_json_that_is_no_object_points_at_the_whole(service: Any, content: bytes) -> None:
    problem(await service.client.post("/infer", content=content, headers=JSON_TYPE), 422, "validation", "")


async def test_many_faults_make_a_small_reply(service: Any, kit: Any) -> None:
    extras = {f"extra_{i}": i for i in range(5_000)}
    body = problem(await service.infer(kit.infer_body(**extras)), 422, "validation", "/extra_0")
    assert len(body["errors"]) == 20
    # Of a window the first fault is enough: listing all of them would block the event loop.
    body = problem(await service.infer(kit.infer_body(window=["x"] * 20_000)), 422, "validation", "/window/0")
    assert len(body["errors"]) == 1
    wide = {"k" * 500 + str(i): 1 for i in range(100)}
    response = await service.infer(kit.infer_body(**wide))
    assert len(response.content) < 8_000


@pytest.mark.parametrize("cut", [79, 80, 81])
async def test_a_pointer_is_cut_at_a_whole_character(service: Any, kit: Any, cut: int) -> None:
    body = problem(await service.infer(kit.infer_body(**{"k" * cut + "/~/~": 1})), 422, "validation")
    pointer = body["errors"][0]["pointer"]
    assert "~" not in pointer.replace("~0", "").replace("~1", "")


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"content-type": "text/plain"}, "application/json"),
        ({"content-type": "application/x-www-form-urlencoded"}, "application/json"),
        ({"content-type": "multipart/form-data; boundary=x"}, "application/json"),
        ({"content-type": "application/jsonp"}, "application/json"),
        ({"content-type": ""}, "application/json"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, "Compressed"),
        ({"content-type": "application/json", "content-encoding": "br"}, "Compressed"),
    ],
)
async def test_another_type_or_encoding_is_415(service: Any, kit: Any, headers: dict[str, str], says: str) -> None:
    content = json.dumps(kit.infer_body()).encode()
    content = gzip.compress(content) if headers.get("content-encoding") == "gzip" else content
    response = await service.client.post("/infer", content=content, headers=headers)
    assert says in problem(response, 415, "unsupported_media_type")["detail"]
    assert (await service.infer()).status_code == 200


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8"])
async def test_json_types_that_are_accepted(service: Any, kit: Any, content_type: str) -> None:
    content = json.dumps(kit.infer_body())
    response = await service.client.post("/infer", content=content, headers={"content-type": content_type})
    assert response.status_code == 200


async def test_a_large_body_with_its_length_is_413_and_never_read(service: Any) -> None:
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(10):
            read += 1
            yield b"0" * 1_000_000

    headers = JSON_TYPE | {"content-length": "10000000"}
    problem(await service.client.post("/infer", content=chunks(), headers=headers), 413, "body_too_large")
    assert read <= 1
    assert (await service.infer()).status_code == 200


async def test_a_large_chunked_body_is_413_when_the_limit_is_crossed(service: Any) -> None:
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(160):
            read += 1
            yield b" " * 65_536

    response = await service.client.post("/infer", content=chunks(), headers=JSON_TYPE)
    problem(response, 413, "body_too_large")
    assert response.headers["connection"] == "close"
    assert read <= 8
    assert (await service.infer()).status_code == 200


@pytest.mark.parametrize(("extra", "status"), [(0, 200), (1, 413)])
@pytest.mark.parametrize("chunked", [False, True])
async def test_the_body_limit_is_exact(service: Any, kit: Any, extra: int, status: int, chunked: bool) -> None:
    content = json.dumps(kit.infer_body()).encode()
    content += b" " * (256 * 1024 + extra - len(content))

    async def stream() -> AsyncIterator[bytes]:
        yield content

    response = await service.client.post("/infer", content=stream() if chunked else content, headers=JSON_TYPE)
    assert response.status_code == status


async def test_an_understated_length_does_not_help(service: Any) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 65_536

    headers = JSON_TYPE | {"content-length": "10"}
    problem(await service.client.post("/infer", content=chunks(), headers=headers), 413, "body_too_large")


@pytest.mark.parametrize("authorization", ["", "Bearer junk", "Basic abc"])
async def test_no_token_is_refused_before_the_body_is_read(service: Any, kit: Any, authorization: str) -> None:
    response = await service.client.post("/infer", content=b"{", headers={"authorization": authorization})
    body = problem(response, 401, "token_malformed" if "junk" in authorization else "token_missing")
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert body["retryable"] is False
