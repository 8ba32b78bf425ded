"""`nilm backfill`: predictions for the past of a building, from its stored readings, beside the running service."""

from __future__ import annotations

import re
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from deployments.registry_source import REGISTRY_VARIABLE, registry_source
from models.registry import RegistryEntry, RegistryError
from serve_app.cli.cluster_connection import Address, Application, NoAnswer, answer_of, deployments_of, joined
from serve_app.cli.db import moment_ns
from serve_app.cli.train import fail, require_tools
from serve_app.schemas import IDENTIFIER_PATTERN

if TYPE_CHECKING:
    from deployments.backfill_run import StretchDone

COUNTS = {
    "stored": "minutes stored",
    "already_stored": "stored before",
    "mains_missing": "no full window",
    "not_kept": "not kept",
}
"""Of a `StretchDone`, and the columns they are shown in."""


def backfill(
    building: Annotated[str, typer.Option(help="Whose readings: letters, digits, _ and -.")],
    start: Annotated[str, typer.Option("--from", help="ISO 8601 with offset, or a time before now like -30d.")],
    end: Annotated[str, typer.Option("--to", help="Up to: like --from.")] = "now()",
    appliance: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be repeated.  [default: all that are served]")
    ] = None,
    model_version: Annotated[
        str | None,
        typer.Option(help="A registered version; charts show the newest there is.  [default: what serves]"),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Processes; each uses what live traffic leaves of a core.")
    ] = 1,
    address: Address = "",
    application: Application = "nilm",
) -> None:
    """Run a building's stored readings through the models and store the predictions under their version.

    Minutes that have a prediction of that version are passed over, so the same command goes on where it was stopped.
    Live traffic goes first.
    """
    require_tools("backfill")
    if not re.fullmatch(IDENTIFIER_PATTERN, building):
        fail("--building must be 1 to 64 letters, digits, _ and -")
    start_ns, stop_ns = moment_ns("--from", start), moment_ns("--to", end)
    if stop_ns <= start_ns:
        fail("--to must be after --from")
    with joined(address):
        versions = _versions(application, appliance, model_version)
        stored = _run(building, versions, start_ns, stop_ns, application, workers)
    _summarise(building, versions, stored)


def _versions(application: str, appliances: list[str] | None, version: str | None) -> dict[str, str]:
    """By appliance, those that were asked for; each is registered, and fits minutes."""
    from deployments.backfill import SAMPLE_PERIOD_S  # noqa: PLC0415 - imports torch

    serving = _serving(application)
    wanted = appliances or sorted(serving)
    unknown = sorted(set(wanted) - set(serving))
    if unknown:
        fail(f"{', '.join(unknown)} is not served; served are: {', '.join(sorted(serving))}")
    try:
        registered = registry_source().registry()
        entries: list[RegistryEntry] = [registered.resolve(one, version or serving[one]) for one in wanted]
    except RegistryError as error:
        fail(f"{error}. Choose with --appliance and --model-version, or another {REGISTRY_VARIABLE}")
    for entry in entries:
        if entry.sample_period_s != SAMPLE_PERIOD_S:
            fail(f"{entry.appliance_id} {entry.model_version} takes samples of {entry.sample_period_s:g} s, not 60 s")
    return {entry.appliance_id: entry.model_version for entry in entries}


def _serving(application: str) -> dict[str, str]:
    """The version that serves each appliance now."""
    from ray import serve  # noqa: PLC0415 - it takes seconds to import

    from serve_app.app import RESERVED_NAMES  # noqa: PLC0415 - imports Ray

    versions = {}
    for name in sorted(deployments_of(application) - RESERVED_NAMES):
        handle = serve.get_deployment_handle(name, application)
        try:
            state = answer_of(handle.status)
        except NoAnswer:
            fail(f"{name} does not say which version serves")
        if state.model_version is not None:
            versions[name] = state.model_version
    if not versions:
        fail("no appliance is served")
    return versions


def _run(
    building: str,
    versions: dict[str, str],
    start_ns: int,
    stop_ns: int,
    application: str,
    workers: int,
) -> Counter[tuple[str, str]]:
    """Minutes by (appliance, what became of them)."""
    from deployments.backfill import stretches  # noqa: PLC0415 - imports torch
    from deployments.backfill_run import BackfillFailed, run  # noqa: PLC0415 - imports torch and Ray Data

    work = stretches(building, versions, start_ns, stop_ns)
    minutes: Counter[tuple[str, str]] = Counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("days of one appliance"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        bar = bars.add_task(f"backfilling {building}", total=len(work))
        try:
            for done in run(work, application, f"backfill-{uuid.uuid4().hex[:12]}", workers):
                _count(minutes, done)
                bars.advance(bar)
        except BackfillFailed as failure:
            fail(f"{failure}. What was stored stays; the same command goes on from there")
        except KeyboardInterrupt:
            Console(stderr=True).print("stopped; what was stored stays, and the same command goes on from there")
            raise typer.Exit(130) from None
    return minutes


def _count(minutes: Counter[tuple[str, str]], done: StretchDone) -> None:
    for what in COUNTS:
        minutes[done.appliance_id, what] += getattr(done, what)


def _summarise(building: str, versions: dict[str, str], minutes: Counter[tuple[str, str]]) -> None:
    table = Table("appliance", "version", *COUNTS.values(), title=building)
    for appliance, version in versions.items():
        counts = (minutes[appliance, what] for what in COUNTS)
        table.add_row(appliance, version, *(f"{count:,}" for count in counts))
    Console().print(table)
    if not any(minutes[appliance, what] for appliance in versions for what in ("stored", "already_stored")):
        fail("nothing could be predicted: a prediction needs readings of every minute of its window, 512 as a rule")
