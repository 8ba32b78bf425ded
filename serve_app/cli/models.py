"""`nilm models`: what is registered, whether it may serve, how a run becomes a version, and the page about them all."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from models.engines import Engine
from models.overview import LEARNING_CURVE, overview, version_figures
from models.registry import PACKAGED_REGISTRY, Registry, RegistryEntry, RegistryError
from models.study_tables import Study, StudyError, learning_curve_points, read_study
from serve_app.cli.train import TABLE_WIDTH, Threads, fail, progress_bars, require_tools

models = typer.Typer(help="List, verify, add and describe model versions.", no_args_is_help=True)

DEFAULT_STUDY = Path("docs/models/study.json")
RegistryFile = Annotated[Path, typer.Option("--registry", help="registry.json.", show_default="the packaged one")]
RegistryRoot = Annotated[
    Path, typer.Option("--registry-root", help="Folder of registry.json.", show_default="the models package")
]


def _load(path: Path) -> Registry:
    try:
        return Registry.load(path)
    except RegistryError as error:
        fail(str(error))


@models.command("list")
def list_versions(
    registry: RegistryFile = PACKAGED_REGISTRY,
    config: Annotated[Path, typer.Option(help="What serves is read from here, if it exists.")] = Path(
        "serve_config.yaml"
    ),
) -> None:
    """Every version with its figures on a home it never saw, and what serve_config.yaml serves."""
    served = _served(config)
    result = Table(title="on a home it never saw; MAE in W")
    for heading in ("model", "version", "active", "served", "tested on"):
        result.add_column(heading, no_wrap=True)
    for heading in ("F1", "MAE", "off MAE", "F1 prov.", "MAE prov.", "parameters"):
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("engine", no_wrap=True)
    for entry in _load(registry).entries:
        figures = version_figures(entry)
        result.add_row(
            entry.model_id,
            entry.model_version,
            "yes" if entry.is_active else "",
            served.get((entry.appliance_id, entry.model_version), ""),
            figures.home,
            *figures.final,
            figures.always_off,
            *figures.provisional,
            _count(entry.metrics.get("parameters")),
            entry.engine,
        )
    # Without markup: a home may be called "Flat [2]".
    Console(width=max(Console().width, TABLE_WIDTH), markup=False).print(result)


def _count(parameters: Any) -> str:
    # Registries of before may hold anything there.
    return f"{parameters:,}" if isinstance(parameters, int) else "-"


def _served(config: Path) -> dict[tuple[str, str], str]:
    """(appliance, version) -> its role, by the rollout plans of a Serve config; empty when there is none."""
    if not config.is_file():
        return {}
    try:
        document: Any = yaml.safe_load(config.read_text(encoding="utf-8"))
        return {
            (str(appliance), str(part["version"] if role != "stable" else part)): role
            for application in document["applications"]
            for deployment in application.get("deployments") or ()
            if deployment["name"] == "rollout"
            for appliance, plan in (deployment.get("user_config") or {}).items()
            for role, part in plan.items()
            if role in ("stable", "canary", "shadow")
        }
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        fail(f"{config} is not a Serve config: {error}")


@models.command()
def verify(
    model_id: Annotated[str | None, typer.Argument(help="One model.  [default: the active versions]")] = None,
    version: Annotated[str | None, typer.Argument(help="One version of it.  [default: all of them]")] = None,
    registry: RegistryFile = PACKAGED_REGISTRY,
) -> None:
    """Load versions and judge them as a release is judged; exit code 1 when one is refused."""
    # torch takes seconds to import; `nilm --help` should not.
    from models.release import verify as reasons_of  # noqa: PLC0415

    known = _load(registry)
    chosen = [entry for entry in known.entries if _is_chosen(entry, model_id, version)]
    if not chosen:
        fail(f"no such version; registered are {', '.join(_name(entry) for entry in known.entries) or 'none'}")
    console, refused = Console(soft_wrap=True, highlight=False, markup=False), 0
    for entry in chosen:
        reasons = reasons_of(entry, known.root)
        refused += bool(reasons)
        console.print(f"{_name(entry)}: {'refused' if reasons else 'ok'}")
        for reason in reasons:
            console.print(f"  {reason}")
    if refused:
        fail(f"{refused} of {len(chosen)} versions may not be released")


def _is_chosen(entry: RegistryEntry, model_id: str | None, version: str | None) -> bool:
    if model_id is None:
        return entry.is_active
    return entry.model_id == model_id and version in (None, entry.model_version)


def _name(entry: RegistryEntry) -> str:
    return f"{entry.model_id} {entry.model_version}"


@models.command()
def add(
    run: Annotated[Path, typer.Argument(help="A finished run folder of `nilm train` or `nilm ensemble`.")],
    version: Annotated[str, typer.Option(help="Its version; one that exists is never changed.")],
    active: Annotated[bool, typer.Option("--active", help="Make it the active one, if it may be.")] = False,
    root: RegistryRoot = PACKAGED_REGISTRY.parent,
) -> None:
    """Register a run as a version: files copied, hashed, loaded, card written; all of it or nothing."""
    from models.release import ReleaseRefused  # noqa: PLC0415
    from models.release import add as add_run  # noqa: PLC0415

    try:
        entry = add_run(run, root, version, active)
    except ReleaseRefused as error:
        fail(str(error))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"registered {_name(entry)}, card {root / str(entry.card_path)}")
    console.print(f"serve it: name version {version} in serve_config.yaml and deploy")


@models.command("engine")
def set_engine(
    model_id: Annotated[str, typer.Argument(help="The model.")],
    version: Annotated[str, typer.Argument(help="Its version.")],
    engine: Annotated[Engine, typer.Argument(help="What shall run its forward pass on a CPU.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", envvar="NILM_DATA", help="Folder with household recordings; torch needs none."),
    ] = None,
    root: RegistryRoot = PACKAGED_REGISTRY.parent,
    threads: Threads = 1,
) -> None:
    """Choose a version's engine: measured with both on all tests of its card first, refused when F1 drops."""
    known = _load(root / PACKAGED_REGISTRY.name)
    chosen = [entry for entry in known.entries if (entry.model_id, entry.model_version) == (model_id, version)]
    if not chosen:
        fail(f"no such version; registered are {', '.join(_name(entry) for entry in known.entries) or 'none'}")
    entry = dataclasses.replace(chosen[0], engine=engine, engine_evidence=None)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if engine is not Engine.TORCH:
        if data is None:
            fail(f"{engine} is measured before it serves: give the folder with the recordings, --data")
        entry = _measured(entry, root, data, threads)
        for line in _evidence_lines(entry):
            console.print(line)
    from models.release import ReleaseRefused  # noqa: PLC0415
    from models.release import set_engine as change_registry  # noqa: PLC0415

    try:
        change_registry(entry, root)
    except ReleaseRefused as error:
        fail(str(error))
    console.print(f"{_name(entry)} runs on {engine}; replicas that serve it follow after POST /admin/reload-models")


def _measured(entry: RegistryEntry, root: Path, data: Path, threads: int) -> RegistryEntry:
    require_tools()
    from models.training.engine_evidence import with_evidence  # noqa: PLC0415
    from models.training.run import RunError  # noqa: PLC0415

    try:
        with progress_bars() as progress:
            return with_evidence(entry, root, entry.engine, data, threads, progress)
    except RunError as error:
        fail(str(error))


def _evidence_lines(entry: RegistryEntry) -> list[str]:
    return [
        f"{test['home']} ({test['kind'].replace('_', ' ')}), {answer}: "
        + "; ".join(
            f"{name} F1 {test[key][answer]['f1']:.4f}, MAE {test[key][answer]['mae_w']:.4f} W"
            for name, key in ((Engine.TORCH, "torch"), (entry.engine, "engine"))
        )
        for test in (entry.engine_evidence or {}).get("tests", [])
        for answer in ("final", "provisional")
    ]


@models.command()
def docs(
    out: Annotated[Path, typer.Option(help="The page.")] = Path("docs/models.md"),
    study: Annotated[
        Path | None,
        typer.Option(help="Figures of `nilm study`.", show_default="docs/models/study.json, if it exists"),
    ] = None,
    registry: RegistryFile = PACKAGED_REGISTRY,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 if the page is not current.")
    ] = False,
) -> None:
    """Write the page that compares all versions, from the registry and the study."""
    known = _load(registry)
    try:
        # One that was named must be there: a page without its chapters would look finished.
        runs: Study | None = read_study(study or DEFAULT_STUDY) if study or DEFAULT_STUDY.exists() else None
    except StudyError as error:
        fail(str(error))
    text = overview(known, runs, out.parent)
    try:
        if check:
            if not out.is_file() or out.read_bytes() != text.encode():
                fail(f"{out} is not what the registry gives; write it with: nilm models docs")
            return
        _write_page(out, text, runs)
    except OSError as error:
        fail(f"{error.filename or out}: {error.strerror or error}")
    Console(soft_wrap=True, highlight=False, markup=False).print(f"wrote {out}")


def _write_page(out: Path, text: str, runs: Study | None) -> None:
    points = learning_curve_points(runs) if runs is not None else []
    if points:
        require_tools()
        from models.training.plots import learning_curve  # noqa: PLC0415

        (out.parent / LEARNING_CURVE).parent.mkdir(parents=True, exist_ok=True)
        learning_curve(out.parent / LEARNING_CURVE, points)
    from models.files import write_atomically  # noqa: PLC0415

    write_atomically(out, text.encode())
