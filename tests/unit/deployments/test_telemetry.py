"""What replicas count arrives as Prometheus would have counted it, whatever happens in between."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments import telemetry
from deployments.telemetry import Telemetry
from tests.unit.node_agent import NodeAgent


def test_counters_grow_over_flushes() -> None:
    agent = NodeAgent()
    figures = Telemetry(agent.sink)
    counter = figures.counter("nilm_things", "Things", "kind")
    counter.add("a")
    counter.add("b", by=2)
    figures.flush()
    counter.add("a")
    figures.flush()
    figures.flush()  # nothing new is no news
    told = agent.told()
    assert (told.value("nilm_things_total", kind="a"), told.value("nilm_things_total", kind="b")) == (2, 2)


def test_gauges_are_what_is_now() -> None:
    agent, values = NodeAgent(), [1.0]
    figures = Telemetry(agent.sink)
    figures.gauge("nilm_waiting", "Waiting", lambda: {(): values[0]})
    for value in (1.0, 7.0, 0.0):
        values[0] = value
        figures.flush()
        assert agent.told().value("nilm_waiting") == value


BOUNDS = (0.1, 1.0, 10.0)


@given(st.lists(st.lists(st.floats(0, 100, allow_nan=False), max_size=20), max_size=4))
def test_histograms_are_those_of_prometheus(flushes: list[list[float]]) -> None:
    agent = NodeAgent()
    figures = Telemetry(agent.sink)
    histogram = figures.histogram("nilm_took_seconds", "Took", BOUNDS, "stage")
    histogram.observe(5.0, "other")
    for values in flushes:
        for value in values:
            histogram.observe(value, "infer")
        figures.flush()
    figures.flush()
    told, everything = agent.told(), [value for values in flushes for value in values]
    assert told.value("nilm_took_seconds_count", stage="other") == 1
    if not everything:
        return
    for bound, le in ((0.1, "0.1"), (1.0, "1.0"), (10.0, "10.0"), (float("inf"), "+Inf")):
        expected = sum(value <= bound for value in everything)
        assert told.value("nilm_took_seconds_bucket", stage="infer", le=le) == expected
    assert told.value("nilm_took_seconds_count", stage="infer") == len(everything)
    assert told.value("nilm_took_seconds_sum", stage="infer") == pytest.approx(sum(everything))


async def test_it_passes_on_by_itself_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "FLUSH_S", 0.01)
    agent = NodeAgent()
    figures = Telemetry(agent.sink)
    counter = figures.counter("nilm_things", "Things")
    running = asyncio.create_task(figures.run())
    counter.add()
    await asyncio.sleep(0.05)
    assert agent.told().value("nilm_things_total") == 1
    counter.add()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert agent.told().value("nilm_things_total") == 2


def test_a_figure_that_cannot_be_read_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    agent = NodeAgent()
    figures = Telemetry(agent.sink)
    figures.gauge("nilm_broken", "Broken", lambda: {(): 1 / 0})
    figures.counter("nilm_things", "Things").add()
    with caplog.at_level(logging.ERROR, logger="ray.serve"):
        figures.flush()
    assert agent.told().value("nilm_things_total") is not None
    assert "a figure was not passed on" in caplog.text
