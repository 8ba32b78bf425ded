"""One writer process per database file: an exclusive lock on a file beside it.

The kernel drops the lock when its holder dies, however it dies, so a killed replica never leaves a stale one.
A replica that replaces another waits a little, because the old one may still be flushing.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from deployments.stores.base import StoreUnavailable

_POLL_S = 0.05


class StoreInUse(StoreUnavailable):
    """Another process writes to this database file."""


class FileOwnership:
    """An exclusive claim on `path`, held until `release()` or the end of the process."""

    def __init__(self, path: Path, wait_s: float) -> None:
        """Claim `path` within `wait_s` seconds. Raises StoreInUse, naming the process that holds it."""
        self._descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + wait_s
        while not self._try_lock():
            if time.monotonic() >= until:
                holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
                os.close(self._descriptor)
                raise StoreInUse(
                    f"{path} is in use by another writer (process {holder}); two clusters, or two "
                    "persistence replicas, cannot share one SQLite file: give each its own path or use InfluxDB"
                )
            time.sleep(_POLL_S)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode("ascii"), 0)

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Give the claim up. The lock file stays: without it two processes could lock two different files."""
        os.close(self._descriptor)
