"""The table of a run, and how its changes are counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from tests.bench.autoscaling.load import PERIOD_S
from tests.bench.autoscaling.observer import APPLIANCES, KETTLE, WATCHED, Look, Observer, Part
from tests.bench.serving.connections import Reply


def report(parts: Sequence[Part], observer: Observer, replies: Mapping[str, Sequence[Reply]]) -> None:
    """Prints the table, and what the sawtooth did."""
    everybody = [one for several in replies.values() for one in several]
    print(
        f"\n{'part':<10}{'deployment':<12}{'start':>6}{'most':>6}{'end':>5}{'changes':>9}{'up after s':>12}"
        f"{'back after s':>14}{'windows':>9}{'answered':>10}{'failed':>8}  by status"
    )
    for part in parts:
        looks, held = part.of(observer.looks), part.of(observer.held)
        for name in WATCHED:
            counts = [look.running[name] for look in looks] or [0]
            windows = [one.windows[name] for one in held if part.loaded(one.at_s)] if name in APPLIANCES else []
            sent = [one for one in replies.get(name, everybody) if part.began_s <= one.due_s < part.ended_s]
            failed = Counter(one.status for one in sent if not 200 <= one.status < 300)
            print(
                f"{part.name:<10}{name:<12}{counts[0]:>6}{max(counts):>6}{counts[-1]:>5}"
                f"{len(changes(looks, name)):>9}{shown(up_after_s(part, looks, name)):>12}"
                f"{shown(back_after_s(part, looks, name)):>14}{shown(mean(windows)):>9}"
                f"{len(sent) - failed.total():>10}{failed.total():>8}  {by_status(failed)}"
            )
    print("windows: that waited or ran while the clients were there, mean; the ingress's row has all requests")
    for part in parts:
        changed = changes(part.of(observer.looks), KETTLE)
        print(
            f"{part.name}: {len(part.loads)} loads in {part.minutes(part.ended_s):.1f} minutes, the number of {KETTLE} "
            f"replicas changed {len(changed)} times; {taken_back(changed, PERIOD_S)} changes were taken back within "
            f"{PERIOD_S:.0f} s (thrash)"
        )
    for what, times in observer.missed.items():
        print(f"{times} looks at {what} had no answer")


def changes(looks: Sequence[Look], name: str) -> list[tuple[float, int]]:
    """When the number of its replicas was seen to have changed, and by how many."""
    differences = [(later.at_s, later.running[name] - earlier.running[name]) for earlier, later in pairwise(looks)]
    return [(at_s, by) for at_s, by in differences if by]


def taken_back(changed: Sequence[tuple[float, int]], within_s: float) -> int:
    """How many changes were followed so soon by one the other way: thrash."""
    return sum(one * other < 0 and later_s - at_s <= within_s for (at_s, one), (later_s, other) in pairwise(changed))


def up_after_s(part: Part, looks: Sequence[Look], name: str) -> float:
    """From the first load until more replicas than at the start of the part were seen to run; NaN without."""
    first_s = part.loads[0][0]
    return next(
        (one.at_s - first_s for one in looks if one.at_s >= first_s and one.running[name] > looks[0].running[name]),
        math.nan,
    )


def back_after_s(part: Part, looks: Sequence[Look], name: str) -> float:
    """From the end of the last load until there were as few again; NaN when there were no more, or still are."""
    last_s = part.loads[-1][1]
    more = False
    for one in looks:
        if one.at_s >= last_s:
            if more and one.running[name] <= looks[0].running[name]:
                return one.at_s - last_s
            more = more or one.running[name] > looks[0].running[name]
    return math.nan


def mean(values: Sequence[float]) -> float:
    """NaN of none."""
    return sum(values) / len(values) if values else math.nan


def shown(value: float) -> str:
    """A whole number, or that there is none."""
    return "-" if math.isnan(value) else f"{value:.0f}"


def by_status(failed: Mapping[int, int]) -> str:
    """Status 0: the connection was lost under the request."""
    return ", ".join(f"{count} x {status or 'lost'}" for status, count in sorted(failed.items()))
