"""`nilm train` and `nilm evaluate`: make a model version, and measure registered ones on a home they never saw.

torch and pandas are imported inside the commands: `nilm --help` stays quick, and works without the `tools` extra.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from models.training.evaluate import HomeReport
    from models.training.release import Progress as OnProgress

DataFolder = Annotated[
    Path, typer.Option("--data", help="Folder with the household recordings (parquet, one file a home).")
]
RegistryFolder = Annotated[
    Path | None,
    typer.Option(
        "--out", help="Folder of registry.json and artifacts/; made when absent.  [default: the models package]"
    ),
]


def fail(message: str) -> NoReturn:
    """One sentence on standard error, exit code 1."""
    Console(stderr=True).print(f"[red]error:[/red] {message}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def train(
    appliance: Annotated[str, typer.Argument(help="kettle, microwave, dishwasher or washing_machine.")],
    data: DataFolder,
    seed: Annotated[int, typer.Option(help="Decides the initial weights and the batches.")] = 1,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Batches to learn from.  [default: by appliance, 700 to 1000]")
    ] = None,
    version: Annotated[str, typer.Option(help="Version to register.")] = "1.0.0",
    out: RegistryFolder = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; other than 1 may change the weights.")] = 1,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the version if it exists.")] = False,
    inactive: Annotated[bool, typer.Option("--inactive", help="Register without making it active.")] = False,
) -> None:
    """Train one appliance's model on the training homes, test it on unseen ones, and register it.

    Thresholds and calibration come from a later part of the training homes; the test homes decide nothing.
    """
    require_tools()
    from models.appliances import UnknownAppliance
    from models.appliances import appliance as find_appliance
    from models.registry import PACKAGED_REGISTRY, RegistryError
    from models.training.export import VersionExists, ensure_free
    from models.training.loop import Recipe
    from models.training.recordings import RecordingError
    from models.training.release import STEPS, load_split, release, train_network

    root = PACKAGED_REGISTRY.parent if out is None else out
    try:
        found = find_appliance(appliance)
        if appliance not in STEPS:
            fail(f"the training homes have no {appliance}; they have {', '.join(sorted(STEPS))}")
        recipe = Recipe(seed=seed, steps=steps or STEPS[appliance], threads=threads)
        if not replace:
            ensure_free(root, appliance, version)
        homes = load_split(data)
        with shown() as progress:
            network = train_network(homes, found, recipe, progress)
            entry = release(
                network,
                homes,
                appliance,
                data,
                recipe,
                root,
                version,
                is_active=not inactive,
                replace=replace,
                progress=progress,
            )
    except (UnknownAppliance, RecordingError, RegistryError, VersionExists, FloatingPointError) as error:
        fail(str(error))
    console = Console()
    for test in entry.metrics["tests"]:
        verdict = "beats" if test["beats_always_off"] else "does NOT beat"
        served = test["served"]
        console.print(
            f"{test['home']}: {verdict} always-off, F1 {served['f1']:.3f}, "
            f"MAE {served['mae_w']:.2f} W (always off {served['always_off_mae_w']:.2f} W)"
        )
    console.print(f"registered {entry.model_id} {entry.model_version}; card: {root / str(entry.card_path)}")


def evaluate(
    data: DataFolder,
    appliance: Annotated[str | None, typer.Argument(help="One appliance; or use --all.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every appliance with an active model.")] = False,
    out: RegistryFolder = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Measure active models on the unseen test home: every window, the served and the centred sample."""
    require_tools()
    import torch

    from models.appliances import UnknownAppliance
    from models.appliances import appliance as find_appliance
    from models.loader import ArtifactRefused, load_verified
    from models.registry import Registry, RegistryError
    from models.training.evaluate import decision_of
    from models.training.loop import Recipe, preferred_device
    from models.training.recordings import TEST_RECORDING, RecordingError, load_home
    from models.training.release import test_on

    if everything == (appliance is not None):
        fail("name one appliance, or give --all")
    torch.set_num_threads(threads)
    rows: list[tuple[str, tuple[HomeReport, HomeReport]]] = []
    try:
        registry = Registry.load(None if out is None else out / "registry.json")
        entries = (
            [entry for entry in registry.entries if entry.is_active]
            if appliance is None
            else [registry.active(appliance)]
        )
        home = load_home(data, TEST_RECORDING)
        with shown() as progress:
            for entry in entries:
                model = load_verified(entry, registry.root, preferred_device())
                recipe = changed(Recipe(), window=entry.input_window_size)
                look_ahead = entry.input_window_size - 1 - entry.output_sample_index
                target = find_appliance(entry.appliance_id)
                reports = test_on(model.network, home, target, recipe, decision_of(model), look_ahead, progress)
                rows.append((f"{entry.model_id} {entry.model_version}", reports))
    except (UnknownAppliance, RecordingError, RegistryError, ArtifactRefused) as error:
        fail(str(error))
    Console().print(table(TEST_RECORDING.home, rows))


def table(home: str, rows: list[tuple[str, tuple[HomeReport, HomeReport]]]) -> Table:
    """Both samples of every model beside always-off (F1 0, TECA 0.5)."""
    result = Table(title=f"{home}, never seen in training")
    for heading in ("model", "sample", "F1", "cycle F1", "MAE W", "off MAE W", "MAE on W", "SAE", "TECA", "ECE"):
        result.add_column(heading, justify="left" if heading == "model" else "right")
    for name, reports in rows:
        for report in reports:
            scores = report.scores
            result.add_row(
                name,
                str(report.sample_index),
                f"{scores.f1:.3f}",
                f"{scores.cycle_f1:.3f}",
                f"{scores.mae_w:.2f}",
                f"{scores.always_off_mae_w:.2f}",
                f"{scores.mae_on_w:.1f}",
                f"{scores.sae:.3f}",
                f"{scores.teca:.3f}",
                f"{report.ece_after:.4f}",
            )
    return result


def require_tools() -> None:
    """Ends with one sentence when the `tools` extra is not installed."""
    try:
        import pandas  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        fail(f"{error.name} is not installed; training needs the extra: pip install 'nilm-serve\\[tools]'")


@contextmanager
def shown() -> Iterator[OnProgress]:
    """A progress bar per thing being done, on standard error."""
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
