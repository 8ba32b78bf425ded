"""Quotas and admin routes with two ingress replicas behind Serve's proxy."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serve_app.access.development import mint_development_token
from serve_app.access.principal import Role
from serve_app.access.quota_window import ahead
from serve_app.cli.cluster import CLIENT_TIMEOUT_S, PRODUCTION_MODE
from tests.integration.service import ADMIN_TOKEN, SECRET, Service, running_service, service_config

PER_USER, PER_IP, REPLICAS, REQUESTS = 60, 120, 2, 300
TIMEOUT_S = 4
PROXY, STRANGER = "127.0.0.2", "127.0.0.1"
"""Addresses that requests are sent from. Not the other way round: uvicorn itself would trust 127.0.0.1."""
HAPROXY = "127.0.0.1"
"""Whom a replica sees in production mode, whoever has asked; it must be named, and reached by nobody but the proxy."""
BEHIND_HAPROXY = "NILM_TEST_PRODUCTION_MODE" in os.environ
LEFT = re.compile(r'"(user|ip)";r=(\d+);t=(\d+)')


@pytest.fixture(scope="module")
def two_ingresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("two")
    environment = {
        "RATE_LIMIT_PER_USER": str(PER_USER),
        "RATE_LIMIT_PER_IP": str(PER_IP),
        "TRUSTED_PROXIES": f"{PROXY},{HAPROXY}" if BEHIND_HAPROXY else PROXY,
        "REQUEST_TIMEOUT_S": str(TIMEOUT_S),
    }
    config = service_config(folder / "serve_config.yaml", ingresses=REPLICAS, appliances=["kettle"])
    with running_service(folder, config, environment) as running:
        yield running


def token(user: str, role: Role | None = None) -> str:
    return mint_development_token(SECRET, user, 60, "nilm-development", role)


async def ask(service: Service, headers: list[dict[str, str]], source: str = PROXY) -> list[httpx.Response]:
    """GET /models once for each of `headers`, sixteen at a time, each over a connection of its own."""
    gate = asyncio.Semaphore(16)

    async def one(sent: dict[str, str]) -> httpx.Response:
        transport = httpx.AsyncHTTPTransport(local_address=source)
        async with gate, httpx.AsyncClient(transport=transport, timeout=30) as client:
            return await client.get(f"{service.url}/models", headers=sent)

    return list(await asyncio.gather(*(one(sent) for sent in headers)))


def admin_get(service: Service, path: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token('operator', Role.ADMIN)}", "X-Admin-Token": ADMIN_TOKEN}
    with httpx.Client(transport=httpx.HTTPTransport(local_address=PROXY), timeout=30) as client:
        return client.get(service.url + path, headers=headers | {"X-Forwarded-For": "203.0.113.70"})


def check_granted(statuses: Counter[int], quota: int, what: str, replicas: int = REPLICAS, spent: int = 0) -> None:
    granted, refused = sum(statuses.values()) - statuses[429], statuses[429]
    margin = replicas * ahead(quota)
    print(f"{what}: {granted} of {granted + refused} granted, quota {quota}, stated most {quota + margin - 1}")
    assert refused > 0
    assert quota <= granted + spent < quota + margin


@pytest.mark.integration
def test_every_ingress_answers_the_operator(two_ingresses: Service) -> None:
    stats = admin_get(two_ingresses, "/admin/cache/stats").json()
    assert len({one["replica"] for one in stats["replicas"]}) == REPLICAS
    assert stats["silent_replicas"] == []


@pytest.mark.integration
async def test_one_user_has_one_quota_over_both(two_ingresses: Service) -> None:
    started = time.monotonic()
    bearer = f"Bearer {token('busy')}"
    # From an address each, so that only the user's quota counts.
    sent = [{"Authorization": bearer, "X-Forwarded-For": f"198.51.{n // 250}.{n % 250 + 1}"} for n in range(REQUESTS)]
    replies = await ask(two_ingresses, sent)
    assert time.monotonic() - started < 60, "the window must hold all requests, or the count means nothing"
    assert {reply.status_code for reply in replies} <= {200, 429}
    check_granted(Counter(reply.status_code for reply in replies), PER_USER, "one user, two ingress replicas")
    for reply in replies:
        assert f'"user";q={PER_USER};w=60' in reply.headers["RateLimit-Policy"]
        left = {name: (int(r), int(t)) for name, r, t in LEFT.findall(reply.headers["RateLimit"])}
        assert 0 <= left["user"][0] < PER_USER
        if reply.status_code == 429:
            assert reply.json()["code"] == "rate_limited"
            assert left["user"][0] == 0
            assert 1 <= left["user"][1] <= int(reply.headers["Retry-After"]) <= 60
    fresh = await ask(two_ingresses, [{"Authorization": f"Bearer {token('idle')}", "X-Forwarded-For": "203.0.113.9"}])
    assert fresh[0].status_code == 200


@pytest.mark.integration
@pytest.mark.parametrize(
    ("source", "one_client"),
    [
        (PROXY, True),
        (PROXY, False),
        pytest.param(STRANGER, False, marks=pytest.mark.skipif(BEHIND_HAPROXY, reason="it hides who has asked")),
    ],
    ids=["trusted proxy, one client", "trusted proxy, many clients", "untrusted peer that claims to be many"],
)
async def test_an_address_has_one_quota_over_both(two_ingresses: Service, source: str, one_client: bool) -> None:
    forwarded = ["192.0.2.1" if one_client else f"10.{n // 250}.{n % 250}.7" for n in range(REQUESTS)]
    # A token each, so that only the address' quota counts.
    sent = [
        {"Authorization": f"Bearer {token(f'user-{source}-{n}')}", "X-Forwarded-For": address}
        for n, address in enumerate(forwarded)
    ]
    statuses = Counter(reply.status_code for reply in await ask(two_ingresses, sent, source))
    assert set(statuses) <= {200, 429}
    if source == PROXY and not one_client:
        assert statuses == {200: REQUESTS}
    else:
        check_granted(statuses, PER_IP, f"one address, {'trusted' if source == PROXY else 'untrusted'} peer")


@pytest.mark.integration
async def test_behind_haproxy_nobody_chooses_an_address(tmp_path: Path) -> None:
    """HAProxy connects from this machine and adds no X-Forwarded-For; what clients write into it counts for nothing."""
    environment = PRODUCTION_MODE | {"RATE_LIMIT_PER_IP": str(PER_IP)}
    config = service_config(tmp_path / "serve_config.yaml", appliances=["kettle"])
    with running_service(tmp_path, config, environment) as haproxy:
        sent = [
            {"Authorization": f"Bearer {token(f'user-{n}')}", "X-Forwarded-For": f"10.{n // 250}.{n % 250}.7"}
            for n in range(REQUESTS)
        ]
        statuses = Counter(reply.status_code for reply in await ask(haproxy, sent, STRANGER))
    # `nilm run` itself has asked for /models, from the same address.
    check_granted(statuses, PER_IP, "one address behind HAProxy", replicas=1, spent=1)


@pytest.mark.integration
def test_ten_megabytes_are_refused_early(two_ingresses: Service) -> None:
    """Through the proxy, with and without a length: what was sent before the refusal came is printed."""
    chunk, sent = b"[" * 16384, 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(640):
            yield chunk
            sent += len(chunk)

    headers = {
        "Authorization": f"Bearer {token('uploader')}",
        "Content-Type": "application/json",
        "X-Forwarded-For": "203.0.113.77",
    }
    transport = httpx.HTTPTransport(local_address=PROXY)
    with httpx.Client(transport=transport, timeout=30, trust_env=False) as client:
        reply = client.post(f"{two_ingresses.url}/infer", content=body(), headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")
        print(f"10 MiB chunked: refused, the client had handed over {sent} bytes to the socket")
        reply = client.post(f"{two_ingresses.url}/infer", content=chunk * 640, headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")


@pytest.mark.integration
def test_a_body_that_stops_coming_is_given_up(two_ingresses: Service) -> None:
    host, port = two_ingresses.url.removeprefix("http://").split(":")
    head = (
        f"POST /infer HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token('slow')}\r\n"
        "Content-Type: application/json\r\nContent-Length: 1000\r\nX-Forwarded-For: 203.0.113.78\r\n\r\n{"
    )
    with socket.create_connection((host, int(port)), timeout=30, source_address=(PROXY, 0)) as connection:
        started = time.monotonic()
        connection.sendall(head.encode())
        answer = ""
        while "body_too_slow" not in answer:
            received = connection.recv(4096)
            assert received, answer
            answer += received.decode()
        if BEHIND_HAPROXY:
            connection.settimeout(CLIENT_TIMEOUT_S + 10)
        # And the connection is closed: nobody keeps one by sending half a request.
        while connection.recv(4096):
            pass
    print(f"slow body: {answer.splitlines()[0]} after {time.monotonic() - started:.1f} s of {TIMEOUT_S} s")
    assert answer.startswith("HTTP/1.1 408")
    assert "body_too_slow" in answer
