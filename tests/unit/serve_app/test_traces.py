"""A traced request at the ingress: whose trace it is, what other deployments are told, what its span says."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deployments import tracing
from deployments.contracts import NotPersisted, PersistFailure

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GIVEN = {"traceparent": f"00-{TRACE}-{SPAN}-01"}


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "chosen_exporter", lambda: lambda: exporter)
    return exporter


def by_name(service: Any, exported: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    service.services.tracing.close()
    return {span.name: span for span in exported.get_finished_spans()}


async def test_the_stages_of_a_prediction_are_spans_of_its_clients_trace(
    kit: Any, exported: InMemorySpanExporter
) -> None:
    async with kit.start() as service:
        reply = await service.infer(**GIVEN)
        spans = by_name(service, exported)
        (trace,) = service.appliances["kettle"].traces
        (record_set,) = service.store.stored
        line = next(line for line in service.log if line.get("route") == "/infer")
    assert set(spans) == {"POST /infer", "auth", "infer", "persist"}
    server = spans["POST /infer"]
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}
    assert reply.headers["traceparent"] == f"00-{TRACE}-{server.context.span_id:016x}-01"
    assert trace == f"00-{TRACE}-{spans['infer'].context.span_id:016x}-01"
    assert record_set.trace == f"00-{TRACE}-{spans['persist'].context.span_id:016x}-01"
    assert line["trace_id"] == TRACE
    told = server.attributes or {}
    assert (told["http.route"], told["http.response.status_code"]) == ("/infer", 200)
    assert told["nilm.request_id"] == reply.headers["x-request-id"]
    assert (told["nilm.appliance"], server.status.is_ok) == ("kettle", True)


async def test_without_a_clients_trace_there_is_a_new_one(kit: Any, exported: InMemorySpanExporter) -> None:
    async with kit.start() as service:
        reply = await service.infer()
        server = by_name(service, exported)["POST /infer"]
    assert server.parent is None
    assert reply.headers["traceparent"].split("-")[1] == f"{server.context.trace_id:032x}"


async def test_a_failure_is_marked_and_says_nothing_of_the_token(kit: Any, exported: InMemorySpanExporter) -> None:
    async with kit.start() as service:
        service.store.answer = lambda _: NotPersisted(PersistFailure.UNAVAILABLE, "down")
        reply = await service.infer()
        spans = by_name(service, exported)
    assert reply.status_code == 503
    assert not spans["POST /infer"].status.is_ok
    assert kit.mint()[:20] not in "".join(span.to_json() for span in spans.values())


async def test_probes_are_not_traced_and_methods_of_ones_own_have_no_name(
    kit: Any, exported: InMemorySpanExporter
) -> None:
    async with kit.start() as service:
        for path in ("/live", "/api/ready", "/health", "/metrics"):
            await service.client.get(path, headers=GIVEN)
        await service.client.request("MINE", "/infer", headers=GIVEN)
        assert set(by_name(service, exported)) == {"_OTHER /infer"}


@pytest.mark.usefixtures("exported")
async def test_a_batch_is_traced_by_one_window_of_each_appliance(kit: Any) -> None:
    async with kit.start() as service:
        items = [
            kit.infer_body() | {"appliance_id": appliance, "timestamp": f"2026-01-31T10:{n:02d}:00Z"}
            for n, appliance in enumerate(["kettle", "microwave"] * 3)
        ]
        reply = await service.client.post("/infer/batch", json={"items": items})
        assert reply.status_code == 200, reply.text
        traced = {name: [trace is not None for trace in fake.traces] for name, fake in service.appliances.items()}
    assert traced == {"kettle": [True, False, False], "microwave": [True, False, False]}


async def test_nothing_crosses_a_handle_for_who_is_not_traced(service: Any) -> None:
    reply = await service.infer(**GIVEN)
    assert reply.headers["traceparent"].endswith("-00")
    (trace,) = service.appliances["kettle"].traces
    (record_set,) = service.store.stored
    assert (trace, record_set.trace) == (None, None)
