"""When an appliance ran: on-periods of its predicted power, by the rule its models were trained and measured with."""

from __future__ import annotations

from typing import Any

import numpy as np

from deployments.analytics.dense import Dense
from deployments.analytics.documents import instant
from deployments.analytics.spans import MINUTE_NS, SECOND_NS, Span
from models.appliances import Appliance
from models.signal import W_PER_KW
from models.training.labels import merge_and_drop, runs

Document = dict[str, Any]


def cycle_rows(span: Span, power: Dense, appliance: Appliance) -> list[Document]:
    """The cycles of one appliance from its minutes, `span.step_ns` of one minute, in the order of time.

    On from `on_threshold_w`; pauses up to `min_off_s` belong to a cycle, and what is shorter than `min_on_s` is none.
    A minute without a prediction is off. `provisional`: the cycle had not ended for longer than `min_off_s` when
    the last prediction was made, so that it may still grow.
    """
    power_w = np.nan_to_num(power.kw) * W_PER_KW
    state = merge_and_drop(
        power_w >= appliance.on_threshold_w, appliance.min_on_s, appliance.min_off_s, span.step_ns / SECOND_NS
    )
    known = np.flatnonzero(power.minutes > 0)
    last_known = int(known[-1]) if len(known) else -1
    pause = int(appliance.min_off_s * SECOND_NS // span.step_ns)
    rows: list[Document] = []
    for first, end in runs(state).tolist():
        inside_kw = np.nan_to_num(power.kw[first:end])
        rows.append(
            {
                "start": instant(span.start_ns + first * span.step_ns),
                "end": instant(span.start_ns + end * span.step_ns),
                "duration_s": (end - first) * span.step_ns // SECOND_NS,
                "energy_kwh": round(float(inside_kw.sum()) * span.step_ns / (60 * MINUTE_NS), 6),
                "peak_kw": round(float(inside_kw.max()), 6),
                "provisional": last_known < end + pause,
            }
        )
    return rows
