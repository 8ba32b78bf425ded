"""`nilm rollout`: what a change of versions would do, doing it, watching it, and taking it back.

The file is the only place where versions are chosen; these commands read and edit it, and hand it to the cluster as
`serve deploy` does. Exit codes: 0 all is as asked; 1 it is not, or was refused.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from deployments.journal_contracts import LOOKED_BACK_ENTRIES
from deployments.registry_source import registry_source
from deployments.rollout_contracts import Directive, RolloutOverview
from deployments.rollout_plan import RolloutPlan
from models.registry import Registry, RegistryError
from serve_app.cli import rollout_words as words
from serve_app.cli.cluster_connection import Address
from serve_app.cli.ports import LOOPBACK
from serve_app.cli.preflight import PreflightRefused, load_serve_config
from serve_app.cli.rollout_cluster import RolloutCluster
from serve_app.cli.rollout_file import RolloutFile, RolloutFileError
from serve_app.cli.train import fail

POLL_S = 0.3
WATCH_S = 1.0
APPLY_TIMEOUT_S = 180.0
"""Loading may take a minute, and Serve a few seconds to pass it on."""
REFUSED_AFTER_S = 15.0
"""A refusal that was there before and still is: then it is the answer to this configuration too."""

ConfigFile = Annotated[Path, typer.Option("--config", help="The Serve configuration.")]
DEFAULT_CONFIG = Path("serve_config.yaml")

rollout = typer.Typer(
    name="rollout", help="Which model versions serve: plan a change, apply it, watch it, take it back.",
    no_args_is_help=True,
)  # fmt: skip
console = Console(highlight=False, markup=False)


@rollout.command()
def plan(config: ConfigFile = DEFAULT_CONFIG, address: Address = "") -> None:
    """Say in words what applying the file would change in the running system. Changes nothing."""
    checked = _checked(_file(config), _registry())
    with RolloutCluster.connect(address, checked.file.application) as cluster:
        _print_changes(cluster.overview(), checked)


@rollout.command()
def apply(config: ConfigFile = DEFAULT_CONFIG, address: Address = "") -> None:
    """Apply the file, as `serve deploy` does, and wait until every replica serves it or one has refused it."""
    checked = _checked(_file(config), _registry())
    with RolloutCluster.connect(address, checked.file.application) as cluster:
        _apply(cluster, checked)


@rollout.command()
def status(
    config: ConfigFile = DEFAULT_CONFIG,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, until Ctrl-C.")] = False,
    address: Address = "",
) -> None:
    """A table of every appliance and version. Exit code 1 when something is refused, demoted or not served."""
    with RolloutCluster.connect(address, _file(config).application) as cluster:
        overview = cluster.overview()
        if not watch:
            console.print(_table(overview))
        else:
            with Live(_table(overview), console=console, auto_refresh=False) as live:
                try:
                    while True:
                        time.sleep(WATCH_S)
                        overview = cluster.overview_if_there() or overview
                        live.update(_table(overview), refresh=True)
                except KeyboardInterrupt:
                    pass
    found = words.troubles(overview)
    for sentence in found:
        console.print(sentence, soft_wrap=True)
    raise typer.Exit(1 if found else 0)


@rollout.command()
def promote(
    appliance: Annotated[str, typer.Argument(help="Its canary becomes the stable version.")],
    config: ConfigFile = DEFAULT_CONFIG,
    address: Address = "",
) -> None:
    """Make the canary of an appliance its stable version: edits the file, and applies it."""
    file = _file(config)
    with RolloutCluster.connect(address, file.application) as cluster:
        running = _running(cluster.overview())
        _refuse_other_edits(file, running, {appliance})
        try:
            version = file.promote(appliance)
        except RolloutFileError as error:
            fail(str(error))
        active = running.get(appliance)
        if active is None or active.plan.canary is None or active.plan.canary.version != version:
            fail(f"{version} is not the running canary of {appliance}: apply the file first, and watch it")
        if active.demoted is not None:
            fail(f"{version} was demoted: {active.demoted.reason}. Nothing is changed")
        _write_and_apply(cluster, file)


@rollout.command()
def rollback(
    appliance: Annotated[
        str | None, typer.Argument(help="Only this one.", show_default="all that the last change was about")
    ] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    address: Address = "",
) -> None:
    """Go back to what was applied before: edits the file, and applies it. Twice is back where you were.

    When the file says something else than what runs, because it was refused or not applied, what runs is put back into
    the file, and nothing else. A canary that was demoted does not come back.
    """
    file = _file(config)
    with RolloutCluster.connect(address, file.application) as cluster:
        running = _running(cluster.overview())
        edited = {name for name in _edited(file, running) if appliance in (None, name)}
        if edited:
            before = {name: running[name].plan for name in edited}
        else:
            plans = {name: one.plan for name, one in running.items()}
            before = words.plans_before(cluster.journal(LOOKED_BACK_ENTRIES), plans, appliance)
        if not before:
            fail(f"nothing older is known of {appliance or 'any appliance'}: see `nilm rollout history`")
        _refuse_other_edits(file, running, set(before))
        try:
            file.replace(words.yaml_plans(file.user_config, before))
        except RolloutFileError as error:
            fail(str(error))
        _write_and_apply(cluster, file)


@rollout.command()
def history(
    config: ConfigFile = DEFAULT_CONFIG,
    limit: Annotated[int, typer.Option(min=1, max=LOOKED_BACK_ENTRIES, help="Entries, the latest.")] = 20,
    address: Address = "",
) -> None:
    """What was applied, refused and demoted, newest first. Kept in the store, beside the predictions."""
    with RolloutCluster.connect(address, _file(config).application) as cluster:
        entries = cluster.journal(limit)
    table = Table(*words.HISTORY_COLUMNS)
    for row in words.history_rows(entries):
        table.add_row(*row)
    console.print(table)


def _file(config: Path) -> RolloutFile:
    try:
        return RolloutFile.read(config)
    except RolloutFileError as error:
        fail(str(error))


@dataclass(frozen=True)
class _Checked:
    """A configuration that Serve and the registry would take: the file, its plans, and what is deployed."""

    file: RolloutFile
    plans: dict[str, RolloutPlan]
    registry: Registry
    document: dict[str, object]


def _registry() -> Registry:
    try:
        return registry_source().registry()
    except RegistryError as error:
        fail(str(error))


def _checked(file: RolloutFile, registry: Registry) -> _Checked:
    """What is on disk, or the command ends with the line to mend."""
    try:
        document = load_serve_config(file.path, None, LOOPBACK).document
        return _Checked(file, file.plans(registry), registry, document)
    except (PreflightRefused, RolloutFileError) as error:
        fail(str(error))


def _running(overview: RolloutOverview) -> dict[str, Directive]:
    return {one.appliance_id: one.active for one in overview.appliances if one.active is not None}


def _edited(file: RolloutFile, running: dict[str, Directive]) -> set[str]:
    """Appliances of which the file says something else than what runs."""
    return {name for name, one in running.items() if not words.says(file.user_config.get(name), one.plan)}


def _refuse_other_edits(file: RolloutFile, running: dict[str, Directive], about: set[str]) -> None:
    """Who goes back with one appliance does not mean what somebody has begun to write about another."""
    others = sorted(_edited(file, running) - about)
    if others:
        fail(f"{file.path} says something else of {', '.join(others)} than what runs: apply that first, or undo it")


def _write_and_apply(cluster: RolloutCluster, file: RolloutFile) -> None:
    registry = _registry()
    try:
        file.plans(registry)
        file.write()
    except RolloutFileError as error:
        fail(str(error))
    console.print(f"edited {file.path}", soft_wrap=True)
    _apply(cluster, _checked(file, registry))


def _apply(cluster: RolloutCluster, checked: _Checked) -> None:
    before = cluster.overview()
    _print_changes(before, checked)
    cluster.deploy(checked.document)
    started = time.monotonic()
    with console.status("waiting for every replica"):
        while True:
            waited_s = time.monotonic() - started
            now = cluster.overview_if_there()
            outcome = None if now is None else words.outcome(now, before, checked.plans, waited_s > REFUSED_AFTER_S)
            if now is not None and outcome is not None:
                break
            if waited_s > APPLY_TIMEOUT_S:
                fail(f"not applied within {APPLY_TIMEOUT_S:g} s; see `nilm rollout status` and `serve status`")
            time.sleep(POLL_S)
    if outcome:
        for sentence in outcome:
            console.print(sentence, soft_wrap=True)
        fail(f"refused; what is named keeps what it had, and {checked.file.path} stays as it is")
    console.print(f"every replica serves it, {time.monotonic() - started:.1f} s after the deploy")
    found = words.troubles(now)
    for sentence in found:
        console.print(sentence, soft_wrap=True)
    if found:
        raise typer.Exit(1)


def _print_changes(overview: RolloutOverview, checked: _Checked) -> None:
    running = {one.appliance_id: one for one in overview.appliances}
    for sentence in words.changes(running, checked.plans, checked.registry) or ["no change of versions"]:
        console.print(sentence, soft_wrap=True)


def _table(overview: RolloutOverview) -> Table:
    table = Table(*words.STATUS_COLUMNS)
    for row in words.status_rows(overview):
        table.add_row(*row)
    return table
