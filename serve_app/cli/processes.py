"""Finds and ends the processes of one `nilm run`, and no others.

Every process of a run inherits an environment variable that names the run's data directory. That mark, unlike a
parent's pid, survives re-parenting, new sessions and new process groups, which Ray and HAProxy both use; and
unlike a program's name, it cannot match somebody else's Ray.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

OWNER_VARIABLE = "NILM_RUN_OWNER"
"""Set to the absolute data directory in everything a run starts."""

POLL_S = 0.05


def owned_processes(data_dir: Path) -> list[int]:
    """Living processes that carry this data directory's mark, this one excepted. Linux; elsewhere empty."""
    mark = f"{OWNER_VARIABLE}={data_dir}".encode()
    return [
        int(entry.name)
        for entry in Path("/proc").glob("[0-9]*")
        if int(entry.name) != os.getpid() and mark in _environment(entry)
    ]


def end_owned_processes(data_dir: Path, grace_s: float) -> list[int]:
    """SIGTERM, then after `grace_s` SIGKILL, everything that carries the mark. Returns what was still there.

    Looks again until nothing is left, because a process may start another while it is being stopped. The caller
    must hold the data directory's lock: then whatever carries the mark belongs to this run or a dead one.
    """
    found: set[int] = set()
    give_up = time.monotonic() + grace_s + 10.0
    kill_after = time.monotonic() + grace_s
    asked: set[int] = set()
    while remaining := owned_processes(data_dir):
        found.update(remaining)
        now = time.monotonic()
        if now > give_up:
            raise RuntimeError(f"processes {remaining} do not end, not even by SIGKILL")
        for pid in remaining:
            if now >= kill_after:
                _signal(pid, signal.SIGKILL)
            elif pid not in asked:
                _signal(pid, signal.SIGTERM)
                asked.add(pid)
        time.sleep(POLL_S)
    return sorted(found)


def _environment(process: Path) -> list[bytes]:
    """Empty for a zombie, for a process that just ended, and for other users' processes."""
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
