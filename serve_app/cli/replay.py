"""`nilm replay`: a stored prediction again, by the version that made it, from the stored readings, and compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deployments.registry_source import registry_source
from models.refusal import ArtifactRefused
from models.registry import Registry, RegistryEntry, RegistryError
from models.source import RegistrySource
from serve_app.cli.cluster_connection import Address, Application, NoAnswer, answer_of, deployments_of, joined
from serve_app.cli.db import moment_ns
from serve_app.cli.train import TABLE_WIDTH, fail
from serve_app.instants import from_ns
from serve_app.middleware import REQUEST_ID

if TYPE_CHECKING:
    from deployments.contracts import PredictionPoint
    from deployments.replay import NotReplayed, Replayed
    from models.loader import LoadedModel
    from serve_app.replay_verdicts import Comparison

NOT_REPLAYED = 2
"""Exit code; 1 says that something differs."""
HEADINGS = ("kW then", "kW now", "difference", "conf. then", "conf. now")


def replay(
    request_id: Annotated[str, typer.Option(help="X-Request-ID of the reply, `request_id` in its body.")],
    start: Annotated[
        str, typer.Option("--from", help="Of the instants predicted for: ISO 8601 with offset, or like -30d.")
    ] = "-30d",
    end: Annotated[str, typer.Option("--to", help="Up to: like --from.")] = "now()",
    address: Address = "",
    application: Application = "nilm",
) -> None:
    """Run a stored prediction again, with the version that made it, and compare.

    The window comes from the stored readings of its building. Ends with 0 when all agree, 1 when something differs, 2
    when something could not be replayed.
    """
    with _ending_with_2():
        if not REQUEST_ID.fullmatch(request_id):
            fail("--request-id must be 1 to 128 letters, digits, dots, _ and -")
        start_ns, stop_ns = moment_ns("--from", start), moment_ns("--to", end)
        if stop_ns <= start_ns:
            fail("--to must be after --from")
        source, registry = _registry()
        with joined(address):
            if "history" not in deployments_of(application):
                fail(f"{application!r} has no deployment that reads what is stored")
            replays = _Replays(source, registry, application).run(request_id, start_ns, stop_ns)
    from serve_app.replay_verdicts import compare, exit_code  # noqa: PLC0415 - imports torch

    comparisons = compare(replays)
    _show(request_id, comparisons)
    raise typer.Exit(exit_code(comparisons))


@contextmanager
def _ending_with_2() -> Iterator[None]:
    """Whatever ends the command before there is a comparison is no difference."""
    try:
        yield
    except typer.Exit:
        raise typer.Exit(NOT_REPLAYED) from None


def _registry() -> tuple[RegistrySource, Registry]:
    try:
        source = registry_source()
        return source, source.registry()
    except RegistryError as error:
        fail(str(error))


class _Replays:
    """Asks the service's History deployment, and runs the models here."""

    def __init__(self, source: RegistrySource, registry: Registry, application: str) -> None:
        from ray import serve  # noqa: PLC0415 - it takes seconds to import

        self._source, self._registry = source, registry
        self._history = serve.get_deployment_handle("history", application)
        self._models: dict[tuple[str, str], LoadedModel | NotReplayed] = {}

    def run(self, request_id: str, start_ns: int, stop_ns: int) -> list[tuple[PredictionPoint, Replayed | NotReplayed]]:
        """Every stored point of the request, and its replay; ends with one sentence when there is none."""
        from deployments.history_contracts import RequestQuery  # noqa: PLC0415 - with numpy
        from deployments.stores.base import MAX_REQUEST_POINTS  # noqa: PLC0415 - with numpy

        query = RequestQuery(request_id, start_ns, stop_ns)
        points: tuple[PredictionPoint, ...] = self._ask(self._history.predictions_of, query)
        if not points:
            fail(f"no prediction of request {request_id} is stored for {_moment(start_ns)} to {_moment(stop_ns)}")
        if len(points) == MAX_REQUEST_POINTS:
            Console(stderr=True).print(f"only its first {len(points)} predictions; --from and --to choose others")
        return [(point, self._replay(point)) for point in points]

    def _replay(self, point: PredictionPoint) -> Replayed | NotReplayed:
        from deployments.replay import NotReplayed, minutes_around, replay, version_of  # noqa: PLC0415 - imports torch

        entry = version_of(point, self._registry)
        if isinstance(entry, NotReplayed):
            return entry
        query = minutes_around(point, entry)
        minutes = self._ask(self._history.minutes, query)
        model = self._model(entry)
        return model if isinstance(model, NotReplayed) else replay(point, model, query, minutes)

    def _model(self, entry: RegistryEntry) -> LoadedModel | NotReplayed:
        from deployments.replay import NotReplayed  # noqa: PLC0415 - imports torch
        from models.loader import load_verified  # noqa: PLC0415 - imports torch

        key = (entry.appliance_id, entry.model_version)
        if key not in self._models:
            try:
                self._models[key] = load_verified(entry, self._source.fetch(entry, self._registry))
            except (ArtifactRefused, RegistryError) as refused:
                self._models[key] = NotReplayed(str(refused))
        return self._models[key]

    def _ask(self, method: Any, query: object) -> Any:
        from deployments.history_contracts import HistoryFailed  # noqa: PLC0415 - with numpy

        try:
            answer = answer_of(method, query)
        except NoAnswer as lost:
            fail(f"the service does not say what is stored ({lost})")
        if isinstance(answer, HistoryFailed):
            fail(answer.detail)
        return answer


def _show(request_id: str, comparisons: list[Comparison]) -> None:
    table = Table(title=f"request {request_id}")
    for heading in ("building", "appliance", "version", "sha256", "instant"):
        table.add_column(heading, no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for one in comparisons:
        point, again = one.point, one.again
        table.add_row(
            point.building_id,
            point.appliance_id,
            point.model_version,
            point.artifact_sha256[:12],
            f"{_moment(point.time_ns)}{'' if point.attribution == 'final' else f' ({point.attribution})'}",
            f"{point.predicted_kw:.4f}",
            _figure(one.expected_kw),
            _figure(None if one.expected_kw is None else one.expected_kw - point.predicted_kw, "+"),
            f"{point.confidence:.3f}",
            "-" if again is None else f"{again.confidence:.3f}",
            one.verdict.value,
        )
    # Without markup: what is stored may hold brackets.
    console = Console(width=max(Console().width, TABLE_WIDTH), markup=False, highlight=False)
    console.print(table)
    for one in comparisons:
        if one.detail:
            console.print(f"{one.point.appliance_id} at {_moment(one.point.time_ns)}: {one.detail}", soft_wrap=True)


def _figure(kw: float | None, sign: str = "") -> str:
    # Plus zero: what rounds to nothing has no sign.
    return "-" if kw is None else f"{round(kw, 4) + 0.0:{sign}.4f}"


def _moment(time_ns: int) -> str:
    return from_ns(time_ns).isoformat(timespec="seconds").replace("+00:00", "Z")
