"""What a request costs in this system and in those one would write instead, measured in one run on one machine.

    python -m tests.bench.serving --rounds 3 --seconds 5 --markdown docs/performance.md

Prints tables; asserts nothing. How each system is built, how it is loaded and how to read the tables:
docs/performance.md. Exit codes: 0 measured; 1 some system could not be; 2 nothing was started.
"""

from __future__ import annotations

import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from models.registry import Registry, RegistryError
from tests.bench.serving.closed_loop import find_wrk
from tests.bench.serving.load import LoadFailed
from tests.bench.serving.machine import machine
from tests.bench.serving.markdown import MarkersMissing, markdown, replace_block, write_block
from tests.bench.serving.options import Options, chosen_options
from tests.bench.serving.request_set import batch_requests, float32_requests, infer_requests
from tests.bench.serving.rounds import Plan, Variant, run_rounds
from tests.bench.serving.samples import Measured
from tests.bench.serving.systems import APPLIANCE, SYSTEMS, THIS_SYSTEM, access_token
from tests.bench.serving.tables import Table, all_tables, remarks

FILE_COLUMNS = 180
"""Where nobody sees them being written, no figure is cut off to fit a window."""


class Refused(Exception):
    """Nothing can be measured; the text says what to do about it."""


def main() -> int:
    """Measure, print, write."""
    options = chosen_options()
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=FILE_COLUMNS)
    try:
        check(options)
    except (Refused, LoadFailed, MarkersMissing, OSError, RegistryError) as refusal:
        print(refusal, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="nilm-bench-", dir=options.folder) as folder:
        measured = measure(options, Path(folder), console)
    tables, facts = all_tables(measured), measured.machine | measured.options
    for table in tables:
        console.print(_rich(table))
    for name, value in facts.items():
        console.print(f"{name}: {value}")
    for remark in remarks(measured):
        console.print(f"[bold red]{remark}")
    if options.json is not None:
        measured.write_json(options.json)
    if options.markdown is not None:
        write_block(options.markdown, markdown(tables, facts, remarks(measured)))
    return 1 if measured.failed else 0


def check(options: Options) -> None:
    """Everything that can be known before an hour is spent. Raises what `main` catches."""
    find_wrk()
    for key in options.systems:
        if missing := SYSTEMS[key].missing:
            raise Refused(f"{key} needs {', '.join(missing)}: pip install -e '.[bench]'")
    if options.markdown is not None:
        replace_block(options.markdown.read_text(encoding="utf-8"), "")
    _model_version(options)


def measure(options: Options, folder: Path, console: Console) -> Measured:
    """All rounds, with a bar of their progress."""
    version = _model_version(options)
    window_samples = Registry.load().resolve(APPLIANCE, version).input_window_size
    token = access_token()
    plan = Plan(
        systems=[SYSTEMS[key] for key in options.systems],
        rounds=options.rounds,
        seconds=options.seconds,
        concurrency=options.concurrency,
        model_version=version,
        requests=infer_requests(token, APPLIANCE, window_samples),
        variants=(
            Variant("float32 body", float32_requests(token, APPLIANCE, window_samples), 64, THIS_SYSTEM),
            Variant("batches of 256", batch_requests(token, APPLIANCE, window_samples), 4, THIS_SYSTEM),
        ),
        folder=folder,
    )
    run = {
        "model": f"{APPLIANCE} {version}, windows of {window_samples} samples",
        "rounds": f"{options.rounds}, {options.seconds:g} s a slice, {datetime.now(UTC):%Y-%m-%d}",
    }
    measured = Measured(machine(folder), run)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=plan.steps)

        def say(what: str) -> None:
            progress.update(task, description=what, advance=1)

        run_rounds(plan, measured, say)
        progress.update(task, description="done", completed=plan.steps)
    return measured


def _model_version(options: Options) -> str:
    registry = Registry.load()
    if options.model_version:
        return registry.resolve(APPLIANCE, options.model_version).model_version
    return registry.active(APPLIANCE).model_version


def _rich(table: Table) -> RichTable:
    shown = RichTable(title=table.title, caption=table.note, title_justify="left", caption_justify="left")
    for number, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if number < 2 else "right", no_wrap=True)
    for row in table.rows:
        shown.add_row(*row)
    return shown


if __name__ == "__main__":
    sys.exit(main())
