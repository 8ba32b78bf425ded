"""`nilm rollout`: what a change of versions would do, doing it, watching it, and taking it back.

The file is the only place where versions are chosen; these commands read and edit it, and hand it to the cluster as
`serve deploy` does. Exit codes: 0 all is as asked; 1 it is not, or was refused.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from deployments.registry_source import registry_source
from deployments.rollout_contracts import RolloutOverview
from deployments.rollout_plan import RolloutPlan
from models.registry import Registry, RegistryError
from serve_app.cli import rollout_words as words
from serve_app.cli.cluster_connection import Address
from serve_app.cli.preflight import LOOPBACK, PreflightRefused, load_serve_config
from serve_app.cli.rollout_cluster import RolloutCluster
from serve_app.cli.rollout_file import RolloutFile, RolloutFileError
from serve_app.cli.train import fail

POLL_S = 0.3
WATCH_S = 1.0
APPLY_TIMEOUT_S = 180.0
"""Loading may take a minute, and Serve a few seconds to pass it on."""
REFUSED_AFTER_S = 15.0
"""A refusal that was there before and still is: then it is the answer to this configuration too."""
HISTORY_ENTRIES = 1000

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
    file, wanted, known = _read(config)
    with RolloutCluster.connect(address, file.application) as cluster:
        _print_changes(cluster.overview(), wanted, known)


@rollout.command()
def apply(config: ConfigFile = DEFAULT_CONFIG, address: Address = "") -> None:
    """Apply the file, as `serve deploy` does, and wait until every replica serves it or one has refused it."""
    file, wanted, known = _read(config)
    with RolloutCluster.connect(address, file.application) as cluster:
        _apply(cluster, file, wanted, known)


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
                        overview = cluster.overview()
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
        running = {one.appliance_id: one for one in cluster.overview().appliances}.get(appliance)
        try:
            version = file.promote(appliance)
        except RolloutFileError as error:
            fail(str(error))
        active = running.active if running else None
        if active is None or active.plan.canary is None or active.plan.canary.version != version:
            fail(f"{version} is not the running canary of {appliance}: apply the file first, and watch it")
        if active.demoted is not None:
            fail(f"{version} was demoted: {active.demoted.reason}. Nothing is changed")
        known = _registry()
        _write_and_apply(cluster, file, known)


@rollout.command()
def rollback(
    appliance: Annotated[
        str | None, typer.Argument(help="Only this one.", show_default="all that the last change was about")
    ] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    address: Address = "",
) -> None:
    """Go back to what was applied before: edits the file, and applies it. Twice is back where you were."""
    file = _file(config)
    with RolloutCluster.connect(address, file.application) as cluster:
        before = words.plans_before(cluster.journal(HISTORY_ENTRIES), appliance)
        if not before:
            fail(f"nothing older is known of {appliance or 'any appliance'}: see `nilm rollout history`")
        try:
            file.replace(words.yaml_plans(file.user_config, before))
        except RolloutFileError as error:
            fail(str(error))
        _write_and_apply(cluster, file, _registry())


@rollout.command()
def history(
    config: ConfigFile = DEFAULT_CONFIG,
    limit: Annotated[int, typer.Option(min=1, max=HISTORY_ENTRIES, help="Entries, the latest.")] = 20,
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


def _registry() -> Registry:
    try:
        return registry_source().registry()
    except RegistryError as error:
        fail(str(error))


def _read(config: Path) -> tuple[RolloutFile, dict[str, RolloutPlan], Registry]:
    file = _file(config)
    try:
        load_serve_config(config, None, LOOPBACK)
    except PreflightRefused as refused:
        fail(str(refused))
    known = _registry()
    return file, _plans(file, known), known


def _plans(file: RolloutFile, registry: Registry) -> dict[str, RolloutPlan]:
    try:
        return file.plans(registry)
    except RolloutFileError as error:
        fail(str(error))


def _write_and_apply(cluster: RolloutCluster, file: RolloutFile, registry: Registry) -> None:
    wanted = _plans(file, registry)
    try:
        file.write()
    except RolloutFileError as error:
        fail(str(error))
    console.print(f"edited {file.path}", soft_wrap=True)
    _apply(cluster, file, wanted, registry)


def _apply(cluster: RolloutCluster, file: RolloutFile, wanted: dict[str, RolloutPlan], registry: Registry) -> None:
    before = cluster.overview()
    _print_changes(before, wanted, registry)
    cluster.deploy(file.path)
    started = time.monotonic()
    with console.status("waiting for every replica"):
        while (refused := _outcome(cluster.overview(), before, wanted, time.monotonic() - started)) is None:
            if time.monotonic() - started > APPLY_TIMEOUT_S:
                fail(f"not applied within {APPLY_TIMEOUT_S:g} s; see `nilm rollout status` and `serve status`")
            time.sleep(POLL_S)
    if refused:
        fail(f"refused, and nothing changed: {refused}")
    console.print(f"every replica serves it, {time.monotonic() - started:.1f} s after the deploy")


def _outcome(
    now: RolloutOverview, before: RolloutOverview, wanted: dict[str, RolloutPlan], waited_s: float
) -> str | None:
    """Why it was refused; empty: it is applied; None: neither yet."""
    news = now.refusals_total > before.refusals_total or waited_s > REFUSED_AFTER_S
    if now.refused_config is not None and news:
        return now.refused_config
    for one in now.appliances:
        if one.refused is not None and one.refused_plan == wanted.get(one.appliance_id) and news:
            return f"{one.appliance_id}: {one.refused.model_version}: {one.refused.reason}: {one.refused.detail}"
    served = all(
        one.active is not None
        and one.active.plan == wanted.get(one.appliance_id)
        and one.preparing is None
        and all(replica.number == one.active.number for replica in one.replicas)
        for one in now.appliances
    )
    return "" if served and now.refused_config is None else None


def _print_changes(overview: RolloutOverview, wanted: dict[str, RolloutPlan], registry: Registry) -> None:
    running = {one.appliance_id: one for one in overview.appliances}
    for sentence in words.changes(running, wanted, registry) or ["no change of versions"]:
        console.print(sentence, soft_wrap=True)


def _table(overview: RolloutOverview) -> Table:
    table = Table(*words.STATUS_COLUMNS)
    for row in words.status_rows(overview):
        table.add_row(*row)
    return table
