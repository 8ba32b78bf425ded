"""Whatever arrives, the answer is one of ours: no crash, no undeclared status, a problem document for every refusal.

The examples are counted and printed; `kit.start` runs the real application.
"""

from __future__ import annotations

import asyncio
import json
import string
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.middleware import REQUEST_ID, TRACEPARENT
from serve_app.schemas import parse_instant

DECLARED = {200, 400, 403, 404, 413, 415, 422}
FUZZ = settings(
    max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
numbers = st.one_of(st.floats(), st.integers(), st.floats(min_value=0, max_value=100), st.just(1e308))
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=80)),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=10), inner, max_size=4)),
    max_leaves=10,
)
ids = st.one_of(st.text(max_size=70), st.sampled_from(["home", "kettle", "home\n", "../home", "a,b=c d", "🏠", ""]))
times = st.one_of(
    st.text(max_size=40),
    st.datetimes().map(lambda instant: instant.isoformat() + "Z"),
    st.text(alphabet=string.digits + "-+:.TZtz ", max_size=40),
)
bodies = st.one_of(
    st.binary(max_size=300),
    values.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {},
        optional={
            "building_id": st.one_of(ids, values),
            "appliance_id": st.one_of(ids, values),
            "window": st.one_of(st.lists(numbers, max_size=8), values),
            "timestamp": st.one_of(times, values),
            "attribution": st.one_of(st.sampled_from(["final", "provisional"]), values),
            "extra": values,
        },
    ).map(lambda value: json.dumps(value).encode()),
    # Close to right: what gets past the first checks.
    st.lists(st.floats(min_value=0, max_value=100), min_size=4, max_size=6).map(
        lambda window: json.dumps({"building_id": "home", "appliance_id": "kettle", "window": window}).encode()
    ),
    st.sampled_from([{"all": True}, {"user_id": "u"}]).map(lambda value: json.dumps(value).encode()),
)


@pytest.mark.parametrize("path", ["/infer", "/disaggregate", "/admin/cache/invalidate"])
async def test_any_body_gets_an_answer_of_ours(kit: SimpleNamespace, path: str) -> None:
    headers = {
        "Authorization": f"Bearer {kit.mint(app_metadata={'role': 'admin'})}",
        "X-Admin-Token": kit.ADMIN_TOKEN,
        "Content-Type": "application/json",
    }
    seen: dict[int, int] = {}
    async with kit.start(rate_limit_per_user=1_000_000, rate_limit_per_ip=1_000_000) as service:

        async def send(body: bytes) -> httpx.Response:
            reply: httpx.Response = await service.client.post(path, content=body, headers=headers)
            return reply

        @FUZZ
        @given(body=bodies)
        async def fuzz(body: bytes) -> None:
            reply = await send(body)
            seen[reply.status_code] = seen.get(reply.status_code, 0) + 1
            assert reply.status_code in DECLARED, (body, reply.text)
            if reply.status_code != 200:
                assert reply.headers["content-type"] == "application/problem+json"
                assert reply.json()["code"] != "internal"

        await _run(fuzz)
    print(f"{path}: {sum(seen.values())} bodies, by status {dict(sorted(seen.items()))}")
    assert sum(seen.values()) >= FUZZ.max_examples


async def _run(fuzz: Any) -> None:
    """Hypothesis calls plain functions: each example runs on the loop that the test already has."""
    loop = asyncio.get_running_loop()
    inner = fuzz.hypothesis.inner_test

    def on_loop(body: bytes) -> None:
        asyncio.run_coroutine_threadsafe(inner(body=body), loop).result(30)

    fuzz.hypothesis.inner_test = on_loop
    await asyncio.to_thread(fuzz)


@FUZZ
@given(text=times)
def test_an_instant_is_read_or_is_a_value_error(text: str) -> None:
    try:
        instant = parse_instant(text)
    except ValueError:
        return
    assert instant.utcoffset() is not None
    assert instant.year >= 2000


@FUZZ
@given(text=st.one_of(st.text(max_size=200), st.from_regex(TRACEPARENT), st.from_regex(REQUEST_ID)))
def test_ids_from_headers_are_taken_whole_or_not_at_all(text: str) -> None:
    if REQUEST_ID.fullmatch(text):
        assert text.isascii()
        assert "\n" not in text
        assert len(text) <= 128
    if match := TRACEPARENT.fullmatch(text):
        assert len(match[0]) == 55
