"""What a client may send: bytes of body and headers, counted on the wire, and time."""

from __future__ import annotations

import asyncio
import gzip
import json
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.http import BODY_LIMIT_BYTES
from serve_app.request_limits import MAX_HEADERS_BYTES

Message = dict[str, Any]


class Upload:
    """A client that sends `chunks` and counts what was taken from it; None waits for ever."""

    def __init__(self, *chunks: bytes | None) -> None:
        self.chunks = list(chunks)
        self.taken_bytes = 0
        self.replies: list[Message] = []

    async def receive(self) -> Message:
        if not self.chunks or self.chunks[0] is None:
            await asyncio.Event().wait()
        chunk = self.chunks.pop(0)
        assert chunk is not None
        self.taken_bytes += len(chunk)
        return {"type": "http.request", "body": chunk, "more_body": bool(self.chunks)}

    async def send(self, message: Message) -> None:
        self.replies.append(message)

    @property
    def status(self) -> int:
        return int(self.replies[0]["status"])

    @property
    def code(self) -> str:
        return str(json.loads(self.replies[1]["body"])["code"])

    def header(self, name: bytes) -> bytes:
        return dict(self.replies[0]["headers"])[name]


async def post(kit: SimpleNamespace, upload: Upload, *headers: tuple[bytes, bytes], **settings: Any) -> Upload:
    async with kit.start(**settings) as service:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/infer",
            "raw_path": b"/infer",
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "http_version": "1.1",
            "client": ("127.0.0.1", 5),
            "server": ("nilm.test", 80),
            "headers": [
                (b"content-type", b"application/json"),
                (b"authorization", f"Bearer {kit.mint()}".encode()),
                *headers,
            ],
        }
        await service.app(scope, upload.receive, upload.send)
    return upload


async def test_a_chunked_upload_is_refused_once_the_limit_was_read(kit: SimpleNamespace) -> None:
    chunk = b"[" * 16384
    upload = await post(kit, Upload(*[chunk] * 640), (b"transfer-encoding", b"chunked"))  # 10 MiB
    assert (upload.status, upload.code) == (413, "body_too_large")
    assert BODY_LIMIT_BYTES < upload.taken_bytes <= BODY_LIMIT_BYTES + len(chunk)
    assert upload.header(b"connection") == b"close"
    print(f"10 MiB offered in chunks of 16 KiB, refused after {upload.taken_bytes} bytes were read")


async def test_a_declared_length_is_refused_before_a_byte_is_read(kit: SimpleNamespace) -> None:
    upload = await post(kit, Upload(b"x"), (b"content-length", b"10485760"))
    assert (upload.status, upload.code, upload.taken_bytes) == (413, "body_too_large", 0)


async def test_a_length_longer_than_any_number_is_refused(kit: SimpleNamespace) -> None:
    upload = await post(kit, Upload(b"x"), (b"content-length", b"9" * 5000))
    assert (upload.status, upload.code) == (413, "body_too_large")


async def test_what_is_refused_for_its_size_is_counted_too(kit: SimpleNamespace) -> None:
    async with kit.start(rate_limit_per_ip=2) as service:
        statuses = [
            (await service.client.get("/models", headers={"X-Padding": "a" * MAX_HEADERS_BYTES})).status_code
            for _ in range(4)
        ]
    assert statuses == [431, 431, 429, 429]


async def test_a_length_that_lies_is_counted_all_the_same(kit: SimpleNamespace) -> None:
    upload = await post(kit, Upload(*[b"[" * 65536] * 160), (b"content-length", b"10"))
    assert upload.status == 413


async def test_a_body_that_drips_ends_with_the_requests_time(kit: SimpleNamespace) -> None:
    upload = await post(kit, Upload(b"{", None), request_timeout_s=0.2)
    assert (upload.status, upload.code) == (408, "body_too_slow")
    assert upload.header(b"connection") == b"close"


@pytest.mark.parametrize(("size", "status"), [(MAX_HEADERS_BYTES, 431), (1000, 400)])
async def test_headers_are_bounded(kit: SimpleNamespace, size: int, status: int) -> None:
    upload = await post(kit, Upload(b"{"), (b"x-padding", b"a" * size))
    assert upload.status == status


async def test_a_gzip_bomb_is_not_unpacked(kit: SimpleNamespace) -> None:
    bomb = gzip.compress(b"[" * 50_000_000)
    upload = await post(kit, Upload(bomb), (b"content-encoding", b"gzip"))
    assert (upload.status, upload.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize("opening", [b"[", b'{"window":'])
async def test_deep_json_is_refused_and_not_followed(kit: SimpleNamespace, opening: bytes) -> None:
    body = opening * (BODY_LIMIT_BYTES // len(opening))
    upload = await post(kit, Upload(body))
    assert (upload.status, upload.code) == (400, "malformed_json")
