"""Which requests are traced, and what others add to their traces."""

from __future__ import annotations

import time

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deployments import tracing
from deployments.tracing import EXPORTER_VARIABLE, Tracing, TracingFault, chosen_exporter

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"


class Exported(InMemorySpanExporter):
    """What was exported, by the exporter that a `Tracing` makes for itself."""

    last: Exported

    def __init__(self) -> None:
        super().__init__()
        Exported.last = self


@pytest.fixture
def _exporting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "chosen_exporter", lambda: Exported)


def spans(of: Tracing) -> dict[str, ReadableSpan]:
    of.close()
    return {span.name: span for span in Exported.last.get_finished_spans()}


def test_without_an_exporter_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EXPORTER_VARIABLE, raising=False)
    off = Tracing("ingress", "a", 5)
    assert (off.on, off.request(SAMPLED)) == (False, None)
    off.past(SAMPLED, "forward", time.time_ns(), 1.0, {})
    off.close()


@pytest.mark.parametrize("name", ["otlp", "console", " otlp "])
def test_exporters_go_by_their_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXPORTER_VARIABLE, name)
    exporter = chosen_exporter()
    assert exporter is not None
    assert exporter.__name__ == {"otlp": "OTLPSpanExporter", "console": "ConsoleSpanExporter"}[name.strip()]


@pytest.mark.parametrize("name", ["jaeger", "otlp2", "os:system"])
def test_an_exporter_that_there_is_not_is_a_fault(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXPORTER_VARIABLE, name)
    with pytest.raises(TracingFault, match=name):
        chosen_exporter()


@pytest.mark.usefixtures("_exporting")
def test_a_request_has_its_stages_and_what_others_did_for_it() -> None:
    ingress = Tracing("ingress", "a", 5)
    request = ingress.request(SAMPLED)
    assert request is not None
    assert (request.trace_id, request.traceparent.split("-")[1]) == (TRACE, TRACE)
    stage = request.begin("infer")
    asked = request.for_others
    assert asked != request.traceparent
    end_ns = time.time_ns()
    stage.end()
    assert request.for_others == request.traceparent
    request.end("POST /infer", {"http.route": "/infer"}, failed=False)
    ingress_spans = spans(ingress)
    model = Tracing("kettle", "b")
    model.past(asked, "forward", end_ns, 20.0, {"nilm.batch_windows": 3})
    forward = spans(model)["forward"]

    server, infer = ingress_spans["POST /infer"], ingress_spans["infer"]
    assert server.parent is not None
    assert infer.parent is not None
    assert forward.parent is not None
    assert f"{server.parent.span_id:016x}" == SPAN
    assert infer.parent.span_id == server.context.span_id
    assert forward.parent.span_id == infer.context.span_id
    assert {f"{one.context.trace_id:032x}" for one in (server, infer, forward)} == {TRACE}
    assert (forward.end_time, forward.end_time - forward.start_time) == (end_ns, 20_000_000)  # type: ignore[operator]
    assert forward.resource.attributes["nilm.deployment"] == "kettle"


@pytest.mark.usefixtures("_exporting")
def test_a_client_that_does_not_trace_is_not_traced() -> None:
    ingress = Tracing("ingress", "a", 5)
    assert ingress.request(UNSAMPLED) is None
    assert ingress.request(None) is not None


@pytest.mark.usefixtures("_exporting")
def test_no_client_makes_more_traces_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [1000.0]
    monkeypatch.setattr(tracing.time, "monotonic", lambda: now_s[0])
    ingress = Tracing("ingress", "a", 5)
    assert sum(ingress.request(SAMPLED) is not None for _ in range(100)) == 5
    now_s[0] += 1.0
    assert sum(ingress.request(None) is not None for _ in range(100)) == 5
    now_s[0] += 3600.0
    assert sum(ingress.request(None) is not None for _ in range(100)) == 5


@pytest.mark.usefixtures("_exporting")
def test_one_in_ten_seconds_is_possible_too(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [1000.0]
    monkeypatch.setattr(tracing.time, "monotonic", lambda: now_s[0])
    ingress = Tracing("ingress", "a", 0.1)
    traced = 0
    for _ in range(100):
        now_s[0] += 1.0
        traced += ingress.request(None) is not None
    assert 9 <= traced <= 10


@pytest.mark.usefixtures("_exporting")
def test_the_samplers_of_opentelemetry_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    ingress = Tracing("ingress", "a", 5)
    assert ingress.request(None) is None
    assert ingress.request(SAMPLED) is not None  # its client has decided
