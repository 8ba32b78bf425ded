"""How many replicas an appliance needs: by the windows that wait and run, not by the calls that carry them.

serve_config.yaml names `by_windows` as the `policy` of each appliance. Serve applies the delays, the factors and the
bounds of that `autoscaling_config` to what it says. It runs in Serve's controller.
"""

from __future__ import annotations

from typing import Any

WINDOWS = "windows"
"""The key under which replicas report them."""


def by_windows(context: Any) -> tuple[float, dict[str, Any]]:
    """Replicas wanted, such that each has `target_ongoing_requests` windows; `context`: an `AutoscalingContext`.

    Before any replica has reported there are as many as now.
    """
    reported = (context.aggregated_metrics or {}).get(WINDOWS) or {}
    if not reported:
        return float(context.target_num_replicas), {}
    return sum(reported.values()) / float(context.config.get_target_ongoing_requests()), {}
