"""Windows of many requests in one message: a call between deployments costs the same, whatever it carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deployments.contracts import InferenceRequest, WindowKw
from models.attribution import Attribution


@dataclass(frozen=True, slots=True, eq=False)
class InferenceBlock:
    """Windows for one appliance. `windows_kw`: float32, all of them in a row; the tuples have one entry a window.

    `waiting`: the receiving replica's share of the windows that `sender` holds back for its next calls. With them the
    replicas together know the whole load.
    """

    windows_kw: WindowKw
    lengths: tuple[int, ...]
    building_ids: tuple[str, ...]
    attributions: tuple[Attribution, ...]
    deadlines_s: tuple[float, ...]
    sender: str
    waiting: float
    traces: tuple[str | None, ...] | None = None
    """Left out when none of the requests is traced."""

    @classmethod
    def of(cls, requests: Sequence[InferenceRequest], sender: str = "", waiting: float = 0.0) -> InferenceBlock:
        """At least one."""
        return cls(
            windows_kw=np.concatenate([one.window_kw for one in requests]),
            lengths=tuple(len(one.window_kw) for one in requests),
            building_ids=tuple(one.building_id for one in requests),
            attributions=tuple(one.attribution for one in requests),
            deadlines_s=tuple(one.deadline_s for one in requests),
            sender=sender,
            waiting=waiting,
            traces=tuple(one.trace for one in requests) if any(one.trace for one in requests) else None,
        )

    def requests(self) -> list[InferenceRequest]:
        """One per window, in their order; windows are views of the block."""
        ends = np.cumsum(self.lengths).tolist()
        windows = [self.windows_kw[end - length : end] for end, length in zip(ends, self.lengths, strict=True)]
        traces = self.traces or (None,) * len(windows)
        rows = zip(self.building_ids, windows, self.deadlines_s, self.attributions, traces, strict=True)
        return [InferenceRequest(*row) for row in rows]
