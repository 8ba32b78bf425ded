"""What a person sees while a demo runs: a live table on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections import deque
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from models.signal import W_PER_KW
from serve_app.demo.replies import AppliancePower
from serve_app.demo.results import Results, label
from serve_app.demo.stream import Outcome

_ROWS = 12  # minutes in the live table: what fits a small terminal together with the summary lines
_RATE_OVER = 64  # answers that the rate is taken over
_PLAIN_EVERY_S = 10.0
_ON_KW = 0.05


class LiveView(AbstractContextManager["LiveView"]):
    """Shows the outcomes of a run as they come; use it as a context manager around the run."""

    def __init__(self, console: Console, results: Results) -> None:
        self._console = console
        self._results = results
        self._latest: deque[Outcome] = deque(maxlen=_ROWS)
        self._times: deque[float] = deque(maxlen=_RATE_OVER)
        self._note = ""
        self._next_line = time.monotonic() + _PLAIN_EVERY_S
        self._stack = ExitStack()
        self._live: Live | None = None
        self._progress = Progress(
            TextColumn("minutes"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn(), expand=True
        )
        self._task = self._progress.add_task("minutes", total=len(results.plan.windows))

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = self._stack.enter_context(
                Live(self._render(), console=self._console, auto_refresh=False, transient=True)
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def show(self, outcome: Outcome) -> None:
        """Take in one outcome that `results` has already counted."""
        self._latest.append(outcome)
        self._times.append(time.monotonic())
        if outcome.failure:
            self._note = f"failed: {outcome.failure}"
        elif self._note.startswith("waiting"):
            self._note = ""
        self._progress.update(self._task, completed=self._results.sent)
        self._refresh(outcome)

    def waiting(self, seconds: float, reason: str) -> None:
        """Say that the service asked for a pause."""
        self._note = f"waiting {seconds:.0f} s: {reason}"
        if self._live is None:
            self._console.print(self._note, highlight=False, markup=False)
        else:
            self._live.update(self._render(), refresh=True)

    def _refresh(self, outcome: Outcome) -> None:
        if self._live is not None:
            # A screen shows no more than a few dozen pictures a second, and drawing takes time from sending.
            if len(self._times) < 2 or time.monotonic() >= self._next_line:
                self._live.update(self._render(), refresh=True)
                self._next_line = time.monotonic() + 0.1
            return
        last = self._results.sent == len(self._results.plan.windows)
        if time.monotonic() >= self._next_line or self._results.sent == 1 or last:
            self._console.print(self._line(outcome), highlight=False, markup=False, soft_wrap=True)
            self._next_line = time.monotonic() + _PLAIN_EVERY_S

    def _rate(self) -> float:
        if len(self._times) < 2:
            return 0.0
        return (len(self._times) - 1) / max(self._times[-1] - self._times[0], 1e-6)

    def _counts(self) -> str:
        results = self._results
        return (
            f"acknowledged {results.acknowledged} of {len(results.plan.windows)}, "
            f"failed {results.failed}, {self._rate():.1f} req/s"
        )

    def _line(self, outcome: Outcome) -> str:
        parts = [f"{self._results.recording.instant(outcome.window.target):%Y-%m-%d %H:%M}"]
        if outcome.reply is None:
            parts.append(f"failed: {outcome.failure}")
        else:
            parts.append(f"mains {self._mains_kw(outcome):.3f} kW")
            parts += [
                f"{appliance.appliance_id} {appliance.predicted_kw:.3f}"
                for appliance in outcome.reply.appliances
                if appliance.predicted_kw is not None
            ]
        return "  ".join([*parts, f"[{self._counts()}]"])

    def _mains_kw(self, outcome: Outcome) -> float:
        return float(self._results.recording.aggregate_w[outcome.window.target]) / W_PER_KW

    def _render(self) -> Group:
        table = Table(
            title=self._results.recording.title,
            expand=True,
            caption="kW, with the probability that the appliance is on",
        )
        table.add_column("time (UTC)", no_wrap=True)
        table.add_column("mains", justify="right")
        for appliance_id in self._results.appliances:
            table.add_column(label(appliance_id), justify="right")
        table.add_column("unattributed", justify="right")
        for outcome in self._latest:
            table.add_row(*self._row(outcome))
        for _ in range(_ROWS - len(self._latest)):
            table.add_row()
        return Group(table, self._progress, Text(self._counts()), Text(self._note, style="yellow"))

    def _row(self, outcome: Outcome) -> list[str | Text]:
        cells: list[str | Text] = [
            f"{self._results.recording.instant(outcome.window.target):%H:%M}",
            f"{self._mains_kw(outcome):.3f}",
        ]
        if outcome.reply is None:
            return [*cells, Text("failed", style="red")]
        found = {appliance.appliance_id: appliance for appliance in outcome.reply.appliances}
        cells += [_cell(found.get(appliance_id)) for appliance_id in self._results.appliances]
        unattributed = outcome.reply.unattributed_kw
        return [*cells, "–" if unattributed is None else f"{unattributed:.3f}"]


def _cell(appliance: AppliancePower | None) -> Text:
    if appliance is None or appliance.predicted_kw is None:
        return Text("–", style="dim")
    confidence = "" if appliance.confidence is None else f" {appliance.confidence:4.0%}"
    style = "bold green" if appliance.predicted_kw >= _ON_KW else "dim"
    return Text(f"{appliance.predicted_kw:.3f}{confidence}", style=style)
