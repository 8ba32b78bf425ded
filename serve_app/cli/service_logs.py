"""Repeats the service's log lines on standard output, where a container's log is looked for.

Ray keeps one file per replica in a temporary directory that ends with the container; only whole lines are copied,
unchanged (they are JSON already).
"""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

CHUNK_BYTES = 1 << 20
"""At most this much of one file a turn, so that a noisy replica cannot keep the others unheard."""


class LogFollower:
    """Remembers how far each file of `folder` was read; `poll` copies what came since."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read_bytes: dict[Path, int] = {}

    def poll(self, output: TextIO) -> None:
        """Copy every whole line that is new. A file that became shorter was rotated and is read from its start."""
        for path in sorted(self._folder.glob("*.log")):
            offset = self._read_bytes.get(path, 0)
            try:
                if path.stat().st_size < offset:
                    offset = 0
                with path.open("rb") as file:
                    file.seek(offset)
                    chunk = file.read(CHUNK_BYTES)
            except FileNotFoundError:
                continue
            end = chunk.rfind(b"\n") + 1
            if end == 0 and len(chunk) == CHUNK_BYTES:
                end = CHUNK_BYTES  # one line longer than a turn: better in pieces than never
            self._read_bytes[path] = offset + end
            if end:
                output.write(chunk[:end].decode("utf-8", errors="replace"))
        output.flush()
