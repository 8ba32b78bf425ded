"""From a question about the past to its document: what to read, and how to put it together."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

from deployments.analytics.cycles import cycle_rows
from deployments.analytics.dense import Dense, dense, spoken_for
from deployments.analytics.documents import instant, predictions_rows, readings_rows
from deployments.analytics.energy import energy_rows, local_days, span_of
from deployments.analytics.spans import HOUR_NS, MINUTE_NS, Resolution, Span
from deployments.history_contracts import History, HistoryQuery
from deployments.stores.base import HistoryReader
from models.appliances import appliance as find_appliance

CYCLE_MARGIN_NS = 6 * HOUR_NS
"""Read on both sides of the range: a cycle that began before it is told whole."""

Document = dict[str, Any]


def document(reader: HistoryReader, query: HistoryQuery) -> Document:
    """The answer as plain values. Raises what the reader raises."""
    if query.what is History.BUILDINGS:
        return {"buildings": _buildings(reader, query)}
    assert query.building_ids is not None  # noqa: S101 - all other questions are about one
    [building_id] = query.building_ids
    head: Document = {"building_id": building_id}
    if query.what is History.APPLIANCES:
        return {**head, "appliances": _appliances(reader, query, building_id)}
    if query.what is History.ENERGY:
        return {**head, "timezone": query.timezone, "days": _energy(reader, query, building_id)}
    if query.what is History.CYCLES:
        return {**head, **_cycles(reader, query, building_id)}
    return {**head, "resolution": query.resolution, "rows": _rows(reader, query, building_id)}


def _rows(reader: HistoryReader, query: HistoryQuery, building_id: str) -> list[Document]:
    resolution = Resolution(query.resolution)
    span = Span(query.start_ns, query.stop_ns, resolution.step_ns)
    read = span.read_with(resolution.read_step_ns)
    factor = span.step_ns // read.step_ns
    said: dict[str, Dense] | None = None
    if query.what is not History.READINGS:
        said = {name: one.coarser(factor) for name, one in _said(reader, query, building_id, read).items()}
    if query.what is History.PREDICTIONS:
        return predictions_rows(span, said or {})
    return readings_rows(span, dense(reader.mains(building_id, read), read).coarser(factor), said)


def _said(reader: HistoryReader, query: HistoryQuery, building_id: str, span: Span) -> dict[str, Dense]:
    wanted = query.appliance_ids
    series = reader.predictions(building_id, span, wanted[0] if wanted is not None and len(wanted) == 1 else None)
    return spoken_for((one for one in series if wanted is None or one.appliance_id in wanted), span)


def _energy(reader: HistoryReader, query: HistoryQuery, building_id: str) -> list[Document]:
    days = local_days(query.start_ns, query.stop_ns, ZoneInfo(query.timezone))
    span = span_of(days)
    mains = dense(reader.mains(building_id, span), span)
    return energy_rows(days, span, mains, _said(reader, query, building_id, span), query.price_per_kwh)


def _cycles(reader: HistoryReader, query: HistoryQuery, building_id: str) -> Document:
    assert query.appliance_ids is not None  # noqa: S101 - the route asks for one
    [appliance_id] = query.appliance_ids
    span = Span.covering(query.start_ns - CYCLE_MARGIN_NS, query.stop_ns + CYCLE_MARGIN_NS, MINUTE_NS)
    power = _said(reader, query, building_id, span).get(appliance_id)
    rows = [] if power is None else cycle_rows(span, power, find_appliance(appliance_id))
    first, last = instant(query.start_ns), instant(query.stop_ns)
    return {
        "appliance_id": appliance_id,
        "cycles": [row for row in rows if row["end"] > first and row["start"] < last],
    }


def _buildings(reader: HistoryReader, query: HistoryQuery) -> list[Document]:
    wanted = dict(zip(query.building_ids or (), query.appliances_of, strict=True))
    rows: list[Document] = []
    for one in reader.latest(query.building_ids):
        seen = wanted.get(one.building_id)
        # When an appliance ran that the caller may not see is not the caller's either.
        last = [time_ns for name, time_ns in one.predictions.items() if seen is None or name in seen]
        rows.append(
            {
                "building_id": one.building_id,
                "last_reading": None if one.reading_ns is None else instant(one.reading_ns),
                "last_prediction": instant(max(last)) if last else None,
            }
        )
    return rows


def _appliances(reader: HistoryReader, query: HistoryQuery, building_id: str) -> list[Document]:
    found = reader.latest((building_id,))
    last = found[0].predictions if found else {}
    wanted = query.appliance_ids
    return [
        {"appliance_id": name, "last_prediction": instant(time_ns)}
        for name, time_ns in last.items()
        if wanted is None or name in wanted
    ]
