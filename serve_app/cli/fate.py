"""Runs a program and stays beside it, so that all it started ends with it, or with whoever started us.

Usage: `NILM_RUN_OWNER=FOLDER python -m serve_app.cli.fate PARENT_PID GRACE_S COMMAND...`, as the leader of a session
of its own. `nilm run` starts Ray through it, so that Ray ends even when `nilm run` is killed with SIGKILL and cannot
clean up. To tell Ray alone would not do: `ray start` answers SIGTERM by draining its node for half a minute, before
its first second is over by nothing at all, and leaves behind whatever does not end by itself.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

from serve_app.cli.processes import OWNER_VARIABLE, OwnedProcesses

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal this process gets when its parent ends."""

LEFT_ALONE_S = 3.0
"""After the program has ended, what it started has so long to notice and to end by itself."""
INTERRUPTED = 128
"""What a shell adds to a signal's number to make it the exit code of what that signal ended."""


class Told(Exception):
    """SIGTERM: the parent asks for the end, or has ended itself."""


def main(arguments: list[str]) -> int:
    """Run `arguments[2:]` until it ends or process `arguments[0]` does; returns its exit code.

    On SIGTERM it has `arguments[1]` seconds before everything is killed.
    """
    parent, grace_s, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    owned = OwnedProcesses(Path(os.environ[OWNER_VARIABLE]), {os.getpid()})
    signal.signal(signal.SIGTERM, _tell)
    program: subprocess.Popen[bytes] | None = None
    try:
        _hear_of_the_end_of(parent)
        program = subprocess.Popen(command)  # noqa: S603 - the command is ours
        code = program.wait()
        owned.wait_gone(LEFT_ALONE_S)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except Told:
        code = INTERRUPTED + signal.SIGTERM
        if program is not None:
            # It alone, at first: it ends its children in an order that keeps them from complaining about each other.
            program.terminate()
            with suppress(subprocess.TimeoutExpired):
                code = program.wait(grace_s)
                owned.wait_gone(LEFT_ALONE_S)
    owned.end(grace_s=0.0)
    return code if code >= 0 else INTERRUPTED - code


def _tell(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what follows is the clean-up
    raise Told


def _hear_of_the_end_of(parent: int) -> None:
    """SIGTERM for this process when its parent ends; raises Told when it already has."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # It may have ended before the line above; then no signal would ever come.
    if os.getppid() != parent:
        raise Told


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
