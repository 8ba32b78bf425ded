"""`nilm data check`: whether household recordings can be learnt from, and everything that is done to them before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from serve_app.cli.train import fail, require_tools

if TYPE_CHECKING:
    from models.training.data_report import DataReport
    from models.training.recordings import Home, Recording

data = typer.Typer(help="Household recordings to learn from.", no_args_is_help=True)

DECLARATIONS = (".yaml", ".yml")
TABLES = (".csv", ".parquet")
MB = 1e6


@data.callback()
def _commands() -> None:
    """Keeps `nilm data check` spelled out while there is one command."""


@data.command()
def check(
    path: Annotated[Path, typer.Argument(help="A data folder, its homes.yaml, or one CSV or parquet file.")],
    unit: Annotated[str | None, typer.Option(help="W or kW; for a single file, which declares none.")] = None,
    timezone: Annotated[
        str | None, typer.Option(help="Of times without an offset, such as Europe/London.  [default: UTC]")
    ] = None,
    mains: Annotated[str | None, typer.Option(help="Mains column of a single file.  [default: Aggregate]")] = None,
    time: Annotated[
        str | None, typer.Option(help="Time column of a single file.  [default: the index, or a CSV's first]")
    ] = None,
) -> None:
    """Say what recordings hold, what is wrong with them, and what training does about it. Changes nothing.

    Ends with 1 and a sentence when a home cannot be learnt from. A folder's homes.yaml declares files, units and
    columns. Appliances of a single file are the columns called like ours (kettle) or DeviceScope's (Kettle).
    """
    require_tools()
    from models.training.homes_file import RecordingError  # noqa: PLC0415 - pandas takes a second
    from models.training.recordings import inspect_home  # noqa: PLC0415

    options = {"--unit": unit, "--timezone": timezone, "--mains": mains, "--time": time}
    try:
        folder, recordings = _homes(path, options)
    except RecordingError as error:
        fail(str(error))
    out, notes = Console(), Console(stderr=True)
    unusable = 0
    for recording in recordings:
        try:
            with notes.status(_reading(folder / recording.file_name)):
                home, report = inspect_home(folder, recording)
        except RecordingError as error:
            unusable += 1
            notes.print(Text(f"error: {error}", style="red"), soft_wrap=True)
            continue
        for table in (facts(home, report), problems(report), appliances(home)):
            out.print(table)
    if unusable:
        raise typer.Exit(1)


def _homes(path: Path, options: dict[str, str | None]) -> tuple[Path, list[Recording]]:
    """The folder that recordings are in, and those to check."""
    from models.training.homes_file import RecordingError, read_homes_file  # noqa: PLC0415
    from models.training.recordings import known_homes  # noqa: PLC0415

    if not path.exists():
        raise RecordingError(f"there is no {path}")
    if path.is_file() and path.suffix.lower() not in DECLARATIONS:
        return path.parent, [_single(path, options)]
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise RecordingError(f"{given[0]} is for a single file; the homes of {path} are declared in homes.yaml")
    if path.is_file():
        return path.parent, list(read_homes_file(path).values())
    return path, list(known_homes(path).values())


def _single(path: Path, options: dict[str, str | None]) -> Recording:
    """One file without a homes.yaml: the command line declares it."""
    from models.appliances import APPLIANCES  # noqa: PLC0415
    from models.training.homes_file import MAINS, UNITS, Recording, RecordingError, time_zone  # noqa: PLC0415
    from models.training.readers import DEVICESCOPE_MAINS, column_names  # noqa: PLC0415

    if path.suffix.lower() not in TABLES:
        raise RecordingError(f"{path.name} is none of {', '.join(TABLES)}; other formats are declared in a homes.yaml")
    unit = next((known for known in UNITS if known == options["--unit"]), None)
    if unit is None:
        raise RecordingError(f"say whether {path.name} is in W or in kW: --unit W or --unit kW")
    try:
        zone = None if options["--timezone"] is None else time_zone(options["--timezone"])
    except ValueError as error:
        raise RecordingError(str(error)) from error
    names = column_names(path)
    columns = [(MAINS, options["--mains"] or DEVICESCOPE_MAINS)]
    for name, appliance in APPLIANCES.items():
        columns += [(name, column) for column in (name, appliance.column) if column in names][:1]
    return Recording(
        home=path.stem,
        file_name=path.name,
        attribution="",
        unit=unit,
        timezone=zone,
        time_column=options["--time"],
        columns=tuple(columns),
    )


def _reading(path: Path) -> str:
    return f"reading {path.name} ({path.stat().st_size / MB:.1f} MB)" if path.is_file() else f"looking for {path.name}"


def facts(home: Home, report: DataReport) -> Table:
    """Span, periods, samples, and how much of it is measured."""
    table = Table(title=Text(f"{home.recording.home} ({home.recording.file_name})"), show_header=False)
    table.add_column("what")
    table.add_column("value")
    periods = ", ".join(f"{step_s:g} s ({share:.1%})" for step_s, share in report.periods)
    for what, value in (
        ("span, UTC", f"{home.first_day} to {home.last_day}"),
        ("times", report.times),
        ("period", periods or "one row only"),
        ("longest gap", f"{report.longest_gap_s / 3600:.1f} h" if report.longest_gap_s else "none"),
        ("samples", f"{report.rows:,} in the file, {len(home):,} minutes"),
        ("measured", f"{home.valid.mean():.1%} of the minutes"),
        ("declared unit", home.recording.unit),
        ("highest mains", f"{report.maximum_w:,.0f} W"),
    ):
        table.add_row(what, Text(value))
    return table


def problems(report: DataReport) -> Table:
    """Each problem that was found, where, how often, and what happens to it."""
    found = report.found()
    table = Table(title="Problems" if found else "No problems found")
    table.add_column("problem")
    table.add_column("where")
    table.add_column("count", justify="right")
    table.add_column("what training does")
    for problem, channel, count in found:
        table.add_row(problem.label, channel, f"{count:,}", problem.treatment)
    return table


def appliances(home: Home) -> Table:
    """What there is to learn of each appliance, and the error that predicting zero has."""
    from models.training.data_summary import summarise  # noqa: PLC0415

    summaries = summarise(home)
    table = Table(title="Appliances, measured minutes" if summaries else "No appliance: nothing to learn from")
    table.add_column("appliance")
    for heading in ("mean W = always-off MAE", "maximum W", "cycles", "share on"):
        table.add_column(heading, justify="right")
    for one in summaries:
        table.add_row(
            one.appliance_id,
            f"{one.always_off_mae_w:.2f}",
            f"{one.maximum_w:,.0f}",
            f"{one.cycles:,}",
            f"{one.share_on:.2%}",
        )
    return table
