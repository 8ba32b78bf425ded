"""What every reply carries, whatever the route: ids, traces, CORS, timings, problems; probes, metrics."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.contracts import NotPersisted, PersistFailure, RefusedVersion
from serve_app.settings import LEAVING_NAME, Environment
from tests.told import Told

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


def crash(_: object) -> Any:
    raise KeyError("/secret/path")


def unavailable(_: object) -> NotPersisted:
    return NotPersisted(PersistFailure.UNAVAILABLE, "")


def request_ids(response: httpx.Response) -> list[str]:
    return response.headers.get_list("x-request-id")


async def test_without_an_id_one_is_made(service: Any) -> None:
    first, second = [request_ids(await service.client.get("/live")) for _ in range(2)]
    assert len(first) == len(second) == 1
    assert first != second
    assert re.fullmatch(r"[0-9a-f]{32}", first[0])


@pytest.mark.parametrize("offered", ["abc", "A.b_c-9", "x" * 128])
async def test_behind_serves_proxy_a_usable_id_comes_back_once(kit: Any, offered: str) -> None:
    async with kit.start(proxied=True) as service:
        response = await service.infer(**{"x-request-id": offered})
        assert request_ids(response) == [offered]
        assert response.json()["request_id"] == offered
        assert service.store.stored[0].points[0].request_id == offered
        assert request_ids(await service.client.get("/live")) == ["serve-made-id"]


@pytest.mark.parametrize("offered", ["x" * 129, "a b", "a;b", "a,b", "<script>", "", "é".encode().decode("latin-1")])
async def test_an_unusable_id_is_replaced(service: Any, offered: str) -> None:
    response = await service.client.get("/live", headers={"x-request-id": offered.encode("latin-1")})
    (given,) = request_ids(response)
    assert given != offered
    assert re.fullmatch(r"[0-9a-f]{32}", given)


async def test_a_valid_trace_is_continued_with_a_span_of_ours(service: Any) -> None:
    response = await service.client.get("/live", headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
    version, trace, span, _flags = response.headers["traceparent"].split("-")
    assert (version, trace) == ("00", TRACE)
    assert span != SPAN
    assert re.fullmatch(r"[0-9a-f]{16}", span)
    assert service.log[-1]["trace_id"] == TRACE


@pytest.mark.parametrize(
    "offered",
    [
        "",
        "junk",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE[1:]}-{SPAN}-01",
    ],
)
async def test_an_invalid_trace_starts_a_new_one(service: Any, offered: str) -> None:
    response = await service.client.get("/live", headers={"traceparent": offered})
    traceparent = response.headers["traceparent"]
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", traceparent)
    assert TRACE not in traceparent
    assert f"-{'0' * 32}-" not in traceparent


async def test_server_timing_names_the_stages(service: Any) -> None:
    response = await service.infer()
    stages = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    assert stages.keys() == {"auth", "infer", "queue", "persist"}
    assert all(float(value) >= 0 for value in stages.values())
    assert stages["queue"] == "0.25"


@pytest.mark.parametrize("name", ["x-content-type-options", "cache-control", "referrer-policy"])
async def test_security_headers_are_on_every_reply(service: Any, name: str) -> None:
    for path in ("/live", "/nothing", "/models", "/metrics"):
        assert name in (await service.client.get(path)).headers


async def test_cors_is_on_every_refusal(service: Any) -> None:
    origin = {"origin": "https://app.test"}
    ok = await service.infer(**origin)
    no_token = await service.client.get("/models", headers=origin | {"authorization": ""})
    large = await service.client.post("/infer", content=b" " * 300_000, headers=origin)
    service.store.answer = unavailable
    no_store = await service.infer(**origin)
    service.appliances["kettle"].answer = crash
    crashed = await service.infer(**origin)
    replies = [ok, no_token, large, no_store, crashed]
    assert [reply.status_code for reply in replies] == [200, 401, 413, 503, 500]
    for reply in replies:
        assert reply.headers["access-control-allow-origin"] == "https://app.test"
        assert "origin" in reply.headers["vary"].lower()
        exposed = reply.headers["access-control-expose-headers"].lower()
        for name in ("retry-after", "server-timing", "x-request-id", "ratelimit", "idempotency-replayed"):
            assert name in exposed
        assert "access-control-allow-credentials" not in reply.headers


@pytest.mark.parametrize("origin", ["https://evil.test", "https://app.test.evil.test", "http://app.test", "null"])
async def test_another_origin_gets_no_permission(service: Any, origin: str) -> None:
    response = await service.infer(origin=origin)
    assert "access-control-allow-origin" not in response.headers


PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


async def test_preflight_needs_no_token(service: Any) -> None:
    headers = PREFLIGHT | {"origin": "https://app.test", "authorization": ""}
    response = await service.client.options("/infer", headers=headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://app.test"
    allowed = response.headers["access-control-allow-headers"].lower()
    for name in ("authorization", "content-type", "idempotency-key", "x-request-id", "traceparent"):
        assert name in allowed


async def test_preflight_of_another_origin_or_method_is_refused(service: Any) -> None:
    foreign = await service.client.options("/infer", headers=PREFLIGHT | {"origin": "https://evil.test"})
    delete = PREFLIGHT | {"origin": "https://app.test", "access-control-request-method": "DELETE"}
    assert foreign.status_code == 400
    assert "access-control-allow-origin" not in foreign.headers
    assert (await service.client.options("/infer", headers=delete)).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("GET", "/api", 404, "not_found"),
        ("GET", "/api/api/live", 404, "not_found"),
        ("GET", "/live/", 404, "not_found"),
        ("POST", "/infer/", 404, "not_found"),
        ("GET", "/models/none", 404, "unknown_model"),
        ("GET", "/infer", 405, "method_not_allowed"),
        ("DELETE", "/models", 405, "method_not_allowed"),
        ("BREW", "/live", 405, "method_not_allowed"),
    ],
)
async def test_the_frameworks_refusals_are_problems(
    service: Any, method: str, path: str, status: int, code: str
) -> None:
    response = await service.client.request(method, path)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == request_ids(response)[0]
    if status == 405:
        assert response.headers["allow"]


async def test_a_crash_tells_the_client_nothing_and_the_log_everything(service: Any) -> None:
    service.appliances["kettle"].answer = crash
    response = await service.infer()
    body = response.json()
    assert (response.status_code, body["code"], body["retryable"]) == (500, "internal", True)
    for secret in ("secret", "KeyError", "Traceback", ".py"):
        assert secret not in response.text
    crashed, access = service.log
    assert "KeyError" in crashed["exception"]
    assert crashed["request_id"] == access["request_id"] == body["request_id"] == request_ids(response)[0]
    assert (access["level"], access["code"], access["status"]) == ("error", "internal", 500)


async def test_one_line_a_request_without_its_credential(service: Any, kit: Any) -> None:
    await service.infer()
    await service.client.get("/models/none?token=abcdefgh")
    ok, missing = service.log
    assert (ok["route"], ok["status"], ok["user_id"], ok["appliance"]) == ("/infer", 200, "user-1", "kettle")
    assert (missing["route"], missing["status"], missing["code"]) == ("/models/{model_id}", 404, "unknown_model")
    assert "abcdefgh" not in str(service.log)
    assert "eyJ" not in str(service.log)


SCRAPER = {"Authorization": "Bearer admin-token-for-tests-of-32-characters"}
HOSTILE = ["/nothing", "/../etc/passwd", "/infer/x", "/models/a", "/models/b", "/api/models/c", "/%00", "/🔥"]


async def test_metrics_keep_closed_labels_under_hostile_requests(service: Any) -> None:
    for number, path in enumerate(HOSTILE):
        await service.client.request(f"M{number}", path)
        await service.client.get(path)
    await service.infer()
    told = Told((await service.client.get("/metrics", headers=SCRAPER)).text)
    assert told.labels("route") == {"refused", "unmatched", "/infer", "/models/{model_id}"}
    assert told.labels("appliance") == {"kettle", "microwave"}
    # Besides Ray's own labels, the route among them, and the bounds of histograms.
    series = Counter((one.name, one.labels.get("route"), one.labels.get("le")) for one in told.samples)
    assert max(series.values()) < 10


async def test_metrics_say_what_happened(service: Any) -> None:
    await service.infer()
    told = Told((await service.client.get("/api/metrics", headers=SCRAPER)).text)
    assert told.value("nilm_http_requests_total", route="/infer", status_class="2xx") == 1
    assert told.value("nilm_http_request_seconds_count", route="/infer") == 1
    assert 0 < told.value("nilm_http_request_seconds_sum", route="/infer") < 5
    for stage in ("auth", "queue", "infer", "persist"):
        assert told.value("nilm_stage_seconds_count", stage=stage) == 1
    assert told.value("nilm_appliance_ready", appliance="kettle") == 1
    assert [told.value("nilm_ready", part=part) for part in ("tokens", "models", "store")] == [1, 1, 1]
    assert told.value("nilm_windows_waiting", appliance="kettle") == 0
    assert told.value("nilm_requests_in_flight") == 0  # who scrapes takes no room
    assert told.value("nilm_grants_lookups_total", result="miss") == 1
    assert told.value("nilm_grants_fetches_total", outcome="ok") == 1
    assert told.value("nilm_slo_latency_target_seconds") == 0.5
    assert told.value("nilm_metrics_nodes", state="answered") == 1


async def test_metrics_say_what_is_not_ready(kit: Any) -> None:
    async with kit.start(poll=False) as service:
        told = Told((await service.client.get("/metrics", headers=SCRAPER)).text)
    assert [told.value("nilm_ready", part=part) for part in ("tokens", "models", "store")] == [1, 0, 0]
    assert told.value("nilm_appliance_ready", appliance="kettle") == 0


async def test_metrics_count_replays_and_refusals_of_quotas(kit: Any) -> None:
    async with kit.start(rate_limit_per_user=2) as service:
        for _ in range(2):
            reply = await service.infer(**{"Idempotency-Key": "once"})
            assert reply.status_code == 200
        assert (await service.infer()).status_code == 429
        told = Told((await service.client.get("/metrics", headers=SCRAPER)).text)
        lines = [line.get("replayed") for line in service.log if line.get("route") == "/infer"]
    assert told.value("nilm_idempotency_replays_total") == 1
    assert told.value("nilm_quota_refusals_total", quota="user") == 1
    assert told.value("nilm_http_requests_total", route="/infer", status_class="4xx") == 1
    assert lines == [None, "true", None]


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (SCRAPER["Authorization"], 200),
        ("", 401),
        (SCRAPER["Authorization"].removeprefix("Bearer "), 401),
        (SCRAPER["Authorization"][:-1], 401),
        ("Bearer ", 401),
        (b"Bearer \xe9", 401),
    ],
)
async def test_metrics_need_a_credential(service: Any, authorization: str | bytes, status: int) -> None:
    response = await service.client.get("/metrics", headers={"authorization": authorization})
    assert response.status_code == status


@pytest.mark.parametrize(
    ("claims", "status"),
    [({}, 403), ({"is_anonymous": True}, 403), ({"app_metadata": {"role": "admin"}}, 200)],
)
async def test_metrics_are_not_for_whoever_may_sign_up(service: Any, kit: Any, claims: Any, status: int) -> None:
    response = await service.client.get("/metrics", headers={"Authorization": f"Bearer {kit.mint(**claims)}"})
    assert response.status_code == status


async def test_an_unset_admin_token_opens_nothing(kit: Any) -> None:
    async with kit.start(admin_token="") as service:
        for authorization in ("Bearer ", "Bearer", ""):
            assert (await service.client.get("/metrics", headers={"authorization": authorization})).status_code == 401


async def test_the_admin_token_is_no_user(service: Any, kit: Any) -> None:
    response = await service.infer(authorization=f"Bearer {kit.ADMIN_TOKEN}")
    assert response.status_code == 401


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_live_needs_nothing(kit: Any, prefix: str) -> None:
    async with kit.start(poll=False) as service:
        response = await service.client.get(f"{prefix}/live", headers={"authorization": ""})
        assert (response.status_code, response.json()) == (200, {"status": "live"})


async def test_ready_is_ready(service: Any) -> None:
    response = await service.client.get("/ready", headers={"authorization": ""})
    assert (response.status_code, response.json()) == (200, {"status": "ready"})


NOT_READY = [
    ("kettle: no answer", lambda s: setattr(s.appliances["kettle"], "silent", True)),
    ("kettle: loading", lambda s: setattr(s.appliances["kettle"], "version", None)),
    ("store: not reachable (sqlite)", lambda s: setattr(s.store, "reachable", False)),
]


@pytest.mark.parametrize("case", range(len(NOT_READY)))
@pytest.mark.parametrize("env", [Environment.DEVELOPMENT, Environment.PRODUCTION])
async def test_not_ready_says_why_outside_production(kit: Any, case: int, env: Environment) -> None:
    reason, damage = NOT_READY[case]
    async with kit.start(poll=False, env=env) as service:
        damage(service)
        await service.catalogue.refresh()
        response = await service.client.get("/ready", headers={"authorization": ""})
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        expected: dict[str, object] = {"status": "not_ready"}
        health: dict[str, object] = {"status": "degraded"}
        if env is Environment.DEVELOPMENT:
            expected["reasons"] = health["reasons"] = [reason]
        assert response.json() == expected
        shown = (await service.client.get("/health", headers={"authorization": ""})).json()
        assert {key: shown.get(key) for key in health} == health
        assert (shown.keys() == {"status"}) == (env is Environment.PRODUCTION)


async def test_a_refused_version_is_a_reason_only_when_nothing_serves(kit: Any) -> None:
    kettle = kit.FakeAppliance("kettle")
    async with kit.start({"kettle": kettle}) as service:
        refused = RefusedVersion("2.0.0", "sha256_mismatch", "model.safetensors has sha256 00")
        service.coordinator.tells(kit.rollout("kettle", refused=refused))
        await service.catalogue.refresh()
        assert (await service.client.get("/ready")).status_code == 200
        kettle.version, kettle.nothing = None, "sha256_mismatch: model.safetensors has sha256 00"
        await service.catalogue.refresh()
        response = await service.client.get("/ready")
        assert response.json()["reasons"] == ["kettle: refused: sha256_mismatch: model.safetensors has sha256 00"]


async def test_a_node_that_is_about_to_stop_is_not_ready_and_still_answers(kit: Any, tmp_path: Path) -> None:
    async with kit.start(nilm_data_dir=tmp_path) as service:
        assert (await service.client.get("/ready")).status_code == 200
        (tmp_path / LEAVING_NAME).touch()
        response = await service.client.get("/ready")
        assert (response.status_code, response.json()["reasons"]) == (503, ["leaving: about to stop"])
        assert (await service.client.get("/live")).status_code == 200
        assert (await service.client.get("/models")).status_code == 200


async def test_an_answer_ages(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.catalogue.MAX_AGE_S", -1.0)
    response = await service.client.get("/ready")
    assert response.status_code == 503
    assert response.json()["reasons"] == ["kettle: no answer", "microwave: no answer", "store: no answer"]


async def test_health_shows_the_parts_outside_production(service: Any) -> None:
    body = (await service.client.get("/health")).json()
    assert body == {
        "status": "ok",
        "reasons": [],
        "store": "sqlite",
        "appliances": {"kettle": "1.0.0", "microwave": "1.0.0"},
    }


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/redoc", "/docs/oauth2-redirect", "/api/docs"])
async def test_the_api_document_is_closed_in_production(kit: Any, path: str) -> None:
    async with kit.start(env=Environment.PRODUCTION) as service:
        response = await service.client.get(path)
        assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_the_api_document_describes_the_bodies(service: Any) -> None:
    document = (await service.client.get("/openapi.json")).json()
    assert not [path for path in document["paths"] if path.startswith("/api")]
    schema = document["paths"]["/infer"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["additionalProperties"] is False
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert "Attribution" in references
    assert references <= document["components"]["schemas"].keys()
    assert schema["properties"].keys() == {"building_id", "appliance_id", "window", "attribution", "timestamp"}


async def test_the_background_lives_with_the_application(service: Any, kit: Any) -> None:
    from contextlib import asynccontextmanager

    from serve_app.http import build_http_app

    events: list[str] = []

    @asynccontextmanager
    async def background() -> Any:
        events.append("start")
        yield
        events.append("stop")

    app = build_http_app(service.services, background)
    async with app.router.lifespan_context(app):
        assert events == ["start"]
    assert events == ["start", "stop"]
