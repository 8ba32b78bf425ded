"""The rows that `/analytics/readings` and `/analytics/predictions` give, as plain values ready for JSON.

A bucket without a sample has null and a coverage of 0: what was not measured is not zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from deployments.analytics.dense import Dense
from deployments.analytics.spans import Span

DECIMALS = 6
"""Of kW: a milliwatt, below what any meter tells apart. Confidence has four."""

Document = dict[str, Any]


def readings_rows(span: Span, mains: Dense, appliances: Mapping[str, Dense] | None) -> list[Document]:
    """`{time, value, coverage}`, and with appliances `{appliances: {name: kW}, confidence: {name: c}}`."""
    times, values = instants(span), _numbers(mains.kw, DECIMALS)
    coverage = _coverage(mains, span)
    if appliances is None:
        columns = zip(times, values, coverage, strict=True)
        return [{"time": time, "value": value, "coverage": covered} for time, value, covered in columns]
    names = list(appliances)
    powers = zip(*(_numbers(one.kw, DECIMALS) for one in appliances.values()), strict=True)
    certainties = zip(*(_numbers(_confidence(one), 4) for one in appliances.values()), strict=True)
    nothing: list[tuple[float | None, ...]] = [()] * span.buckets
    return [
        {
            "time": time,
            "value": value,
            "coverage": covered,
            "appliances": dict(zip(names, power, strict=True)),
            "confidence": dict(zip(names, certain, strict=True)),
        }
        for time, value, covered, power, certain in zip(
            times, values, coverage, list(powers) or nothing, list(certainties) or nothing, strict=True
        )
    ]


def predictions_rows(span: Span, appliances: Mapping[str, Dense]) -> list[Document]:
    """`{time, appliance_id, predicted_kw, confidence, coverage}` for every bucket, one appliance after the other."""
    times = instants(span)
    return [
        {
            "time": time,
            "appliance_id": appliance_id,
            "predicted_kw": value,
            "confidence": certain,
            "coverage": covered,
        }
        for appliance_id, one in appliances.items()
        for time, value, certain, covered in zip(
            times, _numbers(one.kw, DECIMALS), _numbers(_confidence(one), 4), _coverage(one, span), strict=True
        )
    ]


def instants(span: Span) -> list[str]:
    """The start of each bucket, ISO 8601, UTC."""
    return [f"{text}Z" for text in np.datetime_as_string(span.starts_ns().astype("datetime64[ns]"), unit="s")]


def instant(time_ns: int) -> str:
    """ISO 8601, UTC, cut to seconds."""
    return f"{np.datetime_as_string(np.datetime64(time_ns, 'ns'), unit='s')}Z"


def _confidence(one: Dense) -> npt.NDArray[np.float64]:
    return np.full(len(one.kw), np.nan) if one.confidence is None else one.confidence


def _coverage(one: Dense, span: Span) -> list[float]:
    shares: list[float] = np.round(one.minutes / span.minutes_per_bucket, 4).tolist()
    return shares


def _numbers(values: npt.NDArray[np.float64], decimals: int) -> list[float | None]:
    """NaN becomes None."""
    return [None if value != value else value for value in np.round(values, decimals).tolist()]  # noqa: PLR0124
