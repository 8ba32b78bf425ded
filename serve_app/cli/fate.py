"""Ties a program's life to its parent's, then becomes that program.

Usage: `python -m serve_app.cli.fate PARENT_PID COMMAND...`. `nilm run` starts Ray through it, so that Ray ends
even when `nilm run` is killed with SIGKILL and cannot clean up. Doing this here rather than in `subprocess`'s
`preexec_fn` keeps Python code out of the moment between fork and exec, where a second thread may hold a lock.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal this process gets when its parent ends; it survives execve."""


def main(arguments: list[str]) -> None:
    """Replace this process by `arguments[1:]`, to be told by SIGTERM when process `arguments[0]` ends."""
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have ended before the line above; then no signal would ever come.
    if os.getppid() != parent:
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - the command is ours, and no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
