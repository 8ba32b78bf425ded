"""What a person sees while the service starts: one line per part, live on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text


class StartProgress:
    """A board of parts (Ray, Serve, every deployment, readiness), each waiting or done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._parts: dict[str, tuple[str, bool, float]] = {}
        self._spinner = Spinner("dots")
        self._live = Live(get_renderable=self._board, console=console, refresh_per_second=8, transient=False)

    def __enter__(self) -> StartProgress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def step(self, part: str, status: str, *, done: bool = False) -> None:
        """Say how a part is doing. Saying the same again prints nothing new."""
        status = status.strip()
        if self._parts.get(part, ("", False, 0.0))[:2] == (status, done):
            return
        seconds = time.monotonic() - self._started
        self._parts[part] = (status, done, seconds)
        if not self._console.is_terminal:
            self._console.print(f"{seconds:5.1f} s  {part:<14} {status}", soft_wrap=True, markup=False)

    def _board(self) -> Table:
        board = Table.grid(padding=(0, 2))
        now = time.monotonic() - self._started
        for part, (status, done, seconds) in self._parts.items():
            icon = Text("✓", style="green") if done else self._spinner
            board.add_row(icon, part, Text(status, overflow="ellipsis"), f"{seconds if done else now:.1f} s")
        return board
