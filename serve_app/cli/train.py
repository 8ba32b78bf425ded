"""`nilm train` and `nilm evaluate`: make a model version, and measure registered ones on a home they never saw."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from models.training.jobs import Evaluation

DataFolder = Annotated[
    Path, typer.Option("--data", help="Folder with the household recordings (parquet, one file a home).")
]
RegistryFolder = Annotated[
    Path | None,
    typer.Option("--out", help="Folder of registry.json and artifacts/.  [default: the models package]"),
]


def train(
    appliance: Annotated[str, typer.Argument(help="kettle, microwave, dishwasher or washing_machine.")],
    data: DataFolder,
    seed: Annotated[int, typer.Option(help="Decides the initial weights and the batches.")] = 1,
    steps: Annotated[int | None, typer.Option(min=2, help="Batches to learn from.  [default: by appliance]")] = None,
    version: Annotated[str, typer.Option(help="Version to register.")] = "1.0.0",
    out: RegistryFolder = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; other than 1 may change the weights.")] = 1,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the version if it exists.")] = False,
    inactive: Annotated[bool, typer.Option("--inactive", help="Register without making it active.")] = False,
) -> None:
    """Train one appliance's model, test it on a home it never saw, and register it.

    Thresholds and calibration come from a later part of the training homes; the test home decides nothing.
    """
    require_tools()
    # torch takes seconds to import; `nilm --help` should not.
    from models.training.jobs import JobError, train_and_register  # noqa: PLC0415

    try:
        with progress_bars() as progress:
            entry = train_and_register(
                appliance,
                data,
                progress,
                root=out,
                seed=seed,
                steps=steps,
                version=version,
                threads=threads,
                replace=replace,
                is_active=not inactive,
            )
    except JobError as error:
        fail(str(error))
    console = Console()
    for test in entry.metrics["tests"]:
        verdict = "beats" if test["beats_always_off"] else "does NOT beat"
        served = test["served"]
        console.print(
            f"{test['home']}: {verdict} always-off, F1 {served['f1']:.3f}, "
            f"MAE {served['mae_w']:.2f} W (always off {served['always_off_mae_w']:.2f} W)"
        )
    console.print(f"registered {entry.model_id} {entry.model_version}, card {entry.card_path}")


def evaluate(
    data: DataFolder,
    appliance: Annotated[str | None, typer.Argument(help="One appliance; or use --all.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every appliance with an active model.")] = False,
    home: Annotated[str, typer.Option(help="The unseen home: uk-dale-2 or ideal-65.")] = "uk-dale-2",
    out: RegistryFolder = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Measure active models on an unseen home: every window, the served and the centred sample."""
    if everything == (appliance is not None):
        fail("name one appliance, or give --all")
    require_tools()
    from models.training.jobs import JobError, evaluate_active  # noqa: PLC0415

    try:
        with progress_bars() as progress:
            evaluations = evaluate_active(data, progress, appliance, home, out, threads)
    except JobError as error:
        fail(str(error))
    Console().print(evaluation_table(home, evaluations))


def evaluation_table(home: str, evaluations: list[Evaluation]) -> Table:
    """Both samples of every model beside always-off, whose F1 is 0 and TECA 0.5."""
    result = Table(title=f"{home}, never seen in training")
    result.add_column("model")
    for heading in ("sample", "F1", "p >=", "cycle F1", "MAE W", "off MAE W", "SAE", "TECA", "ECE"):
        result.add_column(heading, justify="right")
    for evaluation in evaluations:
        for report in (evaluation.served, evaluation.centred):
            scores = report.scores
            result.add_row(
                f"{evaluation.entry.model_id} {evaluation.entry.model_version}",
                str(report.sample_index),
                f"{scores.f1:.3f}",
                f"{evaluation.entry.metrics.get('on_probability_threshold', 0.5):g}",
                f"{scores.cycle_f1:.3f}",
                f"{scores.mae_w:.2f}",
                f"{scores.always_off_mae_w:.2f}",
                f"{scores.sae:.3f}",
                f"{scores.teca:.3f}",
                f"{report.ece_after:.4f}",
            )
    return result


def fail(message: str) -> NoReturn:
    """One sentence on standard error, exit code 1."""
    Console(stderr=True).print(f"error: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(1)


def require_tools() -> None:
    """Ends with one sentence when the `tools` extra is not installed."""
    for package in ("pandas", "pyarrow"):
        if importlib.util.find_spec(package) is None:
            fail(f"{package} is not installed; this command needs the extra: pip install 'nilm-serve[tools]'")


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each thing being done, on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            # The loss after the comma changes every step; the task is what comes before it.
            key = what.split(",", maxsplit=1)[0]
            if key not in tasks:
                tasks[key] = bars.add_task(what, total=total)
            bars.update(tasks[key], completed=done, description=what)
            if done >= total:
                del tasks[key]

        yield update
