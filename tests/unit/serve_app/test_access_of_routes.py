"""Grants and quotas as the routes apply them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from serve_app.access.grants import GrantSourceError


async def test_a_building_of_another_user_is_forbidden_and_nothing_is_stored(kit: SimpleNamespace) -> None:
    async with kit.start(grants=kit.FixedGrants({"user-2": {"home": {"*"}}})) as service:
        for reply in (
            await service.infer(),
            await service.client.post("/disaggregate", json=kit.disaggregate_body()),
        ):
            assert (reply.status_code, reply.json()["code"]) == (403, "forbidden_building")
        assert service.store.stored == []


async def test_an_appliance_that_the_building_has_not_is_forbidden(kit: SimpleNamespace) -> None:
    async with kit.start(grants=kit.FixedGrants({"user-1": {"home": {"microwave", "sauna"}}})) as service:
        reply = await service.infer()
        assert (reply.status_code, reply.json()["code"]) == (403, "forbidden_appliance")
        # A look at the list of what is served gives nothing away.
        reply = await service.infer(kit.infer_body(appliance_id="sauna"))
        assert reply.json()["code"] == "unknown_appliance"
        assert (await service.infer(kit.infer_body(appliance_id="microwave"))).status_code == 200


async def test_disaggregation_covers_the_buildings_own_appliances(kit: SimpleNamespace) -> None:
    async with kit.start(grants=kit.FixedGrants({"user-1": {"home": {"kettle"}, "empty": set()}})) as service:
        reply = await service.client.post("/disaggregate", json=kit.disaggregate_body())
        assert [one["appliance_id"] for one in reply.json()["appliances"]] == ["kettle"]
        assert reply.json()["unavailable"] == []
        assert service.appliances["microwave"].windows == []
        reply = await service.client.post("/disaggregate", json=kit.disaggregate_body(building_id="empty"))
        assert (reply.status_code, reply.json()["code"]) == (403, "forbidden_appliance")


async def test_a_super_admin_may_use_every_building_and_an_admin_may_not(kit: SimpleNamespace) -> None:
    async with kit.start(grants=kit.FixedGrants({})) as service:
        for role, status in (("super_admin", 200), ("admin", 403)):
            token = kit.mint(app_metadata={"role": role})
            assert (await service.infer(Authorization=f"Bearer {token}")).status_code == status


async def test_grants_that_cannot_be_known_are_503_and_never_none(kit: SimpleNamespace) -> None:
    async with kit.start(grants=kit.FixedGrants(failure=GrantSourceError("away"))) as service:
        reply = await service.infer()
        assert (reply.status_code, reply.json()["code"]) == (503, "grants_unavailable")
        assert int(reply.headers["Retry-After"]) >= 1
        assert reply.json()["retryable"] is True
        # What needs no grants goes on.
        assert (await service.client.get("/models")).status_code == 200


async def test_the_users_quota_is_counted_told_and_ends(kit: SimpleNamespace) -> None:
    async with kit.start(rate_limit_per_user=5) as service:
        for left in (4, 3, 2, 1, 0):
            reply = await service.client.get("/models")
            assert reply.status_code == 200
            assert '"user";q=5;w=60' in reply.headers["RateLimit-Policy"]
            assert f'"user";r={left};t=' in reply.headers["RateLimit"]
        reply = await service.client.get("/models", headers={"Origin": kit.ORIGIN})
        assert (reply.status_code, reply.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(reply.headers["Retry-After"]) <= 60
        assert "RateLimit" in reply.headers["Access-Control-Expose-Headers"]
        assert reply.json()["retryable"] is True
        # Another user's quota is another; probes have none.
        token = kit.mint(sub="user-2")
        assert (await service.client.get("/models", headers={"Authorization": f"Bearer {token}"})).status_code == 200
        assert (await service.client.get("/live")).status_code == 200


async def test_a_refused_token_does_not_eat_the_users_quota(kit: SimpleNamespace) -> None:
    async with kit.start(rate_limit_per_user=2) as service:
        forged = kit.mint("another-secret-of-more-than-thirty-two-bytes")
        for _ in range(10):
            reply = await service.client.get("/models", headers={"Authorization": f"Bearer {forged}"})
            assert reply.status_code == 401
        assert (await service.client.get("/models")).status_code == 200


async def test_an_address_is_counted_before_its_token_is_looked_at(kit: SimpleNamespace) -> None:
    async with kit.start(rate_limit_per_ip=3) as service:
        statuses = [
            (await service.client.get("/models", headers={"Authorization": "Bearer x"})).status_code for _ in range(5)
        ]
        assert statuses == [401, 401, 401, 429, 429]
        assert (await service.client.get("/ready")).status_code == 200


@pytest.mark.parametrize(("trusted", "statuses"), [("127.0.0.1", {200}), ("", {200, 429})])
async def test_a_trusted_proxys_clients_have_a_quota_each(
    kit: SimpleNamespace, trusted: str, statuses: set[int]
) -> None:
    async with kit.start(rate_limit_per_ip=3, trusted_proxies=trusted) as service:
        replies = [await service.client.get("/models", headers={"X-Forwarded-For": f"203.0.113.{n}"}) for n in range(8)]
        assert {reply.status_code for reply in replies} == statuses


async def test_a_proxy_that_is_not_trusted_is_named_once_in_the_log(kit: SimpleNamespace) -> None:
    async with kit.start() as service:
        for _ in range(3):
            await service.client.get("/models", headers={"X-Forwarded-For": "203.0.113.5"})
        assert [line["message"] for line in service.log].count(
            "X-Forwarded-For from a peer that is not in TRUSTED_PROXIES is not believed"
        ) == 1


async def test_the_scrapers_token_is_not_counted(kit: SimpleNamespace) -> None:
    async with kit.start(rate_limit_per_user=1) as service:
        for _ in range(3):
            reply = await service.client.get("/metrics", headers={"Authorization": f"Bearer {kit.ADMIN_TOKEN}"})
            assert reply.status_code == 200
            assert '"user"' not in reply.headers.get("RateLimit", "")


async def test_replies_cannot_be_sniffed_framed_or_run(kit: SimpleNamespace) -> None:
    async with kit.start() as service:
        for path in ("/models", "/live", "/nowhere"):
            headers = (await service.client.get(path)).headers
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["X-Frame-Options"] == "DENY"
            assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
            assert headers["Cache-Control"] == "no-store"
        assert "Content-Security-Policy" not in (await service.client.get("/docs")).headers


@pytest.mark.parametrize(("asked_for", "status"), [(False, 404), (True, 200)])
async def test_production_serves_its_documentation_only_when_asked(
    kit: SimpleNamespace, asked_for: bool, status: int
) -> None:
    async with kit.start(env="production", expose_docs=asked_for) as service:
        for path in ("/docs", "/openapi.json"):
            assert (await service.client.get(path)).status_code == status
