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
    from models.registry import RegistryEntry
    from models.training.measure import Measurement

DataFolder = Annotated[
    Path,
    typer.Option("--data", envvar="NILM_DATA", help="Folder with household recordings; see `nilm data check`."),
]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads; other than 1 may change the last digits.")]


TABLE_WIDTH = 170


def train(
    appliance: Annotated[str, typer.Argument(help="kettle, microwave, dishwasher, washing_machine, electric_shower.")],
    data: DataFolder,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder.  [default: runs/APPLIANCE-seedSEED, here]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the initial weights and the batches.")] = 1,
    steps: Annotated[int | None, typer.Option(min=2, help="Batches to learn from.  [default: by appliance]")] = None,
    architecture: Annotated[
        str, typer.Option(help="TemporalPoolingUNet, Seq2Point, NILMFormer or CNNTransformer.")
    ] = "TemporalPoolingUNet",
    test_home: Annotated[
        str | None, typer.Option(help="The home it never sees.  [default: uk-dale-2, where there is one]")
    ] = None,
    training_home: Annotated[
        list[str] | None, typer.Option(help="A home to learn from; may be repeated.  [default: all others]")
    ] = None,
    threads: Threads = 1,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what the run folder holds.")] = False,
) -> None:
    """Train one appliance's model and test it on a home it never saw.

    A killed run goes on where it was. Thresholds, calibration and intervals come from a later part of the training
    homes; the test home decides nothing. The result is a run folder: `nilm models add` registers it.
    """
    require_tools()
    # torch takes seconds to import; `nilm --help` should not.
    from models.training.run import RunError, RunRequest, run  # noqa: PLC0415

    folder = out or Path("runs") / f"{appliance}-seed{seed}"
    request = RunRequest(
        appliance_id=appliance,
        data=data,
        folder=folder,
        seed=seed,
        steps=steps,
        architecture=architecture,
        test_home=test_home,
        training_homes=tuple(training_home or ()),
        threads=threads,
        restart=restart,
    )
    try:
        with progress_bars() as progress:
            entry = run(request, progress)
    except RunError as error:
        fail(str(error))
    _print_run(entry, folder)


def _print_run(entry: RegistryEntry, folder: Path) -> None:
    console = Console(soft_wrap=True)
    for test in entry.metrics["tests"]:
        for attribution in ("final", "provisional"):
            scores = test[attribution]
            verdict = "beats" if scores["beats_always_off"] else "does NOT beat"
            console.print(
                f"{test['home']} ({test['kind'].replace('_', ' ')}), {attribution}: {verdict} always-off, "
                f"F1 {scores['f1']:.3f}, MAE {scores['mae_w']:.2f} W (always off {scores['always_off_mae_w']:.2f} W)"
            )
    console.print(f"finished in {folder}; register it with: nilm models add {folder} --version X.Y.Z")


def ensemble(
    runs: Annotated[list[Path], typer.Argument(help="Finished run folders that differ in their seed: 3, 5, 7 or 9.")],
    data: DataFolder,
    out: Annotated[Path, typer.Option("--out", help="Run folder of the ensemble.")],
    restart: Annotated[bool, typer.Option("--restart", help="Forget what the run folder holds.")] = False,
) -> None:
    """Make one model of several runs: the median of what they say, calibrated and tested anew."""
    require_tools()
    from models.training.ensemble import combine  # noqa: PLC0415
    from models.training.run import RunError  # noqa: PLC0415

    try:
        with progress_bars() as progress:
            entry = combine(runs, data, out, restart, progress)
    except RunError as error:
        fail(str(error))
    _print_run(entry, out)


def study(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of run folders.")],
    out: Annotated[Path, typer.Option("--out", help="File of figures for `nilm models docs`.")] = Path(
        "docs/models/study.json"
    ),
) -> None:
    """Gather the figures of many runs: seeds, folds, architectures, fewer homes. Costs are measured now."""
    require_tools()
    from models.training.run import RunError  # noqa: PLC0415
    from models.training.study import gather  # noqa: PLC0415

    try:
        with progress_bars() as progress:
            count = gather(runs, out, progress)
    except RunError as error:
        fail(str(error))
    Console(soft_wrap=True).print(f"{out} holds {count} runs")


def evaluate(
    data: DataFolder,
    appliance: Annotated[str | None, typer.Argument(help="One appliance; or use --all.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="The champion of every appliance.")] = False,
    home: Annotated[
        str | None, typer.Option(help="A home to measure on, whole.  [default: the tests of the model's card]")
    ] = None,
    registry: Annotated[
        Path | None, typer.Option(help="A registry.json, also that of a run folder.  [default: the packaged one]")
    ] = None,
    threads: Threads = 1,
) -> None:
    """Measure registered models again, from their weights alone, and compare with what their cards say."""
    if everything == (appliance is not None):
        fail("name one appliance, or give --all")
    require_tools()
    from models.training.measure import measure  # noqa: PLC0415
    from models.training.run import RunError  # noqa: PLC0415

    try:
        with progress_bars() as progress:
            measurements = measure(data, appliance, home, registry, threads, progress)
    except RunError as error:
        fail(str(error))
    # Never cut: a log file has no width, and a column of dots says nothing.
    Console(width=max(Console().width, TABLE_WIDTH)).print(evaluation_table(measurements))
    differing = [one for one in measurements if one.equals_card is False]
    if differing:
        fail(f"{len(differing)} of {len(measurements)} measurements differ from the card")


def evaluation_table(measurements: list[Measurement]) -> Table:
    """Both answers of every model on every test beside always-off, whose F1 is 0."""
    result = Table(title="state F1; powers in W; share of true powers inside the intervals")
    for heading in ("model", "home", "answer"):
        result.add_column(heading, no_wrap=True)
    for heading in ("on >=", "F1", "cycle F1", "MAE", "off MAE", "SAE", "ECE", "80 %", "90 %", "card"):
        result.add_column(heading, justify="right", no_wrap=True)
    for one in measurements:
        for attribution, report in one.reports.items():
            scores = report.scores
            result.add_row(
                f"{one.entry.model_id} {one.entry.model_version}",
                f"{one.home} ({one.kind.replace('_', ' ')})",
                str(attribution),
                f"{one.entry.on_threshold_w:g}",
                f"{scores.f1:.3f}",
                f"{scores.cycle_f1:.3f}",
                f"{scores.mae_w:.2f}",
                f"{scores.always_off_mae_w:.2f}",
                f"{scores.sae:.3f}",
                f"{report.ece_after:.4f}",
                *(f"{share:.3f}" for share in report.coverages.values()),
                {True: "equal", False: "DIFFERS", None: "-"}[one.equals_card],
            )
    return result


def fail(message: str) -> NoReturn:
    """One sentence on standard error, exit code 1."""
    Console(stderr=True).print(f"error: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(1)


def require_tools(extra: str = "tools") -> None:
    """Ends with one sentence when pandas and pyarrow, which `extra` brings, are not installed."""
    for package in ("pandas", "pyarrow"):
        if importlib.util.find_spec(package) is None:
            fail(f"{package} is not installed; this command needs the extra: pip install 'nilm-serve[{extra}]'")


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
