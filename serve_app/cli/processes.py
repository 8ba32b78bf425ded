"""Finds and ends the processes of one `nilm run`, and no others.

Two marks tell them from everybody else's Ray. An environment variable that names the run's data directory is
inherited by everything the run starts and survives re-parenting. Some of Ray's processes overwrite their
environment when they rename themselves; they stay in the session that the run opened, so every session whose leader
has the variable belongs to the run as well, or in which it was seen after the leader's end. A program's name or a
parent's pid would prove neither.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

OWNER_VARIABLE = "NILM_RUN_OWNER"
"""Set to the absolute data directory in everything a run starts."""

POLL_S = 0.05
KILL_PATIENCE_S = 10.0
"""How long the kernel may take to remove a process after SIGKILL (it may sit in a disk write)."""


@dataclass
class OwnedProcesses:
    """The processes of the run that owns `data_dir`. The caller holds that directory's lock."""

    data_dir: Path
    sessions: set[int] = field(default_factory=set)

    def find(self) -> list[int]:
        """Living processes of this run, this one excepted. Linux; elsewhere only what `/proc` shows: none."""
        mark = f"{OWNER_VARIABLE}={self.data_dir}".encode()
        living = {pid: session for pid in _process_ids() if (session := _living_session(pid)) is not None}
        marked = {pid for pid in living if mark in _environment(pid)}
        seen = {living[pid] for pid in marked} - {os.getsid(0)}
        # One that is led by somebody else, a terminal's for example, is not ours for one process in it.
        self.sessions |= {session for session in seen if session in marked or (session and session not in living)}
        return sorted({pid for pid, session in living.items() if session in self.sessions} | marked)

    def end(self, grace_s: float) -> list[int]:
        """SIGTERM, then after `grace_s` SIGKILL, all of them. Returns the processes that it found.

        Looks again until nothing is left, because a process may start another while it is being stopped.
        """
        found: set[int] = set()
        asked: set[int] = set()
        kill_after = time.monotonic() + grace_s
        while remaining := self.find():
            found.update(remaining)
            overdue_s = time.monotonic() - kill_after
            if overdue_s > KILL_PATIENCE_S:
                raise RuntimeError(f"processes {remaining} do not end, not even by SIGKILL")
            for pid in remaining:
                if overdue_s >= 0:
                    _signal(pid, signal.SIGKILL)
                elif pid not in asked:
                    _signal(pid, signal.SIGTERM)
                    asked.add(pid)
            time.sleep(POLL_S)
        return sorted(found)

    def wait_gone(self, timeout_s: float) -> bool:
        """True once none of them is left; False when some still are after `timeout_s`."""
        give_up = time.monotonic() + timeout_s
        while self.find():
            if time.monotonic() > give_up:
                return False
            time.sleep(POLL_S)
        return True


def _process_ids() -> list[int]:
    own = os.getpid()
    return [pid for entry in Path("/proc").glob("[0-9]*") if (pid := int(entry.name)) != own]


def _living_session(pid: int) -> int | None:
    """The session of a process; None when it has ended, a zombie (ended, not yet waited for) included."""
    try:
        # The name, in parentheses, may hold spaces and parentheses itself: count from the last one.
        state, _ppid, _group, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(session)


def _environment(pid: int) -> list[bytes]:
    """Empty for a process that just ended and for other users' processes."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
