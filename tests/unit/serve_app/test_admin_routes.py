"""Admin routes: who may call them, and that they reach every ingress replica's cache."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app import questions
from serve_app.access.cache_control import answers_of
from serve_app.access.grants import GrantCache
from serve_app.access.principal import Principal, Role
from serve_app.questions import Listener

ADMIN = {"role": "admin"}


@dataclass(frozen=True)
class OtherStats:
    """What a later version may say."""

    something_new: int


ROUTES = [("POST", "/admin/cache/invalidate", {"all": True}), ("GET", "/admin/cache/stats", None)]


def headers(kit: SimpleNamespace, role: object = "admin", admin_token: str | None = ...) -> dict[str, str]:  # type: ignore[assignment]
    token = kit.mint(app_metadata={"role": role}) if role else kit.mint()
    offered = kit.ADMIN_TOKEN if admin_token is ... else admin_token
    return {"Authorization": f"Bearer {token}", **({"X-Admin-Token": offered} if offered is not None else {})}


def cache_listener(service: Any, name: str, cache: GrantCache) -> Listener:
    return Listener(
        service.coordinator, name, answers_of(cache), lambda: cache.invalidate(None), logging.Logger("unit")
    )


@asynccontextmanager
async def replicas(service: Any, kit: SimpleNamespace, *names: str) -> AsyncIterator[dict[str, GrantCache]]:
    """Caches of other ingress replicas, listening."""
    caches = {name: GrantCache(kit.FixedGrants()) for name in names}
    listeners = [cache_listener(service, name, cache) for name, cache in caches.items()]
    tasks = [asyncio.create_task(listener.run()) for listener in listeners]
    await asyncio.sleep(0.02)
    yield caches
    for task in tasks:
        task.cancel()


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
@pytest.mark.parametrize("prefix", ["", "/api"])
@pytest.mark.parametrize(
    ("role", "admin_token", "status", "code"),
    [
        ("admin", ..., 200, None),
        ("super_admin", ..., 200, None),
        (None, ..., 403, "forbidden_role"),
        ("user", ..., 403, "forbidden_role"),
        ("Admin", ..., 403, "forbidden_role"),
        (["admin"], ..., 403, "forbidden_role"),
        ("admin", None, 403, "admin_token_wrong"),
        ("admin", "", 403, "admin_token_wrong"),
        ("admin", "wrong", 403, "admin_token_wrong"),
        ("user", "wrong", 403, "forbidden_role"),
    ],
)
async def test_it_takes_the_role_and_the_admin_token(
    kit: SimpleNamespace,
    method: str,
    path: str,
    body: object,
    prefix: str,
    role: object,
    admin_token: Any,
    status: int,
    code: str | None,
) -> None:
    async with kit.start() as service:
        reply = await service.client.request(method, prefix + path, json=body, headers=headers(kit, role, admin_token))
    assert reply.status_code == status, reply.text
    assert reply.json().get("code") == code


async def test_a_role_in_what_the_user_can_write_counts_for_nothing(kit: SimpleNamespace) -> None:
    token = kit.mint(user_metadata=ADMIN, role="super_admin")
    async with kit.start() as service:
        reply = await service.client.get(
            "/admin/cache/stats",
            headers={"Authorization": f"Bearer {token}", "X-Admin-Token": kit.ADMIN_TOKEN},
        )
    assert reply.json()["code"] == "forbidden_role"


async def test_the_profile_makes_an_admin_where_the_token_names_no_role(kit: SimpleNamespace) -> None:
    grants = kit.FixedGrants(roles={"user-1": Role.ADMIN})
    async with kit.start(grants=grants) as service:
        reply = await service.client.get("/admin/cache/stats", headers=headers(kit, None))
        assert reply.status_code == 200
        grants.failure = ConnectionError()
        service.services.grants.invalidate(None)
        reply = await service.client.get("/admin/cache/stats", headers=headers(kit, None))
        assert (reply.status_code, reply.json()["code"]) == (503, "grants_unavailable")


async def test_without_an_admin_token_the_role_is_enough_in_development(kit: SimpleNamespace) -> None:
    async with kit.start(admin_token="") as service:
        reply = await service.client.get("/admin/cache/stats", headers=headers(kit, "admin", None))
        assert reply.status_code == 200
        # An empty header is not the missing token's equal for a scraper.
        reply = await service.client.get("/metrics", headers={"Authorization": "Bearer "})
        assert reply.status_code == 401


async def test_invalidation_reaches_every_replica_and_says_what_it_did(kit: SimpleNamespace) -> None:
    async with kit.start() as service, replicas(service, kit, "a", "b") as caches:
        for cache in caches.values():
            for user in ("user-1", "user-2"):
                await cache.grants(Principal(user), 1.0)
        reply = await service.client.post("/admin/cache/invalidate", json={"user_id": "user-1"}, headers=headers(kit))
        assert reply.json() == {
            "removed": 2,
            "replicas": [
                {"replica": "a", "removed": 1},
                {"replica": "b", "removed": 1},
                {"replica": "this-replica", "removed": 0},
            ],
            "silent_replicas": [],
        }
        reply = await service.client.get("/admin/cache/stats", headers=headers(kit))
        assert [(one["replica"], one["entries"], one["misses"]) for one in reply.json()["replicas"]] == [
            ("a", 1, 2),
            ("b", 1, 2),
            ("this-replica", 0, 0),
        ]
        reply = await service.client.post("/admin/cache/invalidate", json={"all": True}, headers=headers(kit))
        assert reply.json()["removed"] == 2
        assert all(cache.stats().entries == 0 for cache in caches.values())


@pytest.mark.parametrize(
    "body",
    [{}, {"user_id": "u", "all": True}, {"all": False}, {"user_id": ""}, {"user_id": 5}, {"users": "u"}, [], "all"],
)
async def test_who_is_meant_must_be_clear(kit: SimpleNamespace, body: object) -> None:
    async with kit.start() as service:
        reply = await service.client.post("/admin/cache/invalidate", json=body, headers=headers(kit))
    assert (reply.status_code, reply.json()["code"]) == (422, "validation")


async def test_without_the_coordinator_it_is_503_and_not_a_success(kit: SimpleNamespace) -> None:
    async def dead(_: object) -> None:
        raise ConnectionError("no replica")

    async with kit.start() as service:
        service.coordinator.ask = kit.Method(dead)
        reply = await service.client.post("/admin/cache/invalidate", json={"all": True}, headers=headers(kit))
    assert (reply.status_code, reply.json()["code"]) == (503, "coordination_unavailable")
    assert int(reply.headers["Retry-After"]) >= 1


async def test_a_coordinator_that_does_not_know_us_yet_is_503_too(kit: SimpleNamespace) -> None:
    """Just after its restart nobody listens: "nobody had anything to forget" would be a lie."""
    async with kit.start() as service:
        service.coordinator.real._board = type(service.coordinator.real._board)()
        reply = await service.client.post("/admin/cache/invalidate", json={"all": True}, headers=headers(kit))
    assert (reply.status_code, reply.json()["code"]) == (503, "coordination_unavailable")


async def test_a_replica_of_another_version_is_listed_and_breaks_nothing(kit: SimpleNamespace) -> None:
    async with kit.start() as service, replicas(service, kit, "new") as caches:
        caches["new"].stats = lambda: OtherStats(1)  # type: ignore[assignment, method-assign, return-value]
        reply = await service.client.get("/admin/cache/stats", headers=headers(kit))
    assert reply.status_code == 200
    assert [one["replica"] for one in reply.json()["replicas"]] == ["this-replica"]
    assert reply.json()["silent_replicas"] == ["new"]


async def test_a_replica_that_lost_the_coordinator_believes_nothing_it_knew(kit: SimpleNamespace) -> None:
    """A question may have passed it by; fail closed."""
    async with kit.start() as service, replicas(service, kit, "a") as caches:
        await caches["a"].grants(Principal("user-1"), 1.0)
        assert caches["a"].stats().entries == 1
        service.coordinator.real._board = type(service.coordinator.real._board)()
        listener = cache_listener(service, "a", caches["a"])
        listener._heard_until = 5
        await listener.listen_once()
        assert caches["a"].stats().entries == 0


async def test_listening_goes_on_after_the_coordinator_died(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "RETRY_S", 0.01)
    calls: list[int | None] = []
    three = asyncio.Event()

    async def listen(replica: str, after: int | None) -> object:
        if replica == "a":
            calls.append(after)
        if len(calls) == 3:
            three.set()
        if replica == "a" and len(calls) == 2:
            raise ConnectionError("died")
        return await service.coordinator.real.listen(replica, after)

    async with kit.start() as service:
        cache = GrantCache(kit.FixedGrants())
        service.coordinator.listen = kit.Method(listen)
        task = asyncio.create_task(cache_listener(service, "a", cache).run())
        await asyncio.wait_for(three.wait(), 30)
        task.cancel()
    # From now on, from there on (died), and anew.
    assert calls[0] is None
    assert isinstance(calls[1], int)
    assert calls[2] is None
