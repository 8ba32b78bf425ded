"""How many replicas an appliance needs: by the windows that wait and run, not by the calls that carry them.

serve_config.yaml names `by_windows` as the `policy` of each appliance. Serve applies the delays, the factors and the
bounds of that `autoscaling_config` to what it says. It runs in Serve's controller.
"""

from __future__ import annotations

import time
from typing import Any

HELD_S = 2.0
"""For so long a sender's word of what waits there stands: it has more calls on their way than one."""
WINDOWS = "windows"
"""The key under which replicas report them."""


class HeldBack:
    """Windows that senders hold back for one replica, by what each of them said last."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, float]] = {}

    def said(self, sender: str, windows: float) -> None:
        """With a call that has just come."""
        self._said[sender] = windows, time.monotonic()

    def windows(self) -> float:
        """By all of them; who has not called for a while holds nothing back any more."""
        since_s = time.monotonic() - HELD_S
        self._said = {sender: one for sender, one in self._said.items() if one[1] > since_s}
        return sum(windows for windows, _ in self._said.values())


def by_windows(context: Any) -> tuple[float, dict[str, Any]]:
    """Replicas wanted, such that each has `target_ongoing_requests` windows; `context`: an `AutoscalingContext`.

    Before any replica has reported there are as many as now.
    """
    reported = (context.aggregated_metrics or {}).get(WINDOWS) or {}
    if not reported:
        return float(context.target_num_replicas), {}
    return sum(reported.values()) / float(context.config.get_target_ongoing_requests()), {}
