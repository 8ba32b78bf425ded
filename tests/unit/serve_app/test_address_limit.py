"""The per-address middleware: a stand-in application behind it, the real context middleware around it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.telemetry import Telemetry
from deployments.tracing import Tracing
from serve_app.access.address_limit import AddressLimitMiddleware
from serve_app.access.client_address import ClientAddresses
from serve_app.access.quotas import Verdict
from serve_app.metrics import HttpMetrics
from serve_app.middleware import RequestContextMiddleware, context_of

LOGGER = logging.Logger("limits")
EXEMPT = frozenset({"/live", "/api/ready"})


class FakeQuotas:
    """Grants `left` requests to each key."""

    def __init__(self, left: int = 2) -> None:
        self.left = left
        self.taken: list[tuple[str, str]] = []
        self.gate: asyncio.Event | None = None

    def take(self, quota: str, key: str) -> Verdict | asyncio.Future[Verdict]:
        return self._take(quota, key) if self.gate is None else asyncio.ensure_future(self._wait(quota, key))

    async def _wait(self, quota: str, key: str) -> Verdict:
        assert self.gate is not None
        await self.gate.wait()
        return self._take(quota, key)

    def _take(self, quota: str, key: str) -> Verdict:
        self.taken.append((quota, key))
        remaining = self.left - self.taken.count((quota, key))
        return Verdict(quota, remaining >= 0, self.left, max(0, remaining), 11.5, 60)


class Behind:
    """The application behind: remembers what reached it."""

    def __init__(self) -> None:
        self.reached: list[str] = []
        self.verdicts: list[list[Verdict]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            self.reached.append(scope["type"])
            return
        self.reached.append(scope["path"])
        self.verdicts.append(list(context_of(scope).verdicts))
        await PlainTextResponse("ok")(scope, receive, send)


@pytest.fixture
def quotas() -> FakeQuotas:
    return FakeQuotas()


@pytest.fixture
def behind() -> Behind:
    return Behind()


@pytest.fixture
def app(quotas: FakeQuotas, behind: Behind) -> ASGIApp:
    limited = AddressLimitMiddleware(
        behind,
        quotas=quotas,
        addresses=ClientAddresses(["10.0.0.0/8"]),
        exempt_paths=EXEMPT,
        logger=logging.Logger("limits"),
    )
    metrics, tracing = HttpMetrics(Telemetry()), Tracing("ingress", "test")
    return RequestContextMiddleware(
        limited, timeout_s=5, metrics=metrics, tracing=tracing, logger=logging.Logger("limits")
    )


@pytest.fixture
async def client(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app, client=("203.0.113.9", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://nilm.test") as client:
        yield client


async def test_the_quota_is_taken_and_the_rest_is_refused(
    client: httpx.AsyncClient, quotas: FakeQuotas, behind: Behind
) -> None:
    replies = [await client.post("/infer", content=b"x", headers={"X-Request-ID": "r-1"}) for _ in range(4)]
    assert [reply.status_code for reply in replies] == [200, 200, 429, 429]
    assert behind.reached == ["/infer"] * 2
    assert quotas.taken == [("ip", "203.0.113.9")] * 4
    refusal = replies[-1]
    assert refusal.headers["content-type"] == "application/problem+json"
    assert refusal.headers["retry-after"] == "12"
    assert refusal.headers["ratelimit"] == '"ip";r=0;t=12'
    assert refusal.headers["ratelimit-policy"] == '"ip";q=2;w=60'
    body = refusal.json()
    assert (body["code"], body["status"], body["retryable"], body["instance"], body["request_id"]) == (
        "rate_limited",
        429,
        True,
        "/infer",
        "r-1",
    )
    assert "203.0.113.9" not in refusal.text


async def test_the_verdict_is_left_for_the_headers(client: httpx.AsyncClient, behind: Behind) -> None:
    reply = await client.get("/models")
    assert [[(v.quota, v.remaining) for v in verdicts] for verdicts in behind.verdicts] == [[("ip", 1)]]
    assert reply.headers["ratelimit"] == '"ip";r=1;t=12'


@pytest.mark.parametrize("path", sorted(EXEMPT))
async def test_probes_are_never_limited(
    client: httpx.AsyncClient, quotas: FakeQuotas, behind: Behind, path: str
) -> None:
    replies = [await client.get(path) for _ in range(5)]
    assert {reply.status_code for reply in replies} == {200}
    assert quotas.taken == []
    assert "ratelimit" not in replies[0].headers


@pytest.mark.parametrize("path", ["/live/", "/live/x", "//live", "/LIVE", "/api/live", "/infer;/live", "/infer?/live"])
async def test_nothing_that_only_resembles_a_probe_is_exempt(
    client: httpx.AsyncClient, quotas: FakeQuotas, path: str
) -> None:
    await client.get(f"http://nilm.test{path}")
    assert len(quotas.taken) == 1


@pytest.mark.parametrize(
    ("peer", "header", "key"),
    [
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "2001:db8:1:2::7", "2001:db8:1:2::/64"),
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ("2001:db8:9:9::1", "198.51.100.1", "2001:db8:9:9::/64"),
    ],
)
async def test_whose_quota_it_is(app: ASGIApp, quotas: FakeQuotas, peer: str, header: str, key: str) -> None:
    transport = httpx.ASGITransport(app=app, client=(peer, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://nilm.test") as client:
        await client.get("/models", headers={"X-Forwarded-For": header})
    assert quotas.taken == [("ip", key)]


async def test_several_forwarded_headers_are_one_list(app: ASGIApp, quotas: FakeQuotas) -> None:
    transport = httpx.ASGITransport(app=app, client=("10.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://nilm.test") as client:
        headers = [("X-Forwarded-For", "1.1.1.1"), ("x-forwarded-for", "198.51.100.1, 10.0.0.2")]
        await client.get("/models", headers=headers)
    assert quotas.taken == [("ip", "198.51.100.1")]


async def test_no_peer_shares_one_quota(app: ASGIApp, quotas: FakeQuotas) -> None:
    scope = {"type": "http", "method": "GET", "path": "/models", "headers": [], "client": None}

    async def receive() -> dict[str, object]:
        return {"type": "http.request"}

    async def send(message: object) -> None:
        pass

    await app(scope, receive, send)  # type: ignore[arg-type]
    del scope["client"]
    await app(scope, receive, send)  # type: ignore[arg-type]
    assert quotas.taken == [("ip", "unknown")] * 2


async def test_what_is_not_http_passes(quotas: FakeQuotas, behind: Behind) -> None:
    app = AddressLimitMiddleware(behind, quotas=quotas, addresses=ClientAddresses(), exempt_paths=(), logger=LOGGER)
    await app({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert (behind.reached, quotas.taken) == (["lifespan"], [])


async def test_a_client_that_leaves_while_it_waits_reaches_nothing(
    client: httpx.AsyncClient, quotas: FakeQuotas, behind: Behind
) -> None:
    quotas.gate = asyncio.Event()
    request = asyncio.create_task(client.get("/models"))
    await asyncio.sleep(0.01)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert behind.reached == []
